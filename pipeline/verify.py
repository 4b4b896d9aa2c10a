"""`shards verify`: does every byte that a reader will trust say what it should?

Plan, commits, tars, samples and manifest are checked against each other; every problem names its
file and, where there is one, the sample.  Nothing is changed.

`deep` goes on to what no reader needs to trust, but people and other tools do: every column of the
manifest, the types of its columns, `shards.json`, `quarantine.parquet`, the totals in
`summary.json`, each record against its plan row, each member's tar header, and the text states
against the text cache, where that still holds them.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import AttuneError
from common.schema import MANIFEST, RECORD, REJECTS
from common.shards import MEMBERS, Sample, parse_sample, read_summary
from common.storage import StorageError, Store
from pipeline.commit import commit_key, committed_shards, read_commit
from pipeline.finalize import check_account
from pipeline.planfile import FrozenPlan, load_plan
from pipeline.textcache import TextCache


def verify_shards(store: Store, deep: bool = False) -> dict[str, Any]:
    """Check a finished run.

    Returns:
        shards, samples (numbers checked), problems (where, sample_id, problem), and orphans: tars
        that no commit names, which are harmless.  With `deep` also states: samples whose text
        states were compared with the cache.

    Raises:
        AttuneError: there is no finished run to check.
    """
    plan = load_plan(store)
    if plan is None:
        raise AttuneError(f"{store.uri}: no plan there; run `python -m pipeline run` first")
    try:
        summary = read_summary(store)
    except AttuneError:
        if not store.exists("summary.json"):
            raise
        summary = {}
    return (_DeepCheck if deep else _Check)(store, plan, summary).run()


_SUMMARY_KEYS = {
    "plan_hash", "n_samples", "n_codebooks", "codebook_size", "frame_rate", "text_dim",
    "codec_id", "text_encoder_id",
}  # fmt: skip


class _Check:
    def __init__(self, store: Store, plan: FrozenPlan, summary: dict[str, Any]) -> None:
        self.store, self.plan, self.summary = store, plan, summary
        self.problems: list[dict[str, str]] = []
        self.sizes = dict(store.list("shards"))
        self.samples = 0
        self.repeated: list[str] = []
        self.manifest = self._read_manifest()

    def run(self) -> dict[str, Any]:
        if lacking := sorted(_SUMMARY_KEYS - self.summary.keys()):
            self.problem("summary.json", f"is damaged: no {', '.join(lacking)}")
        elif self.summary["plan_hash"] != self.plan.plan_hash:
            self.problem("summary.json", f"is of plan {self.summary['plan_hash']}")
        expected_order: list[str] = []
        named: set[str] = set()
        for shard, rows in self._planned():
            commit = self._commit(shard)
            if commit is None:
                continue
            if commit["shard_key"]:
                named.add(commit["shard_key"])
            if rows is not None:
                try:
                    check_account(rows.to_pylist(), commit, self.plan.plan_hash)
                except AttuneError as error:
                    self.problem(commit_key(shard), str(error))
            expected_order += [sample["sample_id"] for sample in commit["samples"]]
            self._shard(commit, None if rows is None else rows.to_pylist())
        for shard in sorted(committed_shards(self.store)):
            if shard >= self.plan.n_shards:
                self.problem(commit_key(shard), f"the plan has {self.plan.n_shards} shards only")
        found_order = list(self.manifest)
        for sample_id in self.repeated:
            self.problem("manifest.parquet", "has more than one row", sample_id)
        if found_order != expected_order:
            extra = sorted(set(found_order) - set(expected_order))
            lost = sorted(set(expected_order) - set(found_order))
            for sample_id in extra:
                self.problem("manifest.parquet", "is in no commit", sample_id)
            for sample_id in lost:
                self.problem("manifest.parquet", "is committed but has no row", sample_id)
            if not extra and not lost:
                self.problem("manifest.parquet", "rows are not in the order of the commits")
        if self.summary.get("n_samples", len(expected_order)) != len(expected_order):
            self.problem(
                "summary.json",
                f"n_samples is {self.summary['n_samples']}, commits have {len(expected_order)}",
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

    def _read_manifest(self) -> dict[str, dict[str, Any]]:
        try:
            table = pq.read_table(pa.BufferReader(self.store.read("manifest.parquet")))
        except FileNotFoundError:
            self.problem("manifest.parquet", "is missing")
            return {}
        except (pa.ArrowException, OSError) as error:
            self.problem("manifest.parquet", f"is not readable: {error}")
            return {}
        if table.schema.names != MANIFEST.names:
            self.problem("manifest.parquet", f"has columns {', '.join(table.schema.names)}")
            return {}
        rows = table.to_pylist()
        times = Counter(row["sample_id"] for row in rows)
        self.repeated = [sample_id for sample_id, number in times.items() if number > 1]
        self._manifest_table(table)
        return {row["sample_id"]: row for row in rows}

    def _manifest_table(self, table: pa.Table) -> None:
        """A look at the table itself, for who wants one."""

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
        row = self.manifest.get(sample_id)
        if row is None:
            return  # told once, with the manifest
        expected = sample.record | committed | {"shard_key": key, "shard": commit["shard"]}
        for name in MANIFEST.names:
            if name in expected and row[name] != expected[name]:
                self.problem(
                    "manifest.parquet",
                    f"{name} is {_short(row[name])}, the shard says {_short(expected[name])}",
                    sample_id,
                )

    def _content(self, sample: Sample, committed: Mapping[str, Any]) -> list[str]:
        """What is wrong with one sample's arrays and record."""
        if not self.summary.keys() >= _SUMMARY_KEYS:
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
                    f"{name} is {_short(record.get(name))}, its commit says "
                    f"{_short(committed[name])}"
                )
        return problems


class _DeepCheck(_Check):
    """`_Check`, and all that `deep` adds."""

    def __init__(self, store: Store, plan: FrozenPlan, summary: dict[str, Any]) -> None:
        self.commits: list[dict[str, Any]] = []
        self.planned: dict[str, dict[str, Any]] = {}
        self.states = 0
        super().__init__(store, plan, summary)
        self.cache = TextCache(store, str(plan.info["inputs"]["text_encoder_id"]))

    def run(self) -> dict[str, Any]:
        found = super().run()
        if self.store.exists("retry.json"):
            self.problem("retry.json", "a retry is under way; `python -m pipeline run` ends it")
        self._shard_list()
        self._quarantine()
        self._totals()
        return found | {"states": self.states}

    def _shard(self, commit: dict[str, Any], planned: list[dict[str, Any]] | None) -> None:
        self.commits.append(commit)
        self.planned = {row["sample_id"]: row for row in planned or []}
        super()._shard(commit, planned)
        for sample in commit["samples"]:
            self._manifest_row(commit, sample)

    def _manifest_table(self, table: pa.Table) -> None:
        for name in MANIFEST.names:
            found, expected = table.schema.field(name).type, MANIFEST.field(name).type
            if found != expected:
                self.problem("manifest.parquet", f"column {name} is {found}, expected {expected}")

    def _manifest_row(self, commit: Mapping[str, Any], sample: Mapping[str, Any]) -> None:
        """Every column, as plan and commit have it (what the sample says was compared before)."""
        sample_id = sample["sample_id"]
        row, planned = self.manifest.get(sample_id), self.planned.get(sample_id)
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
                    f"{name} is {_short(row[name])}, plan and commit say {_short(expected[name])}",
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
                        f"{name} is {_short(record.get(name))}, the plan says "
                        f"{_short(planned[name])}"
                    )
        if record.get("source_sample_rate") != committed["source_sample_rate"]:
            problems.append(
                f"source_sample_rate is {_short(record.get('source_sample_rate'))}, its commit "
                f"says {_short(committed['source_sample_rate'])}"
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
            return [f"its part of the text cache cannot be read: {_short(str(error))}"]
        self.states += 1
        return [
            f"text states of {_short(prompt)} are not those in the text cache"
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
        expected = {
            commit["shard_key"]: {
                "nsamples": len(commit["samples"]),
                "filesize": commit["bytes"],
                "sha256": commit["sha256"],
            }
            for commit in self.commits
            if commit["samples"]
        }
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
                        f"{key}: {name} is {_short(found[key].get(name))}, its commit says "
                        f"{_short(value)}",
                    )
        if found.keys() == expected.keys() and (
            list(found) != list(expected) or len(entries) != len(found)
        ):
            self.problem("shards.json", "shards are repeated or not in the order of the commits")

    def _quarantine(self) -> None:
        """`quarantine.parquet` has the refusals of the commits, in their order."""
        try:
            table = pq.read_table(pa.BufferReader(self.store.read("quarantine.parquet")))
        except FileNotFoundError:
            self.problem("quarantine.parquet", "is missing")
            return
        except (pa.ArrowException, OSError) as error:
            self.problem("quarantine.parquet", f"is not readable: {error}")
            return
        if not table.schema.equals(REJECTS):
            self.problem("quarantine.parquet", f"has columns {', '.join(table.schema.names)}")
            return
        refused = [row for commit in self.commits for row in commit["refused"]]
        expected: list[dict[str, Any]] = [
            {name: row.get(name) for name in REJECTS.names} for row in refused
        ]
        rows = table.to_pylist()
        by_id = {row["sample_id"]: row for row in rows}
        for want in expected:
            row = by_id.get(want["sample_id"])
            if row is None:
                self.problem("quarantine.parquet", "is refused but has no row", want["sample_id"])
            elif wrong := [name for name in want if row[name] != want[name]]:
                self.problem(
                    "quarantine.parquet",
                    f"{wrong[0]} is {_short(row[wrong[0]])}, its commit says "
                    f"{_short(want[wrong[0]])}",
                    want["sample_id"],
                )
        for sample_id in sorted(by_id.keys() - {want["sample_id"] for want in expected}):
            self.problem("quarantine.parquet", "no commit refused it", sample_id)
        if len(rows) == len(by_id) == len(expected) and list(by_id) != [
            want["sample_id"] for want in expected
        ]:
            self.problem("quarantine.parquet", "rows are not in the order of the commits")
        elif len(rows) != len(by_id):
            self.problem("quarantine.parquet", "has a sample twice")

    def _totals(self) -> None:
        """The counts in `summary.json`, from plan and commits."""
        if not self.summary:
            return  # told once
        clips, seconds = Counter[str](), Counter[str]()
        for commit in self.commits:
            for sample in commit["samples"]:
                row = self.manifest.get(sample["sample_id"])
                if row is None:
                    return  # nobody knows its dataset; told once
                clips[row["dataset"]] += 1
                seconds[row["dataset"]] += sample["duration_s"]
        reasons = Counter(row["reason"] for commit in self.commits for row in commit["refused"])
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
                    f"{name} is {_short(self.summary.get(name))}, plan and commits say "
                    f"{_short(value)}",
                )


def _short(value: object, limit: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
