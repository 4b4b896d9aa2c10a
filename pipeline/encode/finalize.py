"""The end of a run: check that every planned clip is accounted for, then write the manifest."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import AttuneError
from common.schema import MANIFEST, REJECTS
from common.shards import parse_sample
from pipeline.datadir.commit import check_account, commit_key, read_commit
from pipeline.datadir.copies import CopyFinder
from pipeline.datadir.frozen_plan import FrozenPlan, codec_settings
from pipeline.datadir.results import Results


def finalize(plan: FrozenPlan, name: str, codec: str) -> dict[str, Any]:
    """Write the manifest and its companions from a fully committed plan; returns the summary.

    Args:
        name: the recipe's name.
        codec: the codec's path or name, as in the recipe.

    Raises:
        AttuneError: a shard has no commit, or its commit does not account for its plan rows.
    """
    # The commits are read twice: a sample's twin may be in any shard.
    finder = CopyFinder()
    for account in _accounts(plan):
        finder.add(*account)
    store, results = plan.store, Results(plan, finder.find())
    with tempfile.TemporaryDirectory() as scratch:
        files = {key: Path(scratch) / key for key in ("manifest.parquet", "quarantine.parquet")}
        with (
            pq.ParquetWriter(files["manifest.parquet"], MANIFEST, compression="zstd") as manifest,
            pq.ParquetWriter(files["quarantine.parquet"], REJECTS, compression="zstd") as refused,
        ):
            accounts = _accounts(plan)
            # One row group of the plan at a time, so memory does not grow with the plan.
            while group := list(islice(accounts, plan.shards_per_row_group)):
                tables = zip(*(results.add(*account) for account in group), strict=True)
                for writer, parts in zip((manifest, refused), tables, strict=True):
                    if any(map(len, parts)):
                        writer.write_table(pa.concat_tables(parts).combine_chunks())
        if not results.shards:
            reasons = ", ".join(f"{r} {n}" for r, n in results.reasons.most_common())
            raise AttuneError(
                f"{store.uri}: every planned clip was refused: {reasons}; `python -m pipeline "
                "status --refused --config RECIPE` lists them"
            )
        for key, file in files.items():
            store.write(key, file)
    settings = codec_settings(codec)
    first = results.first
    data = store.read_range(first["shard_key"], first["offset"], first["length"])
    sample = parse_sample(first["sample_id"], data)
    summary = results.summary(
        {
            "name": name,
            "frame_rate": plan.info["inputs"]["sample_rate"]
            / math.prod(settings["upsampling_ratios"]),  # Hz
            "codebook_size": settings["codebook_size"],
            "n_codebooks": len(sample.codes),
            "text_dim": sample.text[0].shape[1],
        }
    )
    store.write("shards.json", _json(results.shard_list(name)))
    # Last: a reader that finds summary.json finds all the other files.
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


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
