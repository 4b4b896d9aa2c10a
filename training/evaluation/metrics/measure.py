"""Compute the metrics of a set of clips, with intervals, for all backbones that are available."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.audio import AudioError
from common.codec import load_codec
from common.errors import AttuneError
from training.evaluation.clip_sets import Rates, SetClip, cluster, key, load_clip, shuffled
from training.evaluation.metrics.backbones.backbone import Backbone, MissingBackbone
from training.evaluation.metrics.backbones.clap import Clap
from training.evaluation.metrics.backbones.latents import CodecLatents, MelStatistics
from training.evaluation.metrics.backbones.passt import PaSST
from training.evaluation.metrics.backbones.vggish import VGGish
from training.evaluation.metrics.cache import EmbeddingCache
from training.evaluation.metrics.divergence import cosine, kl_divergence
from training.evaluation.metrics.frechet import (
    Gaussian,
    GroupedMoments,
    Moments,
    frechet_distance,
    frechet_infinity,
    frechet_resamples,
)
from training.evaluation.metrics.weights import SOURCES
from training.evaluation.statistics import (
    Difference,
    around,
    mean_interval,
    paired_difference,
    paired_means,
)

Report = Callable[[int, int], None]
"""Called after each clip with the number of clips done and the number of all clips."""
METHOD = "peak 1, KL at one rate"
"""Name of the measurement method.  Change it when the code gives other values for the same clips.
The name is part of the key of each ablation cell, so the ablation then measures all cells again."""
PER_CLIP = "fd_mel"
"""The Fréchet distance that is also computed for each single clip."""
HIGHER_IS_BETTER = frozenset({"clap"})
SEED = 0
"""Random seed of bootstrap and extrapolation."""


@dataclass
class Backbones:
    """The available backbones, by the metric that uses them, and why the others are missing."""

    frechet: dict[str, Backbone] = field(default_factory=dict)
    kl: dict[str, Backbone] = field(default_factory=dict)
    clap: Clap | None = None
    missing: dict[str, str] = field(default_factory=dict)
    """{metric: reason, in one line}."""

    @classmethod
    def load(
        cls, weights: Path, codec: str, framing: str = "half", device: str = "cpu"
    ) -> Backbones:
        """Load the backbones whose weights are available.

        Args:
            weights: folder that `make weights` fills.
            codec: the codec whose latents are used for `fad_codec`.
            framing: how audio is cut into VGGish windows (`half` or `google`).

        Raises:
            AttuneError: the codec cannot be loaded.
        """
        file = {source.name: weights / source.file for source in SOURCES}
        found = cls(
            {"fad_codec": CodecLatents(load_codec(codec, device)), "fd_mel": MelStatistics()}
        )

        def add(to: dict[str, Any], metric: str, load: Callable[[], Any]) -> None:
            try:
                to[metric] = load()
            except MissingBackbone as error:
                found.missing[metric] = str(error)

        clap: dict[str, Clap] = {}
        add(found.frechet, "fad_vggish", lambda: VGGish(file["vggish"], framing, device))
        add(found.kl, "kl_passt_10s", lambda: PaSST(file["passt-10s"], 10, device))
        add(found.kl, "kl_passt_20s", lambda: PaSST(file["passt-20s"], 20, device))
        add(clap, "clap", lambda: Clap(file["clap"], device))
        found.clap = clap.get("clap")
        return found

    def cards(self) -> dict[str, dict[str, Any]]:
        """Describe the backbone of each metric: {metric: name, sample rate and settings}."""
        backbones: dict[str, Backbone] = self.frechet | self.kl
        if self.clap is not None:
            backbones["clap"] = self.clap
        return {
            metric: {"backbone": b.name, "sample_rate": b.sample_rate, **b.facts}
            for metric, b in backbones.items()
        }


@dataclass
class Measured:
    """The measurements of one set of clips."""

    clips: list[SetClip] = field(default_factory=list)
    """The clips that could be read, in the order of measuring."""
    clusters: dict[str, str] = field(default_factory=dict)
    """{clip name: cluster}.  Clips of a cluster are resampled together (`clip_sets.cluster`)."""
    unusable: dict[str, str] = field(default_factory=dict)
    """{clip name: why it could not be read}."""
    moments: dict[str, GroupedMoments] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """{score: {clip name: value}}.  The two directions of KL and their sum are three scores."""
    seconds: float = 0.0

    def gaussians(self) -> dict[str, Gaussian]:
        """The Gaussian of each backbone; Fréchet distances need those of the reference set."""
        return {metric: groups.total().gaussian() for metric, groups in self.moments.items()}

    def check(self, source: str) -> None:
        """Raise an AttuneError for a set with fewer than two usable clips."""
        if len(self.clips) < 2:
            reason = next(iter(self.unusable.values()), "it has only one")
            raise AttuneError(f"{source}: needs at least two usable clips: {reason}")


class Measurer:
    """Measures sets of clips with the same backbones, cache and loudness."""

    def __init__(
        self, backbones: Backbones, cache: EmbeddingCache, loudness: float | None = None
    ) -> None:
        self.backbones = backbones
        self.cache = cache
        self.loudness = loudness
        self._texts: dict[str, Any] = {}

    def reference(self, clips: Sequence[SetClip], report: Report | None = None) -> Measured:
        """Measure real clips: moments only."""
        return self.in_order(shuffled(clips), {}, {}, {}, report)

    def generated(
        self,
        clips: Sequence[SetClip],
        pairs: dict[str, SetClip],
        gaussians: dict[str, Gaussian],
        report: Report | None = None,
    ) -> Measured:
        """Measure generated clips: moments and the scores of each clip.

        Args:
            pairs: {name of the generated clip: its real clip}; needed for KL.
            gaussians: {metric: Gaussian of the reference set}; if empty, there are no scores.
        """
        clusters = {clip.name: cluster(clip, pairs.get(clip.name)) for clip in clips}
        return self.in_order(shuffled(clips), pairs, gaussians, clusters, report)

    def in_order(
        self,
        clips: Sequence[SetClip],
        pairs: dict[str, SetClip],
        gaussians: dict[str, Gaussian],
        clusters: dict[str, str],
        report: Report | None = None,
    ) -> Measured:
        """Measure clips in the given order, which must be random (see `GroupedMoments`).

        Args:
            clusters: {clip name: cluster}; a clip without an entry is its own cluster.
        """
        if len({clip.name for clip in clips}) < len(clips):
            raise ValueError("clip names must be unique, because scores are stored by name")
        found = Measured(moments={m: GroupedMoments() for m in self.backbones.frechet})
        for done, clip in enumerate(clips, 1):
            try:
                wave, rate = load_clip(clip, self.loudness)
            except AudioError as error:
                found.unusable[clip.name] = str(error)
                continue
            rates = Rates(wave, rate)
            found.clips.append(clip)
            if clip.name in clusters:
                found.clusters[clip.name] = clusters[clip.name]
            found.seconds += len(wave) / rate
            for metric, backbone in self.backbones.frechet.items():
                rows = self.cache.embed(backbone, rates.at(backbone.sample_rate))
                found.moments[metric].add(rows, clusters.get(clip.name))
                if metric == PER_CLIP and gaussians:
                    distance = frechet_distance(_gaussian_of_clip(rows), gaussians[metric])
                    found.scores.setdefault(metric, {})[clip.name] = distance
            if gaussians:
                self._score(clip, rates, pairs.get(clip.name), found)
            if report:
                report(done, len(clips))
        return found

    def _score(self, clip: SetClip, rates: Rates, real: SetClip | None, found: Measured) -> None:
        clap = self.backbones.clap
        if clap is not None and clip.text is not None:
            if clip.text not in self._texts:
                self._texts[clip.text] = clap.embed_texts([clip.text])[0]
            windows = self.cache.embed(clap, rates.at(clap.sample_rate))
            score = float(cosine(windows, self._texts[clip.text]).mean())
            found.scores.setdefault("clap", {})[clip.name] = score
        if real is None or not self.backbones.kl:
            return
        try:
            real_rates = Rates(*load_clip(real, self.loudness))
        except AudioError:
            return  # the unreadable real clip is already counted in the reference set
        if rates.rate < real_rates.rate:
            # Otherwise KL would measure the missing high frequencies of the model's lower rate.
            # The MusicGen authors' code also resamples real clips to the model's rate.
            real_rates = Rates(real_rates.at(rates.rate), rates.rate)
        for metric, passt in self.backbones.kl.items():
            p = self.cache.embed(passt, real_rates.at(passt.sample_rate))
            q = self.cache.embed(passt, rates.at(passt.sample_rate))
            n = min(len(p), len(q))
            forward = float(kl_divergence(p[:n], q[:n]).mean())
            backward = float(kl_divergence(q[:n], p[:n]).mean())
            values = {"": forward, "_reverse": backward, "_both": forward + backward}
            for ending, value in values.items():
                found.scores.setdefault(metric + ending, {})[clip.name] = value


def figures(measured: Measured, gaussians: dict[str, Gaussian]) -> dict[str, dict[str, Any]]:
    """Compute the metrics of a set: {metric: {value, low, high, clips, clusters, ...}}.

    The metrics are the Fréchet distances of the set and the means of the scores of its clips.
    `clusters` is the number of clusters in the bootstrap for the interval (`clip_sets.cluster`).
    """
    found: dict[str, dict[str, Any]] = {}
    for metric, groups in measured.moments.items():
        total = groups.total()
        if total.count < 2:
            continue
        value = frechet_distance(total, gaussians[metric])
        row: dict[str, Any] = {"value": value, "low": None, "high": None}
        drawn = frechet_resamples([groups], gaussians[metric], seed=SEED)
        if drawn is not None:
            row |= asdict(around(value, drawn[:, 0]))
            row["low"] = max(0.0, row["low"])  # a distance is never negative
        infinity = frechet_infinity(groups, gaussians[metric], seed=SEED)
        row["infinity"] = None if infinity is None else asdict(infinity)
        row |= {"clips": groups.clips, "clusters": groups.clusters}
        row |= {"embeddings": total.count, "dimensions": len(total.mean)}
        found[metric] = row
    for score, values in measured.scores.items():
        if score != PER_CLIP:
            clusters = [measured.clusters[name] for name in values]
            interval = asdict(mean_interval(list(values.values()), SEED, clusters))
            row = {k: v if np.isfinite(v) else None for k, v in interval.items()}
            found[score] = row | {"clips": len(values), "clusters": len(set(clusters))}
    return found


def compare(
    measurer: Measurer,
    first: Measured,
    second: Measured,
    pairs: Sequence[dict[str, SetClip]],
    gaussians: dict[str, Gaussian],
) -> tuple[int, int, dict[str, Difference]]:
    """Compare two sets: second minus first, on the clips that both have.

    Clips of the two sets correspond if they have the same prompt and seed, or the same name.  The
    bootstrap draws the same clusters from both sets; the clusters are those of the first set.

    Args:
        pairs: {clip name: real clip} of the first set, and of the second set.

    Returns:
        The number of common clips, the number of their clusters, and {metric: difference}.

    Raises:
        AttuneError: fewer than two common clips, or files were deleted during the measurement.
    """
    # Sidecars written by `evaluate` have a `reference`, those written by `generate` do not.  It is
    # part of the key only if all clips of both sets have one, or all have none.
    both = (*first.clips, *second.clips)
    with_reference = len({"reference" in clip.facts for clip in both}) == 1
    same = partial(key, with_reference=with_reference)
    common = {same(clip) for clip in first.clips} & {same(clip) for clip in second.clips}
    if len(common) < 2:
        raise AttuneError(
            f"the two sets have {len(common)} clips in common, by prompt and seed or by name; "
            "a comparison needs at least two"
        )
    # A caption may be in the sidecars of one set only.  The same clip of the other set gets it too,
    # so that CLAP compares both sounds with the same text.
    captions = {same(c): {"caption": c.facts["caption"]} for c in both if "caption" in c.facts}
    clusters = {same(clip): first.clusters[clip.name] for clip in first.clips}
    sets = []
    for measured, real in zip((first, second), pairs, strict=True):
        unique = {same(clip): clip for clip in measured.clips if same(clip) in common}
        completed = [
            replace(clip, facts=captions[name] | clip.facts) if name in captions else clip
            for name, clip in unique.items()
        ]
        # The bootstrap draws positions: the same position must be the same clip in both sets.
        clips = shuffled(completed, with_reference)
        together = {clip.name: clusters[same(clip)] for clip in clips}
        if clips != measured.clips or together != measured.clusters:
            # Cheap, because the embeddings are already in the cache.
            measured = measurer.in_order(clips, real, gaussians, together)
        sets.append(measured)
    one, other = sets
    if [same(clip) for clip in one.clips] != [same(clip) for clip in other.clips]:
        raise AttuneError(
            "files were added or deleted during the comparison: run the same command again"
        )
    found = {}
    for metric, gaussian in gaussians.items():
        groups = [s.moments[metric] for s in sets]
        drawn = frechet_resamples(groups, gaussian, seed=SEED)
        if drawn is not None:
            values = [frechet_distance(g.total(), gaussian) for g in groups]
            found[metric] = paired_difference(values[1] - values[0], drawn[:, 1] - drawn[:, 0])
    for score in one.scores.keys() & other.scores.keys() - {PER_CLIP}:
        x, y = one.scores[score], other.scores[score]
        scored = [
            (x[a.name], y[b.name], one.clusters[a.name])
            for a, b in zip(one.clips, other.clips, strict=True)
            if a.name in x and b.name in y
        ]
        if len({cluster for _, _, cluster in scored}) > 1:
            a, b, drawn_together = zip(*scored, strict=True)
            found[score] = paired_means(a, b, SEED, drawn_together)
    return len(one.clips), len(set(one.clusters.values())), dict(sorted(found.items()))


def _gaussian_of_clip(rows: np.ndarray) -> Gaussian:
    moments = Moments.of(rows)
    if moments.count > 1:
        return moments.gaussian()
    return Gaussian(moments.mean, np.zeros((len(moments.mean), len(moments.mean))))
