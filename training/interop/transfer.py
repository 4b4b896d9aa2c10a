"""`python -m training export` and `import`: find out what a source is, and write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from common.codec import resolve_codec
from common.config import Recipe
from common.errors import AttuneError
from training.interop.audiocraft import (
    is_audiocraft,
    read_checkpoint,
    read_codec_checkpoint,
    read_lm,
)
from training.interop.codec import export_codec, import_codec, is_codec, write_codec
from training.interop.export import export_run
from training.interop.folders import check_free, staged
from training.interop.imports import read_musicgen, write_parts
from training.interop.sources import AUDIOCRAFT_FILES, fetch, read_config
from training.run.folder import find_checkpoint, recorded_recipe

Part = Literal["all", "codec"]


def export(
    source: str, to: Path, recipe: Recipe | None = None, raw: bool = False
) -> dict[str, Any]:
    """Write a trained run, or a codec, for Hugging Face.

    Args:
        source: folder of a run, of one of its checkpoints, or of a codec; a run's name in the
            recipe's `run_dir`; `builtin:NAME` for a shipped codec.
        to: folder to write, new or an earlier export.
        recipe: the recipe of the run; if None, the copy in the run's folder.
        raw: export a run's weights of the last step instead of its averaged weights.

    Returns:
        What was written, for `--json`.

    Raises:
        AttuneError: the source is none of these, cannot be exported, or `to` holds something else.
    """
    check_free(to, replace=True)
    folder = resolve_codec(source) if source.startswith("builtin:") else Path(source)
    if recipe and not folder.exists():
        folder = Path(recipe.run_dir) / source
    if is_codec(folder):
        with staged(to, replace=True) as partial:
            facts = export_codec(folder, partial)
    else:
        recipe = recipe or recorded_recipe(find_checkpoint(folder)[0])
        with staged(to, replace=True) as partial:
            facts = export_run(folder, recipe, partial, raw)
    return facts | {"to": str(to)}


def import_(
    source: str, to: Path, part: Part = "all", codec: str = "", text_encoder: str = ""
) -> dict[str, Any]:
    """Write a model or a codec that others trained as a run or a codec of ours.

    Args:
        source: folder, file or hub id of a Hugging Face folder or an audiocraft checkpoint.
        to: folder to write, new or empty.
        part: `codec` takes only the codec.
        codec, text_encoder: paths to use instead of copies of those inside.

    Returns:
        What was written, for `--json`.

    Raises:
        AttuneError: the source is none of these, or `to` holds something.
    """
    check_free(to, replace=False)
    folder = fetch(source)
    if is_audiocraft(folder):
        return _import_audiocraft(folder, source, to, part, codec, text_encoder)
    kind = read_config(folder).get("model_type") if folder.is_dir() else None
    if kind == "encodec" or (kind == "musicgen" and part == "codec"):
        with staged(to, replace=False) as partial:
            codec_id = import_codec(folder, partial, source)
        return {"kind": "codec", "codec_id": codec_id, "to": str(to)}
    if kind == "musicgen":
        parts = read_musicgen(folder, source, codec, text_encoder)
        with staged(to, replace=False) as partial:
            return write_parts(parts, partial, to, source)
    raise AttuneError(
        f"{source}: config.json says model_type {kind!r}, expected 'musicgen' or 'encodec'"
    )


def _import_audiocraft(
    path: Path, source: str, to: Path, part: Part, codec: str, text_encoder: str
) -> dict[str, Any]:
    compressed = path / AUDIOCRAFT_FILES[1] if path.is_dir() else path
    if part == "codec" or (not path.is_dir() and read_checkpoint(path).is_codec):
        if not compressed.is_file():
            raise AttuneError(f"{source}: has no {AUDIOCRAFT_FILES[1]}")
        model = read_codec_checkpoint(read_checkpoint(compressed))
        with staged(to, replace=False) as partial:
            codec_id = write_codec(partial, model, source)
        return {"kind": "codec", "codec_id": codec_id, "to": str(to)}
    parts = read_lm(path, codec, text_encoder)
    with staged(to, replace=False) as partial:
        return write_parts(parts, partial, to, source)
