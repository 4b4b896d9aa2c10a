"""Counting without holding what is counted: histograms, distinct strings, sums per dataset."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_MOST_LICENSES = 500
OTHER_LICENSES = "other licences"
"""Stands for all that came after the first `_MOST_LICENSES` different ones."""
_VOCABULARY = 50_000
"""Different words that are counted at once; past it the rarer half is forgotten."""


class Histogram:
    """Counts of numbers >= 0 in steps of `step`; as long as the largest number asks for."""

    def __init__(self, step: float = 1) -> None:
        self.step = step
        self.counts: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self.total = 0.0
        self.least, self.most = float("inf"), 0.0

    def add(self, values: npt.NDArray[Any]) -> None:
        if not len(values):
            return
        found = np.bincount(np.rint(values / self.step).astype(np.int64))
        self._merge(found)
        self.total += float(values.sum())
        self.least = min(self.least, float(values.min()))
        self.most = max(self.most, float(values.max()))

    def merge(self, other: Histogram) -> None:
        self._merge(other.counts)
        self.total += other.total
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)

    def _merge(self, counts: npt.NDArray[np.int64]) -> None:
        longer, shorter = sorted((self.counts, counts), key=len, reverse=True)
        self.counts = longer.copy()
        self.counts[: len(shorter)] += shorter

    def quantile(self, q: float) -> float:
        """The smallest number with at least `q` of all at or below it, to half a step."""
        below = np.cumsum(self.counts)
        if not len(below):
            return 0.0
        at = int(np.searchsorted(below, max(1, np.ceil(q * below[-1]))))
        return min(max(round(at * self.step, 6), self.least), self.most)

    def figures(self) -> dict[str, float]:
        """min, mean, max and `QUANTILES` as p05, ..., p95 (the median under that name)."""
        number = int(self.counts.sum())
        if not number:
            return {}
        quantiles = {
            "median" if q == 0.5 else f"p{round(100 * q):02d}": self.quantile(q) for q in QUANTILES
        }
        return {
            "min": self.least,
            **quantiles,
            "mean": round(self.total / number, 6),
            "max": self.most,
        }

    def bars(self) -> dict[str, int]:
        """How often each number comes, without those that never do: {number: count}."""
        return {f"{i * self.step:g}": int(self.counts[i]) for i in np.flatnonzero(self.counts)}


class DistinctCount:
    """How many different strings were added: exact up to `KEEP`, then an estimate.

    The `KEEP` smallest of their 64-bit hashes are kept: the largest of these says how densely the
    hashes lie.  The estimate is wrong by 1/sqrt(KEEP) on average, which is 0.4%.
    """

    KEEP = 65536

    def __init__(self) -> None:
        self._hashes: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)

    def add(self, texts: Iterable[str]) -> None:
        digests = b"".join(hashlib.blake2b(t.encode(), digest_size=8).digest() for t in texts)
        self._keep(np.frombuffer(digests, np.uint64))

    def merge(self, other: DistinctCount) -> None:
        self._keep(other._hashes)

    def _keep(self, hashes: npt.NDArray[np.uint64]) -> None:
        self._hashes = np.unique(np.concatenate([self._hashes, hashes]))[: self.KEEP]

    @property
    def exact(self) -> bool:
        return len(self._hashes) < self.KEEP

    def __int__(self) -> int:
        if self.exact:
            return len(self._hashes)
        return round((self.KEEP - 1) / (float(self._hashes[-1]) / 2**64))


class WordCount:
    """Words of the prompts, in bounded memory: counts of rare ones may be too low."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.forgot = False

    def add(self, prompts: Iterable[str]) -> None:
        for prompt in prompts:
            self.counts.update(w if len(w) <= 40 else f"{w[:39]}…" for w in prompt.split())
        if len(self.counts) > _VOCABULARY:
            self.counts = Counter(dict(self.counts.most_common(_VOCABULARY // 2)))
            self.forgot = True

    def top(self, number: int) -> dict[str, int]:
        """The most frequent, ties by the alphabet."""
        ranked = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return dict(ranked[:number])


@dataclass
class Tally:
    """Sums over the manifest rows of one dataset."""

    clips: int = 0
    prompts: int = 0
    unique: DistinctCount = field(default_factory=DistinctCount)
    durations: Histogram = field(default_factory=lambda: Histogram(0.01))
    """Seconds, to 10 ms."""
    tokens: Histogram = field(default_factory=Histogram)
    splits: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    license_seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, rows: pa.RecordBatch) -> None:
        """Rows with the columns that `inspect.tally_manifest` reads."""
        self.clips += len(rows)
        prompts = pc.list_flatten(rows["prompts"])
        self.prompts += len(prompts)
        self.unique.add(pc.unique(prompts).to_pylist())
        seconds = rows["duration_s"].to_numpy()
        self.durations.add(seconds)
        self.tokens.add(pc.list_flatten(rows["prompt_tokens"]).to_numpy())
        self.splits.update(rows["split"].to_pylist())
        names = pc.coalesce(_if_any(rows["license"]), _if_any(rows["license_url"]), "not stated")
        for name, duration in zip(names.to_pylist(), seconds.tolist(), strict=True):
            if name not in self.licenses and len(self.licenses) >= _MOST_LICENSES:
                name = OTHER_LICENSES
            self.licenses[name] += 1
            self.license_seconds[name] += duration

    @staticmethod
    def sum(parts: Iterable[Tally]) -> Tally:
        """Clips, prompts, durations and tokens of several datasets together."""
        whole = Tally()
        for part in parts:
            whole.clips += part.clips
            whole.prompts += part.prompts
            whole.unique.merge(part.unique)
            whole.durations.merge(part.durations)
            whole.tokens.merge(part.tokens)
        return whole

    def figures(self) -> dict[str, Any]:
        return {
            "clips": self.clips,
            "hours": round(self.durations.total / 3600, 6),
            "prompts": self.prompts,
            "unique_prompts": int(self.unique),
            "unique_prompts_exact": self.unique.exact,
            "splits": dict(sorted(self.splits.items())),
            "duration_s": self.durations.figures(),
            "prompt_tokens": self.tokens.figures() | {"histogram": self.tokens.bars()},
            "licenses": dict(self.licenses.most_common()),
        }


def codebook_usage(counts: npt.NDArray[np.int64] | None) -> list[dict[str, Any]]:
    """Per stream: distinct codes, and perplexity exp(H) of their distribution.

    Args:
        counts: int64 [K, codebook size], or None where nothing was counted.
    """
    usage = []
    for row in counts if counts is not None and counts.ndim == 2 else ():
        p = row[row > 0] / max(1, row.sum())
        usage.append(
            {"used": int((row > 0).sum()), "perplexity": float(np.exp(-(p * np.log(p)).sum()))}
        )
    return usage


def smallest_by_hash(names: Iterable[str], number: int, seed: int) -> list[str]:
    """A draw of `number` names that depends on the seed and the names alone, in constant memory."""

    def rank(name: str) -> bytes:
        return hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()

    return heapq.nsmallest(number, names, key=rank)


def _if_any(texts: pa.Array) -> pa.Array:
    """Empty strings as null."""
    return pc.if_else(pc.equal(texts, ""), None, texts)
