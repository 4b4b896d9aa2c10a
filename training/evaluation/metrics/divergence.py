"""Scores of single clips: KL divergence of labels (KL), cosine of embeddings (CLAP score)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy

Array = NDArray[np.float64]

EPSILON = 1e-6
"""Added to the second distribution before its logarithm, as in the MusicGen authors' code."""


def kl_divergence(p: ArrayLike, q: ArrayLike, epsilon: float = EPSILON) -> Array:
    """sum p (log p - log (q + epsilon)) in nats, over the last axis.

    In papers, "KL" has p = labels of the real clip, q = labels of the generated clip.  Because of
    epsilon, the divergence of equal distributions is slightly negative (at least -epsilon L).

    Args:
        p, q: probabilities [..., L].

    Returns:
        float64 [...].
    """
    first, second = np.asarray(p, np.float64), np.asarray(q, np.float64)
    return np.sum(xlogy(first, first) - xlogy(first, second + epsilon), axis=-1)


def cosine(a: ArrayLike, b: ArrayLike) -> Array:
    """Cosine of vectors [..., D] over the last axis, float64 [...]; 0 if a vector is zero."""
    x, y = _scaled(a), _scaled(b)
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return np.sum(x * y, axis=-1) / np.where(norms > 0, norms, 1.0)


def _scaled(a: ArrayLike) -> Array:
    # Divide by the largest value: the squares of tiny or huge values would leave float64.
    vectors = np.asarray(a, np.float64)
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    return vectors / np.maximum(largest, np.finfo(np.float64).tiny)
