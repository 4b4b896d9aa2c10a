"""Where a run stands, only from its files: works while it runs, after a kill, and at the end.

Speed is what the last ten minutes of work brought, by the times at which the store says that
commits and text chunks were written; nobody keeps a record for it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from common.errors import AttuneError
from common.schema import REJECTS
from common.storage import Entry, Store
from pipeline.datadir.commit import commit_key, committed_shards, read_commit
from pipeline.datadir.frozen_plan import FrozenPlan, load_plan
from pipeline.datadir.text_cache import TextCache
from pipeline.inspect.shards import read_columns

_RECENT = timedelta(minutes=10)
_SLOW = timedelta(hours=1)
"""What speed is taken from: as much work before the newest piece of it."""
_READERS = 16
"""Commits that are read at once."""

_REFUSAL = [name for name in REJECTS.names if name != "raw"]

Key = TypeVar("Key", int, str)
Taken = TypeVar("Taken")


def finished_summary(plan: FrozenPlan) -> dict[str, Any] | None:
    """`summary.json`, if it is there, whole, made from this plan, and has all its commits still."""
    try:
        summary = json.loads(plan.store.read("summary.json"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(summary, dict) or summary.get("plan_hash") != plan.plan_hash:
        return None
    # Listed after it: it is written when all of them are there.
    if not committed_shards(plan.store) >= set(range(plan.n_shards)):
        return None
    return summary


def read_status(store: Store, now: datetime | None = None) -> dict[str, Any]:
    """Counts over all, and `stages`: progress and speed of each.

    A speed is None until there are two commits (chunks) to take it from, an ETA also where nothing
    is left to do.  Times are seconds.

    Args:
        now: what the age of the newest commit is counted to; this machine's clock if None.

    Raises:
        AttuneError: there is no plan yet, or a commit is damaged.
    """
    plan = _plan_in(store)
    embed = _embed_stage(plan)
    shards = _read_commits(plan, _sums_of)
    encode = _encode_stage(plan, shards, now or datetime.now(UTC))
    finished = finished_summary(plan) is not None
    if finished:
        state = "finished"
    elif len(shards) == plan.n_shards:
        state = "committed"
    else:
        state = "encoding" if shards else "planned"
    return {
        "data_dir": store.uri,
        "plan_hash": plan.plan_hash,
        "state": state,
        "catalogs": plan.info["catalogs"],
        "planned": plan.n_planned,
        "prompts": {"unique": embed["prompts"], "embedded": embed["prompts_done"]},
        "shards": {"planned": plan.n_shards, "committed": len(shards)},
        "clips": sum(shard.clips for shard in shards.values()),
        "hours": encode["hours"],
        "refused_while_encoding": sum(encode["refused"].values()),
        "poison": [entry for entry in _read_poison(store) if entry["shard"] not in shards],
        "stages": {
            "plan": _plan_stage(plan),
            "embed": embed,
            "encode": encode,
            "finalize": {"done": finished},
        },
    }


def read_refused(store: Store) -> Iterator[dict[str, Any]]:
    """Every row that was refused, in `REJECTS` but for `raw`: while encoding (stage `audio`), by
    shard, as far as shards are committed; then while planning, in reading order.

    Raises:
        AttuneError: there is no plan yet, or a file is damaged.
    """
    plan = _plan_in(store)
    yield from refused_while_encoding(plan)
    if store.exists("plan/rejects.parquet"):  # nothing but this listing needs it
        for batch in plan.batches("rejects", _REFUSAL):
            yield from batch.to_pylist()


def refused_while_encoding(plan: FrozenPlan) -> Iterator[dict[str, Any]]:
    """The clips that encoding refused so far; form and errors as of `read_refused`."""
    store = plan.store
    # The commits say the same; of a large run they are many.
    if finished_summary(plan) is not None and store.exists("quarantine.parquet"):
        yield from read_columns(store, _REFUSAL, "quarantine.parquet").to_pylist()
        return
    shards = _read_commits(plan, lambda entry, commit: commit["refused"])
    for shard in sorted(shards):
        yield from ({name: row.get(name) for name in _REFUSAL} for row in shards[shard])


def _plan_in(store: Store) -> FrozenPlan:
    plan = load_plan(store)
    if plan is None:
        raise AttuneError(f"{store.uri}: no plan there; run `python -m pipeline run` first")
    return plan


def _plan_stage(plan: FrozenPlan) -> dict[str, Any]:
    """Rows of all catalogs: read = accepted + merged + held_out + all refused."""
    counts = plan.info["catalogs"].values()
    refused: Counter[str] = Counter()
    for count in counts:
        refused.update(count["refused"])
    fates = ("read", "accepted", "merged", "held_out")
    return {fate: sum(count[fate] for count in counts) for fate in fates} | {
        "refused": dict(sorted(refused.items())),
        "clips": plan.n_planned,
        "shards": plan.n_shards,
        "prompts": int(plan.info["n_unique_prompts"]),
    }


def _embed_stage(plan: FrozenPlan) -> dict[str, Any]:
    sizes: Counter[str] = Counter()
    for batch in plan.batches("prompts", ("chunk",)):
        for count in batch.column("chunk").value_counts().to_pylist():
            sizes[count["values"]] += count["counts"]
    folder = TextCache(plan.store, plan.info["inputs"]["text_encoder_id"]).folder
    written = {
        name: entry.modified
        for entry in plan.store.entries(folder)
        if (name := _chunk_of(entry)) in sizes
    }
    done = sum(sizes[name] for name in written)
    recent, span_s = _recent_work(written.items())
    speed = _per_s(sum(sizes[name] for name in recent), span_s)
    return {
        "prompts": sizes.total(),
        "prompts_done": done,
        "chunks": len(sizes),
        "chunks_done": len(written),
        "prompts_per_s": speed,
        "eta_s": _eta(sizes.total() - done, speed),
    }


def _chunk_of(entry: Entry) -> str:
    """The chunk that this file finishes; nothing for any other file."""
    name = entry.key.rsplit("/", 1)[-1]
    return name.removesuffix(".parquet") if name.endswith(".parquet") else ""


class _Shard(NamedTuple):
    """What a commit sums up to."""

    modified: datetime
    clips: int
    refused: Counter[str]
    seconds: float


def _sums_of(entry: Entry, commit: dict[str, Any]) -> _Shard:
    refused = Counter(str(row["reason"]) for row in commit["refused"])
    seconds = float(sum(sample["duration_s"] for sample in commit["samples"]))
    return _Shard(entry.modified, len(commit["samples"]), refused, seconds)


def _read_commits(
    plan: FrozenPlan, take: Callable[[Entry, dict[str, Any]], Taken]
) -> dict[int, Taken]:
    """What is taken from the commit of every committed shard, by number."""
    numbers = {commit_key(shard): shard for shard in range(plan.n_shards)}

    def read(entry: Entry) -> tuple[int, Taken | None]:
        shard = numbers[entry.key]
        commit = read_commit(plan.store, shard)
        return shard, None if commit is None else take(entry, commit)  # None: deleted meanwhile

    entries = [entry for entry in plan.store.entries("commits") if entry.key in numbers]
    with ThreadPoolExecutor(_READERS) as pool:
        return {shard: taken for shard, taken in pool.map(read, entries) if taken is not None}


def _encode_stage(plan: FrozenPlan, shards: dict[int, _Shard], now: datetime) -> dict[str, Any]:
    """`clips_done` counts refused clips too; `hours_left` supposes more of what there was."""
    refused: Counter[str] = Counter()
    for shard in shards.values():
        refused.update(shard.refused)
    done = sum(shard.clips for shard in shards.values()) + refused.total()
    left = plan.n_planned - done
    hours = sum(shard.seconds for shard in shards.values()) / 3600
    recent, span_s = _recent_work((number, shard.modified) for number, shard in shards.items())
    latest = [shards[number] for number in recent]
    clips_per_s = _per_s(sum(shard.clips + shard.refused.total() for shard in latest), span_s)
    newest = max((shard.modified for shard in shards.values()), default=None)
    return {
        "shards": plan.n_shards,
        "shards_done": len(shards),
        "clips": plan.n_planned,
        "clips_done": done,
        "hours": round(hours, 6),
        "hours_left": round(hours * left / done, 6) if done else None,
        "refused": dict(sorted(refused.items())),
        "times_real_time": _per_s(sum(shard.seconds for shard in latest), span_s),
        "clips_per_s": clips_per_s,
        "eta_s": _eta(left, clips_per_s),
        "last_commit_age_s": (
            None if newest is None else round(max(0.0, (now - newest).total_seconds()), 3)
        ),
    }


def _recent_work(written: Iterable[tuple[Key, datetime]]) -> tuple[list[Key], float]:
    """What was written in the ten minutes up to the newest piece, but for the first; where that is
    nothing, the newest, if the one before it is at most an hour older (shards of long music).

    Returns:
        The pieces that were made between the first and the newest, and the seconds between these.
    """
    times = sorted(written, key=lambda item: item[1])
    if not times:
        return [], 0.0
    newest = times[-1][1]
    recent = [(key, modified) for key, modified in times if newest - modified <= _RECENT]
    if len(recent) == 1 and len(times) > 1 and newest - times[-2][1] <= _SLOW:
        recent = times[-2:]
    return [key for key, _ in recent[1:]], (newest - recent[0][1]).total_seconds()


def _per_s(work: float, span_s: float) -> float | None:
    return round(work / span_s, 6) if span_s > 0 else None


def _eta(left: float, per_s: float | None) -> float | None:
    return round(left / per_s, 3) if left > 0 and per_s else None


def _read_poison(store: Store) -> list[dict[str, Any]]:
    entries = []
    for key, _ in store.list("poison"):
        try:
            entry = json.loads(store.read(key))
            entries.append({"shard": int(entry["shard"]), "errors": list(entry["errors"])})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            continue  # gone meanwhile, or not ours
    return entries
