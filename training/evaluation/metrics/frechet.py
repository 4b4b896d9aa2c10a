"""Fréchet distance between sets of embeddings, from moments that accumulate.

Kilgour et al., "Fréchet Audio Distance" (2019): both sets are taken for Gaussians, and it is

    |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2).

It falls with the number of clips although nothing else changes; extrapolating it to infinitely many
(Chong and Forsyth 2020 for images, Gui et al. 2024 for audio) takes that away.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

GROUPS = 200
"""Clusters of clips are gathered in so many groups at most, whatever their number: what bounds
memory."""
RESAMPLES = 200
"""Of a bootstrap."""
MIN_GROUPS = 10
"""Fewer are neither resampled nor extrapolated: the figure would be made up."""


class Moments:
    """Count, mean and scatter of embeddings, in float64, one batch after the other.

    Chan, Golub and LeVeque's update: nothing is lost where the mean is large against the spread.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean: Array = np.zeros(dim)
        self.scatter: Array = np.zeros((dim, dim))
        """Sum of the outer products of deviations from the mean."""

    @classmethod
    def of(cls, embeddings: NDArray[np.floating]) -> Moments:
        """Of embeddings [n, D].

        Raises:
            ValueError: not two axes, no row, or values that are not finite.
        """
        rows = np.asarray(embeddings, np.float64)
        if rows.ndim != 2 or not len(rows):
            raise ValueError(f"expected embeddings [n, D] with n > 0, found {rows.shape}")
        if not np.isfinite(rows).all():
            raise ValueError("embeddings hold values that are not finite")
        moments = cls(rows.shape[1])
        moments.count = len(rows)
        moments.mean = rows.mean(axis=0)
        centred = rows - moments.mean
        moments.scatter = centred.T @ centred
        return moments

    def merge(self, other: Moments) -> None:
        """Take in what another set holds; that one stays as it is."""
        if other.mean.shape != self.mean.shape:
            raise ValueError(
                f"embeddings of {len(self.mean)} and {len(other.mean)} values do not go together"
            )
        if not other.count:
            return
        total = self.count + other.count
        step = other.mean - self.mean
        self.scatter += other.scatter
        self.scatter += np.outer(step, step) * (self.count * other.count / total)
        self.mean = self.mean + step * (other.count / total)
        self.count = total

    def update(self, embeddings: NDArray[np.floating]) -> None:
        """Take in embeddings [n, D]."""
        self.merge(Moments.of(embeddings))

    @property
    def covariance(self) -> Array:
        """Unbiased, [D, D].

        Raises:
            ValueError: of fewer than two embeddings.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs two embeddings at least, found {self.count}")
        return self.scatter / (self.count - 1)

    def gaussian(self) -> Gaussian:
        """Mean and root of the covariance, which every distance needs."""
        return Gaussian(self.mean, matrix_root(self.covariance))


@dataclass(frozen=True)
class Gaussian:
    """What a Fréchet distance looks at; made once for a reference that many sets meet."""

    mean: Array
    root: Array
    """[D, D], symmetric; its square is the covariance."""


def matrix_root(matrix: Array) -> Array:
    """Symmetric root of a positive semi-definite [D, D].

    Eigenvalues within rounding of zero count as zero: their roots would be 1e8 times as wrong.
    """
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    floor = max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    roots = np.sqrt(np.where(values > floor, values, 0.0))
    root: Array = (vectors * roots) @ vectors.T
    return root


def frechet_distance(a: Moments | Gaussian, b: Moments | Gaussian) -> float:
    """Fréchet distance (squared 2-Wasserstein) of two Gaussians.

    With A and B the roots of the covariances and U S V' their product's singular value
    decomposition, the part of the covariances is |A - B V U'|^2 (the Procrustes form): a sum of
    squares, which no rounding takes below zero, singular covariances or not.
    """
    a = a.gaussian() if isinstance(a, Moments) else a
    b = b.gaussian() if isinstance(b, Moments) else b
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"embeddings of {len(a.mean)} and {len(b.mean)} values: no distance")
    u, _, vt = np.linalg.svd(a.root @ b.root)
    rest = a.root - b.root @ (u @ vt).T
    return float(np.sum((a.mean - b.mean) ** 2) + np.sum(rest**2))


class GroupedMoments:
    """Moments of clips, kept in groups so that they can be drawn again.

    A group holds whole clusters: clips that are no independent witnesses, so that they are drawn
    together.  The first `groups` clusters have one each; further ones join them in turn, so memory
    does not grow with the number of clips.  Clips are expected in random order, lest groups be
    alike.
    """

    def __init__(self, groups: int = GROUPS) -> None:
        self.limit = groups
        self.clips = 0
        self._clusters: dict[Hashable, int] = {}
        self.groups: list[Moments] = []
        self._stacked: tuple[Array, Array, Array] | None = None

    def add(self, embeddings: NDArray[np.floating], cluster: Hashable | None = None) -> None:
        """A clip's embeddings [frames, D].

        Args:
            cluster: that it belongs to; None for one of its own.
        """
        clip = Moments.of(embeddings)
        self._stacked = None
        name = self.clips if cluster is None else (cluster,)  # no name is taken for a number
        place = self._clusters.setdefault(name, len(self._clusters)) % self.limit
        if place < len(self.groups):
            self.groups[place].merge(clip)
        else:
            self.groups.append(clip)
        self.clips += 1

    @property
    def clusters(self) -> int:
        """How many there are."""
        return len(self._clusters)

    def total(self, picks: Iterable[int] | None = None) -> Moments:
        """Moments of all groups, or of those picked, as often as each is picked."""
        if not self.groups:
            raise ValueError("no clips")
        if self._stacked is None:  # draws are many: sums over one array, not a merge per group
            self._stacked = (
                np.array([g.count for g in self.groups], np.float64),
                np.stack([g.mean for g in self.groups]),
                np.stack([g.scatter for g in self.groups]),
            )
        counts, means, scatters = self._stacked
        n = len(self.groups)
        times = np.ones(n) if picks is None else np.bincount(np.fromiter(picks, int), minlength=n)
        total = Moments(means.shape[1])
        share = times * counts
        total.count = int(share.sum())
        if total.count:
            total.mean = share @ means / total.count
            apart = means - total.mean
            within = np.tensordot(times.astype(np.float64), scatters, axes=1)
            total.scatter = within + (apart.T * share) @ apart
        return total


@dataclass(frozen=True)
class Extrapolation:
    """A distance at infinitely many clips."""

    value: float
    slope: float
    """Of the distance over 1 / clips."""
    r2: float
    """Share of the variance that the line explains: near 1 where the extrapolation holds."""


def frechet_infinity(
    clips: GroupedMoments, reference: Gaussian, steps: int = 15, seed: int = 0
) -> Extrapolation | None:
    """The distance's intercept over 1/N, from random subsets of between a third and all clips.

    Returns:
        None where there are too few clips, or subsets with too few embeddings: fewer than they
        have values, and the distance is not linear in 1/N.
    """
    n = len(clips.groups)
    smallest = max(MIN_GROUPS, -(-n // 3))
    if n < 2 * MIN_GROUPS:
        return None
    rng = np.random.default_rng(seed)
    points = []
    for size in np.unique(np.linspace(smallest, n, steps).round().astype(int)):
        subset = clips.total(rng.permutation(n)[:size])
        if subset.count <= len(reference.mean):
            return None
        points.append((n / (size * clips.clips), frechet_distance(subset, reference)))
    x, y = np.array(points).T
    slope, value = np.polyfit(x, y, 1)
    left = y - (value + slope * x)
    spread = float(np.sum((y - y.mean()) ** 2))
    return Extrapolation(
        float(value), float(slope), 1 - float(np.sum(left**2)) / spread if spread else 1.0
    )


def frechet_resamples(
    sets: list[GroupedMoments], reference: Gaussian, resamples: int = RESAMPLES, seed: int = 0
) -> Array | None:
    """Distances of sets drawn again with replacement, by cluster (by group, where they are more).

    Args:
        sets: clips in the same order and clusters; every draw picks the same ones of each, so
            columns are paired.
        reference: stays as it is: the question is what other clips of the same models would give.

    Returns:
        float64 [resamples, sets], or None where there are too few clips.
    """
    n = len(sets[0].groups)
    if any(s.clips != sets[0].clips or len(s.groups) != n for s in sets):
        raise ValueError("paired sets must hold the same clips")
    if n < MIN_GROUPS:
        return None
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(resamples):
        picks = rng.integers(0, n, n)
        rows.append([_quick_distance(s.total(picks), reference) for s in sets])
    return np.array(rows)


def _quick_distance(moments: Moments, reference: Gaussian) -> float:
    # Eigenvalues alone: good to 1e-8 of the traces, which is plenty for a spread, in a fifth of
    # the time.
    covariance = moments.covariance
    product = reference.root @ covariance @ reference.root
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0))
    traces = np.trace(covariance) + np.sum(reference.root**2)
    return float(np.sum((moments.mean - reference.mean) ** 2) + traces - 2 * roots.sum())
