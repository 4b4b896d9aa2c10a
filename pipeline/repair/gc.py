"""`gc`: list, and remove, the files in `data_dir` that nothing refers to.

    tar      shards/NNNNNN-<sha12>.tar that no commit names: its attempt was killed or came second,
             or `retry` encoded its shard again
    text     text/<encoder>/<chunk> of another text encoder than the plan's, or a chunk that
             plan/prompts.parquet does not name (another plan could still have used it).  States
             and index are kept or removed together
    poison   poison/NNNNNN.json of a shard that is committed by now, or that the plan does not have
    partial  NAME#1 on a local disk: a write that was killed before its rename
    probe    clock/*: left by a gc that was killed

All other files are not ours and stay.  Parts of killed multipart uploads to S3 are in no listing; a
lifecycle rule of the bucket removes them.

Two rules protect files in use.  A running driver publishes a tar before the commit that names it,
so files younger than `older_than` stay, unless the run is finished: then a driver that still
encodes loses against the commits that exist.  And tars are listed before the commits, so a tar
that is committed between the two listings counts as named.  If a commit is gone and `summary.json`
exists, the manifest still names the shard's tar, which stays until the next `run`.  (A training
that was started before a `retry` still reads the tars that the retry replaced.  `gc` cannot know
this; the user must wait.)

Ages are by the store's own clock on both sides: `last_modified` of an object that is written for
this purpose, minus `last_modified` of the object in question.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import AttuneError
from common.storage import Entry, Store
from pipeline.datadir.commit import committed_shards, read_commit
from pipeline.datadir.frozen_plan import FrozenPlan, load_plan, plan_to_read
from pipeline.datadir.results import RESULTS
from pipeline.inspect.status import finished_summary

_TAR = re.compile(r"shards/(\d{6,})-[0-9a-f]{12}\.tar")
_CHUNK = re.compile(r"text/(([0-9a-f]+)/([0-9a-f]+))\.(?:f16|parquet)")
_POISON = re.compile(r"poison/(\d{6,})\.json")
_PARTIAL = re.compile(r".+#\d+")
"""The name that obstore gives a file until it is whole."""
_FOLDERS = ("plan", "text", "shards", "commits", "poison", "clock")
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class _Garbage(NamedTuple):
    """An object that nothing refers to."""

    kind: str
    entry: Entry
    why: str


def collect_garbage(store: Store, older_than_s: float, delete: bool = False) -> dict[str, Any]:
    """List the files that nothing refers to, and with `delete` remove those that are old enough.

    Returns:
        data_dir, finished, older_than_s, items (by key: kind, key, bytes, age_s, why, and kept:
        too young to be removed), bytes (that were removed or would be), and deleted: the keys
        removed.

    Raises:
        AttuneError: there is no plan, a commit is damaged (its tar cannot be known), or the plan
            was replaced meanwhile.
    """
    plan = plan_to_read(store)
    finished = finished_summary(plan) is not None
    found = sorted(_find(store, plan), key=lambda item: item.entry.key)
    # Without garbage there is no age to measure, so no probe is written.
    now = _store_clock(store) if found else datetime.now(UTC)
    items, doomed = [], []
    for item in found:
        kind, entry, why = item
        age = max(0.0, (now - entry.modified).total_seconds())
        kept = age < older_than_s and not finished
        facts = {"kind": kind, "key": entry.key, "bytes": entry.size, "why": why}
        items.append(facts | {"age_s": round(age, 3), "kept": kept})
        if not kept:
            doomed.append(item)
    removed = list(_delete(store, plan, doomed)) if delete else doomed
    return {
        "data_dir": store.uri,
        "finished": finished,
        "older_than_s": older_than_s,
        "items": items,
        "bytes": sum(item.entry.size for item in removed),
        "deleted": [item.entry.key for item in removed] if delete else [],
    }


def parse_age(text: str) -> float:
    """Seconds of `90`, `90s`, `30m`, `24h` or `7d`.

    Raises:
        AttuneError: the text has another form.
    """
    match = _AGE.fullmatch(text.strip().lower())
    if match is None:
        raise AttuneError(f"--older-than {text}: expected a time such as 0, 90s, 30m, 24h or 7d")
    return float(match[1]) * _UNITS[match[2]]


def _find(store: Store, plan: FrozenPlan) -> Iterator[_Garbage]:
    """Every object that nothing refers to, each once."""
    tars = store.entries("shards")
    committed = committed_shards(store)  # after the tars: see the top of this file
    commits = (read_commit(store, shard) for shard in sorted(committed))
    named = {commit["shard_key"] for commit in commits if commit}  # None: deleted meanwhile
    lost = set(range(plan.n_shards)) - committed if store.exists("summary.json") else set()
    for tar in tars:
        match = _TAR.fullmatch(tar.key)
        if match and tar.key not in named and int(match[1]) not in lost:
            yield _Garbage("tar", tar, "no commit names it")
    yield from _text(store, plan)
    for entry in store.entries("poison"):
        if match := _POISON.fullmatch(entry.key):
            if int(match[1]) in committed:
                yield _Garbage("poison", entry, "its shard is committed")
            elif int(match[1]) >= plan.n_shards:
                yield _Garbage("poison", entry, f"the plan has only {plan.n_shards} shards")
    for entry in store.entries("clock"):
        yield _Garbage("probe", entry, "left by a gc that was killed")
    if "://" not in store.uri:
        yield from _partial_files(Path(store.uri))


def _text(store: Store, plan: FrozenPlan) -> Iterator[_Garbage]:
    encoder = str(plan.info["inputs"]["text_encoder_id"])
    chunks: set[str] = set()
    for batch in plan.batches("prompts", ["chunk"]):
        chunks.update(batch["chunk"].unique().to_pylist())
    listed = [(entry, _CHUNK.fullmatch(entry.key)) for entry in store.entries("text")]
    entries = [(entry, match) for entry, match in listed if match]
    # States and index are removed together, so both are as old as the younger of the two.
    modified: dict[str, datetime] = {}
    for entry, match in entries:
        modified[match[1]] = max(entry.modified, modified.get(match[1], entry.modified))
    for entry, match in entries:
        entry = entry._replace(modified=modified[match[1]])
        if match[2] != encoder:
            yield _Garbage("text", entry, f"of text encoder {match[2]}, the plan has {encoder}")
        elif match[3] not in chunks:
            yield _Garbage("text", entry, "plan/prompts.parquet does not name it")


def _partial_files(root: Path) -> Iterator[_Garbage]:
    """Files under a temporary name; a store's listing leaves them out."""
    places = [root.glob(f"{name}#*") for name in RESULTS]
    places += [(root / folder).rglob("*#*") for folder in _FOLDERS]
    for place in places:
        for path in place:
            if not _PARTIAL.fullmatch(path.name):
                continue
            try:
                stat = os.lstat(path)
            except FileNotFoundError:
                continue
            modified = datetime.fromtimestamp(stat.st_mtime, UTC)
            entry = Entry(path.relative_to(root).as_posix(), stat.st_size, modified)
            yield _Garbage("partial", entry, "a write that never ended")


def _store_clock(store: Store) -> datetime:
    """The store's current time."""
    key = f"clock/{uuid.uuid4().hex}"
    store.write(key, b"")
    try:
        probe = store.entry(key)
    finally:
        store.delete(key)
    if probe is None:
        raise AttuneError(f"{store.uri}/{key}: gone as soon as it was written; try again")
    return probe.modified


def _delete(store: Store, plan: FrozenPlan, doomed: list[_Garbage]) -> Iterator[_Garbage]:
    """Remove the objects that did not change since they were listed; yields the removed ones."""
    current = load_plan(store)
    if current is None or current.plan_hash != plan.plan_hash:
        raise AttuneError(f"{store.uri}: another run replaced the plan meanwhile; run gc again")
    # Indices before their states: a chunk that loses only one of the two must count as unfinished.
    for item in sorted(doomed, key=lambda item: not item.entry.key.endswith(".parquet")):
        key = item.entry.key
        if item.kind == "partial":
            (Path(store.uri) / key).unlink(missing_ok=True)
            yield item
            continue
        now = store.entry(key)
        if now is None or now.modified > item.entry.modified:
            continue  # another process made it again and will name it next
        if tar := _TAR.fullmatch(key):
            commit = read_commit(store, int(tar[1]))
            if commit is not None and commit["shard_key"] == key:
                continue
        store.delete(key)
        yield item
