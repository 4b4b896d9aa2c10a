"""Orders and sides: balanced for every size, the same for a seed, without a pattern to guess."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.preference.design import draw_orders, draw_sides

SIZES = [(8, 20), (1, 20), (8, 1), (1, 1), (2, 2), (7, 19), (3, 5), (5, 4), (30, 11)]


@pytest.mark.parametrize(("raters", "pairs"), SIZES)
def test_sides_are_balanced_per_rater_and_per_pair(raters: int, pairs: int) -> None:
    for seed in range(20):
        table = draw_sides(raters, pairs, np.random.default_rng(seed))
        assert table.shape == (raters, pairs) and table.dtype == bool
        assert (abs(2 * table.sum(axis=1) - pairs) <= 1).all()
        assert (abs(2 * table.sum(axis=0) - raters) <= 1).all()
        total = 2 * int(table.sum()) - raters * pairs
        assert abs(total) <= min(raters, pairs)


def test_no_two_raters_share_a_pattern_and_every_cell_is_a_coin() -> None:
    tables = [draw_sides(8, 20, np.random.default_rng(seed)) for seed in range(400)]
    for table in tables[:50]:
        rows = {row.tobytes() for row in table} | {(~row).tobytes() for row in table}
        assert len(rows) == 16, "a rater's sides are another's, or their mirror image"
    share = np.mean(tables, axis=0)
    # Five standard deviations of 400 throws: a cell strays that far once in two million.
    assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(400)


def test_every_order_is_a_permutation_and_they_differ() -> None:
    orders = draw_orders(8, 20, np.random.default_rng(3))
    assert all(sorted(row) == list(range(20)) for row in orders.tolist())
    assert len({row.tobytes() for row in orders}) == 8
