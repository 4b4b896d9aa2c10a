"""Seeds in pairs: does one row differ from another by more than another seed would make it?

The seed is the unit: clips of one model are not independent of each other, so however many there
are, they say nothing of what training once more would give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Summary:
    """Of a row's seeds."""

    mean: float
    sd: float | None
    """Unbiased; none of one seed."""
    values: tuple[float, ...]


@dataclass(frozen=True)
class PairedTest:
    """First minus second over the seeds that both have."""

    difference: float
    low: float | None
    high: float | None
    """95% interval of the mean difference, Student's t."""
    p_value: float | None
    """Two-sided paired t-test; none where there are fewer than two pairs, or no spread."""
    n: int
    adjusted: float | None = None
    """Holm's: over all metrics that were tested."""


def summarize(values: Sequence[float]) -> Summary:
    """Mean and standard deviation of a row's figures, one per seed.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("no figures to summarize")
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(float(np.mean(values)), sd, tuple(values))


def paired_test(first: Mapping[int, float], second: Mapping[int, float]) -> PairedTest | None:
    """Of figures by seed; None where no seed is in both."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    steps = np.array([first[seed] - second[seed] for seed in seeds])
    mean = float(steps.mean())
    if len(steps) < 2 or not steps.std() > 1e-12 * max(1.0, abs(mean)):
        return PairedTest(mean, None, None, None, len(steps))
    found = stats.ttest_1samp(steps, 0.0)
    interval = found.confidence_interval(0.95)
    low, high = float(interval.low), float(interval.high)
    return PairedTest(mean, low, high, float(found.pvalue), len(steps))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment (1979): the chance of any false alarm among all tests."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    for rank, (name, p) in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * p))
        adjusted[name] = highest
    return adjusted
