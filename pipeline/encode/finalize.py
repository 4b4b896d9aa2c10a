"""The end of a run: prove that every planned clip is accounted for, then write the manifest."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from common.codec import resolve_codec
from common.errors import AttuneError
from common.schema import MANIFEST, REJECTS
from common.shards import parse_sample
from pipeline.datadir.commit import check_account, commit_key, read_commit
from pipeline.datadir.frozen_plan import FrozenPlan
from pipeline.datadir.results import Results

_ROWS_PER_GROUP = 8192


def finalize(plan: FrozenPlan, name: str, codec: str) -> dict[str, Any]:
    """Write the manifest and its companions from a fully committed plan; returns the summary.

    Args:
        name: of the recipe.
        codec: its path or name, as in the recipe.

    Raises:
        AttuneError: a shard has no commit, or its commit does not account for its plan rows.
    """
    store, results = plan.store, Results(plan)
    with tempfile.TemporaryDirectory() as scratch:
        files = {f"{name}.parquet": Path(scratch) / name for name in ("manifest", "quarantine")}
        with (
            _Table(files["manifest.parquet"], MANIFEST) as manifest,
            _Table(files["quarantine.parquet"], REJECTS) as quarantine,
        ):
            for planned, commit in _accounts(plan):
                rows, refused = results.add(planned, commit)
                manifest.add(rows)
                quarantine.add(refused)
        if not results.shards:
            reasons = ", ".join(f"{r} {n}" for r, n in results.reasons.most_common())
            raise AttuneError(
                f"{store.uri}: every planned clip was refused: {reasons}; "
                "`python -m pipeline status --refused` names them"
            )
        for key, file in files.items():
            store.write(key, file)
    summary = results.summary({"name": name, **_codec_figures(plan, codec), **_shapes(results)})
    store.write("shards.json", _json(results.shard_list(name)))
    # Last: a reader that finds summary.json finds all the others.
    store.write("summary.json", _json(summary))
    return summary


class _Table:
    """A Parquet file that is written a row group at a time, so that memory stays small."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._pending: list[pa.Table] = []

    def add(self, rows: pa.Table) -> None:
        if len(rows):
            self._pending.append(rows)
        if sum(map(len, self._pending)) >= _ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.concat_tables(self._pending).combine_chunks())
            self._pending = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()


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
    row = results.first
    data = results.plan.store.read_range(row["shard_key"], row["offset"], row["length"])
    sample = parse_sample(row["sample_id"], data)
    return {"n_codebooks": int(sample.codes.shape[0]), "text_dim": int(sample.text[0].shape[1])}


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
