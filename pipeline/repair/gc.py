"""`gc`: what lies in `data_dir` and is named by nothing, and its removal.

    tar      shards/NNNNNN-<sha12>.tar that no commit names: of an attempt that was killed or came
             second, or of a shard that `retry` encoded again
    text     text/<encoder>/<chunk>: of another text encoder than the plan's, or a chunk that
             plan/prompts.parquet does not name.  A cache: another plan could still have used it.
             States and index go together
    poison   poison/NNNNNN.json of a shard that is committed by now, or that no plan has
    partial  NAME#1 on a local disk: a write that was killed before its rename
    probe    clock/*: left by a gc that was killed

Anything else is not ours and stays.  Parts of killed multipart uploads to S3 are in no listing; a
lifecycle rule of the bucket removes them.

Two things keep what is in use.  A running driver publishes a tar before the commit that names it,
so what is younger than `older_than` stays, unless the run is finished: then whoever still encodes
loses against the commits that stand.  And tars are listed before the commits, so that one which is
committed in between counts as named.  Where a commit is gone and `summary.json` stands, the
manifest still names the shard's tar: it stays until the next `run`.  (A training that was started
before a `retry` still reads the tars that it replaced: `gc` cannot know, and the user must wait.)

Ages are by the store's own clock on both sides: `last_modified` of an object that is written and
looked up for the purpose, minus that of the object in question.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import AttuneError
from common.storage import Entry, Store
from pipeline.datadir.commit import committed_shards, read_commit
from pipeline.datadir.frozen_plan import FrozenPlan, load_plan
from pipeline.datadir.results import RESULTS
from pipeline.inspect.status import finished_summary

_TAR = re.compile(r"shards/(\d{6,})-[0-9a-f]{12}\.tar")
_CHUNK = re.compile(r"text/([0-9a-f]+)/([0-9a-f]+)\.(?:f16|parquet)")
_POISON = re.compile(r"poison/(\d{6,})\.json")
_PARTIAL = re.compile(r".+#\d+")
"""How obstore names a file until it is whole."""
_FOLDERS = ("plan", "text", "shards", "commits", "poison", "clock")
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Garbage:
    """An object that nothing names."""

    kind: str
    key: str
    bytes: int
    age_s: float
    why: str
    kept: bool
    """Too young to be removed."""


def collect_garbage(store: Store, older_than_s: float, delete: bool = False) -> dict[str, Any]:
    """List what nothing names, and with `delete` remove what is old enough.

    Returns:
        data_dir, finished, older_than_s, items (`Garbage`, by key), bytes (of what was removed or
        would be), and deleted: the keys removed.

    Raises:
        AttuneError: there is no plan, a commit is damaged (its tar cannot be known), or the plan
            was replaced meanwhile.
    """
    plan = load_plan(store)
    if plan is None:
        raise AttuneError(f"{store.uri}: no plan there, so nothing says what belongs to it")
    finished = finished_summary(plan) is not None
    found = list(_find(store, plan))
    # No probe is written where there is nothing to judge by it.
    now = _store_clock(store) if found else datetime.now(UTC)
    items = []
    for kind, entry, why in sorted(found, key=lambda item: item[1].key):
        age = max(0.0, (now - entry.modified).total_seconds())
        kept = age < older_than_s and not finished
        items.append(Garbage(kind, entry.key, entry.size, round(age, 3), why, kept))
    sizes = {item.key: item.bytes for item in items if not item.kept}
    deleted: list[str] = []
    if delete:
        listed = {entry.key: entry for _, entry, _ in found}
        deleted += _delete(store, plan, [(i, listed[i.key]) for i in items if not i.kept])
    return {
        "data_dir": store.uri,
        "finished": finished,
        "older_than_s": older_than_s,
        "items": [asdict(item) for item in items],
        "bytes": sum(sizes[key] for key in (deleted if delete else sizes)),
        "deleted": deleted,
    }


def parse_age(text: str) -> float:
    """Seconds of `90`, `90s`, `30m`, `24h` or `7d`.

    Raises:
        AttuneError: it is none of these.
    """
    match = _AGE.fullmatch(text.strip().lower())
    if match is None:
        raise AttuneError(f"--older-than {text}: expected a time such as 0, 90s, 30m, 24h or 7d")
    return float(match[1]) * _UNITS[match[2]]


def _find(store: Store, plan: FrozenPlan) -> Iterator[tuple[str, Entry, str]]:
    """Kind, object and reason of everything that nothing names, each once."""
    listed = [(entry, _TAR.fullmatch(entry.key)) for entry in store.entries("shards")]
    tars = [(entry, int(match[1])) for entry, match in listed if match]
    committed = committed_shards(store)  # after the tars: see above
    commits = (read_commit(store, shard) for shard in sorted(committed))
    named = {commit["shard_key"] for commit in commits if commit}  # None: deleted meanwhile
    lost = set(range(plan.n_shards)) - committed if store.exists("summary.json") else set()
    for tar, shard in tars:
        if tar.key not in named and shard not in lost:
            yield "tar", tar, "no commit names it"
    yield from _text(store, plan)
    for entry in store.entries("poison"):
        if match := _POISON.fullmatch(entry.key):
            shard = int(match[1])
            if shard in committed:
                yield "poison", entry, "its shard is committed"
            elif shard >= plan.n_shards:
                yield "poison", entry, f"the plan has {plan.n_shards} shards only"
    for entry in store.entries("clock"):
        yield "probe", entry, "left by a gc that was killed"
    for entry in _partial_files(store):
        yield "partial", entry, "a write that never ended"


def _text(store: Store, plan: FrozenPlan) -> Iterator[tuple[str, Entry, str]]:
    encoder = str(plan.info["inputs"]["text_encoder_id"])
    chunks: set[str] = set()
    for batch in plan.batches("prompts", ["chunk"]):
        chunks.update(batch["chunk"].unique().to_pylist())
    listed = [(entry, _CHUNK.fullmatch(entry.key)) for entry in store.entries("text")]
    entries = [(entry, match) for entry, match in listed if match]
    # States and their index go together: as old as the younger of the two.
    modified: dict[str, datetime] = {}
    for entry, match in entries:
        name = f"{match[1]}/{match[2]}"
        modified[name] = max(entry.modified, modified.get(name, entry.modified))
    for entry, match in entries:
        entry = entry._replace(modified=modified[f"{match[1]}/{match[2]}"])
        if match[1] != encoder:
            yield "text", entry, f"of text encoder {match[1]}, the plan has {encoder}"
        elif match[2] not in chunks:
            yield "text", entry, "plan/prompts.parquet does not name it"


def _partial_files(store: Store) -> Iterator[Entry]:
    """Files under a temporary name; a store's listing leaves them out."""
    if "://" in store.uri:
        return
    root = Path(store.uri)
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
            yield Entry(path.relative_to(root).as_posix(), stat.st_size, modified)


def _store_clock(store: Store) -> datetime:
    """What the store takes for now."""
    key = f"clock/{uuid.uuid4().hex}"
    store.write(key, b"")
    try:
        probe = store.entry(key)
    finally:
        store.delete(key)
    if probe is None:
        raise AttuneError(f"{store.uri}/{key}: gone as soon as it was written; try again")
    return probe.modified


def _delete(
    store: Store, plan: FrozenPlan, doomed: Iterable[tuple[Garbage, Entry]]
) -> Iterator[str]:
    """Remove what is still as it was listed; yields the keys removed."""
    standing = load_plan(store)
    if standing is None or standing.plan_hash != plan.plan_hash:
        raise AttuneError(f"{store.uri}: another run replaced the plan meanwhile; run gc again")
    # Indices before their states: a chunk that loses one of the two must be unfinished.
    for item, listed in sorted(doomed, key=lambda pair: not pair[0].key.endswith(".parquet")):
        if item.kind == "partial":
            (Path(store.uri) / item.key).unlink(missing_ok=True)
            yield item.key
            continue
        current = store.entry(item.key)
        if current is None or current.modified > listed.modified:
            continue  # somebody made it again, to name it next
        if tar := _TAR.fullmatch(item.key):
            commit = read_commit(store, int(tar[1]))
            if commit is not None and commit["shard_key"] == item.key:
                continue
        store.delete(item.key)
        yield item.key
