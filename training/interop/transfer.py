"""What `python -m training export` and `import` do: find out what a source is, and pass it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from common.codec import resolve_codec
from common.errors import AttuneError
from training.interop.codec import export_codec, import_codec, is_codec
from training.interop.folders import check_free, staged
from training.interop.sources import fetch, read_config

Part = Literal["all", "codec"]


def export(source: str, to: Path) -> dict[str, Any]:
    """Write a codec for Hugging Face.

    Args:
        source: a codec's folder, or `builtin:NAME`.
        to: folder to write, new or an earlier export.

    Returns:
        What was written, for `--json`.

    Raises:
        AttuneError: the source is neither, or `to` holds something else.
    """
    check_free(to, replace=True)
    folder = resolve_codec(source) if source.startswith("builtin:") else Path(source)
    if not is_codec(folder):
        raise AttuneError(f"{source}: no codec there (config.json of an EncodecModel)")
    with staged(to, replace=True) as partial:
        facts = export_codec(folder, partial)
    return facts | {"to": str(to)}


def import_(source: str, to: Path, part: Part = "all") -> dict[str, Any]:
    """Take weights in that others wrote.

    Args:
        source: folder or hub id.
        to: folder to write, new or empty.
        part: `codec` takes the codec alone.

    Returns:
        What was written, for `--json`.

    Raises:
        AttuneError: nothing known there, or `to` holds something.
    """
    check_free(to, replace=False)
    folder = fetch(source)
    kind = read_config(folder).get("model_type") if folder.is_dir() else None
    if kind == "encodec" or (kind == "musicgen" and part == "codec"):
        with staged(to, replace=False) as partial:
            codec_id = import_codec(folder, partial, source)
        return {"kind": "codec", "codec_id": codec_id, "to": str(to)}
    raise AttuneError(f"{source}: config.json says model_type {kind!r}, expected 'encodec'")
