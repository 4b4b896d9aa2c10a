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
_DIRECTIONS = {"": "real to generated", "_reverse": "generated to real", "_both": "sum of both"}
for _s in (10, 20):
    NAMES |= {f"kl_passt_{_s}s{d}": f"KL, PaSST {_s} s ({t})" for d, t in _DIRECTIONS.items()}


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
    return page.render(
        __package__,
        "page.html",
        name=Path(document["target"]).name,
        document=document,
        names=NAMES,
        higher_is_better=HIGHER_IS_BETTER,
        comparison=document.get("comparison"),
        worst=_worst(rows[:WORST], measured, pairs, loudness),
        scores=scores,
        listed=[
            (
                row["prompt"] or row["name"],
                str(row["seed"]),
                *(f"{row[score]:.4g}" if score in row else "" for score in scores),
            )
            for row in rows[:LISTED]
        ],
    )


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
        scores = ", ".join(f"{k} {row[k]:.3g}" for k in measured.scores if k in row)
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
