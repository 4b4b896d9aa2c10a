"""KL, cosine and intervals against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training.evaluation.metrics.divergence import (
    EPSILON,
    RESAMPLES,
    around,
    cosine,
    kl_divergence,
    mean_interval,
    paired_means,
)


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


def test_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).standard_normal(400) + 2
    found = mean_interval(values)
    assert found.value == pytest.approx(values.mean())
    error = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - error, abs=0.2 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.2 * error)
    assert found == mean_interval(values)
    assert math.isnan(mean_interval([1.0]).low) and math.isnan(mean_interval([]).value)


def test_pairs_show_a_difference_that_separate_sets_would_hide():
    rng = np.random.default_rng(2)
    hard = 5 * rng.standard_normal(100)  # some prompts are harder, for both models
    better = hard + 0.3 + 0.1 * rng.standard_normal(100)
    found = paired_means(hard, better)
    assert found.more_than_noise and found.p_value < 0.01
    assert found.low < 0.3 < found.high
    same = paired_means(hard, hard + 0.1 * rng.standard_normal(100) * np.sign(hard))
    assert not same.more_than_noise and same.p_value > 0.05
    with pytest.raises(ValueError, match="pairs"):
        paired_means([1.0], [1.0])
    with pytest.raises(ValueError, match="pairs"):
        paired_means([1.0, 2.0], [1.0, 3.0], clusters=["dog", "dog"])


def test_differences_by_chance_are_rarely_called_more_than_noise():
    rng = np.random.default_rng(3)
    called = sum(
        paired_means(rng.standard_normal(50), rng.standard_normal(50)).more_than_noise
        for _ in range(60)
    )
    assert called <= 9


def test_clips_of_one_prompt_are_resampled_together():
    """Twenty prompts with ten clips each, models that tie: prompts differ, models do not."""
    rng = np.random.default_rng(4)
    names = np.repeat(np.arange(20), 10)
    called = np.zeros(2)
    for seed in range(60):
        luck = rng.standard_normal(20)[names]
        first, second = rng.standard_normal((2, 200))
        second += luck
        for i, clusters in enumerate((None, names.tolist())):
            called[i] += paired_means(first, second, seed, clusters).more_than_noise
    assert called[0] > 20 and called[1] <= 9
    values = [1.0, 1.0, 4.0]
    assert math.isnan(mean_interval(values, clusters=["a"] * 3).low)
    # Larger clusters weigh more: of two drawn, the mean is 1, 2 or 4.
    found = mean_interval(values, clusters=["a", "a", "b"])
    assert found.value == 2 and found.high - found.low == pytest.approx(3)


def test_clips_that_each_have_a_cluster_are_drawn_as_clips():
    rng = np.random.default_rng(5)
    first, second = rng.standard_normal((2, 50))
    names = [f"clip {i}" for i in range(50)]
    assert mean_interval(first, 3, names) == mean_interval(first, 3)
    assert paired_means(first, second, 3, names) == paired_means(first, second, 3)
    drawn = np.random.default_rng(3)
    means = [first[drawn.integers(0, 50, 50)].mean() for _ in range(RESAMPLES)]
    expected = around(float(first.mean()), np.array(means))
    found = mean_interval(first, 3, names)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
