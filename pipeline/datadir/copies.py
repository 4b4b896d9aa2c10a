"""Copies: the same sound under two names, found by its hashes once it is decoded.

Two clips are the same sound if their decoded waveforms are equal (`a.wav` and `a.flac` of the same
samples), or if they are parts of equal files that overlap.  Between splits that is leakage:
`finalize` leaves the sample out of the manifest if a stricter split has the sound.  Within a split
copies are only counted.  Nothing depends on the order of shards or on kills.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.plan.leakage import strictness

SAME_SOUND = "the same sound as"
"""How the detail of such a refusal begins."""
_SEEN = pa.schema(
    [
        ("sample_id", pa.binary(16)),
        ("dataset", pa.dictionary(pa.int32(), pa.string())),
        ("native_id", pa.string()),
        ("split", pa.dictionary(pa.int32(), pa.string())),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        # 64 bits of a sha256: any two of 2 million clips collide with a probability of 1e-7.
        ("wave", pa.uint64()),
        ("file", pa.uint64()),
    ]
)


@dataclass(frozen=True)
class Copies:
    """What is left out, and what is only counted."""

    leaks: Mapping[str, str] = field(default_factory=dict)
    """{sample id: detail that names the twin in a stricter split}."""
    duplicates: Mapping[str, int] = field(default_factory=dict)
    """{dataset: number of samples that repeat the sound of an earlier sample of their split}."""


class CopyFinder:
    """Collects what decides about copies, a shard at a time; 2 million samples take 0.5 GB."""

    def __init__(self) -> None:
        self._parts = [_SEEN.empty_table()]

    def add(self, planned: Sequence[Mapping[str, Any]], commit: Mapping[str, Any]) -> None:
        """Add a shard: its plan rows and its commit."""
        by_id = {row["sample_id"]: row for row in planned}
        pairs = [(by_id.get(one["sample_id"]), one) for one in commit["samples"]]
        rows = [
            {
                **{name: row[name] for name in ("dataset", "native_id", "split")},
                "sample_id": bytes.fromhex(row["sample_id"]),
                "start_s": row["start_s"] or 0.0,
                "end_s": math.inf if row["end_s"] is None else row["end_s"],
                "wave": int(sample["wave_sha256"][:16], 16),
                "file": int(sample["source_sha256"][:16], 16),
            }
            for row, sample in pairs
            if row is not None
        ]
        self._parts.append(pa.Table.from_pylist(rows, _SEEN))

    def find(self) -> Copies:
        """The copies among all samples that were added, in the plan's order."""
        seen = pa.concat_tables(self._parts)
        strict = strictness(seen)
        wave, file = (_numbers(seen[name]) for name in ("wave", "file"))
        start, end = (seen[name].to_numpy() for name in ("start_s", "end_s"))
        # {sample: the strictest samples of the same sound}
        twins: dict[int, list[int]] = {}
        for group in _mixed(wave, strict):
            top = strict[group].max()
            holders = group[strict[group] == top].tolist()
            for i in group[strict[group] < top].tolist():
                twins.setdefault(i, []).extend(holders)
        for group in _mixed(file, strict):
            for i in group.tolist():
                shares = (start[group] < end[i]) & (start[i] < end[group])
                holders = group[shares & (strict[group] > strict[i])].tolist()
                if holders:
                    twins.setdefault(i, []).extend(holders)
        names = ("sample_id", "dataset", "native_id", "split")

        def about(j: int) -> tuple[Any, ...]:
            return tuple(seen[name][j].as_py() for name in names)

        def rank(j: int) -> tuple[Any, ...]:
            key, dataset, native_id, _ = about(j)
            return -strict[j], dataset, native_id, key

        leaks = {}
        for i, holders in twins.items():
            _, dataset, native_id, split = about(min(holders, key=rank))
            leaks[about(i)[0].hex()] = f"{SAME_SOUND} {native_id} in {dataset} {split}"
        repeats = np.ones(len(seen), bool)
        repeats[np.unique(wave * 3 + strict, return_index=True)[1]] = False
        repeats[list(twins)] = False
        datasets = seen["dataset"].take(pa.array(np.flatnonzero(repeats))).to_pylist()
        return Copies(leaks, dict(sorted(Counter(datasets).items())))


def _numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number for each value; equal values have equal numbers."""
    return np.unique(column.to_numpy(), return_inverse=True)[1].astype(np.int64)


def _mixed(codes: NDArray[np.int64], strict: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Row numbers of each group of equal codes whose rows are not all of one split."""
    if not len(codes):
        return
    low, high = np.full(codes.max() + 1, 9), np.zeros(codes.max() + 1, np.int64)
    np.minimum.at(low, codes, strict)
    np.maximum.at(high, codes, strict)
    rows = np.flatnonzero((low < high)[codes])
    rows = rows[np.argsort(codes[rows], kind="stable")]
    yield from (
        part for part in np.split(rows, np.flatnonzero(np.diff(codes[rows])) + 1) if len(part)
    )
