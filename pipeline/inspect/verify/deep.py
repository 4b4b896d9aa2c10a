"""What `shards verify --deep` adds: all that other tools and people read."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from common.schema import MANIFEST, RECORD, REJECTS
from common.shards import MEMBERS, Sample
from common.storage import StorageError, Store
from pipeline.datadir.frozen_plan import FrozenPlan
from pipeline.datadir.text_cache import TextCache
from pipeline.inspect.verify.check import Check, short
from pipeline.inspect.verify.tables import Ids, Rows, repeated, without


class DeepCheck(Check):
    """The same pass, with all that `deep` adds."""

    def __init__(
        self,
        store: Store,
        plan: FrozenPlan,
        summary: dict[str, Any],
        tell: Callable[[int, int], object] | None = None,
    ) -> None:
        self.planned: dict[str, dict[str, Any]] = {}
        self.states = 0
        self.tars: dict[str, dict[str, Any]] = {}
        """What `shards.json` has to say of each tar."""
        self.refused = Ids()
        self.reasons = Counter[str]()
        self.clips, self.seconds = Counter[str | None](), Counter[str | None]()
        """By dataset; None where a sample has no row in the manifest."""
        super().__init__(store, plan, summary, tell)
        self.cache = TextCache(store, str(plan.info["inputs"]["text_encoder_id"]))
        self.quarantine = self._read_quarantine()

    def run(self) -> dict[str, Any]:
        found = super().run()
        if self.store.exists("retry.json"):
            self.problem("retry.json", "a retry is under way; `python -m pipeline run` ends it")
        self._shard_list()
        self._quarantine_order()
        self._totals()
        return found | {"states": self.states}

    def _shard(self, commit: dict[str, Any], planned: list[dict[str, Any]] | None) -> None:
        self.planned = {row["sample_id"]: row for row in planned or []}
        super()._shard(commit, planned)
        for sample in commit["samples"]:
            self._manifest_row(commit, sample)
            dataset = self.rows.get(sample["sample_id"], {}).get("dataset")
            self.clips[dataset] += 1
            self.seconds[dataset] += sample["duration_s"]
        if commit["samples"]:
            self.tars[commit["shard_key"]] = {
                "nsamples": len(commit["samples"]),
                "filesize": commit["bytes"],
                "sha256": commit["sha256"],
            }
        self._refusals(commit["refused"])

    def _manifest_types(self, schema: pa.Schema) -> None:
        for name in MANIFEST.names:
            found, expected = schema.field(name).type, MANIFEST.field(name).type
            if found != expected:
                self.problem("manifest.parquet", f"column {name} is {found}, expected {expected}")

    def _manifest_row(self, commit: Mapping[str, Any], sample: Mapping[str, Any]) -> None:
        """Every column, as plan and commit have it (what the sample says was compared before)."""
        sample_id = sample["sample_id"]
        row, planned = self.rows.get(sample_id), self.planned.get(sample_id)
        if row is None or planned is None:
            return  # told once
        inputs = self.plan.info["inputs"]
        expected: dict[str, Any] = {**planned, **sample, "shard_key": commit["shard_key"]}
        expected |= {name: inputs[name] for name in ("codec_id", "text_encoder_id")}
        told = {p["problem"].split(" is ")[0] for p in self.problems if p["sample_id"] == sample_id}
        for name in MANIFEST.names:
            if name not in told and row[name] != expected[name]:
                self.problem(
                    "manifest.parquet",
                    f"{name} is {short(row[name])}, plan and commit say {short(expected[name])}",
                    sample_id,
                )

    def _headers(self, key: str, members: list[tarfile.TarInfo]) -> None:
        for member in members:
            sample_id, _, extension = member.name.partition(".")
            if extension not in MEMBERS:
                self.problem(key, f"{member.name}: expected .{', .'.join(MEMBERS)}", sample_id)
            meta = (member.isreg(), member.mtime, member.uid, member.gid, member.mode)
            if meta != (True, 0, 0, 0, 0o644):
                self.problem(key, f"{member.name}: its tar header is not as it was", sample_id)

    def _content(self, sample: Sample, committed: Mapping[str, Any]) -> list[str]:
        problems = super()._content(sample, committed)
        record, planned = sample.record, self.planned.get(sample.sample_id)
        if planned is not None:
            for name in (*RECORD.names, "prompts"):
                if record.get(name) != planned[name]:
                    problems.append(
                        f"{name} is {short(record.get(name))}, the plan says {short(planned[name])}"
                    )
        if record.get("source_sample_rate") != committed["source_sample_rate"]:
            problems.append(
                f"source_sample_rate is {short(record.get('source_sample_rate'))}, its commit "
                f"says {short(committed['source_sample_rate'])}"
            )
        limit = self.plan.info["inputs"]["text_max_length"]
        if long := [len(states) for states in sample.text if len(states) > limit]:
            problems.append(
                f"a prompt has {long[0]} text states, the encoder makes {limit} at most"
            )
        return problems + self._compare_states(sample)

    def _compare_states(self, sample: Sample) -> list[str]:
        """The states of each prompt against those in the text cache."""
        prompts = sample.record.get("prompts")
        if not isinstance(prompts, list) or len(prompts) != len(sample.text):
            return []  # told before
        planned = self.planned.get(sample.sample_id)
        if planned is None or planned["prompts"] != prompts:
            return []  # told before
        try:
            spans = self.cache.find(dict(zip(prompts, planned["chunks"], strict=True)))
            cached = self.cache.read(spans)
        except (FileNotFoundError, StorageError):
            return []  # a cache may go
        except (ValueError, KeyError) as error:  # Arrow's errors are ValueErrors
            return [f"its part of the text cache cannot be read: {short(str(error))}"]
        self.states += 1
        return [
            f"text states of {short(prompt)} are not those in the text cache"
            for prompt, states in zip(prompts, sample.text, strict=True)
            if not np.array_equal(states, cached[prompt])
        ]

    def _shard_list(self) -> None:
        """`shards.json` lists the tars of the commits, in their order."""
        try:
            entries = json.loads(self.store.read("shards.json"))["shardlist"]
            found = {entry["url"]: entry for entry in entries}
        except FileNotFoundError:
            self.problem("shards.json", "is missing")
            return
        except (ValueError, TypeError, KeyError) as error:
            self.problem("shards.json", f"is damaged: {error!r}")
            return
        expected = self.tars
        for key in sorted(found.keys() - expected.keys()):
            self.problem("shards.json", f"lists {key}, which no commit names")
        for key, values in expected.items():
            if key not in found:
                self.problem("shards.json", f"does not list {key}")
                continue
            for name, value in values.items():
                if found[key].get(name) != value:
                    self.problem(
                        "shards.json",
                        f"{key}: {name} is {short(found[key].get(name))}, its commit says "
                        f"{short(value)}",
                    )
        if found.keys() == expected.keys() and (
            list(found) != list(expected) or len(entries) != len(found)
        ):
            self.problem("shards.json", "shards are repeated or not in the order of the commits")

    def _read_quarantine(self) -> Rows | None:
        rows = self._read_rows("quarantine.parquet")
        if rows is not None and not rows.schema.equals(REJECTS):
            self.problem("quarantine.parquet", f"has columns {', '.join(rows.schema.names)}")
            return None
        return rows

    def _refusals(self, refused: list[dict[str, Any]]) -> None:
        """`quarantine.parquet` has the refusals of a commit as they stand there."""
        self.reasons.update(row["reason"] for row in refused)
        if self.quarantine is None:
            return  # told once
        ids = [str(row["sample_id"]) for row in refused]
        rows = self.quarantine.find(ids, len(self.refused))
        self.refused.add(ids)
        for sample_id, committed in zip(ids, refused, strict=True):
            row, want = rows.get(sample_id), {name: committed.get(name) for name in REJECTS.names}
            if row is None:
                self.problem("quarantine.parquet", "is refused but has no row", sample_id)
            elif wrong := [name for name in want if row[name] != want[name]]:
                self.problem(
                    "quarantine.parquet",
                    f"{wrong[0]} is {short(row[wrong[0]])}, its commit says "
                    f"{short(want[wrong[0]])}",
                    sample_id,
                )

    def _quarantine_order(self) -> None:
        """`quarantine.parquet` has nothing but the refusals of the commits, in their order."""
        if self.quarantine is None:
            return  # told once
        found, expected = self.quarantine.ids, self.refused.array()
        extra = without(found.unique(), expected)
        for sample_id in extra:
            self.problem("quarantine.parquet", "no commit refused it", sample_id)
        if repeated(found):
            self.problem("quarantine.parquet", "has a sample twice")
        elif not extra and len(found) == len(expected) and not found.equals(expected):
            self.problem("quarantine.parquet", "rows are not in the order of the commits")

    def _totals(self) -> None:
        """The counts in `summary.json`, from plan and commits."""
        if not self.summary or None in self.clips:
            return  # told once
        clips, seconds, reasons = self.clips, self.seconds, self.reasons.copy()
        for count in self.plan.info["catalogs"].values():
            reasons.update(count["refused"])
        inputs = self.plan.info["inputs"]
        expected = {
            "n_shards": self.plan.n_shards,
            "n_planned": self.plan.n_planned,
            "n_rejected": reasons.total(),
            "rejected_by_reason": dict(reasons),
            "codec_id": inputs["codec_id"],
            "text_encoder_id": inputs["text_encoder_id"],
            "hours": round(sum(seconds.values()) / 3600, 6),
            "datasets": {
                name: {"clips": clips[name], "hours": round(seconds[name] / 3600, 6)}
                for name in clips
            },
        }
        for name, value in expected.items():
            if self.summary.get(name) != value:
                self.problem(
                    "summary.json",
                    f"{name} is {short(self.summary.get(name))}, plan and commits say "
                    f"{short(value)}",
                )
