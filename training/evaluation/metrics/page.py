"""The page of `evaluate`: metrics with intervals, comparison, the worst clips, metric card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import page
from common.audio import AudioError, resample
from training.evaluation.clip_sets import SetClip, load_clip
from training.evaluation.metrics.measure import HIGHER_IS_BETTER, Measured

WORST = 20
"""Number of clips shown with player and spectrogram."""
LISTED = 500
"""Maximum number of rows in the table of all clips; `metrics.json` has all clips."""
_RATE = 32_000
"""Maximum sample rate of the page's sounds, Hz."""
NAMES = {
    "fad_vggish": "FAD, VGGish",
    "fad_codec": "FAD, the codec's own latents",
    "fd_mel": "Fréchet distance of mel statistics",
    "clap": "CLAP score",
}
for _s in (10, 20):
    NAMES[f"kl_passt_{_s}s"] = f"KL, PaSST {_s} s (real to generated)"
    NAMES[f"kl_passt_{_s}s_reverse"] = f"KL, PaSST {_s} s (generated to real)"
    NAMES[f"kl_passt_{_s}s_both"] = f"KL, PaSST {_s} s, sum of both directions"


def build_page(
    document: dict[str, Any],
    measured: Measured,
    pairs: dict[str, SetClip],
    loudness: float | None,
) -> str:
    """The page as HTML.

    Args:
        document: the content of `metrics.json`.
        measured: the clips of the target.
        pairs: {clip name: real clip}, shown next to the worst clips.
        loudness: loudness of the sounds, LUFS, as they were measured.
    """
    rows = document["per_clip"]
    scores = sorted({name for row in rows for name in row} - {"name", "prompt", "seed"})
    card = {k: v for k, v in document["card"].items() if k != "reference_missing"}
    return page.render(
        __package__,
        "page.html",
        name=Path(document["target"]).name,
        document=document,
        metrics=[_measured(metric, row) for metric, row in document["metrics"].items()],
        left_out=_left_out(document),
        comparison=document.get("comparison"),
        count=_count,
        differences=_differences(document.get("comparison", {}).get("differences", {})),
        worst=_worst(rows[:WORST], measured, pairs, loudness),
        scores=scores,
        listed=[
            (row["prompt"] or row["name"], str(row["seed"]), *(_number(row.get(s)) for s in scores))
            for row in rows[:LISTED]
        ],
        card=[(key, _text(value)) for key, value in card.items()],
        cards={NAMES.get(metric, metric): facts for metric, facts in document["cards"].items()},
    )


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value[:10]) or "none"
    return str(value)


def _interval(row: dict[str, Any]) -> str:
    if row["low"] is None:
        return "too few clips"
    return f"[{_number(row['low'])}, {_number(row['high'])}]"


def _count(row: dict[str, Any]) -> str:
    clips, clusters = row["clips"], row["clusters"]
    return f"{clips}" if clusters == clips else f"{clips} in {clusters} clusters"


def _measured(metric: str, row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table of metrics."""
    found = row.get("infinity")
    thin = row.get("embeddings", 1e9) <= row.get("dimensions", 0)
    return (
        NAMES.get(metric, metric),
        _number(row["value"]),
        _interval(row),
        _count(row),
        "higher" if metric in HIGHER_IS_BETTER else "lower",
        "" if found is None else f"{_number(found['value'])} (r² {found['r2']:.2f})",
        "fewer embeddings than dimensions: compare only at this N" if thin else "",
    )


def _left_out(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Metrics and clips that could not be measured, and why."""
    rows = [(NAMES.get(metric, metric), why) for metric, why in document["missing"].items()]
    rows += [
        (name, f"{kind}: {why}")
        for kind, found in document["unusable"].items()
        for name, why in found.items()
    ]
    if lacking := document["card"]["reference_missing"]:
        rows.append((f"{len(lacking)} clips of the list", "no audio: " + ", ".join(lacking)))
    return rows


def _differences(differences: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the comparison of two models."""
    return [
        (
            NAMES.get(metric, metric),
            f"{row['value']:+.4g}",
            _interval(row),
            f"{row['p_value']:.2g}",
            f"{row['better']} is better" if row["more_than_noise"] else "no more than noise",
        )
        for metric, row in differences.items()
    ]


def _worst(
    rows: list[dict[str, Any]],
    measured: Measured,
    pairs: dict[str, SetClip],
    loudness: float | None,
) -> list[tuple[object, ...]]:
    """Rows of prompt, generated clip and real clip."""
    clips = {clip.name: clip for clip in measured.clips}
    found: list[tuple[object, ...]] = []
    for row in rows:
        name = row["name"]
        scores = ", ".join(f"{k} {_number(row[k], 3)}" for k in measured.scores if k in row)
        real = _heard(pairs[name], loudness, "real") if name in pairs else ""
        found.append((row["prompt"] or name, _heard(clips[name], loudness, scores), real))
    return found


def _heard(clip: SetClip, loudness: float | None, note: str) -> object:
    """The first minute of a clip, or why it cannot be read."""
    try:
        wave, rate = load_clip(clip, loudness)
    except AudioError as error:
        return str(error)
    shown = min(rate, _RATE)
    return page.clip(resample(wave, rate, shown)[: 60 * shown], shown, note)
