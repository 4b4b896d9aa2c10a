"""Figures of whole manifest columns: durations, tokens, prompts, licences, codes."""

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
"""Columns of the manifest that `tally` reads."""


@dataclass(frozen=True)
class Histogram:
    """Distribution of numbers >= 0; quantiles and bars are rounded to whole steps."""

    values: npt.NDArray[Any]
    step: float = 1

    @cached_property
    def steps(self) -> npt.NDArray[np.int64]:
        """The numbers in whole steps, sorted."""
        return np.sort(np.rint(self.values / self.step).astype(np.int64))

    def quantile(self, q: float) -> float:
        """The smallest number with at least a share `q` of all at or below it, to half a step."""
        if not len(self.steps):
            return 0.0
        at = int(self.steps[max(1, int(np.ceil(q * len(self.steps)))) - 1])
        return float(np.clip(round(at * self.step, 6), self.values.min(), self.values.max()))

    def figures(self) -> dict[str, float]:
        """min, mean, max and `QUANTILES` as p05, ..., p95 (the median under that name)."""
        if not len(self.values):
            return {}
        quantiles = {
            "median" if q == 0.5 else f"p{round(100 * q):02d}": self.quantile(q) for q in QUANTILES
        }
        least, most = float(self.values.min()), float(self.values.max())
        mean = round(float(self.values.sum()) / len(self.values), 6)
        return {"min": least, **quantiles, "mean": mean, "max": most}

    def bars(self) -> dict[str, int]:
        """How often each number occurs: {number: count}."""
        found, counts = np.unique(self.steps, return_counts=True)
        return {f"{i * self.step:g}": int(n) for i, n in zip(found, counts, strict=True)}


def durations(rows: pa.Table) -> Histogram:
    """Durations of manifest rows in seconds, to 10 ms."""
    return Histogram(rows["duration_s"].to_numpy(), 0.01)


def tokens(rows: pa.Table) -> Histogram:
    """Numbers of tokens of the prompts of manifest rows."""
    return Histogram(pc.list_flatten(rows["prompt_tokens"]).to_numpy())


def tally(rows: pa.Table) -> dict[str, Any]:
    """Figures of manifest rows with the columns `TALLIED`; licences by number of clips."""
    prompts, lengths = pc.list_flatten(rows["prompts"]), tokens(rows)
    texts = (rows["license"], rows["license_url"])
    stated = (pc.if_else(pc.equal(column, ""), None, column) for column in texts)
    licenses = pa.table([pc.coalesce(*stated, "not stated"), rows["duration_s"]], ["name", "s"])
    sums = licenses.group_by("name", use_threads=False).aggregate([("s", "count"), ("s", "sum")])
    return {
        "clips": len(rows),
        "hours": _hours(rows["duration_s"].to_numpy().sum()),
        "prompts": len(prompts),
        "unique_prompts": int(pc.count_distinct(prompts).as_py()),
        "splits": dict(sorted(Counter(rows["split"].to_pylist()).items())),
        "duration_s": durations(rows).figures(),
        "prompt_tokens": lengths.figures() | {"histogram": lengths.bars()},
        "licenses": {
            row["name"]: {"clips": row["s_count"], "hours": _hours(row["s_sum"])}
            for row in sorted(sums.to_pylist(), key=lambda row: -row["s_count"])
        },
    }


def _hours(seconds: float) -> float:
    return round(float(seconds) / 3600, 6)


def by_dataset(manifest: pa.Table) -> dict[str, pa.Table]:
    """The manifest rows of each dataset."""
    names = pc.unique(manifest["dataset"]).to_pylist()
    return {name: manifest.filter(pc.equal(manifest["dataset"], name)) for name in names}


def frequent_words(prompts: Iterable[str], number: int) -> dict[str, int]:
    """The most frequent words (long ones cut to 40 characters), ties by the alphabet."""
    counts: Counter[str] = Counter()
    for prompt in prompts:
        counts.update(word if len(word) <= 40 else f"{word[:39]}…" for word in prompt.split())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:number])


def codebook_usage(counts: Iterable[npt.NDArray[np.int64]]) -> list[dict[str, Any]]:
    """Number of distinct codes, and perplexity exp(H) of their distribution, per codebook.

    Args:
        counts: int64 [K, codebook size]; empty if nothing was counted.
    """
    usage = []
    for row in counts:
        p = row[row > 0] / max(1, row.sum())
        usage.append(
            {"used": int((row > 0).sum()), "perplexity": float(np.exp(-(p * np.log(p)).sum()))}
        )
    return usage


def smallest_by_hash(names: Iterable[str], number: int, seed: int) -> list[str]:
    """Draw `number` names; depends only on the seed and the names, not on their order."""

    def rank(name: str) -> bytes:
        return hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()

    return heapq.nsmallest(number, names, key=rank)
