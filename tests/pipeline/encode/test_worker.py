"""Shards: deterministic bytes, first commit wins, bad clips set aside, manifest right."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from calls import freeze
from in_process import encode_all, fake_states, fill_cache, make_worker

from common.audio import AudioError, read_audio
from common.codec import load_codec
from common.config import Recipe, load_recipe
from common.errors import AttuneError
from common.shards import ShardDataset
from common.storage import StorageError, open_store
from pipeline.datadir.commit import (
    EncodedClip,
    build_tar,
    check_account,
    check_tar,
    publish_shard,
    read_commit,
)
from pipeline.datadir.frozen_plan import FrozenPlan
from pipeline.encode.finalize import finalize
from pipeline.inspect.status import finished_summary, read_status

Planned = tuple[FrozenPlan, Recipe]


def clip(key: str, frames: int = 5) -> EncodedClip:
    codes = np.arange(2 * frames, dtype=np.int16).reshape(2, frames)
    record = {"sample_id": key, "prompt_tokens": [2, 1], "title": "Ärger"}
    return EncodedClip(key, codes, np.ones((3, 4), np.float16), record)


def sample(key: str) -> dict[str, Any]:
    """A sample as a commit lists it."""
    counts = dict.fromkeys(("offset", "length", "frames", "source_sample_rate"), 1)
    return {
        "sample_id": key, "duration_s": 0.1, "prompt_tokens": [1], "source_sha256": "0",
        "wave_sha256": "0", **counts
    }  # fmt: skip


def test_tars_have_the_same_bytes_always_and_are_plain(tmp_path: Path) -> None:
    clips = [clip("a" * 32), clip("b" * 32, frames=700)]
    spans = build_tar(tmp_path / "one.tar", clips)
    assert spans == [("a" * 32, 0, 3072), ("b" * 32, 3072, 5632)]
    # A tar is named by its hash: with other bytes, the same clips would get another name.
    digest = hashlib.sha256((tmp_path / "one.tar").read_bytes()).hexdigest()
    assert digest == "2f8c9f030ddeaf8aa41abe2f3f209ccede5191653b5508ab1ae52183ed5765f0"
    check_tar(tmp_path / "one.tar", spans)
    with tarfile.open(tmp_path / "one.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {(member.mtime, member.uid, member.mode) for member in members} == {(0, 0, 0o644)}
    with pytest.raises(ValueError, match="two clips of this name"):
        build_tar(tmp_path / "two.tar", [*clips, clips[0]])


def test_a_tar_that_does_not_read_back_is_noticed(tmp_path: Path) -> None:
    spans = build_tar(tmp_path / "x.tar", [clip("a" * 32)])
    data = bytearray((tmp_path / "x.tar").read_bytes())
    data[520] ^= 0xFF  # in the header of codes.npy
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(ValueError, match="unreadable member"):
        check_tar(tmp_path / "x.tar", spans)


def test_the_first_commit_wins_and_the_loser_gets_it(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    build_tar(tmp_path / "a.tar", [clip("a" * 32)])
    build_tar(tmp_path / "b.tar", [clip("b" * 32)])
    first = publish_shard(store, 7, "plan", tmp_path / "a.tar", [sample("a")], [])
    second = publish_shard(store, 7, "plan", tmp_path / "b.tar", [sample("b")], [])
    assert second == first == read_commit(store, 7)
    assert first["shard_key"] == f"shards/000007-{first['sha256'][:12]}.tar"
    assert store.read(first["shard_key"]) == (tmp_path / "a.tar").read_bytes()


def test_a_shard_without_samples_commits_without_a_tar(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    commit = publish_shard(store, 0, "plan", None, [], [{"sample_id": "a"}])
    assert commit["shard_key"] is None
    assert store.list("shards") == []
    check_account([{"sample_id": "a"}], commit, "plan")


@pytest.mark.parametrize(
    ("kept", "refused", "message"),
    [
        (["a"], [], "b is neither"),
        (["a", "b"], ["b"], "b is not in the plan, or is listed twice"),
        (["a", "b", "c"], [], "c is not in the plan"),
    ],
)
def test_plan_must_equal_committed_and_refused(
    kept: list[str], refused: list[str], message: str
) -> None:
    commit: dict[str, Any] = {
        "shard": 0,
        "plan_hash": "p",
        "samples": [{"sample_id": key} for key in kept],
        "refused": [{"sample_id": key} for key in refused],
    }
    with pytest.raises(AttuneError, match=message):
        check_account([{"sample_id": "a"}, {"sample_id": "b"}], commit, "p")
    with pytest.raises(AttuneError, match="is of plan p"):
        check_account([], commit, "q")


def test_the_manifest_says_where_everything_is(finished: Path, tiny_codec: Path) -> None:
    dataset = ShardDataset.open(finished)
    summary = dataset.summary
    assert (summary["n_samples"], summary["n_planned"], summary["n_rejected"]) == (24, 30, 10)
    assert (summary["n_codebooks"], summary["codebook_size"]) == (4, 32)
    assert (summary["frame_rate"], summary["text_dim"]) == (50.0, 8)
    assert summary["datasets"]["small"]["clips"] == len(dataset) == 24
    assert summary["prompt_policy"] == "lemmas"
    codec = load_codec(str(tiny_codec))
    for i, row in enumerate(dataset.manifest.to_pylist()):
        sample = dataset.read(i)
        audio = read_audio(row["audio_uri"])
        np.testing.assert_array_equal(sample.codes, codec.encode_track(audio.wav))
        assert row["source_sha256"] == audio.sha256 == sample.record["source_sha256"]
        assert sample.record["audio"] == audio.notes._asdict()
        assert row["frames"] == sample.codes.shape[1] == -(-round(row["duration_s"] * 16000) // 320)
        assert row["prompts"] == sample.record["prompts"]
        assert [len(states) for states in sample.text] == row["prompt_tokens"]
    order = [(row["shard"], row["position"]) for row in dataset.manifest.to_pylist()]
    assert order == sorted(order)


def test_states_are_those_of_the_clips_prompts(finished: Path) -> None:
    for sample in ShardDataset.open(finished):
        for prompt, states in zip(sample.record["prompts"], sample.text, strict=True):
            np.testing.assert_array_equal(states, fake_states(prompt))


def test_remaking_any_part_gives_the_same_bytes(
    finished: Path, planned: Planned, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    plan, recipe = planned
    store = open_store(finished)
    for name in ("commits/000001.json", "commits/000004.json", "manifest.parquet", "summary.json"):
        store.delete(name)
    shutil.rmtree(finished / "shards")
    for shard in range(8):
        store.delete(f"commits/{shard:06d}.json")
    encode_all(plan, recipe)
    finalize(plan, recipe.name, recipe.codec.path)
    after = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert after == before


def test_a_torn_summary_is_written_again(finished: Path, planned: Planned) -> None:
    whole = (finished / "summary.json").read_bytes()
    for torn in (whole[:50], b"[]", b"{}"):
        (finished / "summary.json").write_bytes(torn)
        assert finished_summary(planned[0]) is None
    with pytest.raises(AttuneError, match=r"summary\.json: is damaged"):
        (finished / "summary.json").write_bytes(whole[:50])
        ShardDataset.open(finished)
    finalize(planned[0], planned[1].name, planned[1].codec.path)
    assert (finished / "summary.json").read_bytes() == whole


def test_other_files_are_not_taken_for_commits_or_poison(finished: Path, planned: Planned) -> None:
    (finished / "commits" / "notes.json").write_text("{}")
    (finished / "poison").mkdir()
    (finished / "poison" / "000001.json").write_text("{")
    status = read_status(planned[0].store)
    assert (status["state"], status["poison"]) == ("finished", [])


def test_finalize_refuses_an_unfinished_run(finished: Path, planned: Planned) -> None:
    open_store(finished).delete("commits/000003.json")
    with pytest.raises(AttuneError, match=r"no commits/000003\.json"):
        finalize(planned[0], planned[1].name, planned[1].codec.path)


def test_a_worker_with_another_codec_refuses_to_work(planned: Planned) -> None:
    with pytest.raises(AttuneError, match="same codec"):
        _ = make_worker(*planned, codec_id="0" * 16).codec


def _decode_one(planned: Planned, path: Path, **changes: object) -> Any:
    row = {"audio_uri": str(path), "start_s": None, "end_s": None}
    return make_worker(*planned, **changes)._decode(row, 16000)


def test_audio_of_which_resampling_leaves_nothing_is_too_short(
    planned: Planned, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "x.wav", np.full(1, 0.5), 192000)
    outcome = _decode_one(planned, tmp_path / "x.wav", min_duration_s=0.0)
    assert isinstance(outcome, AudioError) and outcome.reason == "too_short"


def test_a_lost_folder_is_no_reason_to_refuse_its_files(planned: Planned, tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    (tmp_path / "mount" / "other.wav").write_bytes(b"x")
    assert _decode_one(planned, tmp_path / "mount" / "gone.wav").reason == "missing"
    (tmp_path / "mount" / "other.wav").unlink()
    with pytest.raises(StorageError, match="is empty now"):
        _decode_one(planned, tmp_path / "mount" / "gone.wav")
    (tmp_path / "mount").rmdir()
    with pytest.raises(StorageError, match="No such file or directory"):
        _decode_one(planned, tmp_path / "mount" / "gone.wav")


@pytest.mark.parametrize("closed", ["os.scandir", "os.stat"])
def test_a_folder_that_is_closed_is_no_reason_to_refuse_its_files(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    """The system's answers are replaced, because no mode keeps root out."""
    (tmp_path / "mount").mkdir()
    path = tmp_path / "mount" / "a.wav"
    soundfile.write(path, np.sin(np.arange(16_000)), 16_000)
    system = {"os.stat": os.stat, "os.scandir": os.scandir}

    def denied(place: object, *arguments: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    def denied_below(place: Any, *arguments: Any, **options: Any) -> Any:
        if os.fspath(place).startswith(f"{tmp_path}/mount/"):
            denied(place)
        return system["os.stat"](place, *arguments, **options)

    monkeypatch.setattr("pathlib.Path.open", denied)
    refused = _decode_one(planned, path)
    assert isinstance(refused, AudioError) and refused.reason == "unreadable"
    monkeypatch.setattr(closed, denied if closed == "os.scandir" else denied_below)
    with pytest.raises(StorageError, match=r"audio folder .*/mount: Permission denied"):
        _decode_one(planned, path)


def test_a_lost_album_is_refused_and_a_lost_collection_is_not(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    root = tmp_path / "disk"
    albums = [root / "music" / f"album {i}" for i in range(4)]
    for album in albums:
        album.mkdir(parents=True)
        soundfile.write(album / "track.wav", np.sin(np.arange(16_000)), 16_000)
    names = [f"{album.relative_to(root)}/track.wav" for album in albums]
    rows = "".join(
        f"{name},A tone number {word}\n" for name, word in zip(names, "abcd", strict=True)
    )
    (root / "metadata.csv").write_text(f"file_name,caption\n{rows}")
    recipe = load_recipe(write_recipe(tmp_path / "data"), [f"pipeline.catalogs.0.root={root}"])
    plan, _ = freeze(recipe)
    worker = make_worker(plan, recipe)
    fill_cache(plan)
    ((shard, planned_rows),) = plan.shards()

    shutil.move(root / "music", root / "elsewhere")  # the list of it stays
    with pytest.raises(StorageError, match=r"audio folder .*/disk/music: No such file"):
        worker.encode_shard(shard, planned_rows)
    (root / "music").mkdir()
    with pytest.raises(StorageError, match=r"audio folder .*/disk/music: is empty now"):
        worker.encode_shard(shard, planned_rows)
    (root / "music").rmdir()
    shutil.move(root / "elsewhere", root / "music")

    shutil.rmtree(albums[1])
    (albums[2] / "track.wav").unlink()
    assert worker.encode_shard(shard, planned_rows)["refused"] == 2
    commit = read_commit(plan.store, shard)
    assert commit is not None
    assert {row["native_id"]: row["reason"] for row in commit["refused"]} == {
        names[1]: "missing", names[2]: "missing",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("step", "number", "expected", "message"),
    [
        ("read_audio", errno.EIO, OSError, "Input/output error"),
        # Tried again as errors of the store are; the message in the end says where room is needed.
        ("build_tar", errno.ENOSPC, StorageError, "No space left.*; make room there or .*TMPDIR"),
    ],
)
def test_a_failing_disk_fails_the_shard_and_commits_nothing(
    planned: Planned, monkeypatch: pytest.MonkeyPatch, step: str, number: int,
    expected: type[Exception], message: str,
) -> None:  # fmt: skip
    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(f"pipeline.encode.worker.{step}", fail)
    with pytest.raises(expected, match=message):
        encode_all(*planned)
    assert planned[0].store.list("commits") == []


@pytest.mark.parametrize(
    ("limit", "reason"), [("max_clipped_share", "clipped"), ("max_dc_offset", "dc_offset")]
)
def test_levels_are_refused_where_asked(
    planned: Planned, tmp_path: Path, limit: str, reason: str
) -> None:
    wave = np.clip(1.5 * np.sin(np.arange(16_000)) + 0.3, -1, 1)
    soundfile.write(tmp_path / "loud.wav", wave, 16_000, "FLOAT")
    assert not isinstance(_decode_one(planned, tmp_path / "loud.wav"), AudioError)
    outcome = _decode_one(planned, tmp_path / "loud.wav", **{limit: 0.05})
    assert isinstance(outcome, AudioError) and outcome.reason == reason


def test_long_clips_are_decoded_one_or_two_ahead(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips that are decoded before the codec takes them are bounded in bytes."""
    for i in range(8):
        soundfile.write(tmp_path / f"{i}.wav", np.full(16_000, 0.1 * (i + 1)), 16_000)
    rows = [{"audio_uri": f"{tmp_path}/{i}.wav", "start_s": None, "end_s": None} for i in range(8)]
    worker = make_worker(*planned, silence_dbfs=-300.0)
    begun, seen, ahead = [], [], []
    decode = worker._decode
    monkeypatch.setattr(worker, "_decode", lambda row, rate: begun.append(row) or decode(row, rate))
    monkeypatch.setattr("pipeline.encode.worker._HELD_BYTES", 100_000)  # a clip has 64,000
    for row, _ in worker._decoded(pa.Table.from_pylist(rows), 16_000):
        seen.append(row["audio_uri"])
        ahead.append(len(begun) - len(seen))
    assert seen == [row["audio_uri"] for row in rows]
    assert max(ahead) <= 2  # 4 where nothing is large


def test_reading_before_the_end_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AttuneError, match="no such data folder"):
        ShardDataset.open(tmp_path / "nothing")
    with pytest.raises(AttuneError, match="python -m pipeline run"):
        ShardDataset.open(tmp_path)


def test_a_corrupt_sample_is_named_by_the_reader(finished: Path) -> None:
    dataset = ShardDataset.open(finished)
    row = dataset.manifest.slice(5, 1).to_pylist()[0]
    path = finished / row["shard_key"]
    data = bytearray(path.read_bytes())
    data[row["offset"] : row["offset"] + 600] = bytes(600)
    path.write_bytes(data)
    with pytest.raises(AttuneError, match=f"{row['shard_key']}: sample {row['sample_id']}"):
        dataset.read(5)
    path.unlink()
    with pytest.raises(AttuneError, match="shard is gone"):
        dataset.read(5)
