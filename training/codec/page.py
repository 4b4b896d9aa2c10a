"""One HTML page beside the weights: how the codec sounds, and how its training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from common import page
from common.spectrogram import spectrogram
from training.codec.config import CodecTrainingConfig
from training.codec.validation import Validation
from training.evaluation.plots import Series, curves

_LOSSES = {
    "waveform": ("time", "mel", "valid_mel", "feature"),
    "hinge": ("adversarial", "discriminator"),
    "commitment": ("commitment",),
}
"""Losses by the panel that they share."""


def show_examples(
    board: SummaryWriter, found: Validation, sample_rate: int, step: int, originals: bool
) -> None:
    """Players and spectrograms in TensorBoard; the originals are shown only once."""
    for i, example in enumerate(found.examples):
        kinds = {"reconstruction": example.reconstruction}
        if originals:
            kinds["original"] = example.original
        for kind, wave in kinds.items():
            board.add_audio(f"{kind}/{i}", wave.clip(-1, 1), step, sample_rate)
            picture = spectrogram(wave, sample_rate)
            board.add_image(f"spectrogram_{kind}/{i}", picture, step, dataformats="HW")


def report_page(
    name: str,
    recipe: str,
    sample_rate: int,
    config: CodecTrainingConfig,
    found: Validation,
    log: Sequence[Mapping[str, Any]],
    data: str,
) -> str:
    """The page as HTML.

    Args:
        name, recipe: name and file of the recipe.
        found: validation of the finished codec.
        log: rows of the run's `log.jsonl`; if a step was logged twice, the later row counts.
        data: the training data, in a few words.
    """
    merged: dict[int, dict[str, Any]] = {}
    for row in log:  # a step may have a row of losses and one of validation, each of them twice
        merged.setdefault(row["step"], {}).update(row)
    rows = [merged[step] for step in sorted(merged)]
    figures = found.figures
    streams = enumerate(zip(figures["used"], figures["perplexity"], strict=True))
    return page.render(
        __package__,
        "page.html",
        name=name,
        recipe=recipe,
        sample_rate=sample_rate,
        shape=config.architecture,
        steps=config.steps,
        figures=figures,
        streams=[(str(k), f"{used:.1%}", perplexity) for k, (used, perplexity) in streams],
        examples=[
            (
                page.clip(example.original, sample_rate),
                page.clip(example.reconstruction, sample_rate),
                round(example.si_sdr_db, 2),
                round(example.mel, 3),
            )
            for example in found.examples
        ],
        usage=_curves({"perplexity over a window": _per_stream(rows, "window_perplexity")}),
        losses=_curves({title: _series(rows, names) for title, names in _LOSSES.items()}),
        data=data,
    )


def _curves(panels: Mapping[str, Series]) -> list[tuple[str, str]]:
    """Title and plot of each panel that has a curve."""
    return [(title, page.picture(curves(one, title))) for title, one in panels.items() if one]


def _series(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Series:
    return {
        name: ([row["step"] for row in there], [row[name] for row in there])
        for name in names
        if (there := [row for row in rows if name in row])
    }


def _per_stream(rows: Sequence[Mapping[str, Any]], name: str) -> Series:
    steps = [row["step"] for row in rows if name in row]
    streams = zip(*(row[name] for row in rows if name in row), strict=True)
    return {f"stream {k}": (steps, list(values)) for k, values in enumerate(streams)}
