"""State of a run, read only from its files: while it runs, after a kill, and at the end.

Speed is the work of the last ten minutes, by the times at which commits and text chunks were
written according to the store.  No other record is kept.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from common.schema import REJECTS
from common.storage import Entry, Store
from pipeline.datadir.commit import (
    commit_key,
    committed_shards,
    poison_key,
    poison_shards,
    read_commit,
)
from pipeline.datadir.frozen_plan import FrozenPlan, plan_to_read
from pipeline.datadir.text_cache import TextCache
from pipeline.inspect.shards import read_columns
from pipeline.progress import format_duration, format_rate

_RECENT = timedelta(minutes=10)
_SLOW = timedelta(hours=1)
"""Speed is measured over this time before the newest piece of work (see `_recent_work`)."""
_READERS = 16
"""Number of commits that are read at once."""

_REFUSAL = [name for name in REJECTS.names if name != "raw"]

Key = TypeVar("Key", int, str)
Taken = TypeVar("Taken")


def finished_summary(plan: FrozenPlan) -> dict[str, Any] | None:
    """`summary.json`; None if it is missing, damaged or of another plan, or a commit is missing."""
    try:
        summary = json.loads(plan.store.read("summary.json"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(summary, dict) or summary.get("plan_hash") != plan.plan_hash:
        return None
    # Listed after the summary was read, because it is written after all commits.
    if not committed_shards(plan.store) >= set(range(plan.n_shards)):
        return None
    return summary


def read_status(store: Store, now: datetime | None = None) -> dict[str, Any]:
    """Counts of the whole run, and in `stages` the progress and speed of each stage.

    A speed is None before there are two commits (chunks) to measure it.  An ETA is None also when
    nothing is left to do.  Times are in seconds.

    Args:
        now: time for the age of the newest commit; this machine's clock if None.

    Raises:
        AttuneError: there is no plan yet, or a commit is damaged.
    """
    plan = plan_to_read(store)
    embed = _embed_stage(plan)
    shards = _read_commits(plan, _sums_of)
    encode = _encode_stage(plan, shards, now or datetime.now(UTC))
    summary = finished_summary(plan)
    finished = summary is not None
    left_out = summary.get("n_left_out", 0) if summary else 0
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
        "clips": sum(shard.clips for shard in shards.values()) - left_out,
        "hours": encode["hours"],
        "refused_while_encoding": sum(encode["refused"].values()),
        "poison": _read_poison(store, poison_shards(store) - shards.keys()),
        "stages": {
            "plan": _plan_stage(plan),
            "embed": embed,
            "encode": encode,
            "finalize": {"done": finished, "left_out": left_out},
        },
    }


def read_refused(store: Store) -> Iterator[dict[str, Any]]:
    """Every refused row, in the columns of `REJECTS` without `raw`.

    First the rows refused while encoding (stage `audio`) in the shards committed so far, by shard
    (once the run is finished, also the copies that it left out: stage `split`);
    then the rows refused while planning, in reading order.

    Raises:
        AttuneError: there is no plan yet, or a file is damaged.
    """
    plan = plan_to_read(store)
    yield from refused_while_encoding(plan)
    if store.exists("plan/rejects.parquet"):  # only this listing needs it
        for batch in plan.batches("rejects", _REFUSAL):
            yield from batch.to_pylist()


def refused_while_encoding(plan: FrozenPlan) -> Iterator[dict[str, Any]]:
    """Clips that encoding refused so far; columns and errors as in `read_refused`."""
    store = plan.store
    # The commits hold the same rows, but a large run has many commits.
    if finished_summary(plan) is not None and store.exists("quarantine.parquet"):
        yield from read_columns(store, _REFUSAL, "quarantine.parquet").to_pylist()
        return
    shards = _read_commits(plan, lambda entry, commit: commit["refused"])
    for shard in sorted(shards):
        yield from ({name: row.get(name) for name in _REFUSAL} for row in shards[shard])


def status_lines(found: dict[str, Any]) -> list[str]:
    """The result of `read_status` for a person: a line per catalog, stage and failed shard."""
    plan, embed, encode, finalize = (
        found["stages"][stage] for stage in ("plan", "embed", "encode", "finalize")
    )
    age, committed = encode["last_commit_age_s"], found["shards"]
    stages = {
        "plan": [account(plan), f"{plan['shards']} shards", f"{plan['prompts']} prompts"],
        "embed": [
            f"{embed['chunks_done']}/{embed['chunks']} chunks",
            f"{embed['prompts_done']}/{embed['prompts']} prompts",
            f"{format_rate(embed['prompts_per_s'])}/s" if embed["prompts_per_s"] else "",
            f"ETA {format_duration(embed['eta_s'])}" if embed["eta_s"] else "",
        ],
        "encode": [
            f"{encode['shards_done']}/{encode['shards']} shards",
            f"{encode['clips_done']}/{encode['clips']} clips",
            f"{encode['hours']:.2f} h",
            _refused(encode["refused"]),
            f"{format_rate(encode['times_real_time'])}x real time" if encode["clips_per_s"] else "",
            f"ETA {format_duration(encode['eta_s'])}" if encode["eta_s"] else "",
            "" if age is None else f"last commit {format_duration(age)} ago",
        ],
        "finalize": [
            f"{committed['committed']}/{committed['planned']} committed",
            f"manifest {'written' if finalize['done'] else 'not written yet'}",
            f"{finalize['left_out']} copies of held-out clips left out"
            if finalize["left_out"]
            else "",
        ],
    }
    rows = {label: account(count) for label, count in found["catalogs"].items()}
    rows |= {stage: "  ".join(filter(None, parts)) for stage, parts in stages.items()}
    return [
        f"{found['data_dir']}: {found['state']}, plan {found['plan_hash']}",
        *aligned(rows),
        *(f"poison  shard {e['shard']:06d}: {e['errors'][-1]}" for e in found["poison"]),
    ]


def account(count: dict[str, Any]) -> str:
    """What became of catalog rows: `read 9 = accepted 5, merged 1, refused 3 (silent 3)`."""
    fates = [f"accepted {count['accepted']}"]
    fates += [
        f"{fate.replace('_', ' ')} {n}" for fate in ("merged", "held_out") if (n := count[fate])
    ]
    return f"read {count['read']} = {', '.join(fates)}, {_refused(count['refused'])}"


def _refused(counts: dict[str, int]) -> str:
    """`refused 12 (silent 8, truncated 4)`, the most frequent reason first."""
    reasons = ", ".join(f"{reason} {n}" for reason, n in Counter(counts).most_common())
    return f"refused {sum(counts.values())}" + (f" ({reasons})" if reasons else "")


def aligned(rows: dict[str, str]) -> list[str]:
    """Lines with all labels in one column."""
    width = max(map(len, rows), default=0)
    return [f"{label:<{width}}  {text}" for label, text in rows.items()]


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
    paths = ((Path(entry.key), entry.modified) for entry in plan.store.entries(folder))
    # The index of a chunk is written last, so it shows that the chunk is finished.
    written = {
        path.stem: modified
        for path, modified in paths
        if path.suffix == ".parquet" and path.stem in sizes
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


class _Shard(NamedTuple):
    """Totals of a commit."""

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
    """`take` of the commit of every committed shard, by shard number."""
    numbers = {commit_key(shard): shard for shard in range(plan.n_shards)}

    def read(entry: Entry) -> tuple[int, Taken | None]:
        shard = numbers[entry.key]
        commit = read_commit(plan.store, shard)
        return shard, None if commit is None else take(entry, commit)  # None: deleted meanwhile

    entries = [entry for entry in plan.store.entries("commits") if entry.key in numbers]
    with ThreadPoolExecutor(_READERS) as pool:
        return {shard: taken for shard, taken in pool.map(read, entries) if taken is not None}


def _encode_stage(plan: FrozenPlan, shards: dict[int, _Shard], now: datetime) -> dict[str, Any]:
    """`clips_done` includes refused clips; `hours_left` is extrapolated from the finished clips."""
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
    age = None if newest is None else round(max(0.0, (now - newest).total_seconds()), 3)
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
        "last_commit_age_s": age,
    }


def _recent_work(written: Iterable[tuple[Key, datetime]]) -> tuple[list[Key], float]:
    """Pieces of work to measure speed by, and the seconds in which they were made.

    These are the pieces of the ten minutes before the newest piece, without the first one, whose
    start is not known.  If there is only one such piece, the piece before it counts as the first,
    if it is at most an hour older (shards of long music).
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


def _read_poison(store: Store, shards: Iterable[int]) -> list[dict[str, Any]]:
    entries = []
    for shard in sorted(shards):
        try:
            errors = list(json.loads(store.read(poison_key(shard)))["errors"])
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            continue  # deleted meanwhile, or not ours
        entries.append({"shard": shard, "errors": errors})
    return entries
