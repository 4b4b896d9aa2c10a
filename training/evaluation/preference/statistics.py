"""What forced choices tell: shares with exact intervals and tests, agreement of raters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binomtest

LEVEL = 0.95
"""Of all intervals."""
RESAMPLES = 10_000
"""Of a bootstrap over prompts."""


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


def share(hits: int, n: int, level: float = LEVEL) -> Share:
    """A proportion of independent choices.

    Raises:
        ValueError: n below 1, or hits outside of 0 to n.
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"{hits} of {n} is no share")
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
    return Share(hits, n, hits / n, low, high, float(binomtest(hits, n, 0.5).pvalue))


@dataclass(frozen=True)
class ShareByPrompt:
    """A share of answers, and how far other prompts might move it."""

    share: float
    low: float | None
    high: float | None
    """Bootstrap over prompts; None where all prompts have the same share: nothing to draw from."""
    prompts: int
    """With answers."""


def share_by_prompt(
    counts: NDArray[np.int64], level: float = LEVEL, seed: int = 0
) -> ShareByPrompt:
    """The share of A, with an interval that takes answers to one prompt for no draws of their own.

    Prompts are drawn with replacement, each with all of its answers; the interval is between the
    percentiles of their shares.

    Args:
        counts: int64 [prompts, 2], answers for A and for B; some prompt has one.
    """
    used = counts[counts.sum(axis=1) > 0]
    answers = used.sum(axis=1)
    share = float(used[:, 0].sum() / answers.sum())
    if len(np.unique(used[:, 0] / answers)) < 2:
        return ShareByPrompt(share, None, None, len(used))
    picks = np.random.default_rng(seed).integers(0, len(used), (RESAMPLES, len(used)))
    drawn = used[:, 0][picks].sum(axis=1) / answers[picks].sum(axis=1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return ShareByPrompt(share, float(low), float(high), len(used))


@dataclass(frozen=True)
class Majorities:
    """Prompts by what most of their raters chose."""

    a: int
    b: int
    tied: int
    p_value: float
    """Sign test: two-sided, exact, ties left out; 1 where all are tied."""


def majorities(counts: NDArray[np.int64]) -> Majorities:
    """One vote per prompt, so that raters who agree on it do not count as so many prompts.

    Args:
        counts: int64 [prompts, 2], answers for A and for B; prompts without answers are left out.
    """
    difference = counts[:, 0] - counts[:, 1]
    a, b = int((difference > 0).sum()), int((difference < 0).sum())
    tied = int(((difference == 0) & (counts.sum(axis=1) > 0)).sum())
    return Majorities(a, b, tied, float(binomtest(a, a + b, 0.5).pvalue) if a + b else 1.0)


@dataclass(frozen=True)
class Kappa:
    """Agreement between raters beyond chance."""

    value: float | None
    """1: they always agree; 0: as often as chance would have it; None: undefined."""
    why: str
    """Of None."""
    observed: float | None
    """Share of pairs of raters who agree, mean over prompts."""
    chance: float | None
    """The same for raters who choose at random, as often for A as all of them together."""
    prompts: int
    """With two answers or more: the others say nothing."""


def fleiss_kappa(counts: NDArray[np.int64]) -> Kappa:
    """Fleiss' kappa (1971), for prompts with the same or with different numbers of answers.

    It is undefined where no prompt has two answers, and where all answers are the same: chance
    would agree always as well.

    Args:
        counts: int64 [prompts, categories], answers per category.
    """
    answers = counts.sum(axis=1)
    used = counts[answers >= 2].astype(np.float64)
    if not len(used):
        return Kappa(None, "no prompt has two answers", None, None, 0)
    n = used.sum(axis=1)
    observed = float(np.mean((used * (used - 1)).sum(axis=1) / (n * (n - 1))))
    chance = float(np.sum((used.sum(axis=0) / used.sum()) ** 2))
    if np.count_nonzero(used.sum(axis=0)) == 1:
        return Kappa(None, "all answers are the same", observed, chance, len(used))
    return Kappa((observed - chance) / (1 - chance), "", observed, chance, len(used))
