"""`retry`: encode anew the shards that hold refused clips, for instance once lost audio is back.

A refusal is part of its shard's commit, so the whole shard is made anew: its commit is moved away
and the next run finds a shard that was never made.  The order of operations:

1. Choose: shards whose commits hold refusals of the reasons asked for.  A clip whose file is still
   missing (or still empty, or a folder) is no reason; a shard of which an *accepted* clip has lost
   its file since is left as it is, with a word: made anew it would lose that clip.
2. Write `retry.json`: the shards, each with the sha256 of the commit that is meant.  From here on
   every `run` carries the retry out, so that it survives a kill.
3. Delete `summary.json`, then the manifest, quarantine and shard list: readers find an unfinished
   run, never a wrong one.
4. Of each shard, copy the commit to `superseded/` and delete it, if it is still the one meant (a
   shard that was made anew since stays).  Tars stay too: who opened the folder before reads them.
5. Delete what step 3 deleted once more (a run that was finalizing meanwhile), then `retry.json`.
6. Run as always.  Shards without a commit are encoded, poison ones among them; then the manifest
   is written as in any first run over the same audio.

Killed anywhere, the next `run` or `retry` takes up the list at step 3, and every step of it changes
nothing where it was done before.  `gc` removes `superseded/` and what only it names, in time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.audio import REASONS
from common.config import Recipe
from common.errors import AttuneError
from common.shards import open_store_to_read
from common.storage import AccessDenied, Store, open_store
from common.uris import remote_uri
from pipeline.config import PipelineConfig
from pipeline.datadir.commit import (
    canonical_json,
    commit_key,
    committed_shards,
    parse_commit,
    read_commit,
    supersede_commit,
    superseded_key,
)
from pipeline.datadir.frozen_plan import FrozenPlan, load_plan, plan_inputs
from pipeline.plan.decide import differing_inputs, hash_inputs

_INTENT = "retry.json"
_POISON = re.compile(r"poison/(\d{6,})\.json")
_DERIVED = ("summary.json", "manifest.parquet", "quarantine.parquet", "shards.json")
"""What is made from the commits, in the order in which it goes: the summary is what readers ask."""
_PROBES = 16
"""Files that are looked up at once."""


@dataclass
class Retry:
    """What a retry would do, or is doing.

    shards: per shard to make anew the sha256 of its commit as it stands.
    clips: the refused clips in them, of the reasons asked for, by reason.
    waiting: refused clips whose files are still missing, empty or folders, by reason.
    held: shards left as they are, and why.
    poison: shards that failed on every attempt and have no commit.
    """

    shards: dict[int, str] = field(default_factory=dict)
    clips: Counter[str] = field(default_factory=Counter)
    waiting: Counter[str] = field(default_factory=Counter)
    held: dict[int, str] = field(default_factory=dict)
    poison: list[int] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "shards": sorted(self.shards),
            "clips": dict(sorted(self.clips.items())),
            "waiting": dict(sorted(self.waiting.items())),
            "held": {f"{shard:06d}": why for shard, why in sorted(self.held.items())},
            "poison": self.poison,
        }


def open_plan(recipe: Recipe, config: PipelineConfig) -> FrozenPlan:
    """The plan in `data_dir`, which must be this recipe's.

    Raises:
        AttuneError: there is none, or it is another's.
    """
    store = open_store_to_read(recipe.data_dir)
    plan = load_plan(store)
    if plan is None:
        raise AttuneError(f"{store.uri}: no plan there; run `python -m pipeline run` first")
    inputs = plan_inputs(recipe, config)
    if hash_inputs(inputs) != plan.plan_hash:
        differing = differing_inputs(plan.info["inputs"], inputs)
        raise AttuneError(
            f"{store.uri} holds plan {plan.plan_hash}, this recipe makes plan "
            f"{hash_inputs(inputs)}; differs: {'; '.join(differing[:6])}. Restore what differs"
        )
    return plan


def choose_shards(plan: FrozenPlan, reasons: Collection[str] = ()) -> Retry:
    """What there is to retry (step 1); changes nothing.

    Raises:
        AttuneError: a reason that there is not, or a commit that is damaged or of another plan.
    """
    if unknown := sorted(set(reasons) - set(REASONS)):
        raise AttuneError(f"--reason {unknown[0]}: expected one of {', '.join(REASONS)}")
    store = plan.store
    committed = committed_shards(store) & set(range(plan.n_shards))
    parked = {int(m[1]) for key, _ in store.list("poison") if (m := _POISON.fullmatch(key))}
    retry = Retry(poison=sorted((parked & set(range(plan.n_shards))) - committed))
    wanted: set[int] = set()
    for shard in sorted(committed):
        commit = read_commit(store, shard)
        if commit is None:
            continue  # superseded meanwhile
        if commit["plan_hash"] != plan.plan_hash:
            raise AttuneError(
                f"{store.uri}/{commit_key(shard)} is of plan {commit['plan_hash']}, not of plan "
                f"{plan.plan_hash}; delete it and run again to make the shard anew"
            )
        if _refusals(commit, reasons):
            wanted.add(shard)
    if wanted:
        for shard, rows in plan.shards(skip=set(range(plan.n_shards)) - wanted):
            # Read once more: all of them together may be as large as the catalogs.
            try:
                data = store.read(commit_key(shard))
            except FileNotFoundError:
                continue
            columns = (rows[name].to_pylist() for name in ("sample_id", "audio_uri"))
            uris = dict(zip(*columns, strict=True))
            sha256 = hashlib.sha256(data).hexdigest()
            _consider(retry, shard, sha256, parse_commit(data), reasons, uris)
    return retry


def _refusals(commit: Mapping[str, Any], reasons: Collection[str]) -> list[Mapping[str, Any]]:
    return [row for row in commit["refused"] if not reasons or row["reason"] in reasons]


def _consider(
    retry: Retry,
    shard: int,
    commit_sha256: str,
    commit: Mapping[str, Any],
    reasons: Collection[str],
    uris: Mapping[str, str],
) -> None:
    """Put a shard where it belongs in `retry`; `uris` has the audio of each of its clips."""
    refusals = _refusals(commit, reasons)
    with ThreadPoolExecutor(_PROBES) as pool:
        differ = list(pool.map(lambda row: _may_differ(row, uris), refusals))
        chances = Counter(row["reason"] for row, may in zip(refusals, differ, strict=True) if may)
        if chances:
            kept = [uris.get(sample["sample_id"], "") for sample in commit["samples"]]
            there = pool.map(lambda uri: bool(_size(uri)), kept)
            gone = [uri for uri, is_there in zip(kept, there, strict=True) if not is_there]
    retry.waiting += Counter(row["reason"] for row in refusals) - chances
    if not chances:
        return
    if gone:
        retry.held[shard] = f"{len(gone)} clips that it holds have lost their audio, as {gone[0]}"
        return
    retry.shards[shard] = commit_sha256
    retry.clips += chances


def _may_differ(row: Mapping[str, Any], uris: Mapping[str, str]) -> bool:
    """Whether a refusal could come out otherwise now, as far as a look at the file tells."""
    if row["reason"] not in ("missing", "not_a_file", "empty_file"):
        return True
    return bool(_size(uris.get(row["sample_id"], "")))


def _size(uri: str) -> int | None:
    """Bytes of an audio file on a disk or in a bucket; None if there is no such file, or it is not
    for us."""
    if remote := remote_uri(uri):
        folder, _, name = remote.rpartition("/")
        store = open_store(folder)
        try:
            entry = store.entry(name)
        except AccessDenied:
            if not store.is_listable():
                raise
            return None
        return None if entry is None else entry.size
    path = Path(uri)
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def begin_retry(plan: FrozenPlan, retry: Retry) -> None:
    """Make it known to every later run (step 2); `resume_retry` carries it out."""
    if retry.shards:
        shards = {str(shard): sha256 for shard, sha256 in retry.shards.items()}
        plan.store.write(_INTENT, canonical_json({"plan_hash": plan.plan_hash, "shards": shards}))


def resume_retry(plan: FrozenPlan, say: Callable[[str], None]) -> None:
    """Carry out the retry that is under way, if there is one (steps 3 to 5).

    Raises:
        AttuneError: its list is damaged.
    """
    store = plan.store
    try:
        data = store.read(_INTENT)
    except FileNotFoundError:
        return
    shards = _parse_intent(store, data, plan.plan_hash)
    if shards:
        drop_derived(store)
        moved = sum(supersede_commit(store, shard, sha) for shard, sha in sorted(shards.items()))
        drop_derived(store)
        say(f"retry: {moved} of {len(shards)} shards are to be made anew")
    store.delete(_INTENT)


def outcome(plan: FrozenPlan, retry: Retry) -> dict[str, Any]:
    """What came of a retry that was run to its end.

    Returns:
        accepted: clips that were refused and are there now; refused: those refused again, by
        reason; lost: sample ids that were accepted before and are refused now.
    """
    store = plan.store
    accepted, again, lost = 0, Counter[str](), list[str]()
    for shard, sha256 in sorted(retry.shards.items()):
        now = read_commit(store, shard)
        if now is None:
            continue
        try:
            before = parse_commit(store.read(superseded_key(shard, sha256)))
        except (FileNotFoundError, ValueError):
            continue
        kept = {sample["sample_id"] for sample in now["samples"]}
        accepted += sum(row["sample_id"] in kept for row in before["refused"])
        had = {sample["sample_id"] for sample in before["samples"]}
        lost += sorted(had - kept)
        again.update(row["reason"] for row in now["refused"] if row["sample_id"] not in had)
    return {"accepted": accepted, "refused": dict(sorted(again.items())), "lost": lost}


def _parse_intent(store: Store, data: bytes, plan_hash: str) -> dict[int, str]:
    """Shards and the sha256 of their commits; none where the list was of a plan that is gone.

    Raises:
        AttuneError: it is damaged.
    """
    try:
        intent = json.loads(data)
        shards = {int(shard): str(sha256) for shard, sha256 in intent["shards"].items()}
        return shards if intent["plan_hash"] == plan_hash else {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise AttuneError(
            f"{store.uri}/{_INTENT}: is damaged; delete it and retry again"
        ) from error


def drop_derived(store: Store) -> None:
    """Delete what is made from the commits: the run is no longer finished."""
    for key in _DERIVED:
        store.delete(key)
