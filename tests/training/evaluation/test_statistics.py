"""Intervals, tests and kappa against values by hand, closed forms and published values."""

from __future__ import annotations

import math
from math import comb

import numpy as np
import pytest

from training.evaluation.statistics import (
    RESAMPLES,
    around,
    fleiss_kappa,
    holm,
    majorities,
    mean_interval,
    paired_means,
    seed_test,
    share,
    share_by_prompt,
    sign_test,
)


def _at_least(k: int, n: int, p: float) -> float:
    return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


def test_p_value_is_the_sum_of_both_tails() -> None:
    assert share(5, 10).p_value == 1
    assert share(1, 10).p_value == pytest.approx(2 * (1 + 10) / 1024)
    assert share(9, 10).p_value == pytest.approx(2 * (1 + 10) / 1024)
    assert share(0, 1).p_value == 1
    assert share(8, 8).p_value == pytest.approx(2 / 256)
    for k, n in ((107, 160), (83, 160), (53, 160)):
        tail = sum(comb(n, i) for i in range(max(k, n - k), n + 1))
        assert share(k, n).p_value == pytest.approx(2 * tail / 2**n, rel=1e-9)


def test_interval_ends_where_the_data_become_as_unlikely_as_its_level_says() -> None:
    for k, n in ((3, 10), (107, 160), (1, 2), (159, 160)):
        found = share(k, n)
        assert found.share == k / n and found.low < found.share < found.high
        assert _at_least(k, n, found.low) == pytest.approx(0.025, rel=1e-6)
        assert 1 - _at_least(k + 1, n, found.high) == pytest.approx(0.025, rel=1e-6)


def test_interval_of_none_and_all_has_a_closed_form() -> None:
    for n in (1, 7, 160):
        none, every = share(0, n), share(n, n)
        assert (none.low, every.high) == (0, 1)
        assert none.high == pytest.approx(1 - 0.025 ** (1 / n))
        assert every.low == pytest.approx(0.025 ** (1 / n))


def test_the_other_side_is_the_mirror_image() -> None:
    one, other = share(107, 160), share(53, 160)
    assert one.low == pytest.approx(1 - other.high) and one.high == pytest.approx(1 - other.low)
    assert one.p_value == other.p_value


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_no_share_of_nothing(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        share(hits, n)


def test_kappa_of_fleiss_worked_example() -> None:
    """14 raters, 10 subjects, 5 categories; observed .378, chance .213, kappa .210."""
    table = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    found = fleiss_kappa(np.array(table))
    assert found.value is not None and found.observed is not None and found.chance is not None
    assert round(found.observed, 3) == 0.378
    assert round(found.chance, 3) == 0.213
    assert round(found.value, 3) == 0.210
    assert found.prompts == 10 and found.why == ""


def test_kappa_by_hand() -> None:
    assert fleiss_kappa(np.array([[8, 0], [0, 8]])).value == 1
    assert fleiss_kappa(np.array([[1, 1], [1, 1]])).value == -1
    # Three raters: prompt one 2:1 (1 of 3 pairs agrees), prompt two 3:0 (all). Chance (25 + 1)/36.
    observed, chance = (1 / 3 + 1) / 2, 26 / 36
    expected = (observed - chance) / (1 - chance)
    assert fleiss_kappa(np.array([[2, 1], [3, 0]])).value == pytest.approx(expected)


def test_kappa_of_an_unfinished_study() -> None:
    """Prompts with one answer say nothing of agreement; others count by their own number."""
    # 2:2 agrees in 2 of 6 pairs, 2:0 in all; of six answers four are A.
    observed, chance = (2 / 6 + 1) / 2, (4 / 6) ** 2 + (2 / 6) ** 2
    found = fleiss_kappa(np.array([[2, 2], [2, 0], [0, 1], [0, 0]]))
    assert found.prompts == 2
    assert found.value == pytest.approx((observed - chance) / (1 - chance))


def test_kappa_where_it_is_undefined() -> None:
    alone = fleiss_kappa(np.array([[1, 0], [0, 1], [0, 0]]))
    assert alone.value is None and alone.why == "no prompt has two answers"
    same = fleiss_kappa(np.array([[8, 0], [7, 0]]))
    assert same.value is None and same.why == "all answers are the same"
    assert same.observed == same.chance == 1


def test_share_by_prompt_by_hand() -> None:
    """Two prompts, all for A and all for B: of two drawn, none, half or all are the first."""
    counts = np.array([[8, 0], [0, 0], [0, 8]])
    found = share_by_prompt(counts)
    assert found == {"share": 0.5, "low": 0, "high": 1, "prompts": 2}
    assert share_by_prompt(counts) == found
    # Prompts with more answers weigh more, as they do in the share.
    assert share_by_prompt(np.array([[3, 1], [0, 8]]))["share"] == 0.25
    for same in ([[5, 3]], [[8, 0], [4, 0]], [[4, 4], [2, 2]]):
        found = share_by_prompt(np.array(same))
        assert found["low"] is None and found["high"] is None


def test_interval_over_prompts_is_as_wide_as_prompts_make_it() -> None:
    """Twenty prompts, eight raters who all agree on each: twenty choices, not 160."""
    counts = np.array([[8, 0]] * 12 + [[0, 8]] * 8)
    found, answers, alone = share_by_prompt(counts), share(96, 160), share(12, 20)
    width = found["high"] - found["low"]
    assert width == pytest.approx(alone.high - alone.low, rel=0.15)
    assert width > 2 * (answers.high - answers.low)
    # Raters who toss coins: prompts do not differ, and both say the same.
    rng = np.random.default_rng(0)
    hits = rng.binomial(8, 0.5, 400)
    found, answers = share_by_prompt(np.stack([hits, 8 - hits], 1)), share(int(hits.sum()), 3200)
    width = found["high"] - found["low"]
    assert width == pytest.approx(answers.high - answers.low, rel=0.15)


def test_one_vote_per_prompt() -> None:
    found = majorities(np.array([[8, 0], [5, 3], [4, 4], [0, 1], [0, 0], [2, 0], [3, 1]]))
    assert found == {"a": 4, "b": 1, "tied": 1, "p_value": pytest.approx(2 * (1 + 5) / 32)}
    assert majorities(np.array([[4, 4], [0, 0]]))["p_value"] == 1


def test_sign_test_of_clips_that_one_model_got_right() -> None:
    """McNemar's exact test: of six clips, one against five; without any, no difference."""
    assert sign_test(1, 5) == sign_test(5, 1) == pytest.approx(2 * (1 + 6) / 64)
    assert sign_test(0, 0) == 1


def test_paired_test_by_hand() -> None:
    """Differences 1, 2, 3, 6: mean 3, standard error sqrt(14/3)/2; t(3) = 2.777."""
    first, second = {0: 2.0, 1: 4.0, 2: 6.0, 3: 7.0, 9: 1.0}, {0: 1.0, 1: 2.0, 2: 3.0, 3: 1.0}
    found = seed_test(first, second)
    assert found is not None and found.n == 4
    assert found.difference == 3.0
    error = math.sqrt(14 / 3) / 2
    quantile = 3.182446305284263  # of Student's t with 3 degrees of freedom, 97.5%
    assert found.low == pytest.approx(3 - quantile * error, rel=1e-9)
    assert found.high == pytest.approx(3 + quantile * error, rel=1e-9)
    # P(|T| > t) for 3 degrees of freedom in closed form.
    t = 3 / error
    x = t / math.sqrt(3)
    inside = 2 / math.pi * (math.atan(x) + x / (1 + x * x))
    assert found.p_value == pytest.approx(1 - inside, rel=1e-9)


def test_seed_test_without_pairs_or_spread() -> None:
    assert seed_test({0: 1.0}, {1: 1.0}) is None
    for first in ({0: 1.0}, {0: 1.0, 1: 2.0}):
        found = seed_test(first, {0: 0.5, 1: 1.5})
        assert found is not None and found.p_value is None and found.difference == 0.5


def test_holm_by_hand() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert found == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.7, "b": 0.9}) == pytest.approx({"a": 1.0, "b": 1.0})


def test_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).standard_normal(400) + 2
    found = mean_interval(values)
    assert found.value == pytest.approx(values.mean())
    error = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - error, abs=0.2 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.2 * error)
    assert found == mean_interval(values)
    assert math.isnan(mean_interval([1.0]).low) and math.isnan(mean_interval([]).value)


def test_pairs_show_what_clips_alone_would_hide():
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


def test_clips_of_one_prompt_are_one_witness():
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
