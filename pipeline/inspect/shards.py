"""Look into shards: listings, one sample, statistics.

Columns of the manifest are read whole, as training does; tars are read a few clips at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import AttuneError, one_line
from common.schema import MANIFEST
from common.shards import Sample, ShardDataset, parse_sample, read_summary
from common.storage import Store
from pipeline.datadir.commit import committed_shards, read_commit
from pipeline.inspect.tally import TALLIED, by_dataset, codebook_usage, smallest_by_hash, tally

_CLIPS_PER_READ = 64
_SEE = "see `python -m pipeline shards verify --config RECIPE`"
_CLIP = ("sample_id", "dataset", "shard", "shard_key", "offset", "length")
"""Columns of the manifest that locate a clip."""


def list_shards(store: Store) -> list[dict[str, Any]]:
    """A row per committed shard; works before the run is finished."""
    rows = []
    for shard in sorted(committed_shards(store)):
        commit = read_commit(store, shard)
        if commit is None:
            continue
        seconds = sum(sample["duration_s"] for sample in commit["samples"])
        counts = {"clips": len(commit["samples"]), "refused": len(commit["refused"])}
        names = ("shard", "shard_key", "bytes", "sha256")
        rows.append({name: commit[name] for name in names} | counts | {"seconds": seconds})
    if not rows:
        raise AttuneError(
            f"{store.uri}: no committed shards; run `python -m pipeline run --config RECIPE` first"
        )
    return rows


def read_columns(store: Store, columns: Sequence[str], key: str = "manifest.parquet") -> pa.Table:
    """Columns of a table of a finished run; the manifest is sorted by shard and position.

    Raises:
        AttuneError: the run is not finished, or the table is damaged.
    """
    try:
        with store.open(key) as source:
            # Without threads, for the reason that `common.shards.parquet_table` gives.
            return pq.ParquetFile(source).read(columns=list(columns), use_threads=False)
    except FileNotFoundError:
        raise AttuneError(
            f"{store.uri}: no {key} there; run `python -m pipeline run --config RECIPE` to the end "
            "first"
        ) from None
    except pa.ArrowException as error:
        raise AttuneError(f"{store.uri}/{key}: not readable: {one_line(error)}") from error


def find_sample(store: Store, sample_id: str) -> tuple[dict[str, Any], Sample]:
    """The manifest row and the content of one sample, by its id or a unique prefix of the id.

    Raises:
        AttuneError: no sample, or more than one, has this prefix.
    """
    manifest = read_columns(store, MANIFEST.names)
    found = manifest.filter(pc.starts_with(manifest["sample_id"], sample_id))
    if len(found) != 1:
        what = f"are {len(found)} samples" if len(found) else "is no sample"
        raise AttuneError(f"{store.uri}: there {what} whose id begins with {sample_id!r}")
    return found.to_pylist()[0], ShardDataset(store, found, {}).read(0)


def show_sample(store: Store, sample_id: str) -> dict[str, Any]:
    """Place, shapes and record of one sample; raises as `find_sample`."""
    row, sample = find_sample(store, sample_id)
    return {name: row[name] for name in ("shard_key", "offset", "length")} | {
        "codes_shape": list(sample.codes.shape),
        "codes_head": sample.codes[:, :12].tolist(),
        "text_shapes": [list(states.shape) for states in sample.text],
        "record": sample.record,
    }


def shard_stats(
    store: Store,
    sample: int | None = None,
    seed: int = 0,
    tell: Callable[[int, int], object] = lambda done, of: None,
) -> dict[str, Any]:
    """Statistics of a finished run: `all`, and `datasets` by name; refusals by reason.

    Args:
        sample: take the codes from this many shards, drawn by `seed`; None: from all of them.
            All other figures are from the whole manifest.
        tell: called with the number of shards whose codes were read, and of all that are to be.

    Raises:
        AttuneError: the run is not finished, or its files are damaged.
    """
    summary = read_summary(store)
    manifest = read_columns(store, TALLIED)
    codes = count_codes(store, summary, sample, seed, tell)
    total = np.sum([*codes.counts.values()], axis=0)
    return {
        "all": tally(manifest)
        | {"codebooks": codebook_usage(total), "duplicates": summary.get("n_duplicates", 0)},
        "datasets": {
            name: tally(rows)
            | {"codebooks": codebook_usage(codes.counts.get(name, ()))}
            | {"duplicates": summary["datasets"].get(name, {}).get("duplicates", 0)}
            for name, rows in sorted(by_dataset(manifest).items())
        },
        "codebook_size": summary["codebook_size"],
        "codes_from": {
            "shards": codes.shards,
            "of_shards": codes.of_shards,
            "clips": codes.clips,
            "seed": seed if codes.shards < codes.of_shards else None,
        },
        "rejected_by_reason": summary["rejected_by_reason"],
    }


@dataclass
class CodeCounts:
    """How often each code occurs in each codebook.

    counts: {dataset: int64 [K, codebook size]}.
    """

    counts: dict[str, npt.NDArray[np.int64]]
    clips: int
    shards: int
    of_shards: int
    """Number of shards that hold clips; `shards` of them were read."""


def count_codes(
    store: Store,
    summary: dict[str, Any],
    sample: int | None,
    seed: int,
    tell: Callable[[int, int], object],
) -> CodeCounts:
    """Count codes in one pass over all tars, or over `sample` of them.

    Raises:
        AttuneError: a sample cannot be read, or has codes outside the codebook.
    """
    clips = read_columns(store, _CLIP)
    shards: list[int] = pc.unique(clips["shard"]).to_pylist()
    of_shards = len(shards)
    if sample is not None:
        drawn = set(smallest_by_hash(map(str, shards), sample, seed))
        shards = [shard for shard in shards if str(shard) in drawn]
    size = int(summary["codebook_size"])
    counts: dict[str, npt.NDArray[np.int64]] = {}
    n_clips = 0
    for done, shard in enumerate(shards):
        for row, clip in _read_clips(store, clips.filter(pc.equal(clips["shard"], shard))):
            codes = clip.codes
            if codes.size and not 0 <= codes.min() <= codes.max() < size:
                raise AttuneError(
                    f"{store.uri}/{row['shard_key']}: sample {clip.sample_id} has codes outside "
                    f"0..{size - 1}; {_SEE}"
                )
            empty = np.zeros((int(summary["n_codebooks"]), size), np.int64)
            of_dataset = counts.setdefault(row["dataset"], empty)
            for stream, values in enumerate(codes):
                of_dataset[stream] += np.bincount(values, minlength=size)
            n_clips += 1
        tell(done + 1, len(shards))
    return CodeCounts(counts, n_clips, len(shards), of_shards)


def _read_clips(store: Store, clips: pa.Table) -> Iterator[tuple[dict[str, Any], Sample]]:
    """Manifest row and content of each clip of one shard; one request for a few clips."""
    for start in range(0, len(clips), _CLIPS_PER_READ):
        rows = clips.slice(start, _CLIPS_PER_READ).to_pylist()
        key = rows[0]["shard_key"]
        try:
            parts = store.read_ranges(key, [(row["offset"], row["length"]) for row in rows])
        except FileNotFoundError:
            raise AttuneError(f"{store.uri}/{key}: shard is gone; {_SEE}") from None
        for row, data in zip(rows, parts, strict=True):
            try:
                yield row, parse_sample(row["sample_id"], data)
            except ValueError as error:
                raise AttuneError(
                    f"{store.uri}/{key}: sample {row['sample_id']} is corrupt: {error}; {_SEE}"
                ) from error
