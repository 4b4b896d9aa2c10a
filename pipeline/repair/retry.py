"""`retry`: encode again the shards that hold refused clips, for instance once lost audio is back.

A refusal is part of its shard's commit, so the whole shard is encoded again.  The order of
operations:

1. Choose the shards whose commits hold refusals of the requested reasons.  A clip whose file is
   still missing (or empty, or a folder) is no reason to encode its shard again.  A shard is left as
   it is, and reported, if an *accepted* clip of it has lost its file: a new attempt would lose that
   clip.
2. Delete what `finalize` wrote, `summary.json` first: readers find an unfinished run, never a
   manifest that names a shard which is gone.
3. Delete the commits of the chosen shards.
4. Run as always: encode the shards without a commit (also those that failed on every attempt) and
   write the manifest as in a first run over the same audio.

No record of a retry is kept, because none is needed.  Deleting one commit is atomic, and every run
encodes what has no commit and then writes the manifest.  Killed before step 3, a retry has changed
nothing that the next run does not restore.  Killed later, the next `run` finishes the shards whose
commits are deleted, and the next `retry` also chooses the others again.

Old tars stay in `shards/` until `gc --delete` removes them: a training that opened the folder
before the retry still reads them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from common.audio import REASONS
from common.errors import AttuneError
from common.sources import file_of
from common.storage import AccessDenied, open_store
from common.uris import remote_uri
from pipeline.datadir.commit import commit_key, poison_shards, read_commit
from pipeline.datadir.frozen_plan import FrozenPlan
from pipeline.datadir.results import remove_results

_PROBES = 16
"""Number of audio files that are looked up at once."""


@dataclass
class Retry:
    """What a retry would do, or did.

    shards: per shard to encode again, the ids of the clips that its commit refuses.
    clips: the refused clips in them, of the reasons asked for, by reason.
    waiting: refused clips whose files are still missing, empty or folders, by reason.
    held: shards that are left as they are, and why.
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

    def lines(self) -> Iterator[str]:
        """The same for a person."""
        clips, waiting = (
            ", ".join(f"{reason} {number}" for reason, number in sorted(counts.items()))
            for counts in (self.clips, self.waiting)
        )
        yield f"to retry: {len(self.shards)} shards" + (f" with {clips}" if clips else "")
        if self.poison:
            yield f"to retry: {len(self.poison)} shards that failed on every attempt"
        if waiting:
            yield f"not retried, their files have not changed: {waiting}"
        for shard, why in sorted(self.held.items()):
            yield f"shard {shard:06d} is left as it is: {why}"


def choose_shards(plan: FrozenPlan, reasons: Collection[str] = ()) -> Retry:
    """Choose what to retry (step 1); changes nothing.

    Args:
        reasons: reasons of the refusals to retry; none means every reason.

    Raises:
        AttuneError: an unknown reason, or a commit that is damaged or of another plan.
    """
    if unknown := sorted(set(reasons) - set(REASONS)):
        raise AttuneError(f"--reason {unknown[0]}: expected one of {', '.join(REASONS)}")
    store = plan.store
    parked = poison_shards(store)
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
        uris = (rows[name].to_pylist() for name in ("sample_id", "audio_uri"))
        _consider(retry, commit, reasons, dict(zip(*uris, strict=True)))
    return retry


def _consider(
    retry: Retry, commit: Mapping[str, Any], reasons: Collection[str], uris: Mapping[str, str]
) -> None:
    """Add a shard to the right part of `retry`; `uris` has the audio of each of its clips."""
    refusals = [row for row in commit["refused"] if not reasons or row["reason"] in reasons]
    absent = [row for row in refusals if row["reason"] in ("missing", "not_a_file", "empty_file")]
    lost = _without_audio(uris.get(row["sample_id"], "") for row in absent)
    waiting = Counter(row["reason"] for row, is_lost in zip(absent, lost, strict=True) if is_lost)
    retry.waiting += waiting
    chances = Counter(row["reason"] for row in refusals) - waiting
    if not chances:
        return
    kept = [uris.get(sample["sample_id"], "") for sample in commit["samples"]]
    if gone := [uri for uri, is_gone in zip(kept, _without_audio(kept), strict=True) if is_gone]:
        why = f"the audio of {len(gone)} accepted clips is gone, for example {gone[0]}"
        retry.held[commit["shard"]] = why
        return
    retry.shards[commit["shard"]] = {row["sample_id"] for row in commit["refused"]}
    retry.clips += chances


def _without_audio(uris: Iterable[str]) -> list[bool]:
    """Whether each file is missing, empty or a folder."""
    with ThreadPoolExecutor(_PROBES) as pool:
        return list(pool.map(lambda uri: not _size(uri), uris))


def _size(uri: str) -> int:
    """Bytes of an audio file, or of the file that it is in; 0 if it is missing or not readable."""
    uri = file_of(uri)
    if remote := remote_uri(uri):
        folder, _, name = remote.rpartition("/")
        store = open_store(folder)
        try:
            entry = store.entry(name)
        except AccessDenied:
            if not store.is_listable():
                raise
            return 0
        return entry.size if entry else 0
    try:
        return os.path.getsize(uri) if os.path.isfile(uri) else 0
    except OSError:
        return 0


def unmake_shards(plan: FrozenPlan, shards: Iterable[int]) -> None:
    """Delete what `finalize` wrote, then the commits of shards (steps 2 and 3)."""
    if doomed := sorted(shards):
        remove_results(plan.store)
        for shard in doomed:
            plan.store.delete(commit_key(shard))


def outcome(plan: FrozenPlan, retry: Retry) -> dict[str, Any]:
    """Result of a finished retry.

    Returns:
        accepted: number of clips that were refused before and are accepted now; refused: clips that
        were refused again, by reason; lost: sample ids that were accepted before and are refused
        now.
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
