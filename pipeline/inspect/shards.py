"""What is in the shards: listings, one sample, statistics.

Columns of the manifest are read whole, as training does; the tars a few clips at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from pipeline.inspect.tally import (
    TALLIED,
    Tally,
    by_dataset,
    codebook_usage,
    smallest_by_hash,
)

_CLIPS_PER_READ = 64
_CLIP = ("sample_id", "dataset", "shard", "shard_key", "offset", "length")
"""Columns of the manifest that say where a clip lies."""


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


def read_columns(store: Store, columns: Sequence[str], key: str = "manifest.parquet") -> pa.Table:
    """Columns of a table of a finished run; the manifest's rows come by shard and position.

    Raises:
        AttuneError: the run is not finished, or the table is damaged.
    """
    try:
        with store.open(key) as source:
            # Without threads, for the reason that `common.shards.parquet_table` gives.
            return pq.ParquetFile(source).read(columns=list(columns), use_threads=False)
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
    manifest = read_columns(store, MANIFEST.names)
    found = manifest.filter(pc.starts_with(manifest["sample_id"], sample_id))
    if len(found) != 1:
        what = f"are {len(found)} samples" if len(found) else "is no sample"
        raise AttuneError(f"{store.uri}: there {what} whose id begins with {sample_id!r}")
    return found.to_pylist()[0], ShardDataset(store, found, {}).read(0)


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
            Everything but the codebooks' figures is from the whole manifest.
        tell: called with the number of shards whose codes were read, and of all.

    Raises:
        AttuneError: the run is not finished, or what it wrote is damaged.
    """
    summary = read_summary(store)
    manifest = read_columns(store, TALLIED)
    whole, datasets = Tally(manifest), by_dataset(manifest)
    codes = count_codes(store, summary, sample, seed, tell)
    clips: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for tally in datasets.values():
        clips.update(tally.licenses)
        seconds.update(tally.license_seconds)
    return {
        "n_samples": whole.clips,
        "hours": summary["hours"],
        "datasets": {
            name: {**tally.figures(), "codebooks": codebook_usage(codes.counts.get(name, ()))}
            for name, tally in sorted(datasets.items())
        },
        "duration_s": whole.durations.figures(),
        "prompt_tokens": whole.tokens.figures() | {"histogram": whole.tokens.bars()},
        "codebooks": codebook_usage(np.sum([*codes.counts.values()], axis=0)),
        "codebook_size": summary["codebook_size"],
        "codes_from": {
            "shards": codes.shards,
            "of_shards": codes.of_shards,
            "clips": codes.clips,
            "seed": seed if codes.shards < codes.of_shards else None,
        },
        "licenses": {
            name: {"clips": number, "hours": round(seconds[name] / 3600, 6)}
            for name, number in clips.most_common()
        },
        "rejected_by_reason": summary["rejected_by_reason"],
    }


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
                    f"0..{size - 1}; see `python -m pipeline shards verify`"
                )
            empty = np.zeros((int(summary["n_codebooks"]), size), np.int64)
            of_dataset = counts.setdefault(row["dataset"], empty)
            for stream, values in enumerate(codes):
                of_dataset[stream] += np.bincount(values, minlength=size)
            n_clips += 1
        if tell:
            tell(done + 1, len(shards))
    return CodeCounts(counts, n_clips, len(shards), of_shards)


def _read_clips(store: Store, clips: pa.Table) -> Iterator[tuple[dict[str, Any], Sample]]:
    """Manifest row and content of each clip of one shard."""
    for start in range(0, len(clips), _CLIPS_PER_READ):
        rows = clips.slice(start, _CLIPS_PER_READ).to_pylist()
        yield from _read_some(store, rows[0]["shard_key"], rows)


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
