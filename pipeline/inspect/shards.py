"""What is in the shards: listings, one sample, statistics.

Everything here reads the manifest batch by batch and the tars a few clips at a time, so that memory
does not grow with the number of shards.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from pipeline.datadir.commit import committed_shards, read_commit
from pipeline.inspect.tally import Tally, codebook_usage, smallest_by_hash

_ROWS_PER_BATCH = 8192
_CLIPS_PER_READ = 64


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


def shard_stats(
    store: Store,
    sample: int | None = None,
    seed: int = 0,
    tell: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Statistics of a finished run, over all and by dataset.

    Args:
        sample: take the codes from this many shards, drawn by `seed`; None: from all of them.
            Everything but the codebooks' figures comes from the manifest, always whole.
        tell: called with the number of shards whose codes were read, and of all.

    Raises:
        AttuneError: the run is not finished, or what it wrote is damaged.
    """
    summary = read_summary(store)
    datasets = tally_manifest(store)
    codes = count_codes(store, summary, sample, seed, tell)
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
    store: Store,
    summary: dict[str, Any],
    sample: int | None,
    seed: int = 0,
    tell: Callable[[int, int], object] | None = None,
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
    wanted = of_shards if chosen is None else len(chosen)
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
        if row["shard"] != last:
            if tell:
                tell(found.shards, wanted)
            found.shards += 1
            last = row["shard"]
    if tell:
        tell(wanted, wanted)
    return found


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
