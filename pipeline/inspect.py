"""What is in the shards: listings, one sample, statistics."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import AttuneError
from common.shards import ShardDataset
from common.storage import Store
from pipeline.commit import committed_shards, read_commit


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


def show_sample(store: Store, sample_id: str) -> dict[str, Any]:
    """One sample by its id or a unique beginning of it.

    Raises:
        AttuneError: no sample, or several, begin so.
    """
    dataset = ShardDataset.open(store.uri)
    matches = pc.indices_nonzero(pc.starts_with(dataset.manifest["sample_id"], sample_id))
    if len(matches) != 1:
        raise AttuneError(f"{len(matches)} samples in {store.uri} begin with {sample_id!r}")
    i = int(matches[0].as_py())
    sample = dataset.read(i)
    row = dataset.manifest.slice(i, 1).to_pylist()[0]
    return {
        "shard_key": row["shard_key"],
        "offset": row["offset"],
        "length": row["length"],
        "codes_shape": list(sample.codes.shape),
        "codes_head": sample.codes[:, :12].tolist(),
        "text_shapes": [list(states.shape) for states in sample.text],
        "record": sample.record,
    }


def shard_stats(store: Store) -> dict[str, Any]:
    """Statistics over the manifest and all codes."""
    dataset = ShardDataset.open(store.uri)
    manifest, summary = dataset.manifest, dataset.summary
    datasets: dict[str, Any] = {}
    for name in sorted(pc.unique(manifest["dataset"]).to_pylist()):
        part = manifest.filter(pc.equal(manifest["dataset"], name))
        prompts = pc.list_flatten(part["prompts"])
        datasets[name] = {
            "clips": len(part),
            "hours": round(pc.sum(part["duration_s"]).as_py() / 3600, 6),
            "prompts": len(prompts),
            "unique_prompts": pc.count_distinct(prompts).as_py(),
            "splits": dict(sorted(Counter(part["split"].to_pylist()).items())),
        }
    licenses = Counter(
        name or url or "not stated"
        for name, url in zip(
            manifest["license"].to_pylist(), manifest["license_url"].to_pylist(), strict=True
        )
    )
    return {
        "n_samples": len(manifest),
        "hours": summary["hours"],
        "datasets": datasets,
        "duration_s": _spread(manifest["duration_s"]),
        "prompt_tokens": _spread(pc.list_flatten(manifest["prompt_tokens"])),
        "codebooks": _codebook_usage(dataset),
        "licenses": dict(licenses.most_common()),
        "rejected_by_reason": summary["rejected_by_reason"],
    }


def _codebook_usage(dataset: ShardDataset) -> list[dict[str, Any]]:
    """Per stream: distinct codes, and perplexity exp(H) of their distribution."""
    size = int(dataset.summary["codebook_size"])
    counts = np.zeros((int(dataset.summary["n_codebooks"]), size), np.int64)
    for sample in dataset:
        for stream, codes in enumerate(sample.codes):
            counts[stream] += np.bincount(codes, minlength=size)[:size]
    usage = []
    for row in counts:
        p = row[row > 0] / row.sum()
        usage.append(
            {"used": int((row > 0).sum()), "perplexity": float(np.exp(-(p * np.log(p)).sum()))}
        )
    return usage


def _spread(column: pa.ChunkedArray) -> dict[str, float]:
    values = column.to_numpy()
    return {
        "min": values.min().item(),
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "max": values.max().item(),
    }
