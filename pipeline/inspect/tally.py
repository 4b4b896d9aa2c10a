"""Figures of manifest rows, from whole columns: durations, tokens, prompts, licences, codes."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

TALLIED = (
    "dataset", "split", "prompts", "prompt_tokens", "duration_s", "license", "license_url",
)  # fmt: skip
"""Columns of the manifest that a `Tally` reads."""


@dataclass(frozen=True)
class Histogram:
    """How numbers >= 0 are spread; quantiles and bars are rounded to whole steps."""

    values: npt.NDArray[Any]
    step: float = 1

    @property
    def total(self) -> float:
        return float(self.values.sum())

    @property
    def least(self) -> float:
        return float(self.values.min())

    @property
    def most(self) -> float:
        return float(self.values.max())

    @cached_property
    def steps(self) -> npt.NDArray[np.int64]:
        """The numbers in whole steps, sorted."""
        return np.sort(np.rint(self.values / self.step).astype(np.int64))

    def quantile(self, q: float) -> float:
        """The smallest number with at least `q` of all at or below it, to half a step."""
        if not len(self.steps):
            return 0.0
        at = int(self.steps[max(1, int(np.ceil(q * len(self.steps)))) - 1])
        return min(max(round(at * self.step, 6), self.least), self.most)

    def figures(self) -> dict[str, float]:
        """min, mean, max and `QUANTILES` as p05, ..., p95 (the median under that name)."""
        if not len(self.values):
            return {}
        quantiles = {
            "median" if q == 0.5 else f"p{round(100 * q):02d}": self.quantile(q) for q in QUANTILES
        }
        mean = round(self.total / len(self.values), 6)
        return {"min": self.least, **quantiles, "mean": mean, "max": self.most}

    def bars(self) -> dict[str, int]:
        """How often each number comes: {number: count}."""
        found, counts = np.unique(self.steps, return_counts=True)
        return {f"{i * self.step:g}": int(n) for i, n in zip(found, counts, strict=True)}


@dataclass(frozen=True)
class Tally:
    """Sums over manifest rows, e.g. those of one dataset."""

    rows: pa.Table
    """With the columns `TALLIED`."""

    @property
    def clips(self) -> int:
        return len(self.rows)

    @cached_property
    def prompts(self) -> int:
        return len(pc.list_flatten(self.rows["prompts"]))

    @cached_property
    def unique(self) -> int:
        """How many different prompts there are."""
        return int(pc.count_distinct(pc.list_flatten(self.rows["prompts"])).as_py())

    @cached_property
    def durations(self) -> Histogram:
        """Seconds, to 10 ms."""
        return Histogram(self.rows["duration_s"].to_numpy(), 0.01)

    @cached_property
    def tokens(self) -> Histogram:
        return Histogram(pc.list_flatten(self.rows["prompt_tokens"]).to_numpy())

    @property
    def splits(self) -> Counter[str]:
        return Counter(self.rows["split"].to_pylist())

    @property
    def licenses(self) -> Counter[str]:
        """Clips under each licence."""
        return Counter({row["license"]: row["seconds_count"] for row in self._by_license})

    @property
    def license_seconds(self) -> dict[str, float]:
        return {row["license"]: row["seconds_sum"] for row in self._by_license}

    @cached_property
    def _by_license(self) -> list[dict[str, Any]]:
        """A row per licence, in the order of their first clips."""
        texts = (self.rows["license"], self.rows["license_url"])
        stated = (pc.if_else(pc.equal(column, ""), None, column) for column in texts)
        names = pc.coalesce(*stated, "not stated")
        table = pa.table({"license": names, "seconds": self.rows["duration_s"]})
        sums = table.group_by("license", use_threads=False).aggregate(
            [("seconds", "count"), ("seconds", "sum")]
        )
        return list(sums.to_pylist())

    def figures(self) -> dict[str, Any]:
        return {
            "clips": self.clips,
            "hours": round(self.durations.total / 3600, 6),
            "prompts": self.prompts,
            "unique_prompts": self.unique,
            "splits": dict(sorted(self.splits.items())),
            "duration_s": self.durations.figures(),
            "prompt_tokens": self.tokens.figures() | {"histogram": self.tokens.bars()},
            "licenses": dict(self.licenses.most_common()),
        }


def by_dataset(manifest: pa.Table) -> dict[str, Tally]:
    """A tally per dataset of a manifest, which has the columns `TALLIED`."""
    names = pc.unique(manifest["dataset"]).to_pylist()
    return {name: Tally(manifest.filter(pc.equal(manifest["dataset"], name))) for name in names}


def frequent_words(prompts: Iterable[str], number: int) -> dict[str, int]:
    """The most frequent words (long ones cut to 40 characters), ties by the alphabet."""
    counts: Counter[str] = Counter()
    for prompt in prompts:
        counts.update(word if len(word) <= 40 else f"{word[:39]}…" for word in prompt.split())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:number])


def codebook_usage(counts: Iterable[npt.NDArray[np.int64]]) -> list[dict[str, Any]]:
    """Per stream: distinct codes, and perplexity exp(H) of their distribution.

    Args:
        counts: int64 [K, codebook size]; empty where nothing was counted.
    """
    usage = []
    for row in counts:
        p = row[row > 0] / max(1, row.sum())
        usage.append(
            {"used": int((row > 0).sum()), "perplexity": float(np.exp(-(p * np.log(p)).sum()))}
        )
    return usage


def smallest_by_hash(names: Iterable[str], number: int, seed: int) -> list[str]:
    """A draw of `number` names that depends only on the seed and the names, not on their order."""

    def rank(name: str) -> bytes:
        return hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()

    return heapq.nsmallest(number, names, key=rank)
