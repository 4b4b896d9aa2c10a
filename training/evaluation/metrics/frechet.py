"""Fréchet distance between sets of embeddings, from moments that accumulate.

Kilgour et al., "Fréchet Audio Distance" (2019): a Gaussian is fitted to each set, and the distance
of the two Gaussians is

    |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2).

The distance is biased: it is larger for fewer clips.  Extrapolation to infinitely many clips (Chong
and Forsyth 2020 for images, Gui et al. 2024 for audio) removes the bias.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

GROUPS = 200
"""Maximum number of groups of clusters; bounds the memory for any number of clips."""
RESAMPLES = 200
"""Draws of a bootstrap."""
MIN_GROUPS = 10
"""Fewer groups are neither resampled nor extrapolated: the result would be meaningless."""


@dataclass
class Moments:
    """Count, mean and scatter of embeddings, accumulated in float64.

    The update of Chan, Golub and LeVeque stays exact where the mean is much larger than the spread.
    """

    count: int
    mean: Array
    """[D]."""
    scatter: Array
    """[D, D]: sum of the outer products of deviations from the mean."""

    @classmethod
    def of(cls, embeddings: NDArray[np.floating]) -> Moments:
        """Compute the moments of embeddings [n, D].

        Raises:
            ValueError: not two axes, no row, or values that are not finite.
        """
        rows = np.asarray(embeddings, np.float64)
        if rows.ndim != 2 or not len(rows):
            raise ValueError(f"expected embeddings [n, D] with n > 0, found {rows.shape}")
        if not np.isfinite(rows).all():
            raise ValueError("embeddings hold values that are not finite")
        mean = rows.mean(axis=0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Add the moments of another set; `other` does not change."""
        if other.mean.shape != self.mean.shape:
            raise ValueError(
                f"cannot merge embeddings of {len(self.mean)} and {len(other.mean)} dimensions"
            )
        total = self.count + other.count
        step = other.mean - self.mean
        self.scatter += other.scatter
        self.scatter += np.outer(step, step) * (self.count * other.count / total)
        self.mean = self.mean + step * (other.count / total)
        self.count = total

    @property
    def covariance(self) -> Array:
        """Unbiased covariance [D, D].

        Raises:
            ValueError: fewer than two embeddings.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two embeddings, found {self.count}")
        return self.scatter / (self.count - 1)

    def gaussian(self) -> Gaussian:
        """The Gaussian with this mean and covariance."""
        return Gaussian(self.mean, matrix_root(self.covariance))


@dataclass(frozen=True)
class Gaussian:
    """Mean and root of the covariance; computed once for a reference of many distances."""

    mean: Array
    root: Array
    """[D, D], symmetric; its square is the covariance."""


def matrix_root(matrix: Array) -> Array:
    """Symmetric root of a positive semi-definite matrix [D, D].

    Eigenvalues near zero (within rounding) are set to zero, because a root turns an error of 1e-16
    into an error of 1e-8.
    """
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    floor = max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    roots = np.sqrt(np.where(values > floor, values, 0.0))
    root: Array = (vectors * roots) @ vectors.T
    return root


def frechet_distance(a: Moments | Gaussian, b: Moments | Gaussian) -> float:
    """Fréchet distance (squared 2-Wasserstein) of two Gaussians.

    With A and B the roots of the covariances and U S V' the singular value decomposition of A B,
    the distance of the covariances is |A - B V U'|^2 (Procrustes form).  This sum of squares is
    never negative, also for singular covariances.
    """
    a = a.gaussian() if isinstance(a, Moments) else a
    b = b.gaussian() if isinstance(b, Moments) else b
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"no distance between {len(a.mean)} and {len(b.mean)} dimensions")
    u, _, vt = np.linalg.svd(a.root @ b.root)
    rest = a.root - b.root @ (u @ vt).T
    return float(np.sum((a.mean - b.mean) ** 2) + np.sum(rest**2))


class GroupedMoments:
    """Moments of clips, kept in groups that can be resampled.

    A group holds whole clusters (clips that are not independent, so that they are resampled
    together).  Each of the first `groups` clusters has its own group; further clusters are added to
    these groups in turn, so memory does not grow with the number of clips.  Clips must come in
    random order, because similar clips in neighbouring groups would narrow the intervals.
    """

    def __init__(self, groups: int = GROUPS) -> None:
        self.limit = groups
        self.clips = 0
        self._clusters: dict[Hashable, int] = {}
        self.groups: list[Moments] = []
        self._stacked: tuple[Array, Array, Array] | None = None

    def add(self, embeddings: NDArray[np.floating], cluster: Hashable | None = None) -> None:
        """Add the embeddings [frames, D] of a clip.

        Args:
            cluster: cluster of the clip; None for a cluster of its own.
        """
        clip = Moments.of(embeddings)
        self._stacked = None
        name = self.clips if cluster is None else (cluster,)  # a tuple: never equal to a number
        place = self._clusters.setdefault(name, len(self._clusters)) % self.limit
        if place < len(self.groups):
            self.groups[place].merge(clip)
        else:
            self.groups.append(clip)
        self.clips += 1

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return len(self._clusters)

    def total(self, picks: Iterable[int] | None = None) -> Moments:
        """Moments of all groups, or of the picked groups, each as often as it is picked."""
        if not self.groups:
            raise ValueError("no clips")
        # A bootstrap calls this often.  Sums over one array are faster than a merge per group.
        if self._stacked is None:
            self._stacked = (
                np.array([g.count for g in self.groups], np.float64),
                np.stack([g.mean for g in self.groups]),
                np.stack([g.scatter for g in self.groups]),
            )
        counts, means, scatters = self._stacked
        n = len(self.groups)
        times = np.ones(n) if picks is None else np.bincount(np.fromiter(picks, int), minlength=n)
        share = times * counts
        count = int(share.sum())
        mean = share @ means / count
        apart = means - mean
        within = np.tensordot(times.astype(np.float64), scatters, axes=1)
        return Moments(count, mean, within + (apart.T * share) @ apart)


@dataclass(frozen=True)
class Extrapolation:
    """A distance extrapolated to infinitely many clips."""

    value: float
    slope: float
    """Slope of the distance over 1 / clips."""
    r2: float
    """Share of the variance that the line explains: near 1 if the extrapolation is valid."""


def frechet_infinity(
    clips: GroupedMoments, reference: Gaussian, steps: int = 15, seed: int = 0
) -> Extrapolation | None:
    """Fit a line through distances over 1/N, on random subsets of a third to all of the clips.

    Returns:
        None for too few clips, or if a subset has no more embeddings than dimensions: then the
        distance is not linear in 1/N.
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
    """Distances of resampled sets; clusters (groups, if there are more) are drawn with replacement.

    Args:
        sets: clips in the same order and clusters.  A draw picks the same groups of each set, so
            columns are paired.
        reference: not resampled, because the interval covers other clips of the same models.

    Returns:
        float64 [resamples, sets], or None for too few clips.
    """
    n = len(sets[0].groups)
    if any(s.clips != sets[0].clips or len(s.groups) != n for s in sets):
        raise ValueError("paired sets must have the same clips")
    if n < MIN_GROUPS:
        return None
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(resamples):
        picks = rng.integers(0, n, n)
        rows.append([_quick_distance(s.total(picks), reference) for s in sets])
    return np.array(rows)


def _quick_distance(moments: Moments, reference: Gaussian) -> float:
    # Eigenvalues only: five times faster, and exact to 1e-8 of the traces, which is enough for the
    # spread of resamples.
    covariance = moments.covariance
    product = reference.root @ covariance @ reference.root
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0))
    traces = np.trace(covariance) + np.sum(reference.root**2)
    return float(np.sum((moments.mean - reference.mean) ** 2) + traces - 2 * roots.sum())
