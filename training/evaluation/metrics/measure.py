"""From clips to figures: every metric that its backbone can be had for, each with its interval."""

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
from training.evaluation.metrics.divergence import (
    Difference,
    around,
    cosine,
    kl_divergence,
    mean_interval,
    paired_difference,
    paired_means,
)
from training.evaluation.metrics.frechet import (
    Gaussian,
    GroupedMoments,
    Moments,
    frechet_distance,
    frechet_infinity,
    frechet_resamples,
)
from training.evaluation.metrics.weights import SOURCES

Tell = Callable[[int, int], None]
METHOD = "peak 1, KL at one rate"
"""How clips become figures: a new name when the same clips give others, so that cells of an
ablation are measured again."""
PER_CLIP = "fd_mel"
"""The Fréchet distance that every clip gets for itself as well."""
HIGHER_IS_BETTER = frozenset({"clap"})


@dataclass
class Backbones:
    """Those at hand, by the metric that stands on them, and why the others are not."""

    frechet: dict[str, Backbone] = field(default_factory=dict)
    kl: dict[str, Backbone] = field(default_factory=dict)
    clap: Clap | None = None
    missing: dict[str, str] = field(default_factory=dict)
    """{metric: one line}."""

    @classmethod
    def load(
        cls, weights: Path, codec: str, framing: str = "half", device: str = "cpu"
    ) -> Backbones:
        """
        Args:
            weights: folder that `make weights` fills.
            codec: whose latents are looked at.
            framing: of VGGish's examples.

        Raises:
            AttuneError: the codec cannot be had.
        """
        file = {source.name: weights / source.file for source in SOURCES}
        found = cls()
        found.frechet["fad_codec"] = CodecLatents(load_codec(codec, device))
        found.frechet["fd_mel"] = MelStatistics()

        def attempt(metric: str, load: Callable[[], Any]) -> Any:
            try:
                return load()
            except MissingBackbone as error:
                found.missing[metric] = str(error)
                return None

        if vggish := attempt("fad_vggish", lambda: VGGish(file["vggish"], framing, device)):
            found.frechet["fad_vggish"] = vggish
        for seconds in (10, 20):
            metric = f"kl_passt_{seconds}s"
            load = partial(PaSST, file[f"passt-{seconds}s"], seconds, device)
            if passt := attempt(metric, load):
                found.kl[metric] = passt
        found.clap = attempt("clap", lambda: Clap(file["clap"], device))
        return found

    def cards(self) -> dict[str, dict[str, Any]]:
        """{metric: what it stands on}."""
        all_of_them: dict[str, Backbone] = self.frechet | self.kl
        if self.clap is not None:
            all_of_them["clap"] = self.clap
        return {
            metric: {"backbone": b.name, "sample_rate": b.sample_rate, **b.facts}
            for metric, b in all_of_them.items()
        }


@dataclass
class Measured:
    """A set of clips, measured."""

    clips: list[SetClip] = field(default_factory=list)
    """Those that could be read, in the order in which they were taken."""
    clusters: dict[str, str] = field(default_factory=dict)
    """{name: its cluster}, of those clips: what is drawn together (`clip_sets.cluster`)."""
    unusable: dict[str, str] = field(default_factory=dict)
    """{name: why}."""
    moments: dict[str, GroupedMoments] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """{score: {clip: value}}; KL's two directions and their sum are scores of their own."""
    seconds: float = 0.0

    def gaussians(self) -> dict[str, Gaussian]:
        """For a reference: what distances are measured to."""
        return {metric: groups.total().gaussian() for metric, groups in self.moments.items()}


class Measurer:
    """Measures sets with the same backbones, cache and loudness."""

    def __init__(
        self, backbones: Backbones, cache: EmbeddingCache, loudness: float | None = None
    ) -> None:
        self.backbones = backbones
        self.cache = cache
        self.loudness = loudness
        self._texts: dict[str, Any] = {}

    def reference(self, clips: Sequence[SetClip], tell: Tell | None = None) -> Measured:
        """Moments of real clips."""
        return self.in_order(shuffled(clips), {}, {}, {}, tell)

    def generated(
        self,
        clips: Sequence[SetClip],
        pairs: dict[str, SetClip],
        gaussians: dict[str, Gaussian],
        tell: Tell | None = None,
    ) -> Measured:
        """Moments and scores of generated clips.

        Args:
            pairs: {name: the real clip}, for KL.
            gaussians: of the reference.
        """
        clusters = {clip.name: cluster(clip, pairs.get(clip.name)) for clip in clips}
        return self.in_order(shuffled(clips), pairs, gaussians, clusters, tell)

    def in_order(
        self,
        clips: Sequence[SetClip],
        pairs: dict[str, SetClip],
        gaussians: dict[str, Gaussian],
        clusters: dict[str, str],
        tell: Tell | None = None,
    ) -> Measured:
        """The same of clips in the order in which they are given, which is to be a random one.

        Args:
            clusters: {name: cluster}; clips that are not there have one of their own.
        """
        if len({clip.name for clip in clips}) < len(clips):
            raise ValueError("two clips of one name: scores go by names")
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
                    distance = frechet_distance(_alone(rows), gaussians[metric])
                    found.scores.setdefault(metric, {})[clip.name] = distance
            if gaussians:
                self._score(clip, rates, pairs.get(clip.name), found)
            if tell:
                tell(done, len(clips))
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
            return  # counted with the reference's clips
        if rates.rate < real_rates.rate:
            # Else labels would tell the band that the model cannot have from the one that it has.
            # The MusicGen authors' code gets real clips at the model's rate as well.
            real_rates = Rates(real_rates.at(rates.rate), rates.rate)
        for metric, passt in self.backbones.kl.items():
            p = self.cache.embed(passt, real_rates.at(passt.sample_rate))
            q = self.cache.embed(passt, rates.at(passt.sample_rate))
            n = min(len(p), len(q))
            forward = float(kl_divergence(p[:n], q[:n]).mean())
            backward = float(kl_divergence(q[:n], p[:n]).mean())
            for name, value in (
                (metric, forward),
                (f"{metric}_reverse", backward),
                (f"{metric}_both", forward + backward),
            ):
                found.scores.setdefault(name, {})[clip.name] = value


def figures(
    measured: Measured, gaussians: dict[str, Gaussian], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """{metric: value, low, high, clips, ...}: Fréchet distances of the set, means of its scores.

    `clusters` is how many of them were drawn for the interval (`clip_sets.cluster`).
    """
    found: dict[str, dict[str, Any]] = {}
    for metric, groups in measured.moments.items():
        total = groups.total()
        if total.count < 2:
            continue
        value = frechet_distance(total, gaussians[metric])
        row: dict[str, Any] = {"value": value, "low": None, "high": None}
        drawn = frechet_resamples([groups], gaussians[metric], seed=seed)
        if drawn is not None:
            row |= asdict(around(value, drawn[:, 0]))
            row["low"] = max(0.0, row["low"])  # no distance is below
        infinity = frechet_infinity(groups, gaussians[metric], seed=seed)
        row["infinity"] = None if infinity is None else asdict(infinity)
        row |= {"clips": groups.clips, "clusters": groups.clusters}
        row |= {"embeddings": total.count, "dimensions": len(total.mean)}
        found[metric] = row
    for score, values in measured.scores.items():
        if score != PER_CLIP:
            clusters = [measured.clusters[name] for name in values]
            interval = asdict(mean_interval(list(values.values()), seed, clusters))
            row = {k: v if np.isfinite(v) else None for k, v in interval.items()}
            found[score] = row | {"clips": len(values), "clusters": len(set(clusters))}
    return found


def compare(
    measurer: Measurer,
    first: Measured,
    second: Measured,
    pairs: Sequence[dict[str, SetClip]],
    gaussians: dict[str, Gaussian],
    seed: int = 0,
) -> tuple[int, int, dict[str, Difference]]:
    """Second minus first over the clips that both have (same prompt and seed, or same name).

    Args:
        pairs: of the first and of the second set.

    Returns:
        How many clips they have in common, in how many clusters, and {metric: difference}, both
        resampled in pairs, by the first set's clusters.

    Raises:
        AttuneError: they have fewer than two in common, or clips went while they were measured.
    """
    # Clips of `generate` do not tell a reference, those of `evaluate` do.
    told = len({"reference" in clip.facts for clip in (*first.clips, *second.clips)}) == 1
    same = partial(key, with_reference=told)
    common = {same(clip) for clip in first.clips} & {same(clip) for clip in second.clips}
    # The same for captions, and CLAP is to compare sounds, not texts.
    captions = {
        same(clip): clip.facts["caption"]
        for clip in (*first.clips, *second.clips)
        if "caption" in clip.facts
    }
    clusters = {same(clip): first.clusters[clip.name] for clip in first.clips}
    sets = []
    for measured, real in zip((first, second), pairs, strict=True):
        unique = {same(clip): clip for clip in measured.clips if same(clip) in common}
        for name, clip in unique.items():
            if "caption" not in clip.facts and name in captions:
                facts = clip.facts | {"caption": captions[name]}
                unique[name] = replace(clip, facts=facts)
        # By the same kind of key: a draw picks clips by their places, of both sets the same ones.
        clips = shuffled(list(unique.values()), told)
        together = {clip.name: clusters[same(clip)] for clip in clips}
        if clips != measured.clips or together != measured.clusters:
            # Embeddings come from the cache.
            measured = measurer.in_order(clips, real, gaussians, together)
        sets.append(measured)
    one, other = sets
    if len(common) < 2:
        raise AttuneError(
            f"the two sets have {len(common)} clips in common, by prompt and seed or by name; "
            "a comparison needs two at least"
        )
    if [same(clip) for clip in one.clips] != [same(clip) for clip in other.clips]:
        raise AttuneError("clips went or came while the two sets were compared: try again")
    found = {}
    for metric, gaussian in gaussians.items():
        groups = [s.moments[metric] for s in sets]
        drawn = frechet_resamples(groups, gaussian, seed=seed)
        if drawn is not None:
            values = [frechet_distance(g.total(), gaussian) for g in groups]
            found[metric] = paired_difference(values[1] - values[0], drawn[:, 1] - drawn[:, 0])
    other_name = {same(clip): clip.name for clip in other.clips}
    for score in one.scores.keys() & other.scores.keys() - {PER_CLIP}:
        x, y = one.scores[score], other.scores[score]
        names = [(clip.name, other_name[same(clip)]) for clip in one.clips]
        names = [(i, j) for i, j in names if i in x and j in y]
        drawn_together = [one.clusters[i] for i, _ in names]
        if len(set(drawn_together)) > 1:
            a, b = np.array([(x[i], y[j]) for i, j in names]).T
            found[score] = paired_means(a, b, seed, drawn_together)
    return len(one.clips), len(set(one.clusters.values())), dict(sorted(found.items()))


def _alone(rows: np.ndarray) -> Gaussian:
    moments = Moments.of(rows)
    if moments.count > 1:
        return moments.gaussian()
    return Gaussian(moments.mean, np.zeros((len(moments.mean), len(moments.mean))))
