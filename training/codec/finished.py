"""The folder of a finished codec: checks before training, and writing it at the end."""

from __future__ import annotations

import json
import os
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from common.config import Recipe
from common.errors import AttuneError, one_line
from training.codec.config import CodecTrainingConfig
from training.codec.losses import COMMITMENT_WEIGHT, WAVEFORM_WEIGHTS
from training.codec.page import report_page
from training.codec.validation import Validation
from training.run.files import as_any_file
from training.run.folder import check_writable, differing, read_config
from training.run.log import read_log


def run_folder(out: Path) -> Path:
    """Folder of the run that makes the codec in `out`: its checkpoints and log."""
    return out.with_name(out.name + ".run") if out.name else out


def finished(out: Path, run: Path, started: dict[str, Any], fresh: bool) -> bool:
    """Whether this codec is finished; a codec made with another configuration is never overwritten.

    Args:
        started: settings of the training, as `config.json` keeps them.

    Raises:
        AttuneError: another codec is there, or one that `fresh` would have to remove.
    """
    if not os.path.isfile(out / "model.safetensors"):
        return False
    if fresh:
        raise AttuneError(
            f"codec_training.out {out} holds a finished codec, which --fresh does not remove; name "
            "another folder or remove it"
        )
    claimed = run / "config.json"
    keys = differing(read_config(claimed), started) if claimed.is_file() else [f"no {claimed}"]
    if keys:
        raise AttuneError(
            f"codec_training.out {out} already holds a codec made with another configuration "
            f"({', '.join(keys)}); name another folder or remove it"
        )
    return True


def check_free(out: Path, run: Path) -> None:
    """Check before training that the finished folder can be renamed to `out`.

    Raises:
        AttuneError: `out` holds something else, or cannot be written.
    """
    for folder in (out.parent, run):
        check_writable(folder, "codec_training.out")
    empty = out.is_dir() and not out.is_symlink() and not any(out.iterdir())
    if not out.name or (os.path.lexists(out) and not empty):
        raise AttuneError(
            f"codec_training.out {out} exists and is not a codec; name another folder or remove it"
        )


def save_codec(
    out: Path,
    run: Path,
    model: Any,
    recipe: Recipe,
    config: CodecTrainingConfig,
    data: str,
    found: Validation,
) -> None:
    """Write the finished folder; it appears whole or not at all.

    Args:
        data: the training data, in a few words.
        found: validation of these weights.

    Raises:
        AttuneError: the folder cannot be written.
    """
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed here
    measured = found.figures
    try:
        model.save_pretrained(partial)  # weight norm kept apart, as in the released EnCodec weights
        for weights in partial.glob("*.safetensors"):
            as_any_file(weights)
        streams = enumerate(zip(measured["used"], measured["perplexity"], strict=True))
        usage = "\n".join(f"| {k} | {used:.1%} | {value:.1f} |" for k, (used, value) in streams)
        terms = WAVEFORM_WEIGHTS | {"commitment": COMMITMENT_WEIGHT}
        losses = ", ".join(f"{name} {weight:g}" for name, weight in terms.items())
        windows = "/".join(str(window) for window in config.discriminator.windows)
        decided = {"sample_rate": recipe.sample_rate, "seed": recipe.seed}
        settings = json.dumps(decided | config.model_dump(mode="json", exclude={"out"}), indent=2)
        (partial / "README.md").write_text(
            f"# Codec of recipe `{recipe.name}`\n\n"
            f"An EnCodec ({recipe.sample_rate} Hz, {config.architecture.n_codebooks} x "
            f"{config.architecture.codebook_size} codes) in Hugging Face `EncodecModel` form, "
            f"trained from scratch.\n\n"
            f"- Command: `python -m training codec --config {recipe.source_file}`\n"
            f"- Finished: {date.today().isoformat()}, {config.steps} steps of "
            f"{config.batch_size} x {config.segment_s:g} s, {os.cpu_count()} CPU cores, "
            f"torch {torch.__version__}\n"
            f"- Data: {data}\n"
            f"- Losses: {losses}, balanced; STFT discriminator of {config.discriminator.filters} "
            f"filters, windows {windows}\n\n"
            f"Measured on {measured['clips']} held-out clips, whole: SI-SDR "
            f"{measured['si_sdr_db']:.2f} dB, mel distance {measured['mel']:.4f}, L1 "
            f"{measured['time']:.5f}.\n\n"
            f"| stream | codes used | perplexity |\n|---|---|---|\n{usage}\n\n"
            f"## Settings\n\n```json\n{settings}\n```\n"
        )
        html = report_page(
            recipe.name, str(recipe.source_file), recipe.sample_rate, config, found, read_log(run),
            data,
        )  # fmt: skip
        (partial / "report.html").write_text(html, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or one_line(error)
        raise AttuneError(
            f"codec_training.out {out}: cannot be written: {reason}; make room and rerun the same "
            "command, which resumes from the last checkpoint"
        ) from error
    try:
        partial.rename(out)
    except OSError as error:
        raise AttuneError(
            f"codec_training.out {out}: cannot be written: {error.strerror}; the finished codec is "
            f"in {partial}: move it to where you want it"
        ) from error
