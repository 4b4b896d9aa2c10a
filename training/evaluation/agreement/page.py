"""The page of `training report`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date
from typing import Any

import torch

from common import page
from common.audio import Wave
from common.shards import ShardDataset, parquet_table
from training.evaluation.agreement.clips import LabelledClip, ModelResult
from training.evaluation.plots import confusion, curves

LISTED_RECONSTRUCTIONS = 16
"""Number of clips shown with their reconstructions."""


def build_page(
    figures: dict[str, Any],
    dataset: ShardDataset,
    real: Sequence[LabelledClip],
    kept: Sequence[tuple[LabelledClip, Wave, str]],
    results: Sequence[ModelResult],
    sample_rate: int,
    recipe: str,
) -> str:
    """The page as HTML.

    Args:
        figures: the content of `report.json`.
        real: the clips that the judge was fitted on.
        kept: clips, their reconstructions by the codec, and the judge's class for these.
        results: one per model.
        sample_rate: sample rate of all clips, Hz.
        recipe: file of the recipe.
    """
    classes = figures["judge"]["classes"]
    return page.render(
        __package__,
        "page.html",
        figures=figures,
        summary=dataset.summary,
        data_dir=dataset.store.uri,
        refused=_refused(dataset),
        reconstructions=_reconstructions(kept, sample_rate),
        curves=[
            page.picture(curves(_series(results, key, dropped), label))
            for label, key, dropped in (
                ("cross-entropy, with text (nats)", "loss", False),
                ("cross-entropy, without text", "loss", True),
                ("rr, on steps without text", "rr", None),
            )
        ],
        results=results,
        confusions=[
            (
                r.name,
                page.picture(confusion([c.label for c in r.clips], r.agreement.judged, classes)),
            )
            for r in results
        ],
        listen=[_row(label, real, results, sample_rate) for label in classes],
        date=date.today().isoformat(),
        recipe=recipe,
        torch=torch.__version__,
    )


def _refused(dataset: ShardDataset) -> list[tuple[object, ...]]:
    """Refused clips by dataset, stage and reason, with one example of each."""
    refused = []
    for key in ("plan/rejects.parquet", "quarantine.parquet"):
        try:
            refused += parquet_table(dataset.store.read(key)).to_pylist()
        except FileNotFoundError:
            continue
    counts = Counter((row["dataset"], row["stage"], row["reason"]) for row in refused)
    example = {(row["dataset"], row["stage"], row["reason"]): row for row in refused}
    return [
        (*key, count, example[key]["native_id"], (example[key]["detail"] or "")[-100:])
        for key, count in sorted(counts.items())
    ]


def _reconstructions(
    kept: Sequence[tuple[LabelledClip, Wave, str]], rate: int
) -> list[tuple[object, ...]]:
    """A clip of each class, before and after encoding and decoding."""
    first = {clip.label: (clip, wave, heard) for clip, wave, heard in reversed(kept)}
    return [
        (label, page.clip(clip.wave, rate, "original"), _judged(wave, rate, label, heard))
        for label, (clip, wave, heard) in sorted(first.items())[:LISTED_RECONSTRUCTIONS]
    ]


def _row(
    label: str, real: Sequence[LabelledClip], results: Sequence[ModelResult], rate: int
) -> tuple[object, ...]:
    """The row of a class: a real clip, and the first clip of each model."""
    heard = next(clip for clip in real if clip.label == label)
    cells: list[object] = [f"{label} (prompt: {heard.prompt})", page.clip(heard.wave, rate, "real")]
    for result in results:
        i = next(i for i, clip in enumerate(result.clips) if clip.label == label)
        clip, judged = result.clips[i], result.agreement.judged[i]
        cells.append(_judged(clip.wave, rate, label, judged, f"seed {clip.seed}, "))
    return tuple(cells)


def _judged(wave: Wave, rate: int, label: str, heard: str, before: str = "") -> page.Clip:
    verdict = "right" if heard == label else "wrong"
    return page.clip(wave, rate, f"{before}sounds like: {heard}", verdict)


def _series(
    results: Sequence[ModelResult], key: str, dropped: bool | None
) -> dict[str, tuple[list[float], list[float]]]:
    """A curve per model, over steps with text, steps without text (`dropped`), or all steps."""
    found = {}
    for result in results:
        rows = [row for row in result.curve if row.get(key) is not None]
        rows = [row for row in rows if dropped in (None, row["dropped"] > 0)]
        found[result.name] = [row["step"] for row in rows], [row[key] for row in rows]
    return found
