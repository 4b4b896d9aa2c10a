"""`status`: progress, speed and what is left of each stage, from the store's files only."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from calls import Call

from common.config import Recipe
from common.errors import AttuneError
from common.storage import Store, open_store
from pipeline.datadir.commit import canonical_json, commit_key, publish_shard
from pipeline.datadir.frozen_plan import FrozenPlan
from pipeline.datadir.text_cache import PROMPTS
from pipeline.encode.finalize import finalize
from pipeline.inspect.status import read_refused, read_status

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
ENCODER = "00ff"
CLIPS = 250
"""Clips of every shard but the last."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A frozen plan: 11,000 clips in 44 shards, 2,500 prompts in chunks of 1,000."""
    info = {
        "plan_hash": "ab" * 8,
        "inputs": {"text_encoder_id": ENCODER},
        "n_planned": 44 * CLIPS,
        "n_shards": 44,
        "n_refused": 30,
        "n_unique_prompts": 2500,
        "clips_per_shard": CLIPS,
        "prompt_policy": "lemmas",
        "catalogs": {
            "esc50": _counts(6020, 6000, refused={"speech": 20}),
            "a_music_catalog": _counts(5023, 5000, merged=8, held_out=5, refused={"no_text": 10}),
        },
    }
    data = tmp_path / "data"
    (data / "plan").mkdir(parents=True)
    (data / "plan" / "plan.json").write_text(json.dumps(info))
    prompts = pa.table(
        {
            "prompt": [f"prompt {i:05d}" for i in range(2500)],
            "chunk": [f"{i // 1000:024x}" for i in range(2500)],
        },
        schema=PROMPTS,
    )
    prompts = prompts.replace_schema_metadata({"attune.plan_hash": info["plan_hash"]})
    pq.write_table(prompts, data / "plan" / "prompts.parquet", row_group_size=700)
    return data


def _counts(read: int, accepted: int, **others: Any) -> dict[str, Any]:
    return {"read": read, "accepted": accepted, "merged": 0, "held_out": 0, **others}


def commit(data: Path, shard: int, at_s: float, refused: Sequence[str] = ()) -> None:
    """Write a commit of 250 clips, `at_s` seconds after `START`; each accepted one is 10 s long."""
    key = commit_key(shard)
    document = {
        "shard": shard, "plan_hash": "ab" * 8, "shard_key": None, "sha256": None, "bytes": 0,
        "refused": [{"sample_id": f"{i}", "reason": reason} for i, reason in enumerate(refused)],
        "samples": [
            {
                "sample_id": f"{i}", "offset": 0, "length": 1, "frames": 500, "duration_s": 10.0,
                "prompt_tokens": [3], "source_sample_rate": 44100, "source_sha256": "0",
                "wave_sha256": "0",
            }
            for i in range(len(refused), CLIPS)
        ],
    }  # fmt: skip
    write(data / key, canonical_json(document), at_s)


def embed(data: Path, chunk: int, at_s: float) -> None:
    folder = data / "text" / ENCODER
    write(folder / f"{chunk:024x}.f16", b"", at_s - 1)
    write(folder / f"{chunk:024x}.parquet", b"", at_s)


def write(path: Path, content: bytes, at_s: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    modified = START.timestamp() + at_s
    os.utime(path, (modified, modified))


def status(data: Path, now_s: float = 0.0) -> dict[str, Any]:
    return read_status(open_store(data), START + timedelta(seconds=now_s))


def encode(data: Path, now_s: float = 0.0) -> dict[str, Any]:
    return dict(status(data, now_s)["stages"]["encode"])


def test_a_plan_without_results(data: Path) -> None:
    found = status(data)
    assert (found["state"], found["clips"], found["hours"]) == ("planned", 0, 0.0)
    assert found["shards"] == {"planned": 44, "committed": 0}
    assert found["prompts"] == {"unique": 2500, "embedded": 0}
    assert found["stages"] == {
        "plan": {
            "read": 11043, "accepted": 11000, "merged": 8, "held_out": 5,
            "refused": {"no_text": 10, "speech": 20},
            "clips": 11000, "shards": 44, "prompts": 2500,
        },
        "embed": {
            "prompts": 2500, "prompts_done": 0, "chunks": 3, "chunks_done": 0,
            "prompts_per_s": None, "eta_s": None,
        },
        "encode": {
            "shards": 44, "shards_done": 0, "clips": 11000, "clips_done": 0, "hours": 0.0,
            "hours_left": None, "refused": {}, "times_real_time": None, "clips_per_s": None,
            "eta_s": None, "last_commit_age_s": None,
        },
        "finalize": {"done": False, "left_out": 0},
    }  # fmt: skip


def test_speed_is_that_of_all_commits_but_the_first(data: Path) -> None:
    commit(data, 0, at_s=0, refused=["silent"] * 8)
    assert encode(data, 7) == {
        "shards": 44, "shards_done": 1, "clips": 11000, "clips_done": 250,
        "hours": round(2420 / 3600, 6), "hours_left": round(2420 / 3600 * 43, 6),
        "refused": {"silent": 8}, "times_real_time": None, "clips_per_s": None, "eta_s": None,
        "last_commit_age_s": 7.0,
    }  # fmt: skip
    commit(data, 3, at_s=40)
    commit(data, 1, at_s=100, refused=["truncated"] * 4 + ["silent"])
    found = encode(data, 104)
    assert found["refused"] == {"silent": 9, "truncated": 4}
    assert (found["shards_done"], found["clips_done"]) == (3, 750)
    assert found["clips_per_s"] == 5.0
    assert found["times_real_time"] == (2500 + 2450) / 100
    assert found["eta_s"] == (11000 - 750) / 5
    assert found["last_commit_age_s"] == 4.0


def test_only_the_last_ten_minutes_count(data: Path) -> None:
    """A slow run is killed; half a day later a fast one resumes it."""
    for shard in range(10):
        commit(data, shard, at_s=300 * shard)
    assert encode(data)["clips_per_s"] == round(250 / 300, 6)
    for shard in range(10, 30):
        commit(data, shard, at_s=40_000 + 50 * shard)
    found = encode(data, 45_000)
    assert (found["clips_per_s"], found["times_real_time"]) == (5.0, 50.0)
    assert found["eta_s"] == 14 * 250 / 5
    commit(data, 30, at_s=44_000)  # 2,550 s after the one before it: slow shards
    assert encode(data, 45_000)["clips_per_s"] == round(250 / 2550, 6)
    commit(data, 30, at_s=90_000)
    assert encode(data, 90_000)["clips_per_s"] is None


def test_clocks_that_are_coarse_or_behind_give_no_wrong_figures(data: Path) -> None:
    """A store that keeps whole seconds has commits of one moment."""
    commit(data, 0, at_s=5)
    commit(data, 1, at_s=5)
    found = encode(data, 3)
    assert found["clips_per_s"] is None and found["last_commit_age_s"] == 0.0


def test_no_eta_at_the_end(data: Path) -> None:
    for shard in range(44):
        commit(data, shard, at_s=shard)
    found = status(data)
    assert (found["state"], found["shards"]["committed"]) == ("committed", 44)
    assert found["stages"]["encode"]["clips_per_s"] == 250
    assert found["stages"]["encode"]["eta_s"] is None
    assert found["stages"]["encode"]["hours_left"] == 0
    summary = {"plan_hash": found["plan_hash"]}
    (data / "summary.json").write_text(json.dumps(summary))
    found = status(data)
    assert (found["state"], found["stages"]["finalize"]) == (
        "finished",
        {"done": True, "left_out": 0},
    )


def test_the_speed_of_embedding_is_that_of_text_chunks(data: Path) -> None:
    write(data / "text" / ENCODER / f"{7:024x}.parquet", b"", 1)  # another plan's
    write(data / "text" / ENCODER / f"{2:024x}.f16", b"", 1)  # unfinished
    embed(data, 0, at_s=10)
    embed(data, 1, at_s=12)
    assert status(data)["stages"]["embed"] == {
        "prompts": 2500, "prompts_done": 2000, "chunks": 3, "chunks_done": 2,
        "prompts_per_s": 500.0, "eta_s": 1.0,
    }  # fmt: skip
    embed(data, 2, at_s=13)
    found = status(data)
    assert found["prompts"] == {"unique": 2500, "embedded": 2500}
    assert found["stages"]["embed"]["prompts_per_s"] == 500.0
    assert found["stages"]["embed"]["eta_s"] is None


def test_only_commits_of_the_plan_count(data: Path) -> None:
    commit(data, 0, at_s=0)
    commit(data, 44, at_s=1)
    write(data / "commits" / "notes.json", b"{}", 2)
    write(data / "commits" / "0000001.json", b"{}", 2)
    assert encode(data)["shards_done"] == 1
    write(data / commit_key(1), b"{", 2)
    with pytest.raises(AttuneError, match=r"000001\.json: is not JSON"):
        status(data)


def test_a_commit_that_is_deleted_meanwhile_does_not_count(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry deletes commits while they are read; reads overlap, but only up to a limit."""
    for shard in range(44):
        commit(data, shard, at_s=shard)
    read = Store.read
    lock, there, most = threading.Lock(), 0, 0
    together = threading.Barrier(4)

    def read_slowly(store: Store, key: str) -> bytes:
        nonlocal there, most
        if not key.startswith("commits/"):
            return read(store, key)
        with lock:
            there += 1
            most = max(most, there)
        if key in [commit_key(shard) for shard in range(4)]:
            together.wait(timeout=20)
        with lock:
            there -= 1
        if key == commit_key(2):
            raise FileNotFoundError(key)
        return read(store, key)

    monkeypatch.setattr(Store, "read", read_slowly)
    found = status(data)
    assert (found["state"], found["shards"]["committed"]) == ("encoding", 43)
    assert 4 <= most <= 16


def test_the_same_from_a_bucket(s3_bucket: str, data: Path) -> None:
    store = open_store(f"{s3_bucket}/data")
    commit(data, 0, at_s=0, refused=["silent"])
    embed(data, 1, at_s=0)
    for path in sorted(data.rglob("*.*")):
        store.write(path.relative_to(data).as_posix(), path)
    found = read_status(store)
    assert (found["state"], found["hours"]) == ("encoding", round(2490 / 3600, 6))
    assert found["prompts"]["embedded"] == 1000
    assert 0 <= found["stages"]["encode"]["last_commit_age_s"] < 120


def test_the_command_has_a_line_for_each_stage(
    pipeline: Call, recipe: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(data, 0, at_s=0, refused=["truncated"])
    commit(data, 1, at_s=80, refused=["silent"] * 2)
    embed(data, 0, at_s=0)
    embed(data, 1, at_s=40)
    write(data / "poison" / "000007.json", b'{"shard": 7, "errors": ["OSError: no"]}', 0)
    read = read_status
    monkeypatch.setattr(
        "pipeline.inspect.status.read_status",
        lambda store: read(store, START + timedelta(seconds=84)),
    )
    code, out, _ = pipeline("status", "--config", recipe)
    assert code == 0
    assert out.splitlines() == [
        f"{data}: encoding, plan abababababababab",
        "esc50            read 6020 = accepted 6000, refused 20 (speech 20)",
        "a_music_catalog  read 5023 = accepted 5000, merged 8, held out 5, refused 10 (no_text 10)",
        "plan             read 11043 = accepted 11000, merged 8, held out 5, refused 30 "
        "(speech 20, no_text 10)  44 shards  2500 prompts",
        "embed            2/3 chunks  2000/2500 prompts  25/s  ETA 0:00:20",
        "encode           2/44 shards  500/11000 clips  1.38 h  refused 3 (silent 2, truncated 1)  "
        "31x real time  ETA 0:56:00  last commit 0:00:04 ago",
        "finalize         2/44 committed  manifest not written yet",
        "poison  shard 000007: OSError: no",
    ]


def test_a_run_with_no_accepted_clip_says_what_lists_its_refusals(
    planned: tuple[FrozenPlan, Recipe],
) -> None:
    plan, recipe = planned
    for shard, rows in plan.shards():
        names = ("sample_id", "dataset", "native_id", "source")
        why = {"stage": "audio", "reason": "missing", "detail": "gone"}
        refused = [row | why for row in rows.select(names).to_pylist()]
        publish_shard(plan.store, shard, plan.plan_hash, None, [], refused)
    with pytest.raises(AttuneError, match=r"refused: missing 30; .*status --refused .*lists them"):
        finalize(plan, recipe.name, recipe.codec.path)
    named = [row["native_id"] for row in read_refused(plan.store) if row["reason"] == "missing"]
    planned = pa.Table.from_batches(plan.batches("plan", ["native_id"]))
    assert sorted(named) == sorted(planned["native_id"].to_pylist())
