"""`python -m training evaluate`: measure clips, compare two models, write figures and a page."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from rich.console import Console

from common.errors import AttuneError
from training.evaluation.clip_sets import ClipSet, SetClip, pair, read_folder
from training.evaluation.metrics.cache import EmbeddingCache
from training.evaluation.metrics.measure import (
    HIGHER_IS_BETTER,
    Backbones,
    Measured,
    Measurer,
    compare,
    figures,
)
from training.evaluation.metrics.page import build_page
from training.run.files import write_atomically

RESAMPLER = "soxr VHQ"


@dataclass(frozen=True)
class Settings:
    """What a measurement depends on beside the clips."""

    weights: Path
    """Folder of backbones."""
    cache: Path
    """Folder of embeddings."""
    codec: str = "builtin:sfx-small"
    framing: str = "half"
    loudness: float | None = None
    """LUFS that both sets are brought to before they are measured; none leaves them alone."""
    seed: int = 0
    """Of bootstrap and extrapolation."""
    device: str = "cpu"


def evaluate(
    target: Path,
    against: Path | None,
    reference: ClipSet,
    settings: Settings,
    out: Path,
    console: Console,
) -> dict[str, Any]:
    """Measure a folder of clips, and compare it with another; writes `metrics.json` and a page.

    Args:
        target: folder of audio with a JSON beside each.
        against: the same, of another model.
        out: folder for `metrics.json` and `metrics.html`.

    Returns:
        The content of `metrics.json`.

    Raises:
        AttuneError: nothing to measure, or nothing in common to compare.
    """
    sets = [read_folder(path) for path in (target, against) if path is not None]
    backbones = Backbones.load(settings.weights, settings.codec, settings.framing, settings.device)
    for why in dict.fromkeys(backbones.missing.values()):
        console.print(f"left out: {why}", highlight=False, soft_wrap=True)
    measurer = Measurer(backbones, EmbeddingCache(settings.cache), settings.loudness)

    with console.status("real clips") as status:

        def tell(what: str, done: int, total: int) -> None:
            status.update(f"{what}: {done} of {total}")

        real = measurer.reference(reference.clips, lambda d, t: tell("real clips", d, t))
        _check(real, reference.source)
        gaussians = real.gaussians()
        pairs = [pair(s.clips, reference.clips, real.unusable) for s in sets]
        measured = []
        for clips, found in zip(sets, pairs, strict=True):
            made = measurer.generated(
                clips.clips,
                found,
                gaussians,
                lambda d, t, s=clips.source: tell(s, d, t),  # type: ignore[misc]
            )
            _check(made, clips.source)
            measured.append(made)

    document: dict[str, Any] = {
        "target": str(target),
        "reference": reference.source,
        "clips": len(measured[0].clips),
        "reference_clips": len(real.clips),
        "metrics": figures(measured[0], gaussians, settings.seed),
        "missing": missing(backbones, measured[0], pairs[0]),
        "cards": backbones.cards(),
        "card": card(measured[0], real, reference, settings),
        "unusable": {"clips": measured[0].unusable, "reference": real.unusable},
        "per_clip": per_clip(measured[0]),
    }
    if against is not None:
        common, clusters, differences = compare(
            measurer, measured[0], measured[1], pairs, gaussians, settings.seed
        )
        document["comparison"] = {
            "first": str(target),
            "second": str(against),
            "clips": common,
            "clusters": clusters,
            "metrics": figures(measured[1], gaussians, settings.seed),
            "differences": {
                metric: asdict(d)
                | {"more_than_noise": d.more_than_noise, "better": _better(metric, d.value)}
                for metric, d in differences.items()
            },
        }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "metrics.json", json.dumps(document, indent=2, allow_nan=False) + "\n")
    html = build_page(document, measured[0], pairs[0], settings.loudness)
    (out / "metrics.html").write_text(html)
    return document


def missing(backbones: Backbones, measured: Measured, pairs: dict[str, SetClip]) -> dict[str, str]:
    """{metric: why it has no figure, or not one of all clips}, a line each."""
    found = dict(backbones.missing)
    n = len(measured.clips)
    paired = sum(clip.name in pairs for clip in measured.clips)
    prompted = sum(clip.prompt is not None for clip in measured.clips)
    if paired < n:
        for metric in backbones.kl:
            found[metric] = (
                f"{paired} of {n} clips have a real one to be held against that can be read "
                "(`reference` in the sidecar; else the same name, or a prompt that only one has)"
            )
    if prompted < n and backbones.clap is not None:
        found["clap"] = f"{prompted} of {n} clips have a prompt in their sidecar"
    return found


def card(
    measured: Measured, real: Measured, reference: ClipSet, settings: Settings
) -> dict[str, Any]:
    """The metric card: all that a figure depends on, backbones apart."""

    def told(name: str) -> list[Any]:
        found = Counter(json.dumps(clip.facts.get(name)) for clip in measured.clips)
        return [json.loads(value) for value, _ in found.most_common(10)]

    prompts = sorted({clip.prompt for clip in measured.clips if clip.prompt})
    texts = sorted({clip.text for clip in measured.clips if clip.text})
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]
    return {
        "date": date.today().isoformat(),
        "resampler": RESAMPLER,
        "loudness": "as it is" if settings.loudness is None else f"{settings.loudness:g} LUFS",
        "clips_mean_s": round(measured.seconds / len(measured.clips), 3),
        "reference_mean_s": round(real.seconds / len(real.clips), 3),
        "prompts": len(prompts),
        "prompts_sha256": digest,
        "texts_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16],
        "seeds": told("seed"),
        "checkpoints": told("checkpoint"),
        "checkpoints_sha256": told("checkpoint_sha256"),
        "steps": told("step"),
        "codecs": told("codec_id"),
        "reference_missing": list(reference.missing),
        "bootstrap": "by real clip (by prompt without one), generated clips alone, 95%",
        "resampling_seed": settings.seed,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "soundfile": soundfile.__version__,
    }


def per_clip(measured: Measured) -> list[dict[str, Any]]:
    """Scores of every clip, the worst first."""
    rows = [
        {"name": clip.name, "prompt": clip.prompt, "seed": clip.facts.get("seed")}
        | {
            score: values[clip.name]
            for score, values in measured.scores.items()
            if clip.name in values
        }
        for clip in measured.clips
    ]
    by = worst_by(measured)
    sign = -1 if by in HIGHER_IS_BETTER else 1
    return sorted(rows, key=lambda row: -sign * row.get(by, -sign * np.inf))


def worst_by(measured: Measured) -> str:
    """The score that says which clips are worst: CLAP if there is one, else KL, else mel."""
    order = ("clap", "kl_passt_10s", "kl_passt_20s", "fd_mel")
    return next(name for name in order if measured.scores.get(name))


def _better(metric: str, difference: float) -> str:
    higher = metric in HIGHER_IS_BETTER
    return "second" if (difference > 0) is higher else "first"


def _check(measured: Measured, source: str) -> None:
    if len(measured.clips) < 2:
        reason = next(iter(measured.unusable.values()), "there is but one")
        raise AttuneError(f"{source}: needs two usable clips at least: {reason}")
