"""The files of a codec run: what it was started with, log, and the finished folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.tensorboard import SummaryWriter

from common.config import Recipe
from common.errors import AttuneError
from training.codec.config import CodecTrainingConfig
from training.codec.page import report_page, show_examples
from training.codec.state import CHECKPOINT
from training.codec.validation import Validation
from training.distributed import World, on_first
from training.run.files import as_any_file
from training.run.folder import check_writable, writing
from training.run.log import read_log, trim_log

EXECUTION_ONLY = {
    "out", "threads", "workers", "prefetch", "log_every", "checkpoint_every",
    "valid_every", "valid_clips", "valid_max_s", "examples",
}  # fmt: skip
"""Keys that may change when a run goes on: they do not decide what is learnt."""


def run_folder(out: Path) -> Path:
    """Where the run of the codec in `out` keeps its checkpoints and log."""
    return out.with_name(out.name + ".run") if out.name else out


def finished(out: Path, run: Path, settings: dict[str, Any], fresh: bool) -> bool:
    """Whether this very codec is done; one made with other settings is never overwritten.

    Raises:
        AttuneError: another one is there, or one that `fresh` would have to remove.
    """
    if not os.path.isfile(out / "model.safetensors"):
        return False
    if fresh:
        raise AttuneError(
            f"codec_training.out {out} holds a finished codec, which --fresh does not remove; name "
            "another folder or remove it"
        )
    claimed = run / "config.json"
    if claimed.is_file() and _read_settings(claimed) == json.loads(json.dumps(settings)):
        return True
    raise AttuneError(
        f"codec_training.out {out} already holds a codec made with another configuration; "
        "name another folder or remove it"
    )


def recorded(run: Path, world: World, fresh: bool) -> dict[str, Any]:
    """The settings that a run which can go on was begun with; empty if it begins."""

    def read() -> dict[str, Any]:
        path = run / "config.json"
        goes_on = not fresh and os.path.isfile(path) and _has_saved(run)
        found = _read_settings(path) if goes_on else {}
        return found if isinstance(found, dict) else {}

    return on_first(read, world)


def check_free(out: Path, run: Path) -> None:
    """The finished folder is renamed to `out`: better to know now that this will succeed.

    Raises:
        AttuneError: something else is there, or nothing can be written there.
    """
    for folder in (out.parent, run):
        check_writable(folder, "codec_training.out")
    empty = out.is_dir() and not out.is_symlink() and not any(out.iterdir())
    if not out.name or (os.path.lexists(out) and not empty):
        raise AttuneError(
            f"codec_training.out {out} exists and is not a codec; name another folder or remove it"
        )


def _read_settings(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise AttuneError(
            f"{path} is damaged; remove {path.parent} to train from the beginning"
        ) from error


def _has_saved(run: Path) -> bool:
    return any((run / name).is_file() for name in (CHECKPOINT, "validation.json"))


def claim(run: Path, settings: dict[str, Any], fresh: bool) -> None:
    """Write the run's configuration down; once something was saved, check that it is the same.

    Args:
        fresh: remove what was saved first.

    Raises:
        AttuneError: it is another one, or cannot be written.
    """
    with writing(run, "codec_training.out"):
        if fresh:
            shutil.rmtree(run / "tb", ignore_errors=True)
            for name in (CHECKPOINT, "validation.json", "config.json"):
                (run / name).unlink(missing_ok=True)
        run.mkdir(parents=True, exist_ok=True)
        path = run / "config.json"
        wanted = json.loads(json.dumps(settings))
        if path.is_file() and _has_saved(run):
            found = _read_settings(path)
            differs = sorted(k for k in wanted | found if wanted.get(k) != found.get(k))
            if differs:
                raise AttuneError(
                    f"{run} was begun with another configuration ({', '.join(differs)} differ); "
                    "name another codec_training.out or start this one over with --fresh"
                )
            return
        # Rows of a run that ended before its first checkpoint: all of its steps are taken anew.
        (run / "log.jsonl").unlink(missing_ok=True)
        path.write_text(json.dumps(wanted, indent=2) + "\n")


class CodecLog:
    """`log.jsonl` and TensorBoard of a run; the first process writes them."""

    def __init__(self, run: Path, done: int) -> None:
        """
        Args:
            done: finished steps; what the log and TensorBoard have of later ones comes again.
        """
        self._path = run / "log.jsonl"
        trim_log(run, done)
        self._board = SummaryWriter(str(run / "tb"), purge_step=done + 1)
        self._originals = True

    def write(self, row: dict[str, Any]) -> None:
        """One row, of step `row["step"]`; lists have a value per stream."""
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if isinstance(value, list):
                for stream, item in enumerate(value):
                    self._board.add_scalar(f"codec/{name}_{stream}", item, row["step"])
            elif name != "step":
                self._board.add_scalar(f"codec/{name}", value, row["step"])

    def write_validation(self, step: int, found: Validation, sample_rate: int) -> None:
        """Its figures as a row (`valid_...`), its examples as players and spectrograms."""
        self.write({"step": step, **{f"valid_{k}": v for k, v in found.figures.items()}})
        show_examples(self._board, found, sample_rate, step, self._originals)
        self._originals = False

    def close(self) -> None:
        self._board.close()


def save_codec(
    out: Path,
    run: Path,
    model: Any,
    recipe: Recipe,
    config: CodecTrainingConfig,
    settings: dict[str, Any],
    data: str,
    found: Validation,
) -> None:
    """Write the finished folder; it appears whole or not at all.

    Args:
        data: what it was trained on, in a few words.
        found: of these weights.

    Raises:
        AttuneError: it cannot be written.
    """
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed right here
    measured = found.figures
    with _becoming(out, partial):
        model.save_pretrained(partial)  # weight norm kept apart, as in the released EnCodec weights
        for weights in partial.glob("*.safetensors"):
            as_any_file(weights)
        usage = "\n".join(
            f"| {k} | {used:.1%} | {perplexity:.1f} |"
            for k, (used, perplexity) in enumerate(
                zip(measured["used"], measured["perplexity"], strict=True)
            )
        )
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
            f"- Losses: {_losses(config)}\n\n"
            f"Measured on {measured['clips']} held-out clips, whole: SI-SDR "
            f"{measured['si_sdr_db']:.2f} dB, mel distance {measured['mel']:.4f}, L1 "
            f"{measured['time']:.5f}.\n\n"
            f"| stream | codes used | perplexity |\n|---|---|---|\n{usage}\n\n"
            f"## Settings\n\n```json\n{json.dumps(settings, indent=2)}\n```\n"
        )
        html = report_page(
            recipe.name, str(recipe.source_file), recipe.sample_rate, config, found, read_log(run),
            data,
        )  # fmt: skip
        (partial / "report.html").write_text(html, encoding="utf-8")
        (run / "validation.json").write_text(json.dumps(measured, indent=2) + "\n")


@contextmanager
def _becoming(out: Path, partial: Path) -> Iterator[None]:
    """What is written into `partial` becomes `out`.

    Raises:
        AttuneError: it cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise AttuneError(
            f"codec_training.out {out}: cannot be written: {reason}; rerun the same command to go "
            "on from the last checkpoint, once there is room"
        ) from error
    try:
        partial.rename(out)
    except OSError as error:
        raise AttuneError(
            f"codec_training.out {out}: cannot be written: {error.strerror}; the finished codec is "
            f"in {partial}: move it to where you want it"
        ) from error


def _losses(config: CodecTrainingConfig) -> str:
    weights = config.losses
    terms = [f"{name} {weight:g}" for name, weight in weights.of_waveforms.items()]
    text = ", ".join([*terms, f"commitment {weights.commitment:g}"])
    text += f"; squared log error {weights.mel_squared:g} in mel"
    text += ", balanced" if config.balancer else ", not balanced"
    if not weights.use_discriminator:
        return f"{text}; no adversarial part"
    wanted = config.discriminator
    windows = "/".join(str(window) for window in wanted.windows)
    return f"{text}; STFT discriminator of {wanted.filters} filters, windows {windows}"
