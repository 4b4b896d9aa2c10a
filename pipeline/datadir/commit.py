"""The commit protocol: a shard is there when `commits/NNNNNN.json` says so, and not before.

1. The tar is built on local scratch, byte-deterministic: members sorted, mtime 0, ASCII keys.
2. It is read back and every sample parsed.
3. It is published as `shards/NNNNNN-<sha12>.tar`: the name is its content, so a torn or repeated
   upload can only ever be replaced by itself.
4. `commits/NNNNNN.json` is created last and conditionally: of several attempts the first wins, and
   the tar of a loser stays behind as an orphan that no reader looks at.

A shard of which every clip was refused commits too, without a tar.

A commit is never changed.  `retry` moves it to `superseded/NNNNNN-<sha12>.json`, which unmakes the
shard: the next run encodes it as one that never was.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
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
SUPERSEDED = "superseded"
"""Folder of the commits that `retry` replaced."""
_COMMIT_KEY = re.compile(r"commits/(\d{6,})\.json")
_COMMIT_FIELDS = {"shard", "plan_hash", "shard_key", "sha256", "bytes", "samples", "refused"}
_SAMPLE_FIELDS = {
    "sample_id", "offset", "length", "frames", "duration_s", "prompt_tokens",
    "source_sample_rate", "source_sha256",
}  # fmt: skip


@dataclass(frozen=True)
class EncodedClip:
    """What goes into the tar for one clip.

    codes: int16 [K, T]. text: float16 [sum L_i, D]. record: the content of `ID.json`.
    """

    sample_id: str
    codes: npt.NDArray[np.int16]
    text: npt.NDArray[np.float16]
    record: dict[str, Any]


def build_tar(path: Path, clips: Iterable[EncodedClip]) -> list[tuple[str, int, int]]:
    """Write a shard's tar; clips must come sorted by sample id.

    Returns:
        `(sample_id, offset, length)` per clip: the bytes of its members, headers and padding
        included.
    """
    spans: list[tuple[str, int, int]] = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for clip in clips:
            if spans and spans[-1][0] >= clip.sample_id:
                raise ValueError(f"{clip.sample_id} after {spans[-1][0]}: clips must be sorted")
            start = tar.offset
            contents = (
                _npy_bytes(clip.codes, "<i2"),
                canonical_json(clip.record),
                _npy_bytes(clip.text, "<f2"),
            )
            for extension, data in zip(MEMBERS, contents, strict=True):
                member = tarfile.TarInfo(f"{clip.sample_id}.{extension}")
                member.size = len(data)  # mtime, uid and gid are 0, mode 0644, by default
                tar.addfile(member, io.BytesIO(data))
            spans.append((clip.sample_id, start, tar.offset - start))
    return spans


def check_tar(path: Path, spans: Iterable[tuple[str, int, int]]) -> None:
    """Read back every sample of a tar at its span.

    Raises:
        ValueError: a sample does not come back.
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
        samples: per accepted clip sample_id, offset, length, frames, duration_s, prompt_tokens,
            source_sample_rate, source_sha256.
        refused: `REJECTS` rows of the clips refused while encoding.

    Returns:
        The commit that stands: this one, or the one that was there first.
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
    if store.create(commit_key(shard), canonical_json(commit)):
        return commit
    standing = read_commit(store, shard)
    assert standing is not None
    return standing


def commit_key(shard: int) -> str:
    return f"commits/{shard:06d}.json"


def superseded_key(shard: int, sha256: str) -> str:
    """Where `supersede_commit` puts a commit with this sha256."""
    return f"{SUPERSEDED}/{shard:06d}-{sha256[:12]}.json"


def committed_shards(store: Store) -> set[int]:
    """Numbers of the committed shards, from the listing alone."""
    matches = (_COMMIT_KEY.fullmatch(key) for key, _ in store.list("commits"))
    return {int(match[1]) for match in matches if match}


def read_commit(store: Store, shard: int) -> dict[str, Any] | None:
    """A shard's commit, if it has one.

    Raises:
        AttuneError: the file is damaged.
    """
    try:
        return parse_commit(store.read(commit_key(shard)))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise AttuneError(
            f"{store.uri}/{commit_key(shard)}: {error}; delete it and run again to make the "
            "shard anew"
        ) from error


def parse_commit(data: bytes) -> dict[str, Any]:
    """A commit from its bytes.

    Raises:
        ValueError: saying what is wrong with them.
    """
    try:
        commit = json.loads(data)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error
    if problem := _what_lacks(commit):
        raise ValueError(problem)
    return dict(commit)


def supersede_commit(store: Store, shard: int, sha256: str) -> bool:
    """Move a commit to `superseded/`, which unmakes its shard; nothing happens to its tar.

    It is copied, then deleted: killed in between, both are there and the commit counts.

    Args:
        sha256: of the commit that is meant. Any other one stays: it was made anew meanwhile.

    Returns:
        Whether it was moved.
    """
    try:
        data = store.read(commit_key(shard))
    except FileNotFoundError:
        return False
    if hashlib.sha256(data).hexdigest() != sha256:
        return False
    store.write(superseded_key(shard, sha256), data)
    store.delete(commit_key(shard))
    return True


def _what_lacks(commit: Any) -> str:
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
    """The same bytes for the same content, in ASCII."""
    return json.dumps(document, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()


def _npy_bytes(array: npt.NDArray[Any], dtype: str) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, dtype=dtype), allow_pickle=False)
    return buffer.getvalue()


def check_account(
    planned: Iterable[Mapping[str, Any]], commit: Mapping[str, Any], plan_hash: str
) -> None:
    """Prove that planned = committed + refused for one shard.

    Raises:
        AttuneError: naming the shard and a sample at fault.
    """
    where = commit_key(commit["shard"])
    if commit["plan_hash"] != plan_hash:
        raise AttuneError(f"{where} is of plan {commit['plan_hash']}, not of plan {plan_hash}")
    expected = {row["sample_id"] for row in planned}
    kept = [sample["sample_id"] for sample in commit["samples"]]
    found = Counter(kept + [row["sample_id"] for row in commit["refused"]])
    if wrong := [key for key in found if key not in expected or found[key] > 1]:
        raise AttuneError(f"{where}: sample {wrong[0]} is not in the plan, or there twice")
    if lost := sorted(expected - found.keys()):
        raise AttuneError(f"{where}: sample {lost[0]} is neither committed nor refused")
