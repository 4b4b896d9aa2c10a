"""What a finished run writes for its readers, as a function of the plan and the commits.

    manifest.parquet     a row per sample, by shard and position
    quarantine.parquet   clips refused while encoding: stage, reason, detail
    shards.json          the shard list in the form of WebDataset's `wids` index
    summary.json         totals and identities; written last: it makes the run finished

Nothing here depends on when, where or by whom the shards were encoded, so the files come out the
same however often a run was killed.  `finalize` writes them; `shards verify` works them out again
and compares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from common.schema import MANIFEST, REJECTS
from common.storage import Store
from pipeline.datadir.frozen_plan import FrozenPlan

RESULTS = ("summary.json", "manifest.parquet", "quarantine.parquet", "shards.json")
"""In the order in which they are removed: readers take `summary.json` for the end of a run."""
FROM_ELSEWHERE = ("codebook_size", "frame_rate", "n_codebooks", "name", "text_dim")
"""Entries of the summary that neither plan nor commits know."""


@dataclass
class Results:
    """Tables (`MANIFEST`, `REJECTS`) and totals over all shards."""

    plan: FrozenPlan
    manifest: pa.Table
    quarantine: pa.Table
    shards: list[dict[str, Any]] = field(default_factory=list)
    clips: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def shard_list(self, name: str) -> dict[str, Any]:
        """The content of `shards.json`."""
        return {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "name": name,
            "shardlist": self.shards,
        }

    def summary(self, elsewhere: Mapping[str, Any]) -> dict[str, Any]:
        """The content of `summary.json`; `elsewhere` has the entries of `FROM_ELSEWHERE`."""
        info, inputs = self.plan.info, self.plan.info["inputs"]
        rejected = self.reasons.copy()
        for count in info["catalogs"].values():
            rejected.update(count["refused"])
        return {
            **elsewhere,
            "plan_hash": self.plan.plan_hash,
            "n_samples": self.clips.total(),
            "n_shards": self.plan.n_shards,
            "hours": _hours(sum(self.seconds.values())),
            "n_planned": self.plan.n_planned,
            "n_rejected": rejected.total(),
            "rejected_by_reason": dict(sorted(rejected.items())),
            "sample_rate": inputs["sample_rate"],
            "codec_id": inputs["codec_id"],
            "text_encoder_id": inputs["text_encoder_id"],
            "text_max_length": inputs["text_max_length"],
            "prompt_policy": info["prompt_policy"],
            "n_unique_prompts": info["n_unique_prompts"],
            "datasets": {
                name: {"clips": self.clips[name], "hours": _hours(self.seconds[name])}
                for name in sorted(self.clips)
            },
        }


def collect_results(
    plan: FrozenPlan, accounts: Iterable[tuple[list[dict[str, Any]], Mapping[str, Any]]]
) -> Results:
    """Sum up shards, each given as its plan rows and a commit that accounts for them."""
    found = Results(plan, MANIFEST.empty_table(), REJECTS.empty_table())
    ids = {name: plan.info["inputs"][name] for name in ("codec_id", "text_encoder_id")}
    manifest, quarantine = [found.manifest], [found.quarantine]
    for planned, commit in accounts:
        same = ids | {"shard_key": commit["shard_key"]}
        by_id = {row["sample_id"]: row for row in planned}
        rows = [by_id[sample["sample_id"]] | sample | same for sample in commit["samples"]]
        for row in rows:
            found.clips[row["dataset"]] += 1
            found.seconds[row["dataset"]] += row["duration_s"]
        found.reasons.update(str(row["reason"]) for row in commit["refused"])
        # As Arrow at once: the rows of a large corpus as Python objects would not fit into memory.
        manifest.append(pa.Table.from_pylist(rows, MANIFEST))
        quarantine.append(pa.Table.from_pylist(commit["refused"], REJECTS))
        if rows:
            found.shards.append(
                {
                    "url": commit["shard_key"],
                    "nsamples": len(rows),
                    "filesize": commit["bytes"],
                    "sha256": commit["sha256"],
                }
            )
    found.manifest = pa.concat_tables(manifest).combine_chunks()
    found.quarantine = pa.concat_tables(quarantine).combine_chunks()
    return found


def remove_results(store: Store) -> None:
    """Delete what `finalize` wrote: the run is no longer finished."""
    for key in RESULTS:
        store.delete(key)


def _hours(seconds: float) -> float:
    return round(seconds / 3600, 6)
