"""`shards verify` and its kin on spoiled data: every planted fault is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import AttuneError
from common.storage import open_store
from pipeline.inspect import list_shards, shard_stats, show_sample
from pipeline.verify import verify_shards

SHARD = 2


def commit(data: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((data / f"commits/{SHARD:06d}.json").read_text())
    return found


def rewrite_commit(data: Path, **changes: object) -> None:
    (data / f"commits/{SHARD:06d}.json").write_text(json.dumps(commit(data) | changes))


def rewrite_manifest(data: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    table = pq.read_table(data / "manifest.parquet")
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), data / "manifest.parquet")


def in_tar(data: Path, change: Callable[[bytearray, int], object]) -> str:
    """Spoil the tar of SHARD at its second sample (`change(bytes, offset)`); its sample id."""
    sample = commit(data)["samples"][1]
    path = data / commit(data)["shard_key"]
    content = bytearray(path.read_bytes())
    change(content, sample["offset"])
    path.write_bytes(content)
    return str(sample["sample_id"])


def out_of_range(content: bytearray, offset: int) -> None:
    content[offset + 512 + 128 : offset + 512 + 130] = np.int16(99).tobytes()


def flip_json(content: bytearray, offset: int) -> None:
    at = content.index(b'"codec_id":"', offset) + len(b'"codec_id":"')
    content[at : at + 4] = b"beef"


def rename_member(content: bytearray, offset: int) -> None:
    content[offset : offset + 4] = b"xxxx"


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "code out of range": (lambda d: in_tar(d, out_of_range), "codes range over"),
    "other codec in record": (lambda d: in_tar(d, flip_json), "codec_id is beef"),
    "renamed member": (lambda d: in_tar(d, rename_member), "expected members|not a tar"),
    "bit flip": (lambda d: in_tar(d, lambda c, o: c.__setitem__(o + 700, 255)), "has sha256"),
    "tar cut short": (
        lambda d: in_tar(d, lambda c, o: c.__delitem__(slice(o, None))), "bytes, its commit says",
    ),
    "tar gone": (lambda d: (d / commit(d)["shard_key"]).unlink(), "is missing"),
    "commit gone": (lambda d: (d / f"commits/{SHARD:06d}.json").unlink(), "is missing"),
    "commit torn": (lambda d: (d / f"commits/{SHARD:06d}.json").write_text("{"), "not JSON"),
    "commit of another shard": (lambda d: rewrite_commit(d, shard=5), "is about shard 5"),
    "commit of another plan": (lambda d: rewrite_commit(d, plan_hash="0"), "is of plan 0"),
    "commit loses a sample": (
        lambda d: rewrite_commit(d, samples=commit(d)["samples"][1:]), "neither committed",
    ),
    "commit without a key": (
        lambda d: (d / f"commits/{SHARD:06d}.json").write_text('{"shard": 2}'), "no bytes",
    ),
    "commit of a sample without a length": (
        lambda d: rewrite_commit(d, samples=[{"sample_id": "a"}]), "samples has no duration_s",
    ),
    "summary torn": (lambda d: (d / "summary.json").write_text("{"), "damaged: no codebook_size"),
    "plan's table damaged": (
        lambda d: (d / "plan/plan.parquet").write_bytes(b"PAR1" + bytes(99)), "is damaged",
    ),
    "plan's table gone": (lambda d: (d / "plan/plan.parquet").unlink(), "is missing"),
    "commit past the plan": (
        lambda d: shutil.copy(d / "commits/000000.json", d / "commits/000099.json"), "8 shards",
    ),
    "manifest gone": (lambda d: (d / "manifest.parquet").unlink(), "is missing"),
    "manifest not parquet": (lambda d: (d / "manifest.parquet").write_bytes(b"x" * 99), "readable"),
    "manifest row lost": (lambda d: rewrite_manifest(d, lambda rows: rows.pop(3)), "has no row"),
    "manifest rows swapped": (lambda d: rewrite_manifest(d, lambda rows: rows.reverse()), "order"),
    "manifest value wrong": (
        lambda d: rewrite_manifest(d, lambda rows: rows[0].update(offset=7)), "offset is 7",
    ),
    "summary count wrong": (
        lambda d: (d / "summary.json").write_text(
            (d / "summary.json").read_text().replace('"n_samples": 24', '"n_samples": 25')
        ),
        "n_samples is 25",
    ),
}  # fmt: skip


def test_a_sound_folder_has_no_problems(finished: Path) -> None:
    (finished / "shards" / "000000-000000000000.tar").write_bytes(b"left by a lost race")
    found = verify_shards(open_store(finished))
    assert found["problems"] == []
    assert (found["shards"], found["samples"]) == (8, 24)
    assert found["orphans"] == ["shards/000000-000000000000.tar"]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(finished: Path, fault: str) -> None:
    import re

    spoil, message = FAULTS[fault]
    sample_id = spoil(finished)
    problems = verify_shards(open_store(finished))["problems"]
    assert any(re.search(message, problem["problem"]) for problem in problems), problems
    if isinstance(sample_id, str) and fault in ("code out of range", "other codec in record"):
        assert {p["sample_id"] for p in problems if p["sample_id"]} == {sample_id}


def test_inspection(finished: Path) -> None:
    store = open_store(finished)
    rows = list_shards(store)
    assert sum(row["clips"] for row in rows) == 24
    assert sum(row["refused"] for row in rows) == 6
    stats = shard_stats(store)
    assert stats["datasets"]["small"]["splits"] == {"test": 4, "train": 20}
    assert stats["duration_s"]["max"] == pytest.approx(1.75)
    assert all(1 <= row["perplexity"] <= row["used"] <= 32 for row in stats["codebooks"])
    sample_id = commit(finished)["samples"][0]["sample_id"]
    found = show_sample(store, sample_id[:12])
    assert found["record"]["sample_id"] == sample_id
    assert found["codes_shape"][0] == 4
    with pytest.raises(AttuneError, match="24 samples"):
        show_sample(store, "")
