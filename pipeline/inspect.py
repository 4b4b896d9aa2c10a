"""What is in the shards: listings, one sample, statistics.

Everything here reads the manifest batch by batch and the tars a few clips at a time, so that memory
does not grow with the number of shards.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import AttuneError
from common.schema import MANIFEST
from common.shards import Sample, ShardDataset, parse_sample, read_summary
from common.storage import Store
from pipeline.commit import committed_shards, read_commit

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_ROWS_PER_BATCH = 8192
_CLIPS_PER_READ = 64
_MOST_LICENSES = 500
OTHER_LICENSES = "other licences"
"""Stands for all that came after the first `_MOST_LICENSES` different ones."""


def list_shards(store: Store) -> list[dict[str, Any]]:
    """A row per committed shard; works before the run is finished."""
    rows = []
    for shard in sorted(committed_shards(store)):
        commit = read_commit(store, shard)
        if commit is None:
            continue
        rows.append(
            {
                "shard": shard,
                "shard_key": commit["shard_key"],
                "bytes": commit["bytes"],
                "sha256": commit["sha256"],
                "clips": len(commit["samples"]),
                "seconds": sum(sample["duration_s"] for sample in commit["samples"]),
                "refused": len(commit["refused"]),
            }
        )
    if not rows:
        raise AttuneError(f"{store.uri}: no committed shards; run `python -m pipeline run` first")
    return rows


def table_batches(
    store: Store, columns: Sequence[str], key: str = "manifest.parquet"
) -> Iterator[pa.RecordBatch]:
    """Columns of a table of a finished run, a few thousand rows at a time.

    The manifest's rows come by shard and position.

    Raises:
        AttuneError: the run is not finished, or the table is damaged.
    """
    try:
        with store.open(key) as source:
            yield from pq.ParquetFile(source).iter_batches(_ROWS_PER_BATCH, columns=list(columns))
    except FileNotFoundError:
        raise AttuneError(
            f"{store.uri}: no {key} there; run `python -m pipeline run` to the end first"
        ) from None
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        raise AttuneError(f"{store.uri}/{key}: not readable: {reason}") from error


def find_sample(store: Store, sample_id: str) -> tuple[dict[str, Any], Sample]:
    """The manifest row and the content of one sample, by its id or a unique beginning of it.

    Raises:
        AttuneError: no sample, or several, begin so.
    """
    matches = 0
    found: pa.RecordBatch | None = None
    for batch in table_batches(store, MANIFEST.names):
        hits = batch.filter(pc.starts_with(batch["sample_id"], sample_id))
        matches += len(hits)
        found = hits if len(hits) else found
    if found is None or matches != 1:
        what = "is no sample" if matches == 0 else f"are {matches} samples"
        raise AttuneError(f"{store.uri}: there {what} whose id begins with {sample_id!r}")
    dataset = ShardDataset(store, pa.Table.from_batches([found]), {})
    return found.to_pylist()[0], dataset.read(0)


def show_sample(store: Store, sample_id: str) -> dict[str, Any]:
    """One sample: where it is, the shapes of what it holds, its record; raises as `find_sample`."""
    row, sample = find_sample(store, sample_id)
    return {
        "shard_key": row["shard_key"],
        "offset": row["offset"],
        "length": row["length"],
        "codes_shape": list(sample.codes.shape),
        "codes_head": sample.codes[:, :12].tolist(),
        "text_shapes": [list(states.shape) for states in sample.text],
        "record": sample.record,
    }


def shard_stats(store: Store, sample: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Statistics of a finished run, over all and by dataset.

    Args:
        sample: take the codes from this many shards, drawn by `seed`; None: from all of them.
            Everything but the codebooks' figures comes from the manifest, always whole.

    Raises:
        AttuneError: the run is not finished, or what it wrote is damaged.
    """
    summary = read_summary(store)
    datasets = tally_manifest(store)
    codes = count_codes(store, summary, sample, seed)
    whole = Tally.sum(datasets.values())
    licenses: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    for tally in datasets.values():
        licenses.update(tally.licenses)
        for name, duration in tally.license_seconds.items():
            seconds[name] += duration
    return {
        "n_samples": whole.clips,
        "hours": summary["hours"],
        "datasets": {
            name: {**tally.figures(), "codebooks": codebook_usage(codes.counts.get(name))}
            for name, tally in sorted(datasets.items())
        },
        "duration_s": whole.durations.figures(),
        "prompt_tokens": whole.tokens.figures() | {"histogram": whole.tokens.bars()},
        "codebooks": codebook_usage(sum(codes.counts.values(), start=np.zeros((), np.int64))),
        "codebook_size": summary["codebook_size"],
        "codes_from": {
            "shards": codes.shards,
            "of_shards": codes.of_shards,
            "clips": codes.clips,
            "seed": seed if codes.shards < codes.of_shards else None,
        },
        "licenses": {
            name: {"clips": clips, "hours": round(seconds[name] / 3600, 6)}
            for name, clips in licenses.most_common()
        },
        "rejected_by_reason": summary["rejected_by_reason"],
    }


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
        """Rows with the columns that `tally_manifest` reads."""
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


def tally_manifest(
    store: Store, on_prompts: Callable[[list[str]], None] | None = None
) -> dict[str, Tally]:
    """One pass over the manifest: a tally per dataset.

    Args:
        on_prompts: is handed the prompts of each batch.
    """
    tallies: dict[str, Tally] = {}
    columns = (
        "dataset", "split", "prompts", "prompt_tokens", "duration_s", "license", "license_url",
    )  # fmt: skip
    for batch in table_batches(store, columns):
        for name in pc.unique(batch["dataset"]).to_pylist():
            rows = batch.filter(pc.equal(batch["dataset"], name))
            tallies.setdefault(name, Tally()).add(rows)
        if on_prompts is not None:
            on_prompts(pc.list_flatten(batch["prompts"]).to_pylist())
    return tallies


@dataclass
class CodeCounts:
    """How often each code comes in each stream.

    counts: {dataset: int64 [K, codebook size]}.
    """

    counts: dict[str, npt.NDArray[np.int64]]
    clips: int
    shards: int
    of_shards: int
    """Shards that hold clips; `shards` of them were read."""


def count_codes(
    store: Store, summary: dict[str, Any], sample: int | None, seed: int = 0
) -> CodeCounts:
    """One pass over the tars, or over `sample` of them.

    Raises:
        AttuneError: a sample cannot be read, or holds codes that its codec does not have.
    """
    of_shards = sum(1 for _ in _shard_numbers(store))
    chosen = None
    if sample is not None:
        drawn = smallest_by_hash((str(shard) for shard in _shard_numbers(store)), sample, seed)
        chosen = {int(shard) for shard in drawn}
    size = int(summary["codebook_size"])
    found = CodeCounts({}, 0, 0, of_shards)
    last = None
    for row, clip in _read_clips(store, chosen):
        codes = clip.codes
        if codes.size and not 0 <= codes.min() <= codes.max() < size:
            raise AttuneError(
                f"{store.uri}/{row['shard_key']}: sample {clip.sample_id} has codes outside "
                f"0..{size - 1}; see `python -m pipeline shards verify`"
            )
        empty = np.zeros((int(summary["n_codebooks"]), size), np.int64)
        counts = found.counts.setdefault(row["dataset"], empty)
        for stream, values in enumerate(codes):
            counts[stream] += np.bincount(values, minlength=size)
        found.clips += 1
        found.shards += row["shard"] != last
        last = row["shard"]
    return found


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


def _shard_numbers(store: Store) -> Iterator[int]:
    """The shards that hold clips, each once."""
    last = None
    for batch in table_batches(store, ["shard"]):
        for shard in pc.unique(batch["shard"]).to_pylist():
            if shard != last:
                yield shard
            last = shard


def _read_clips(store: Store, shards: set[int] | None) -> Iterator[tuple[dict[str, Any], Sample]]:
    """Manifest row and content of each clip of these shards (None: of all)."""
    columns = ("sample_id", "dataset", "shard", "shard_key", "offset", "length")
    for batch in table_batches(store, columns):
        if shards is not None:
            batch = batch.filter(pc.is_in(batch["shard"], pa.array(sorted(shards), pa.int32())))
        for key, group in groupby(batch.to_pylist(), lambda row: row["shard_key"]):
            rows = list(group)
            for start in range(0, len(rows), _CLIPS_PER_READ):
                yield from _read_some(store, key, rows[start : start + _CLIPS_PER_READ])


def _read_some(
    store: Store, key: str, rows: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], Sample]]:
    see = "see `python -m pipeline shards verify`"
    try:
        parts = store.read_ranges(key, [(row["offset"], row["length"]) for row in rows])
    except FileNotFoundError:
        raise AttuneError(
            f"{store.uri}/{key}: shard is gone; sample {rows[0]['sample_id']} lies in it; {see}"
        ) from None
    for row, data in zip(rows, parts, strict=True):
        try:
            yield row, parse_sample(row["sample_id"], data)
        except ValueError as error:
            raise AttuneError(
                f"{store.uri}/{key}: sample {row['sample_id']} is corrupt: {error}; {see}"
            ) from error


def _if_any(texts: pa.Array) -> pa.Array:
    """Empty strings as null."""
    return pc.if_else(pc.equal(texts, ""), None, texts)
