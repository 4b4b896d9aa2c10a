"""Shares, intervals, tests and kappa against values by hand, closed forms and published ones."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from training.evaluation.preference.statistics import (
    fleiss_kappa,
    majorities,
    share,
    share_by_prompt,
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
    for k, n, level in ((3, 10, 0.95), (107, 160, 0.95), (1, 2, 0.9), (159, 160, 0.99)):
        found = share(k, n, level)
        assert found.share == k / n and found.low < found.share < found.high
        assert _at_least(k, n, found.low) == pytest.approx((1 - level) / 2, rel=1e-6)
        assert 1 - _at_least(k + 1, n, found.high) == pytest.approx((1 - level) / 2, rel=1e-6)


def test_interval_of_none_and_all_has_a_closed_form() -> None:
    for n in (1, 7, 160):
        none, every = share(0, n), share(n, n)
        assert (none.low, every.high) == (0, 1)
        assert none.high == pytest.approx(1 - 0.025 ** (1 / n))
        assert every.low == pytest.approx(0.025 ** (1 / n))


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
    assert (found.share, found.low, found.high, found.prompts) == (0.5, 0, 1, 2)
    assert share_by_prompt(counts) == found
    # Prompts with more answers weigh more, as they do in the share.
    assert share_by_prompt(np.array([[3, 1], [0, 8]])).share == 0.25
    for same in ([[5, 3]], [[8, 0], [4, 0]], [[4, 4], [2, 2]]):
        found = share_by_prompt(np.array(same))
        assert found.low is None and found.high is None


def test_interval_over_prompts_is_as_wide_as_prompts_make_it() -> None:
    """Twenty prompts, eight raters who all agree on each: twenty choices, not 160."""
    counts = np.array([[8, 0]] * 12 + [[0, 8]] * 8)
    found, answers, alone = share_by_prompt(counts), share(96, 160), share(12, 20)
    assert found.low is not None and found.high is not None
    width = found.high - found.low
    assert width == pytest.approx(alone.high - alone.low, rel=0.15)
    assert width > 2 * (answers.high - answers.low)
    # Raters who toss coins: prompts do not differ, and both say the same.
    rng = np.random.default_rng(0)
    hits = rng.binomial(8, 0.5, 400)
    found, answers = share_by_prompt(np.stack([hits, 8 - hits], 1)), share(int(hits.sum()), 3200)
    assert found.low is not None and found.high is not None
    assert found.high - found.low == pytest.approx(answers.high - answers.low, rel=0.15)


def test_one_vote_per_prompt() -> None:
    found = majorities(np.array([[8, 0], [5, 3], [4, 4], [0, 1], [0, 0], [2, 0], [3, 1]]))
    assert (found.a, found.b, found.tied) == (4, 1, 1)
    assert found.p_value == pytest.approx(2 * (1 + 5) / 32)
    assert majorities(np.array([[4, 4], [0, 0]])).p_value == 1
