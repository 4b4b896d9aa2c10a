"""The commit protocol: a shard exists once `commits/NNNNNN.json` exists, and not before.

Workers and drivers can be killed at any moment, and two attempts at one shard can run at the same
time (a worker that was taken for dead may still be writing).  The order of operations makes both
harmless:

1. Build the tar on local scratch, byte-deterministic: the plan's order, mtime 0, ASCII keys.
2. Read it back and parse every sample, so that a bad disk is noticed before anything is published.
3. Publish the tar as `shards/NNNNNN-<sha12>.tar`.  The tar comes first because a commit must never
   name bytes that are not there.  Its name contains its hash, so two attempts can only overwrite
   each other with the same bytes.
4. Create `commits/NNNNNN.json` last, and only if there is none yet.  This single operation makes
   the shard exist: readers find the whole shard or nothing.  The first attempt wins.  A losing
   attempt leaves a tar that no commit names, which no reader looks at and `gc` removes.

A killed attempt therefore leaves at most such a tar, and the next run encodes the shard again.  A
shard whose clips were all refused gets a commit without a tar.  A commit is never changed, only
deleted (by `retry`, or by hand); deleting it is atomic too, and the next run encodes that shard.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import AttuneError
from common.shards import MEMBERS, parse_sample
from common.storage import Store

COMMIT_VERSION = 1
_COMMIT_FIELDS = {"shard", "plan_hash", "shard_key", "sha256", "bytes", "samples", "refused"}
_SAMPLE_FIELDS = {
    "sample_id", "offset", "length", "frames", "duration_s", "prompt_tokens",
    "source_sample_rate", "source_sha256", "wave_sha256",
}  # fmt: skip


@dataclass(frozen=True)
class EncodedClip:
    """The data that the tar stores for one clip.

    codes: int16 [K, T]. text: float16 [sum L_i, D]. record: the content of `ID.json`.
    """

    sample_id: str
    codes: npt.NDArray[np.int16]
    text: npt.NDArray[np.float16]
    record: dict[str, Any]


def build_tar(path: Path, clips: Iterable[EncodedClip]) -> list[tuple[str, int, int]]:
    """Write a shard's tar; clips come in the plan's order, each once.

    Returns:
        `(sample_id, offset, length)` per clip: the byte range of its members, with headers and
        padding.
    """
    # Imported here, because webdataset imports torch (3 s).  Only workers call this function, and
    # they have imported torch already.
    from webdataset.writer import TarWriter

    spans: list[tuple[str, int, int]] = []
    names: set[str] = set()
    # Without user names and times, the same clips give the same bytes on every machine.
    plain = {"user": "", "group": "", "mode": 0o644, "mtime": 0, "encoder": False}
    with path.open("wb") as file, TarWriter(file, **plain) as tar:
        for clip in clips:
            if clip.sample_id in names:
                raise ValueError(f"{clip.sample_id}: two clips of this name")
            names.add(clip.sample_id)
            codes, text = _npy_bytes(clip.codes, "<i2"), _npy_bytes(clip.text, "<f2")
            members = zip(MEMBERS, (codes, canonical_json(clip.record), text), strict=True)
            start = tar.tarstream.offset
            tar.write({"__key__": clip.sample_id} | dict(members))
            spans.append((clip.sample_id, start, tar.tarstream.offset - start))
    return spans


def check_tar(path: Path, spans: Iterable[tuple[str, int, int]]) -> None:
    """Read every sample of a tar at its byte range and parse it.

    Raises:
        ValueError: a sample cannot be parsed.
    """
    with path.open("rb") as file:
        for sample_id, offset, length in spans:
            file.seek(offset)
            parse_sample(sample_id, file.read(length))


def publish_shard(
    store: Store,
    shard: int,
    plan_hash: str,
    tar: Path | None,
    samples: list[dict[str, Any]],
    refused: list[dict[str, Any]],
) -> dict[str, Any]:
    """Publish a tar (None if nothing was accepted) and commit the shard.

    Args:
        samples: one entry per accepted clip, with the keys `_SAMPLE_FIELDS`.
        refused: `REJECTS` rows of the clips refused while encoding.

    Returns:
        The shard's valid commit: the new one, or the one that another attempt made first.
    """
    shard_key, sha256, size = None, None, 0
    if tar is not None:
        with tar.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = tar.stat().st_size
        shard_key = f"shards/{shard:06d}-{sha256[:12]}.tar"
        store.write(shard_key, tar)
    commit = {
        "version": COMMIT_VERSION,
        "shard": shard,
        "plan_hash": plan_hash,
        "shard_key": shard_key,
        "sha256": sha256,
        "bytes": size,
        "samples": samples,
        "refused": refused,
    }
    # Create it only if there is none: readers may already use the commit of another attempt.
    if store.create(commit_key(shard), canonical_json(commit)):
        return commit
    first = read_commit(store, shard)
    assert first is not None
    return first


def commit_key(shard: int) -> str:
    return f"commits/{shard:06d}.json"


def poison_key(shard: int) -> str:
    """Key of the file with the errors of a shard that failed on every attempt."""
    return f"poison/{shard:06d}.json"


def committed_shards(store: Store) -> set[int]:
    """Numbers of the committed shards, from the listing only (no commit is read)."""
    return _numbers(store, "commits")


def poison_shards(store: Store) -> set[int]:
    """Numbers of the shards with a poison file; a later run may have committed some of them."""
    return _numbers(store, "poison")


def _numbers(store: Store, folder: str) -> set[int]:
    matches = (re.fullmatch(rf"{folder}/(\d{{6,}})\.json", key) for key, _ in store.list(folder))
    return {int(match[1]) for match in matches if match}


def read_commit(store: Store, shard: int) -> dict[str, Any] | None:
    """Read the commit of a shard; None if there is none.

    Raises:
        AttuneError: the file is damaged.
    """
    try:
        commit = json.loads(store.read(commit_key(shard)))
        problem = _find_damage(commit)
    except FileNotFoundError:
        return None
    except ValueError as error:
        problem = f"is not JSON: {error}"
    if problem:
        raise AttuneError(
            f"{store.uri}/{commit_key(shard)}: {problem}; delete it and run again to encode the "
            "shard again"
        )
    return dict(commit)


def _find_damage(commit: Any) -> str:
    if not isinstance(commit, dict):
        return "is damaged: not an object"
    if missing := _COMMIT_FIELDS - commit.keys():
        return f"is damaged: no {', '.join(sorted(missing))}"
    for name, fields in (("samples", _SAMPLE_FIELDS), ("refused", {"sample_id", "reason"})):
        if not isinstance(commit[name], list):
            return f"is damaged: {name} is not a list"
        for item in commit[name]:
            missing = fields - item.keys() if isinstance(item, dict) else fields
            if missing:
                return f"is damaged: an item of {name} has no {', '.join(sorted(missing))}"
    return ""


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """Serialize to ASCII JSON; equal content gives equal bytes."""
    return json.dumps(document, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()


def _npy_bytes(array: npt.NDArray[Any], dtype: str) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, dtype=dtype), allow_pickle=False)
    return buffer.getvalue()


def check_account(
    planned: Iterable[Mapping[str, Any]], commit: Mapping[str, Any], plan_hash: str
) -> None:
    """Check that planned = committed + refused for one shard.

    Raises:
        AttuneError: the commit is of another plan, or a sample is missing, unplanned or repeated.
    """
    where = commit_key(commit["shard"])
    if commit["plan_hash"] != plan_hash:
        raise AttuneError(f"{where} is of plan {commit['plan_hash']}, not of plan {plan_hash}")
    expected = {row["sample_id"] for row in planned}
    kept = [sample["sample_id"] for sample in commit["samples"]]
    found = Counter(kept + [row["sample_id"] for row in commit["refused"]])
    if wrong := [key for key in found if key not in expected or found[key] > 1]:
        raise AttuneError(f"{where}: sample {wrong[0]} is not in the plan, or is listed twice")
    if lost := sorted(expected - found.keys()):
        raise AttuneError(f"{where}: sample {lost[0]} is neither committed nor refused")
