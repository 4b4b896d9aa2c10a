"""What a trained codec sounds like and how it came to that: one HTML page beside the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from common.config import Recipe
from common.page import log_spectrogram
from training.codec.config import CodecTrainingConfig
from training.codec.validation import Validation
from training.evaluation import page

_CURVES = {
    "waveform": ("time", "mel", "valid_mel", "feature"),
    "hinge": ("adversarial", "discriminator"),
    "commitment": ("commitment",),
}
"""Losses that share a panel, of those that a run has."""


def show_examples(
    board: SummaryWriter, found: Validation, sample_rate: int, step: int, originals: bool
) -> None:
    """Players and spectrograms in TensorBoard; the originals need showing but once."""
    for i, example in enumerate(found.examples):
        kinds = {"reconstruction": example.reconstruction}
        if originals:
            kinds["original"] = example.original
        for kind, wave in kinds.items():
            board.add_audio(f"{kind}/{i}", wave.clip(-1, 1), step, sample_rate)
            picture = log_spectrogram(wave)
            board.add_image(f"spectrogram_{kind}/{i}", picture, step, dataformats="HW")


def report_page(
    recipe: Recipe,
    config: CodecTrainingConfig,
    found: Validation,
    log: Sequence[Mapping[str, Any]],
    footer: str,
) -> str:
    """The page as HTML.

    Args:
        found: of the finished codec.
        log: rows of the run's `log.jsonl`; of a step that was logged twice the later one counts.
        footer: how the codec was made, in one line.
    """
    shape, figures = config.architecture, found.figures
    streams = list(zip(figures["used"], figures["perplexity"], strict=True))
    tiles = {
        "held-out clips, whole": f"{figures['clips']}",
        "SI-SDR, dB": f"{figures['si_sdr_db']:.2f}",
        "multi-scale mel distance": f"{figures['mel']:.3f}",
        "codes used, first stream": f"{figures['used'][0]:.0%}",
    }
    examples = [
        (
            page.clip(example.original, recipe.sample_rate),
            page.clip(example.reconstruction, recipe.sample_rate),
            round(example.si_sdr_db, 2),
            round(example.mel, 3),
        )
        for example in found.examples
    ]
    merged: dict[int, dict[str, Any]] = {}
    for row in log:  # a step may have a row of its losses, one of its validation, and both twice
        merged.setdefault(row["step"], {}).update(row)
    rows = [merged[step] for step in sorted(merged)]
    return page.page(
        f"Codec of recipe {recipe.name}",
        f"EnCodec, {recipe.sample_rate} Hz, {shape.n_codebooks} x {shape.codebook_size} codes, "
        f"{config.steps} steps. Averaged weights, judged on whole clips never trained on.",
        [
            page.key_figures(tiles),
            page.section(
                "Originals and reconstructions",
                page.paragraph("Left what went in, right what came out."),
                page.table(("original", "reconstruction", "SI-SDR, dB", "mel"), examples),
            ),
            page.section(
                "Codebooks",
                page.paragraph(
                    f"Share of the {shape.codebook_size} codes that the held-out clips use, and "
                    "perplexity: the number of codes that would be as hard to guess, were all as "
                    "likely."
                ),
                page.table(
                    ("stream", "used", "perplexity"),
                    [(str(k), f"{used:.1%}", value) for k, (used, value) in enumerate(streams)],
                ),
                _curves(rows, {"perplexity over a window": _per_stream(rows, "window_perplexity")}),
            ),
            page.section("Training", _curves(rows, _loss_panels(rows))),
        ],
        footer,
    )


Panel = dict[str, tuple[Sequence[float], Sequence[float]]]


def _curves(rows: Sequence[Mapping[str, Any]], panels: Mapping[str, Panel]) -> str:
    shown = {title: panel for title, panel in panels.items() if panel}
    if not shown:
        return page.paragraph("Nothing logged yet.")
    names = ", ".join(shown)
    return page.figure(page.curves(shown), f"curves over {rows[-1]['step']} steps: {names}")


def _loss_panels(rows: Sequence[Mapping[str, Any]]) -> dict[str, Panel]:
    return {title: _series(rows, names) for title, names in _CURVES.items()}


def _series(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Panel:
    panel: Panel = {}
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            steps, values = zip(*points, strict=True)
            panel[name] = (steps, values)
    return panel


def _per_stream(rows: Sequence[Mapping[str, Any]], name: str) -> Panel:
    there = [row for row in rows if name in row]
    if not there:
        return {}
    steps = [row["step"] for row in there]
    return {
        f"stream {k}": (steps, [row[name][k] for row in there]) for k in range(len(there[0][name]))
    }
