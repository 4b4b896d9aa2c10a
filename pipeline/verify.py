"""`shards verify`: does every byte that a reader will trust say what it should?

Plan, commits, tars, samples and manifest are checked against each other; every problem names its
file and, where there is one, the sample.  Nothing is changed.

`deep` goes on to what no reader needs to trust, but people and other tools do: every column of the
manifest, the types of its columns, `shards.json`, `quarantine.parquet`, the totals in
`summary.json`, each record against its plan row, each member's tar header, and the text states
against the text cache, where that still holds them.

Of the tables only the sample ids are held whole; all else goes shard by shard.
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
import pyarrow.compute as pc
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


_ROWS_AT_ONCE = 8192
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
        self.manifest = self._read_manifest()
        self.rows: dict[str, dict[str, Any]] = {}
        """The manifest's rows of the shard in hand, by sample id."""

    def run(self) -> dict[str, Any]:
        if lacking := sorted(_SUMMARY_KEYS - self.summary.keys()):
            self.problem("summary.json", f"is damaged: no {', '.join(lacking)}")
        elif self.summary["plan_hash"] != self.plan.plan_hash:
            self.problem("summary.json", f"is of plan {self.summary['plan_hash']}")
        expected = _Ids()
        named: set[str] = set()
        for shard, rows in self._planned():
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
        found = self.manifest.ids if self.manifest else _Ids().array()
        for sample_id in _repeated(found):
            self.problem("manifest.parquet", "has more than one row", sample_id)
        found = found.unique()
        if pa.chunked_array([found]).equals(expected):
            return
        extra, lost = _without(found, expected), _without(expected, found)
        for sample_id in extra:
            self.problem("manifest.parquet", "is in no commit", sample_id)
        for sample_id in lost:
            self.problem("manifest.parquet", "is committed but has no row", sample_id)
        if not extra and not lost:
            self.problem("manifest.parquet", "rows are not in the order of the commits")

    def _read_manifest(self) -> _Rows | None:
        rows = self._read_rows("manifest.parquet")
        if rows is None:
            return None
        if rows.schema.names != MANIFEST.names:
            self.problem("manifest.parquet", f"has columns {', '.join(rows.schema.names)}")
            return None
        self._manifest_types(rows.schema)
        return rows

    def _read_rows(self, key: str) -> _Rows | None:
        try:
            return _Rows(self.store, key)
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
        self.planned: dict[str, dict[str, Any]] = {}
        self.states = 0
        self.tars: dict[str, dict[str, Any]] = {}
        """What `shards.json` has to say of each tar."""
        self.refused = _Ids()
        self.reasons = Counter[str]()
        self.clips, self.seconds = Counter[str | None](), Counter[str | None]()
        """By dataset; None where a sample has no row in the manifest."""
        super().__init__(store, plan, summary)
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
                        f"{key}: {name} is {_short(found[key].get(name))}, its commit says "
                        f"{_short(value)}",
                    )
        if found.keys() == expected.keys() and (
            list(found) != list(expected) or len(entries) != len(found)
        ):
            self.problem("shards.json", "shards are repeated or not in the order of the commits")

    def _read_quarantine(self) -> _Rows | None:
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
                    f"{wrong[0]} is {_short(row[wrong[0]])}, its commit says "
                    f"{_short(want[wrong[0]])}",
                    sample_id,
                )

    def _quarantine_order(self) -> None:
        """`quarantine.parquet` has nothing but the refusals of the commits, in their order."""
        if self.quarantine is None:
            return  # told once
        found, expected = self.quarantine.ids, self.refused.array()
        extra = _without(found.unique(), expected)
        for sample_id in extra:
            self.problem("quarantine.parquet", "no commit refused it", sample_id)
        if _repeated(found):
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
                    f"{name} is {_short(self.summary.get(name))}, plan and commits say "
                    f"{_short(value)}",
                )


class _Ids:
    """A long list of sample ids as Arrow holds it."""

    def __init__(self) -> None:
        self._parts: list[pa.Array] = []
        self._length = 0

    def add(self, ids: list[str]) -> None:
        self._parts.append(pa.array(ids, pa.string()))
        self._length += len(ids)

    def __len__(self) -> int:
        return self._length

    def array(self) -> pa.ChunkedArray:
        return pa.chunked_array(self._parts, pa.string())


class _Rows:
    """A Parquet file with a row per sample: the ids of all, the rows a row group at a time.

    Raises:
        FileNotFoundError: it is missing.
        pyarrow.ArrowException, OSError: it cannot be read to its end.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        parts: list[pa.Array] = []
        with store.open(key) as source:
            file = pq.ParquetFile(source)
            self.schema, self._metadata = file.schema_arrow, file.metadata
            # All columns, so that damage anywhere shows now.
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                if "sample_id" in self.schema.names:
                    parts.append(batch["sample_id"].cast(pa.string()).fill_null(""))
        self.ids = pa.chunked_array(parts, pa.string())
        sizes = [self._metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._held: tuple[int, pa.Table] | None = None
        self._numbers: dict[str, int] | None = None

    def find(self, sample_ids: list[str], place: int) -> dict[str, dict[str, Any]]:
        """The rows of these samples; those that have none are left out.

        Args:
            place: number of the row where they begin, if the file is in order.

        Raises:
            AttuneError: the file changed since it was opened.
        """
        if self.ids.slice(place, len(sample_ids)).to_pylist() == sample_ids:
            numbers = np.arange(place, place + len(sample_ids))
        else:
            if self._numbers is None:
                self._numbers = {name: i for i, name in enumerate(self.ids.to_pylist())}
            known = [self._numbers[name] for name in sample_ids if name in self._numbers]
            numbers = np.array(known, np.int64)
        groups = np.searchsorted(self._ends, numbers, side="right")
        rows: dict[str, dict[str, Any]] = {}
        for group in np.unique(groups).tolist():
            table = self._group(group)
            first = self._ends[group] - len(table)
            chosen = table.take(pa.array(numbers[groups == group] - first))
            rows |= {str(row["sample_id"]): row for row in chosen.to_pylist()}
        return rows

    def _group(self, number: int) -> pa.Table:
        if self._held is None or self._held[0] != number:
            self._held = None
            try:
                with self._store.open(self._key) as source:
                    file = pq.ParquetFile(source, metadata=self._metadata)
                    self._held = number, file.read_row_group(number)
            except (pa.ArrowException, OSError) as error:
                where = f"{self._store.uri}/{self._key}"
                raise AttuneError(f"{where}: changed while it was read: {error}") from error
        return self._held[1]


def _without(ids: pa.Array | pa.ChunkedArray, others: pa.Array | pa.ChunkedArray) -> list[str]:
    """The ids that are not among the others, sorted."""
    return sorted(ids.filter(pc.invert(pc.is_in(ids, value_set=others))).to_pylist())


def _repeated(ids: pa.ChunkedArray) -> list[str]:
    """The ids that are there more than once."""
    if len(ids.unique()) == len(ids):
        return []
    counts = ids.value_counts()
    return list(counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist())


def _short(value: object, limit: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
