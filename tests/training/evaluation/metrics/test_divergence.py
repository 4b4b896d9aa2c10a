"""KL and cosine against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training.evaluation.metrics.divergence import EPSILON, cosine, kl_divergence


def test_kl_equals_hand_computed_values_in_both_directions():
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    assert kl_divergence(p, q, 0) == pytest.approx(math.log(2), rel=1e-12)
    # The other way round a label is impossible: infinite, but for the epsilon.
    assert kl_divergence(q, p, 0) == math.inf
    expected = 0.5 * math.log(0.25 / (0.5 + 1e-6)) + 0.5 * math.log(0.5 / 1e-6)
    assert kl_divergence(q, p) == pytest.approx(expected, rel=1e-12)


def test_kl_equals_the_formula_of_the_reference_code():
    rng = np.random.default_rng(0)
    p, q = (np.exp(5 * rng.standard_normal((7, 527))) for _ in "pq")
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    logs = (torch.from_numpy(q) + 1e-6).log()
    expected = torch.nn.functional.kl_div(logs, torch.from_numpy(p), reduction="none").sum(-1)
    np.testing.assert_allclose(kl_divergence(p, q), expected.numpy(), rtol=1e-12)
    assert kl_divergence(p, p).min() >= -527 * EPSILON and kl_divergence(p, p).max() < 0


def test_cosine_equals_hand_computed_values():
    assert cosine([3.0, 4.0], [4.0, 3.0]) == pytest.approx(24 / 25, rel=1e-15)
    np.testing.assert_allclose(cosine([[1, 0], [0, 2], [-1, 0]], [1, 0]), [1, 0, -1], atol=1e-15)
    assert cosine([3e-200, 4e-200], [4e200, 3e200]) == pytest.approx(24 / 25, rel=1e-12)
    assert cosine([0.0, 0.0], [1.0, 0.0]) == 0
