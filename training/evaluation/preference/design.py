"""Random sides of the pairs for each rater, balanced by construction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SWAPS = 20
"""Attempted exchanges per cell of the table of sides: enough to forget the initial table."""
_MOST_SWAPS = 500_000


def draw_sides(raters: int, pairs: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Whether model A is on the left: bool [raters, pairs].

    Half of each row (a rater's pairs) and half of each column (a pair's raters) is true, within 1.
    The table starts as a chessboard, which is balanced.  Then the corners of random rectangles with
    different diagonals are exchanged.  This keeps all sums and can reach every table with the same
    sums (Ryser, 1957).
    """
    table = np.add.outer(np.arange(raters), np.arange(pairs)) % 2 == int(rng.integers(2))
    table = table[rng.permutation(raters)][:, rng.permutation(pairs)]
    if raters < 2 or pairs < 2:
        return table
    swaps = min(_SWAPS * raters * pairs, _MOST_SWAPS)
    rows = rng.integers((raters, raters - 1), size=(swaps, 2))
    columns = rng.integers((pairs, pairs - 1), size=(swaps, 2))
    cells: list[list[bool]] = table.tolist()
    for (i, k), (j, m) in zip(rows.tolist(), columns.tolist(), strict=True):
        one, other = cells[i], cells[k + (k >= i)]  # two different rows, and columns
        m += m >= j
        if one[j] == other[m] != one[m] == other[j]:
            one[j], one[m], other[j], other[m] = one[m], one[j], other[m], other[j]
    return np.array(cells)
