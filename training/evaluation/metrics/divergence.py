"""Scores of single clips (divergence of labels, cosine), and how sure their means are."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy

Array = NDArray[np.float64]

EPSILON = 1e-6
"""Added to the second distribution before its logarithm, as the MusicGen authors' code does."""
RESAMPLES = 2000
"""Of a bootstrap of means."""


def kl_divergence(p: ArrayLike, q: ArrayLike, epsilon: float = EPSILON) -> Array:
    """sum p (log p - log (q + epsilon)) in nats, over the last axis.

    "KL" in papers is p = labels of the real clip, q = those of the generated one.  With epsilon the
    divergence of equal distributions is a little below zero: by epsilon times L at most.

    Args:
        p, q: probabilities [..., L].

    Returns:
        float64 [...].
    """
    first, second = np.asarray(p, np.float64), np.asarray(q, np.float64)
    return np.sum(xlogy(first, first) - xlogy(first, second + epsilon), axis=-1)


def cosine(a: ArrayLike, b: ArrayLike) -> Array:
    """Cosine over the last axis; 0 where a vector is zero.

    Args:
        a, b: [..., D].

    Returns:
        float64 [...].
    """
    x, y = _scaled(a), _scaled(b)
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return np.sum(x * y, axis=-1) / np.where(norms > 0, norms, 1.0)


def _scaled(a: ArrayLike) -> Array:
    # By the largest value: squares of tiny or huge ones would leave float64.
    vectors = np.asarray(a, np.float64)
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    return vectors / np.maximum(largest, np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Interval:
    """A figure and its 95% bootstrap interval."""

    value: float
    low: float
    high: float


def around(value: float, resampled: Array) -> Interval:
    """The interval of resampled figures, moved so that their mean lies on the figure.

    A distance of resampled clips is larger than that of the clips themselves (they are fewer,
    some being there twice): a bias of the drawing, not of what is drawn.
    """
    low, high = np.quantile(resampled - resampled.mean(), [0.025, 0.975])
    return Interval(value, value + float(low), value + float(high))


def mean_interval(
    values: ArrayLike, seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> Interval:
    """Mean of scores [N] with its interval; NaN bounds for fewer than two, or of one cluster.

    Args:
        clusters: a name per score; those of one name are drawn together, because they are no
            independent witnesses.  Without, every score is drawn alone.
    """
    scores = np.asarray(values, np.float64)
    mean = float(scores.mean()) if len(scores) else np.nan
    means = _resampled_means(scores, clusters, seed)
    return Interval(mean, np.nan, np.nan) if means is None else around(mean, means)


def _resampled_means(scores: Array, clusters: Sequence[Hashable] | None, seed: int) -> Array | None:
    """Means of the scores of clusters drawn with replacement [RESAMPLES]; None of fewer than 2."""
    names = range(len(scores)) if clusters is None else clusters
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    n = len(places)
    if n < 2:
        return None
    index = [places[name] for name in names]
    sums, sizes = np.bincount(index, weights=scores), np.bincount(index)
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, n, n) for _ in range(RESAMPLES))
    return np.array([sums[picks].sum() / sizes[picks].sum() for picks in draws])


@dataclass(frozen=True)
class Difference:
    """Second minus first of two paired figures."""

    value: float
    low: float
    high: float
    p_value: float
    """Two-sided: how often resampling alone moves the difference that far."""

    @property
    def more_than_noise(self) -> bool:
        """Whether the 95% interval leaves zero out."""
        return self.low > 0 or self.high < 0


def paired_difference(value: float, resampled: Array) -> Difference:
    """A difference and those of paired resamples [R]."""
    interval = around(value, resampled)
    far = np.abs(resampled - resampled.mean()) >= abs(value)
    p_value = (1 + int(far.sum())) / (1 + len(resampled))
    return Difference(value, interval.low, interval.high, p_value)


def paired_means(
    first: ArrayLike,
    second: ArrayLike,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> Difference:
    """Difference of the means of scores [N] of the same clips, resampled in pairs.

    Args:
        clusters: as in `mean_interval`.

    Raises:
        ValueError: not the same number, or fewer than two clusters.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if len(a) != len(b):
        raise ValueError(f"expected pairs: found {len(a)} and {len(b)}")
    means = _resampled_means(b - a, clusters, seed)
    if means is None:
        raise ValueError("expected pairs of two clips or prompts at least")
    return paired_difference(float((b - a).mean()), means)
