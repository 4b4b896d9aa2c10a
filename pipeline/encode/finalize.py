"""The end of a run: prove that every planned clip is accounted for, then write what readers open.

    manifest.parquet     a row per sample, by shard and position
    quarantine.parquet   clips refused while encoding: stage, reason, detail
    shards.json          the shard list in the form of WebDataset's `wids` index
    summary.json         totals and identities; written last: it makes the run finished

All four are functions of the plan and the commits, so they come out the same however often the run
was killed and whoever finishes it.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from common.codec import resolve_codec
from common.config import Recipe
from common.errors import AttuneError
from common.schema import MANIFEST, REJECTS
from common.shards import parse_sample
from common.storage import Store
from pipeline.datadir.commit import check_account, commit_key, read_commit
from pipeline.datadir.frozen_plan import FrozenPlan

_ROWS_PER_GROUP = 8192


def finalize(plan: FrozenPlan, recipe: Recipe) -> dict[str, Any]:
    """Write the manifest and its companions from a fully committed plan; returns the summary.

    Raises:
        AttuneError: a shard has no commit, or its commit does not account for its plan rows.
    """
    store = plan.store
    totals = _Totals()
    with tempfile.TemporaryDirectory() as scratch:
        manifest_file = Path(scratch) / "manifest.parquet"
        quarantine_file = Path(scratch) / "quarantine.parquet"
        with _Table(manifest_file, MANIFEST) as manifest, _Table(quarantine_file, REJECTS) as out:
            for shard, rows in plan.shards():
                commit = read_commit(store, shard)
                if commit is None:
                    raise AttuneError(f"{store.uri}: no {commit_key(shard)}; run again")
                planned = rows.to_pylist()
                check_account(planned, commit, plan.plan_hash)
                manifest.add(totals.add(planned, commit, plan.info["inputs"]))
                out.add(commit["refused"])
        if totals.first is None:
            reasons = ", ".join(f"{r} {n}" for r, n in totals.reasons.most_common())
            raise AttuneError(
                f"{store.uri}: every planned clip was refused: {reasons}; "
                "`python -m pipeline status --refused` names them"
            )
        store.write("manifest.parquet", manifest_file)
        store.write("quarantine.parquet", quarantine_file)
    store.write("shards.json", _json(totals.wids_index(recipe.name)))
    summary = _summary(plan, recipe, totals)
    store.write("summary.json", _json(summary))
    return summary


class _Table:
    """A Parquet file that is written a row group at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._pending: list[dict[str, Any]] = []

    def add(self, rows: list[dict[str, Any]]) -> None:
        self._pending += rows
        if len(self._pending) >= _ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.Table.from_pylist(self._pending, schema=self._schema))
            self._pending = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()


class _Totals:
    """Sums over the shards, and the manifest rows of each."""

    def __init__(self) -> None:
        self.first: tuple[str, str, int, int] | None = None
        self.clips: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.shards: list[dict[str, Any]] = []

    def add(
        self,
        planned: Iterable[Mapping[str, Any]],
        commit: Mapping[str, Any],
        inputs: Mapping[str, Any],
    ) -> list[dict[str, Any]]:
        by_id = {row["sample_id"]: row for row in planned}
        self.reasons.update(str(row["reason"]) for row in commit["refused"])
        rows = []
        for sample in commit["samples"]:
            row = by_id[sample["sample_id"]] | sample
            row["shard_key"] = commit["shard_key"]
            row["codec_id"] = inputs["codec_id"]
            row["text_encoder_id"] = inputs["text_encoder_id"]
            self.clips[row["dataset"]] += 1
            self.seconds[row["dataset"]] += row["duration_s"]
            rows.append(row)
        if commit["samples"]:
            first = commit["samples"][0]
            self.first = self.first or (
                first["sample_id"], commit["shard_key"], first["offset"], first["length"]
            )  # fmt: skip
            self.shards.append(
                {
                    "url": commit["shard_key"],
                    "nsamples": len(commit["samples"]),
                    "filesize": commit["bytes"],
                    "sha256": commit["sha256"],
                }
            )
        return rows

    def wids_index(self, name: str) -> dict[str, Any]:
        return {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "name": name,
            "shardlist": self.shards,
        }


def _summary(plan: FrozenPlan, recipe: Recipe, totals: _Totals) -> dict[str, Any]:
    inputs = plan.info["inputs"]
    codec = json.loads((resolve_codec(recipe.codec.path) / "config.json").read_text())
    assert totals.first is not None
    n_codebooks, text_dim = _shapes(plan.store, *totals.first)
    rejected = totals.reasons.copy()
    for count in plan.info["catalogs"].values():
        rejected.update(count["refused"])
    hop = 1
    for ratio in codec["upsampling_ratios"]:
        hop *= ratio
    return {
        "name": recipe.name,
        "plan_hash": plan.plan_hash,
        "n_samples": totals.clips.total(),
        "n_shards": plan.n_shards,
        "hours": _hours(sum(totals.seconds.values())),
        "n_planned": plan.n_planned,
        "n_rejected": rejected.total(),
        "rejected_by_reason": dict(sorted(rejected.items())),
        "sample_rate": recipe.sample_rate,
        "frame_rate": recipe.sample_rate / hop,
        "n_codebooks": n_codebooks,
        "codebook_size": codec["codebook_size"],
        "codec_id": inputs["codec_id"],
        "text_encoder_id": inputs["text_encoder_id"],
        "text_dim": text_dim,
        "text_max_length": inputs["text_max_length"],
        "prompt_policy": plan.info["prompt_policy"],
        "n_unique_prompts": plan.info["n_unique_prompts"],
        "datasets": {
            name: {"clips": totals.clips[name], "hours": _hours(totals.seconds[name])}
            for name in sorted(totals.clips)
        },
    }


def _shapes(
    store: Store, sample_id: str, shard_key: str, offset: int, length: int
) -> tuple[int, int]:
    """K and D, from the first sample itself."""
    sample = parse_sample(sample_id, store.read_range(shard_key, offset, length))
    return int(sample.codes.shape[0]), int(sample.text[0].shape[1])


def _hours(seconds: float) -> float:
    return round(seconds / 3600, 6)


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
