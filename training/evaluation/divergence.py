"""Scores of single clips (divergence of labels, cosine), and how sure their means are."""

from __future__ import annotations

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


def mean_interval(values: ArrayLike, seed: int = 0) -> Interval:
    """Mean of scores [N] with its interval; NaN bounds for fewer than two."""
    scores = np.asarray(values, np.float64)
    if len(scores) < 2:
        return Interval(float(scores.mean()) if len(scores) else np.nan, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    means = [scores[rng.integers(0, len(scores), len(scores))].mean() for _ in range(RESAMPLES)]
    return around(float(scores.mean()), np.array(means))


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


def paired_means(first: ArrayLike, second: ArrayLike, seed: int = 0) -> Difference:
    """Difference of the means of scores [N] of the same clips, resampled in pairs.

    Raises:
        ValueError: not the same number, or fewer than two.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"expected pairs, two at least: found {len(a)} and {len(b)}")
    steps = b - a
    rng = np.random.default_rng(seed)
    means = [steps[rng.integers(0, len(steps), len(steps))].mean() for _ in range(RESAMPLES)]
    return paired_difference(float(steps.mean()), np.array(means))
