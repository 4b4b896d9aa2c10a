"""`retry`: encode again the shards that hold refused clips, for instance once lost audio is back.

A refusal is part of its shard's commit, so the whole shard is encoded again.  The order of
operations:

1. Choose: shards whose commits hold refusals of the reasons asked for.  A clip whose file is still
   missing (or still empty, or a folder) gives no reason to encode its shard again.  A shard of
   which an *accepted* clip has lost its file since is left as it is and reported: encoded again, it
   would lose that clip.
2. Delete what `finalize` wrote, `summary.json` first: readers find an unfinished run, never a
   manifest that names a shard which is gone.
3. Delete the commits of the chosen shards.
4. Run as always: shards without a commit are encoded (also those that failed on every attempt), and
   then the manifest is written as in a first run over the same audio.

No record of a retry is kept, because none is needed.  Deleting one commit is atomic, and every run
encodes what has no commit and then writes the manifest.  Killed before step 3, a retry has changed
nothing that the next run does not restore.  Killed later, the next `run` finishes the shards whose
commits are deleted, and the next `retry` also chooses the others again.

Old tars stay in `shards/`: a training that opened the folder before still reads them, until `gc
--delete` removes them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.audio import REASONS
from common.errors import AttuneError
from common.storage import AccessDenied, open_store
from common.uris import remote_uri
from pipeline.datadir.commit import commit_key, read_commit
from pipeline.datadir.frozen_plan import FrozenPlan
from pipeline.datadir.results import remove_results

_POISON = re.compile(r"poison/(\d{6,})\.json")
_PROBES = 16
"""Audio files that are looked up at once."""


@dataclass
class Retry:
    """What a retry would do, or did.

    shards: per shard to encode again, the ids of the clips that its commit refuses.
    clips: the refused clips in them, of the reasons asked for, by reason.
    waiting: refused clips whose files are still missing, empty or folders, by reason.
    held: shards left as they are, and why.
    poison: shards that failed on every attempt and have no commit.
    """

    shards: dict[int, set[str]] = field(default_factory=dict)
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


def choose_shards(plan: FrozenPlan, reasons: Collection[str] = ()) -> Retry:
    """What there is to retry (step 1); changes nothing.

    Args:
        reasons: of the refusals to try again; none means every reason.

    Raises:
        AttuneError: an unknown reason, or a commit that is damaged or of another plan.
    """
    if unknown := sorted(set(reasons) - set(REASONS)):
        raise AttuneError(f"--reason {unknown[0]}: expected one of {', '.join(REASONS)}")
    store = plan.store
    parked = {int(m[1]) for key, _ in store.list("poison") if (m := _POISON.fullmatch(key))}
    retry = Retry()
    for shard, rows in plan.shards():
        commit = read_commit(store, shard)
        if commit is None:
            if shard in parked:
                retry.poison.append(shard)
            continue
        if commit["plan_hash"] != plan.plan_hash:
            raise AttuneError(
                f"{store.uri}/{commit_key(shard)} is of plan {commit['plan_hash']}, not of plan "
                f"{plan.plan_hash}; delete it and run again to encode the shard again"
            )
        columns = (rows[name].to_pylist() for name in ("sample_id", "audio_uri"))
        _consider(retry, commit, reasons, dict(zip(*columns, strict=True)))
    return retry


def _consider(
    retry: Retry, commit: Mapping[str, Any], reasons: Collection[str], uris: Mapping[str, str]
) -> None:
    """Put a shard where it belongs in `retry`; `uris` has the audio of each of its clips."""
    refusals = [row for row in commit["refused"] if not reasons or row["reason"] in reasons]
    absent = [row for row in refusals if row["reason"] in ("missing", "not_a_file", "empty_file")]
    lost = _without_audio(uris.get(row["sample_id"], "") for row in absent)
    waiting = Counter(row["reason"] for row, is_lost in zip(absent, lost, strict=True) if is_lost)
    retry.waiting += waiting
    chances = Counter(row["reason"] for row in refusals) - waiting
    if not chances:
        return
    kept = [uris.get(sample["sample_id"], "") for sample in commit["samples"]]
    gone = [uri for uri, is_gone in zip(kept, _without_audio(kept), strict=True) if is_gone]
    if gone:
        why = f"{len(gone)} clips that it holds have lost their audio, as {gone[0]}"
        retry.held[commit["shard"]] = why
        return
    retry.shards[commit["shard"]] = {row["sample_id"] for row in commit["refused"]}
    retry.clips += chances


def _without_audio(uris: Iterable[str]) -> list[bool]:
    """Whether each file is missing, empty or a folder."""
    with ThreadPoolExecutor(_PROBES) as pool:
        return list(pool.map(lambda uri: not _size(uri), uris))


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


def unmake_shards(plan: FrozenPlan, shards: Iterable[int]) -> None:
    """Delete the commits of shards, and before them what `finalize` wrote (steps 2 and 3)."""
    if doomed := sorted(shards):
        remove_results(plan.store)
        for shard in doomed:
            plan.store.delete(commit_key(shard))


def outcome(plan: FrozenPlan, retry: Retry) -> dict[str, Any]:
    """What came of a retry that was run to its end.

    Returns:
        accepted: clips that were refused before and are accepted now; refused: those refused again,
        by reason; lost: sample ids that were accepted before and are refused now.
    """
    accepted, again, lost = 0, Counter[str](), list[str]()
    for shard, before in sorted(retry.shards.items()):
        commit = read_commit(plan.store, shard)
        if commit is None:
            continue
        accepted += sum(sample["sample_id"] in before for sample in commit["samples"])
        again.update(row["reason"] for row in commit["refused"] if row["sample_id"] in before)
        lost += sorted({row["sample_id"] for row in commit["refused"]} - before)
    return {"accepted": accepted, "refused": dict(sorted(again.items())), "lost": lost}
