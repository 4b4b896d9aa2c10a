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

from training.evaluation.clip_sets import ClipSet, pair, read_folder
from training.evaluation.metrics.cache import EmbeddingCache
from training.evaluation.metrics.measure import (
    HIGHER_IS_BETTER,
    SEED,
    Backbones,
    Measured,
    Measurer,
    Report,
    compare,
    figures,
)
from training.evaluation.metrics.page import build_page
from training.run.files import write_atomically


@dataclass(frozen=True)
class Settings:
    """Everything that a measurement depends on, except the clips."""

    weights: Path
    """Folder of backbones."""
    cache: Path
    """Folder of embeddings."""
    codec: str = "builtin:sfx-small"
    framing: str = "half"
    loudness: float | None = None
    """LUFS that all clips are normalized to before they are measured; None for no change."""
    device: str = "cpu"


def evaluate(
    target: Path,
    against: Path | None,
    reference: ClipSet,
    settings: Settings,
    out: Path,
    console: Console,
) -> dict[str, Any]:
    """Measure a folder of clips, compare it with another, write `metrics.json` and `metrics.html`.

    Args:
        target: folder of audio files, each with a JSON sidecar.
        against: folder of another model's clips.
        out: folder that the files are written to.

    Returns:
        The content of `metrics.json`.

    Raises:
        AttuneError: too few clips to measure, or too few common clips to compare.
    """
    sets = [read_folder(path) for path in (target, against) if path is not None]
    backbones = Backbones.load(settings.weights, settings.codec, settings.framing, settings.device)
    for why in dict.fromkeys(backbones.missing.values()):
        console.print(f"left out: {why}", highlight=False, soft_wrap=True)
    measurer = Measurer(backbones, EmbeddingCache(settings.cache), settings.loudness)

    with console.status("real clips") as status:

        def progress(name: str) -> Report:
            return lambda done, total: status.update(f"{name}: {done} of {total}")

        real = measurer.reference(reference.clips, progress("real clips"))
        real.check(reference.source)
        gaussians = real.gaussians()
        pairs = [pair(s.clips, reference.clips, real.unusable) for s in sets]
        measured = []
        for one, reals in zip(sets, pairs, strict=True):
            measured.append(measurer.generated(one.clips, reals, gaussians, progress(one.source)))
            measured[-1].check(one.source)

    document: dict[str, Any] = {
        "target": str(target),
        "reference": reference.source,
        "clips": len(measured[0].clips),
        "reference_clips": len(real.clips),
        "metrics": figures(measured[0], gaussians),
        "missing": _missing(backbones, measured[0], len(pairs[0].keys() & measured[0].clusters)),
        "cards": backbones.cards(),
        "card": _card(measured[0], real, reference, settings),
        "unusable": {"clips": measured[0].unusable, "reference": real.unusable},
        "per_clip": _per_clip(measured[0]),
    }
    if against is not None:
        common, clusters, differences = compare(
            measurer, measured[0], measured[1], pairs, gaussians
        )
        document["comparison"] = {
            "first": str(target),
            "second": str(against),
            "clips": common,
            "clusters": clusters,
            "metrics": figures(measured[1], gaussians),
            "differences": {},
        }
        for metric, found in differences.items():
            second_is_better = (found.value > 0) is (metric in HIGHER_IS_BETTER)
            document["comparison"]["differences"][metric] = asdict(found) | {
                "more_than_noise": found.more_than_noise,
                "better": "second" if second_is_better else "first",
            }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "metrics.json", json.dumps(document, indent=2, allow_nan=False) + "\n")
    html = build_page(document, measured[0], pairs[0], settings.loudness)
    (out / "metrics.html").write_text(html)
    return document


def _missing(backbones: Backbones, measured: Measured, paired: int) -> dict[str, str]:
    """{metric: why it has no value, or does not cover all clips}, in one line each."""
    found = dict(backbones.missing)
    n = len(measured.clips)
    prompted = sum(clip.prompt is not None for clip in measured.clips)
    if paired < n:
        for metric in backbones.kl:
            found[metric] = (
                f"{paired} of {n} clips have a readable real clip to compare with (`reference` in "
                "the sidecar; else the same file name, or a prompt that only one real clip has)"
            )
    if prompted < n and backbones.clap is not None:
        found["clap"] = f"{prompted} of {n} clips have a prompt in their sidecar"
    return found


def _card(
    measured: Measured, real: Measured, reference: ClipSet, settings: Settings
) -> dict[str, Any]:
    """The metric card: everything that the values depend on, except the backbones."""

    def values(name: str) -> list[Any]:
        found = Counter(json.dumps(clip.facts.get(name)) for clip in measured.clips)
        return [json.loads(value) for value, _ in found.most_common(10)]

    def digest(texts: set[str]) -> str:
        return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()[:16]

    prompts = {clip.prompt for clip in measured.clips if clip.prompt}
    return {
        "date": date.today().isoformat(),
        "resampler": "soxr VHQ",
        "loudness": "as it is" if settings.loudness is None else f"{settings.loudness:g} LUFS",
        "clips_mean_s": round(measured.seconds / len(measured.clips), 3),
        "reference_mean_s": round(real.seconds / len(real.clips), 3),
        "prompts": len(prompts),
        "prompts_sha256": digest(prompts),
        "texts_sha256": digest({clip.text for clip in measured.clips if clip.text}),
        "seeds": values("seed"),
        "checkpoints": values("checkpoint"),
        "checkpoints_sha256": values("checkpoint_sha256"),
        "steps": values("step"),
        "codecs": values("codec_id"),
        "reference_missing": list(reference.missing),
        "bootstrap": "by real clip (by prompt without one), generated clips only, 95%",
        "resampling_seed": SEED,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "soundfile": soundfile.__version__,
    }


def _per_clip(measured: Measured) -> list[dict[str, Any]]:
    """Scores of every clip, worst first: by CLAP if there is one, else by KL, else by mel."""
    rows = [
        {"name": clip.name, "prompt": clip.prompt, "seed": clip.facts.get("seed")}
        | {s: values[clip.name] for s, values in measured.scores.items() if clip.name in values}
        for clip in measured.clips
    ]
    order = ("clap", "kl_passt_10s", "kl_passt_20s", "fd_mel")
    by = next(name for name in order if measured.scores.get(name))
    sign = -1 if by in HIGHER_IS_BETTER else 1
    return sorted(rows, key=lambda row: -sign * row.get(by, -sign * np.inf))
