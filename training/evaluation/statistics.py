"""Intervals and tests of every evaluation, as functions of plain numbers.

scores of clips     cluster bootstrap of a mean and of a paired difference (`evaluate`)
forced choices      Clopper-Pearson interval, binomial and sign test, Fleiss' kappa (`preference`)
two models' clips   McNemar's exact test, which is `sign_test` (`report`)
training seeds      Student's t over pairs of seeds, Holm's adjustment (`ablate`)
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]

LEVEL = 0.95
"""Level of all intervals."""
RESAMPLES = 2000
"""Draws of a bootstrap over clips."""
PROMPT_RESAMPLES = 10_000
"""Draws of a bootstrap over prompts."""


@dataclass(frozen=True)
class Interval:
    """A value and its 95% bootstrap interval."""

    value: float
    low: float
    high: float


def around(value: float, resampled: Array) -> Interval:
    """The interval of resampled values, shifted so that their mean equals the value.

    The Fréchet distance of resampled clips is larger than that of the clips themselves, because
    some clips are drawn twice.  The shift removes this bias.
    """
    low, high = np.quantile(resampled - resampled.mean(), [0.025, 0.975])
    return Interval(value, value + float(low), value + float(high))


def mean_interval(
    values: ArrayLike, seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> Interval:
    """Mean of scores [N] with its interval; the bounds are NaN for fewer than two clusters.

    Args:
        clusters: the cluster of each score.  Scores of a cluster are resampled together, because
            they are not independent.  Without it, each score is a cluster.
    """
    scores = np.asarray(values, np.float64)
    mean = float(scores.mean()) if len(scores) else np.nan
    means = _resampled_means(scores, clusters, seed)
    return Interval(mean, np.nan, np.nan) if means is None else around(mean, means)


@dataclass(frozen=True)
class Difference:
    """Second minus first of two paired values."""

    value: float
    low: float
    high: float
    p_value: float
    """Two-sided: how often resampling moves a difference of zero that far."""

    @property
    def more_than_noise(self) -> bool:
        """Whether zero is outside the 95% interval."""
        return self.low > 0 or self.high < 0


def paired_difference(value: float, resampled: Array) -> Difference:
    """A difference with the interval and p-value of its paired resamples [R]."""
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
        ValueError: fewer than two clusters.
    """
    steps = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    means = _resampled_means(steps, clusters, seed)
    if means is None:
        raise ValueError("expected pairs of two clips or prompts at least")
    return paired_difference(float(steps.mean()), means)


def _resampled_means(scores: Array, clusters: Sequence[Hashable] | None, seed: int) -> Array | None:
    """Means of scores whose clusters are resampled [RESAMPLES]; None below two clusters."""
    names = range(len(scores)) if clusters is None else clusters
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    if len(places) < 2:
        return None
    index = [places[name] for name in names]
    return _resample(np.bincount(index, weights=scores), np.bincount(index), RESAMPLES, seed)


def _resample(sums: NDArray, sizes: NDArray, resamples: int, seed: int) -> Array:
    """Means over clusters that are drawn with replacement, from each one's sum and size."""
    n = len(sums)
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, n, n) for _ in range(resamples))
    return np.array([sums[picks].sum() / sizes[picks].sum() for picks in draws])


@dataclass(frozen=True)
class Share:
    """How many of n choices fell on one of two sides."""

    hits: int
    n: int
    share: float
    low: float
    high: float
    """Clopper and Pearson's interval (1934)."""
    p_value: float
    """Exact two-sided binomial test against one half."""


def share(hits: int, n: int) -> Share:
    """A proportion of independent choices.

    Raises:
        ValueError: n below 1, or hits outside of 0 to n.
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"{hits} of {n} is no share")
    test = stats.binomtest(hits, n, 0.5)
    interval = test.proportion_ci(LEVEL, method="exact")
    low, high = float(interval.low), float(interval.high)
    return Share(hits, n, hits / n, low, high, float(test.pvalue))


def sign_test(first: int, second: int) -> float:
    """Exact two-sided p-value that both outcomes are equally likely; ties are not counted.

    On the clips that only one of two models got right, this is McNemar's exact test.
    """
    n = first + second
    return float(stats.binomtest(first, n, 0.5).pvalue) if n else 1.0


def share_by_prompt(counts: NDArray[np.int64]) -> dict[str, Any]:
    """The share of A, with an interval that resamples the answers to a prompt together.

    Args:
        counts: int64 [prompts, 2], answers for A and for B; at least one answer in all.

    Returns:
        `share`; `low` and `high` of the bootstrap over prompts, None if all prompts have the same
        share; and the number of `prompts` with answers.
    """
    used = counts[counts.sum(axis=1) > 0]
    for_a, answers = used[:, 0], used.sum(axis=1)
    low, high = None, None
    if len(np.unique(for_a / answers)) > 1:
        drawn = _resample(for_a, answers, PROMPT_RESAMPLES, seed=0)
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    share = float(for_a.sum() / answers.sum())
    return {"share": share, "low": low, "high": high, "prompts": len(used)}


def majorities(counts: NDArray[np.int64]) -> dict[str, Any]:
    """One vote per prompt, because the answers of several raters to a prompt are not independent.

    Args:
        counts: int64 [prompts, 2], answers for A and for B; prompts without answers do not count.

    Returns:
        Number of prompts for which most raters chose `a`, chose `b`, or were `tied`; and the
        `p_value` of their `sign_test`.
    """
    difference = counts[:, 0] - counts[:, 1]
    a, b = int((difference > 0).sum()), int((difference < 0).sum())
    tied = int(((difference == 0) & (counts.sum(axis=1) > 0)).sum())
    return {"a": a, "b": b, "tied": tied, "p_value": sign_test(a, b)}


@dataclass(frozen=True)
class Kappa:
    """Agreement between raters beyond chance."""

    value: float | None
    """1: raters always agree; 0: they agree as often as by chance; None: undefined."""
    why: str
    """Reason for None."""
    observed: float | None
    """Share of pairs of raters who agree, mean over prompts."""
    chance: float | None
    """The same share if raters chose at random, with the overall frequencies."""
    prompts: int
    """Number of prompts with two or more answers."""


def fleiss_kappa(counts: NDArray[np.int64]) -> Kappa:
    """Fleiss' kappa (1971); the number of answers may differ between prompts.

    Kappa is undefined if no prompt has two answers, and if all answers are the same: agreement by
    chance is then 1.

    Args:
        counts: int64 [prompts, categories], answers per category.
    """
    used = counts[counts.sum(axis=1) >= 2].astype(np.float64)
    if not len(used):
        return Kappa(None, "no prompt has two answers", None, None, 0)
    n = used.sum(axis=1)
    observed = float(np.mean((used * (used - 1)).sum(axis=1) / (n * (n - 1))))
    chance = float(np.sum((used.sum(axis=0) / used.sum()) ** 2))
    if np.count_nonzero(used.sum(axis=0)) == 1:
        return Kappa(None, "all answers are the same", observed, chance, len(used))
    return Kappa((observed - chance) / (1 - chance), "", observed, chance, len(used))


@dataclass(frozen=True)
class SeedTest:
    """First minus second, over the training seeds that both have.

    The unit is the training seed and not the clip: clips of one model say nothing about the
    variation between training runs.
    """

    difference: float
    low: float | None
    high: float | None
    """95% interval of the mean difference, Student's t."""
    p_value: float | None
    """Two-sided paired t-test; None for fewer than two pairs, and if all differences are equal."""
    n: int
    adjusted: float | None = None
    """The p-value after Holm's adjustment over all tested metrics."""


def seed_test(first: Mapping[int, float], second: Mapping[int, float]) -> SeedTest | None:
    """Paired t-test of {seed: value}; None if no seed is in both."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    steps = np.array([first[seed] - second[seed] for seed in seeds])
    mean = float(steps.mean())
    if len(steps) < 2 or not steps.std() > 1e-12 * max(1.0, abs(mean)):
        return SeedTest(mean, None, None, None, len(steps))
    found = stats.ttest_1samp(steps, 0.0)
    interval = found.confidence_interval(LEVEL)
    low, high = float(interval.low), float(interval.high)
    return SeedTest(mean, low, high, float(found.pvalue), len(steps))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment (1979): it bounds the chance of any false alarm among all tests.

    The i-th smallest of n p-values (i from 0) is multiplied by n - i, and none may be below an
    earlier one.
    """
    names = sorted(p_values, key=lambda name: p_values[name])
    scaled = [min(1.0, (len(names) - i) * p_values[name]) for i, name in enumerate(names)]
    return dict(zip(names, np.maximum.accumulate(scaled).tolist(), strict=True))
