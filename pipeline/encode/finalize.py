"""The end of a run: prove that every planned clip is accounted for, then write the manifest."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from common.codec import resolve_codec
from common.errors import AttuneError
from common.shards import parse_sample
from pipeline.datadir.commit import check_account, commit_key, read_commit
from pipeline.datadir.frozen_plan import FrozenPlan
from pipeline.datadir.results import Results, collect_results

_ROWS_PER_GROUP = 8192


def finalize(plan: FrozenPlan, name: str, codec: str) -> dict[str, Any]:
    """Write the manifest and its companions from a fully committed plan; returns the summary.

    Args:
        name: of the recipe.
        codec: its path or name, as in the recipe.

    Raises:
        AttuneError: a shard has no commit, or its commit does not account for its plan rows.
    """
    results = collect_results(plan, _accounts(plan))
    if not results.shards:
        reasons = ", ".join(f"{r} {n}" for r, n in results.reasons.most_common())
        raise AttuneError(
            f"{plan.store.uri}: every planned clip was refused: {reasons}; "
            "`python -m pipeline status --refused` names them"
        )
    summary = results.summary({"name": name, **_codec_figures(plan, codec), **_shapes(results)})
    store = plan.store
    with tempfile.TemporaryDirectory() as scratch:
        for key, table in (("manifest", results.manifest), ("quarantine", results.quarantine)):
            file = Path(scratch) / key
            with pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
                if len(table):  # else the file would get an empty row group
                    writer.write_table(table, row_group_size=_ROWS_PER_GROUP)
            store.write(f"{key}.parquet", file)
    store.write("shards.json", _json(results.shard_list(name)))
    # Last: a reader that finds summary.json finds all the others.
    store.write("summary.json", _json(summary))
    return summary


def _accounts(plan: FrozenPlan) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Each shard's plan rows and its commit, which account for each other."""
    for shard, rows in plan.shards():
        commit = read_commit(plan.store, shard)
        if commit is None:
            raise AttuneError(f"{plan.store.uri}: no {commit_key(shard)}; run again")
        planned = rows.to_pylist()
        check_account(planned, commit, plan.plan_hash)
        yield planned, commit


def _codec_figures(plan: FrozenPlan, codec: str) -> dict[str, Any]:
    """Frame rate (Hz) and codebook size, from the codec's `config.json`."""
    config = json.loads((resolve_codec(codec) / "config.json").read_text())
    hop = math.prod(config["upsampling_ratios"])
    return {
        "frame_rate": plan.info["inputs"]["sample_rate"] / hop,
        "codebook_size": config["codebook_size"],
    }


def _shapes(results: Results) -> dict[str, int]:
    """Number of codebooks and width of the text states, from the first sample itself."""
    (row,) = results.manifest.slice(0, 1).to_pylist()
    data = results.plan.store.read_range(row["shard_key"], row["offset"], row["length"])
    sample = parse_sample(row["sample_id"], data)
    return {"n_codebooks": int(sample.codes.shape[0]), "text_dim": int(sample.text[0].shape[1])}


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
