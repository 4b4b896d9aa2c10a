"""What `shards verify` always checks: all that a reader will trust."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from common.errors import AttuneError
from common.schema import MANIFEST
from common.shards import Sample, parse_sample
from common.storage import Store
from pipeline.datadir.commit import check_account, commit_key, committed_shards, read_commit
from pipeline.datadir.frozen_plan import FrozenPlan
from pipeline.inspect.verify.tables import Ids, Rows, repeated, without

SUMMARY_KEYS = {
    "plan_hash", "n_samples", "n_codebooks", "codebook_size", "frame_rate", "text_dim",
    "codec_id", "text_encoder_id",
}  # fmt: skip


class Check:
    """One pass over a finished run, shard by shard."""

    def __init__(
        self,
        store: Store,
        plan: FrozenPlan,
        summary: dict[str, Any],
        tell: Callable[[int, int], object] | None = None,
    ) -> None:
        self.store, self.plan, self.summary = store, plan, summary
        self.tell = tell or (lambda done, of: None)
        self.problems: list[dict[str, str]] = []
        self.sizes = dict(store.list("shards"))
        self.samples = 0
        self.manifest = self._read_manifest()
        self.rows: dict[str, dict[str, Any]] = {}
        """The manifest's rows of the shard in hand, by sample id."""

    def run(self) -> dict[str, Any]:
        if lacking := sorted(SUMMARY_KEYS - self.summary.keys()):
            self.problem("summary.json", f"is damaged: no {', '.join(lacking)}")
        elif self.summary["plan_hash"] != self.plan.plan_hash:
            self.problem("summary.json", f"is of plan {self.summary['plan_hash']}")
        expected = Ids()
        named: set[str] = set()
        for shard, rows in self._planned():
            self.tell(shard, self.plan.n_shards)
            commit = self._commit(shard)
            if commit is None:
                continue
            if commit["shard_key"]:
                named.add(commit["shard_key"])
            planned = None if rows is None else rows.to_pylist()
            if planned is not None:
                try:
                    check_account(planned, commit, self.plan.plan_hash)
                except AttuneError as error:
                    self.problem(commit_key(shard), str(error))
            ids = [str(sample["sample_id"]) for sample in commit["samples"]]
            self.rows = self.manifest.find(ids, len(expected)) if self.manifest else {}
            expected.add(ids)
            self._shard(commit, planned)
        self.tell(self.plan.n_shards, self.plan.n_shards)
        for shard in sorted(committed_shards(self.store)):
            if shard >= self.plan.n_shards:
                self.problem(commit_key(shard), f"the plan has {self.plan.n_shards} shards only")
        self._manifest_order(expected.array())
        if self.summary.get("n_samples", len(expected)) != len(expected):
            self.problem(
                "summary.json",
                f"n_samples is {self.summary['n_samples']}, commits have {len(expected)}",
            )
        return {
            "shards": self.plan.n_shards,
            "samples": self.samples,
            "problems": self.problems,
            "orphans": sorted(set(self.sizes) - named),
        }

    def problem(self, where: str, problem: str, sample_id: str = "") -> None:
        self.problems.append({"where": where, "sample_id": sample_id, "problem": problem})

    def _planned(self) -> Iterator[tuple[int, pa.Table | None]]:
        """Every shard with its plan rows, or with None where the plan's table is damaged."""
        told = 0
        try:
            for shard, rows in self.plan.shards():
                yield shard, rows
                told = shard + 1
        except AttuneError as error:
            self.problem("plan/plan.parquet", str(error))
        yield from ((shard, None) for shard in range(told, self.plan.n_shards))

    def _manifest_order(self, expected: pa.ChunkedArray) -> None:
        """The manifest has the committed samples, each once and in their order."""
        found = self.manifest.ids if self.manifest else Ids().array()
        for sample_id in repeated(found):
            self.problem("manifest.parquet", "has more than one row", sample_id)
        found = found.unique()
        if pa.chunked_array([found]).equals(expected):
            return
        extra, lost = without(found, expected), without(expected, found)
        for sample_id in extra:
            self.problem("manifest.parquet", "is in no commit", sample_id)
        for sample_id in lost:
            self.problem("manifest.parquet", "is committed but has no row", sample_id)
        if not extra and not lost:
            self.problem("manifest.parquet", "rows are not in the order of the commits")

    def _read_manifest(self) -> Rows | None:
        rows = self._read_rows("manifest.parquet")
        if rows is None:
            return None
        if rows.schema.names != MANIFEST.names:
            self.problem("manifest.parquet", f"has columns {', '.join(rows.schema.names)}")
            return None
        self._manifest_types(rows.schema)
        return rows

    def _read_rows(self, key: str) -> Rows | None:
        try:
            return Rows(self.store, key)
        except FileNotFoundError:
            self.problem(key, "is missing")
        except (pa.ArrowException, OSError) as error:
            self.problem(key, f"is not readable: {error}")
        return None

    def _manifest_types(self, schema: pa.Schema) -> None:
        """A look at the types of the columns, for who wants one."""

    def _commit(self, shard: int) -> dict[str, Any] | None:
        try:
            commit = read_commit(self.store, shard)
        except AttuneError as error:
            self.problem(commit_key(shard), str(error))
            return None
        if commit is None:
            self.problem(commit_key(shard), "is missing")
        elif commit.get("shard") != shard:
            self.problem(commit_key(shard), f"is about shard {commit.get('shard')}")
            return None
        return commit

    def _shard(self, commit: dict[str, Any], planned: list[dict[str, Any]] | None) -> None:
        """One committed shard; its plan rows are None where the plan's table is damaged."""
        self._tar(commit)

    def _tar(self, commit: Mapping[str, Any]) -> None:
        key = commit["shard_key"]
        if key is None:
            if commit["samples"]:
                self.problem(commit_key(commit["shard"]), "names samples but no tar")
            return
        if not key.startswith(f"shards/{commit['shard']:06d}-"):
            self.problem(commit_key(commit["shard"]), f"names {key}, the tar of another shard")
        try:
            data = self.store.read(key)
        except FileNotFoundError:
            self.problem(key, "is missing")
            return
        if len(data) != commit["bytes"]:
            self.problem(key, f"has {len(data)} bytes, its commit says {commit['bytes']}")
        digest = hashlib.sha256(data).hexdigest()
        if digest != commit["sha256"]:
            self.problem(key, f"has sha256 {digest[:12]}, its commit says {commit['sha256'][:12]}")
        if f"-{commit['sha256'][:12]}.tar" not in key:
            self.problem(key, f"its name does not carry sha256 {commit['sha256'][:12]}")
        spans = [(s["sample_id"], s["offset"], s["length"]) for s in commit["samples"]]
        end = 0
        for sample_id, offset, length in spans:
            if offset != end:
                self.problem(key, f"begins at byte {offset}, expected {end}", sample_id)
            end = offset + length
            self._sample(key, data[offset:end], sample_id, commit)
        self._members(key, data, {sample_id for sample_id, _, _ in spans})

    def _members(self, key: str, data: bytes, sample_ids: set[str]) -> None:
        """Every member belongs to a committed sample (a plain reader would see any other too)."""
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                members = tar.getmembers()
        except tarfile.TarError as error:
            self.problem(key, f"is not a tar: {error}")
            return
        self._headers(key, members)
        names = [member.name for member in members]
        for name in names:
            if name.split(".", 1)[0] not in sample_ids:
                self.problem(key, f"holds {name!r}, which no commit names")
        if names != sorted(set(names)):
            self.problem(key, "its members are not sorted, or repeated")

    def _headers(self, key: str, members: list[tarfile.TarInfo]) -> None:
        """A look at the members' headers, for who wants one."""

    def _sample(self, key: str, data: bytes, sample_id: str, commit: Mapping[str, Any]) -> None:
        self.samples += 1
        try:
            sample = parse_sample(sample_id, data)
        except (ValueError, TypeError, OverflowError, MemoryError) as error:
            # Also what a spoiled header or token count makes of numpy's and Python's arithmetic.
            self.problem(key, str(error), sample_id)
            return
        committed = next(s for s in commit["samples"] if s["sample_id"] == sample_id)
        for problem in self._content(sample, committed):
            self.problem(key, problem, sample_id)
        row = self.rows.get(sample_id)
        if row is None:
            return  # told once, with the manifest
        expected = sample.record | committed | {"shard_key": key, "shard": commit["shard"]}
        for name in MANIFEST.names:
            if name in expected and row[name] != expected[name]:
                self.problem(
                    "manifest.parquet",
                    f"{name} is {short(row[name])}, the shard says {short(expected[name])}",
                    sample_id,
                )

    def _content(self, sample: Sample, committed: Mapping[str, Any]) -> list[str]:
        """What is wrong with one sample's arrays and record."""
        if not self.summary.keys() >= SUMMARY_KEYS:
            return []  # nothing to compare with; told once
        problems = []
        streams, size = self.summary["n_codebooks"], self.summary["codebook_size"]
        if sample.codes.shape != (streams, committed["frames"]):
            problems.append(
                f"codes have shape {sample.codes.shape}, expected {(streams, committed['frames'])}"
            )
        if sample.codes.size:
            low, high = int(sample.codes.min()), int(sample.codes.max())
            if low < 0 or high >= size:
                problems.append(f"codes range over {low}..{high}, expected 0..{size - 1}")
        expected = np.ceil(round(committed["duration_s"] * self.summary["frame_rate"], 6))
        if committed["frames"] != expected:
            problems.append(f"{committed['frames']} frames, {expected:.0f} by its duration")
        for states in sample.text:
            if states.shape[1] != self.summary["text_dim"] or not len(states):
                problems.append(f"text states have shape {states.shape}")
            elif not np.isfinite(states).all():
                problems.append("text states are not finite")
        record = sample.record
        if record.get("sample_id") != sample.sample_id:
            problems.append(f"its json is of sample {record.get('sample_id')}")
        if len(record.get("prompts", ())) != len(sample.text):
            problems.append(f"{len(record.get('prompts', ()))} prompts, {len(sample.text)} states")
        for name in ("codec_id", "text_encoder_id"):
            if record.get(name) != self.summary[name]:
                problems.append(f"{name} is {record.get(name)}, expected {self.summary[name]}")
        for name in ("frames", "duration_s", "prompt_tokens", "source_sha256"):
            if record.get(name) != committed[name]:
                problems.append(
                    f"{name} is {short(record.get(name))}, its commit says {short(committed[name])}"
                )
        return problems


def short(value: object, limit: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
