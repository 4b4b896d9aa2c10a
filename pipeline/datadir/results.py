"""What a finished run writes for its readers, as a function of the plan and the commits.

    manifest.parquet     a row per sample, by shard and position
    quarantine.parquet   clips refused while encoding, and copies of sounds in stricter splits
    shards.json          the shard list in the form of WebDataset's `wids` index
    summary.json         totals and identities; written last: it makes the run finished

Nothing here depends on when, where or by which worker the shards were encoded, so the files are the
same however often a run was killed.  `finalize` writes them; `shards verify` computes them again
and compares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from common.prompts import PROMPT_FORM
from common.schema import MANIFEST, REJECTS
from common.storage import Store
from pipeline.datadir.copies import Copies
from pipeline.datadir.frozen_plan import FrozenPlan

RESULTS = ("summary.json", "manifest.parquet", "quarantine.parquet", "shards.json")
"""In the order of removal: readers take `summary.json` as the sign of a finished run."""
FROM_ELSEWHERE = ("codebook_size", "frame_rate", "n_codebooks", "name", "text_dim")
"""Entries of the summary that are neither in the plan nor in the commits."""


@dataclass
class Results:
    """Totals over the shards that were added; `first` is the manifest's first row."""

    plan: FrozenPlan
    copies: Copies
    first: dict[str, Any] = field(default_factory=dict)
    shards: list[dict[str, Any]] = field(default_factory=list)
    clips: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    left_out: int = 0
    """Number of samples that are in a tar, but not in the manifest: copies."""

    def add(
        self, planned: list[dict[str, Any]], commit: Mapping[str, Any]
    ) -> tuple[pa.Table, pa.Table]:
        """Count a shard: its plan rows, and a commit that accounts for them.

        Returns:
            The shard's rows of the manifest (`MANIFEST`) and of the quarantine (`REJECTS`).
        """
        inputs = self.plan.info["inputs"]
        same = {name: inputs[name] for name in ("codec_id", "text_encoder_id")}
        same["shard_key"] = commit["shard_key"]
        by_id = {row["sample_id"]: row for row in planned}
        leaks = self.copies.leaks
        rows = [
            by_id[sample["sample_id"]] | sample | same
            for sample in commit["samples"]
            if sample["sample_id"] not in leaks
        ]
        refused = commit["refused"] + [
            {name: by_id[key][name] for name in ("sample_id", "dataset", "native_id", "source")}
            | {"stage": "split", "reason": "leakage", "detail": leaks[key]}
            for sample in commit["samples"]
            if (key := sample["sample_id"]) in leaks
        ]
        self.left_out += len(commit["samples"]) - len(rows)
        for row in rows:
            self.clips[row["dataset"]] += 1
            self.seconds[row["dataset"]] += row["duration_s"]
        self.reasons.update(str(row["reason"]) for row in refused)
        if rows:
            self.first = self.first or rows[0]
            self.shards.append(
                {
                    "url": commit["shard_key"],
                    "nsamples": len(commit["samples"]),  # of the tar, as `wids` counts them
                    "filesize": commit["bytes"],
                    "sha256": commit["sha256"],
                }
            )
        quarantine = pa.Table.from_pylist(refused, REJECTS)
        return pa.Table.from_pylist(rows, MANIFEST), quarantine

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
        info = self.plan.info
        names = ("sample_rate", "codec_id", "text_encoder_id", "text_max_length")
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
            "n_left_out": self.left_out,
            "n_duplicates": sum(self.copies.duplicates.values()),
            "rejected_by_reason": dict(sorted(rejected.items())),
            **{name: info["inputs"][name] for name in names},
            **{name: info[name] for name in PROMPT_FORM if name in info},
            "n_unique_prompts": info["n_unique_prompts"],
            "datasets": {
                name: {
                    "clips": self.clips[name],
                    "hours": _hours(self.seconds[name]),
                    "duplicates": self.copies.duplicates.get(name, 0),
                }
                for name in sorted(self.clips)
            },
        }


def remove_results(store: Store) -> None:
    """Delete what `finalize` wrote: the run is no longer finished."""
    for key in RESULTS:
        store.delete(key)


def _hours(seconds: float) -> float:
    return round(seconds / 3600, 6)
