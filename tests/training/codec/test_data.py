"""Segments and clips: from folders, patterns and plans, drawn alike whoever reads them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from tiny_codec_run import write_plan

from common.errors import AttuneError
from training.codec.data import (
    Clips,
    ClipsInMemory,
    ClipsOnDisk,
    SegmentLoader,
    held_out_clips,
)
from training.codec.losses import MultiScaleMelLoss, shortest_input
from training.codec.sources import SOURCES, audio_sources

RATE = 8000


def _ramp(seconds: float, first: float = 0.0) -> np.ndarray:
    """Samples whose value is their place: 1 / 32768 each."""
    return (first + np.arange(round(seconds * RATE))) / 32768


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    audio = tmp_path / "audio"
    (audio / "below").mkdir(parents=True)
    for i, seconds in enumerate((1.0, 2.0, 0.2)):
        soundfile.write(audio / f"{i}.wav", _ramp(seconds, 1000 * i), RATE)
    soundfile.write(audio / "below" / "3.flac", _ramp(1.5, 16000), RATE)
    (audio / "notes.txt").touch()
    return audio


def test_folders_patterns_and_plans_name_clips(folder: Path, tmp_path: Path):
    rows = (folder / "1.wav", "train", 0.5, 1.5), (folder / "0.wav", "valid")
    plan = write_plan(tmp_path / "plan.parquet", *rows)
    table = audio_sources([str(folder / "below"), str(folder / "[01].wav"), plan], "train")
    assert table.schema == SOURCES
    assert [Path(uri).name for uri in table["audio_uri"].to_pylist()] == [
        "3.flac", "0.wav", "1.wav", "1.wav",
    ]  # fmt: skip
    assert table["start_s"].to_pylist() == [None, None, None, 0.5]
    assert audio_sources([plan], "valid")["audio_uri"].to_pylist() == [str(folder / "0.wav")]


@pytest.mark.parametrize("extension", ["au", "caf", "w64"])
def test_unusual_kinds_of_files_are_read(extension: str, tmp_path: Path):
    soundfile.write(tmp_path / f"a.{extension}", _ramp(1.0), RATE, "PCM_16")
    (tmp_path / "notes.txt").touch()
    clips = ClipsOnDisk(audio_sources([str(tmp_path)], "train"), RATE)
    assert np.array_equal(clips.segment(0, 0.0, RATE) * 32768, np.arange(RATE))


def test_entries_without_audio_are_reported(folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"audio_uri": [1]}), other)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    plan = write_plan(tmp_path / "plan.parquet", (folder / "0.wav", "train"))
    for entry, message in (
        (f"{tmp_path}/empty", "no audio files, so no usable audio"),
        (f"{tmp_path}/nowhere", "no such folder"),
        (str(folder / "0.wav"), r"is a file; name a folder of audio, a pattern .* or a plan"),
        (str(other), "is no plan"),
        (f"{tmp_path}/torn.parquet", "cannot be read as a plan"),
        (f"{tmp_path}/gone.parquet", "cannot be read as a plan"),
        (plan, "no clips of split valid"),
    ):
        with pytest.raises(AttuneError, match=message):
            audio_sources([entry], "valid")


def test_a_segment_from_disk_is_a_piece_of_its_clip(folder: Path, tmp_path: Path):
    plan = write_plan(tmp_path / "plan.parquet", (folder / "1.wav", "train", 0.5, 1.5))
    clips = ClipsOnDisk(audio_sources([plan], "train"), RATE)
    for place, first in ((0.0, 0.5), (0.5, 0.75), (1.0, 1.0)):
        found = clips.segment(0, place, RATE // 2) * 32768
        assert np.array_equal(found, 1000 + first * RATE + np.arange(RATE // 2))
    # A clip that is shorter than a segment comes whole, then silence.
    found = clips.segment(0, 0.7, 2 * RATE)
    assert np.array_equal(found[:RATE] * 32768, 1000 + RATE // 2 + np.arange(RATE))
    assert not found[RATE:].any()


def test_memory_and_disk_hold_the_same_segments(folder: Path):
    on_disk = ClipsOnDisk(audio_sources([str(folder)], "train"), RATE)
    in_memory = ClipsInMemory(on_disk)
    for clip in range(4):
        for place in (0.0, 0.999999):
            a, b = (clips.segment(clip, place, 3000) for clips in (on_disk, in_memory))
            assert a.dtype == np.float32 and np.abs(a - b).max() <= 1.01 / 32768


def test_a_resampled_segment_has_no_edges(tmp_path: Path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(3 * 44_100) / 44_100)
    soundfile.write(tmp_path / "tone.wav", tone, 44_100)
    clips = ClipsOnDisk(audio_sources([str(tmp_path)], "train"), RATE)
    found = clips.segment(0, 0.5, RATE)
    spectrum = np.abs(np.fft.rfft(found * np.hanning(RATE)))
    assert spectrum.argmax() == 440
    # As loud at its ends as in the middle, to the sample.
    phase = np.exp(2j * np.pi * 440 * np.arange(RATE) / RATE)
    fitted = (found @ phase.conj()) * 2 / RATE * phase
    assert np.abs(found - fitted.real).max() < 1e-3


def _loader(clips: Clips, **changes: int) -> SegmentLoader:
    settings = {"samples": 800, "batch_size": 4, "seed": 1} | changes
    return SegmentLoader(clips, **settings)


def test_batches_are_a_function_of_seed_and_step_whoever_reads_them(folder: Path):
    clips = ClipsOnDisk(audio_sources([str(folder)], "train"), RATE)
    whole = list(_loader(clips).batches(0, 5))
    assert whole[0].shape == (4, 800) and whole[0].dtype == torch.float32
    assert not torch.equal(whole[0], whole[1])
    again = list(_loader(clips, workers=1, prefetch=1).batches(3, 5))
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], again, strict=True))
    halves = [list(_loader(clips, rank=rank, world=2).batches(0, 5)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(batch, torch.cat([first, second]))
    other = next(_loader(clips, seed=2).batches(0, 1))
    assert not torch.equal(whole[0], other)


def test_another_clip_comes_in_place_of_one_that_cannot_be_used(folder: Path):
    (folder / "broken.wav").write_bytes(b"no audio")
    clips = ClipsOnDisk(audio_sources([str(folder)], "train"), RATE)
    loader = _loader(clips)
    batches = list(loader.batches(0, 6))
    assert all(bool(row.any()) for batch in batches for row in batch)
    assert loader.refused["unreadable"] > 0
    assert all(
        torch.equal(a, b) for a, b in zip(batches, _loader(clips).batches(0, 6), strict=True)
    )


def test_a_run_with_nothing_usable_stops_and_names_the_last(tmp_path: Path):
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    clips = ClipsOnDisk(audio_sources([str(tmp_path)], "train"), RATE)
    with pytest.raises(AttuneError, match=r"20 clips in a row.*unreadable.*broken\.wav"):
        list(_loader(clips).batches(0, 1))
    assert len(ClipsInMemory(clips)) == 0


def test_segments_of_a_bucket_are_read_by_range(folder: Path, s3_bucket: str):
    from common.storage import open_store

    open_store(f"{s3_bucket}/tracks").write("one.wav", (folder / "1.wav").read_bytes())
    table = pa.table([[f"{s3_bucket}/tracks/one.wav"], [0.5], [1.5]], schema=SOURCES)
    clips = ClipsOnDisk(table, RATE)
    assert np.array_equal(clips.segment(0, 0.0, 10) * 32768, 1000 + RATE // 2 + np.arange(10))


def test_held_out_clips_are_shared_out_and_cut(folder: Path):
    clips = ClipsOnDisk(audio_sources([str(folder)], "train"), RATE)
    parts = [held_out_clips(clips, rank, 2, most=3, max_s=0.5) for rank in (0, 1)]
    assert [len(part) for part in parts] == [2, 1]
    assert all(len(wave) <= RATE // 2 for part in parts for wave in part.waves)
    assert len(held_out_clips(clips, max_s=0.5)) == 4


def test_held_out_clips_too_short_to_be_compared_are_refused(folder: Path):
    soundfile.write(folder / "4.wav", _ramp(0.12), RATE)
    clips = ClipsOnDisk(audio_sources([str(folder)], "train"), RATE)
    part = held_out_clips(clips, max_s=0.5, shortest=shortest_input([64, 2048]))
    assert len(part) == 4 and part.refused == {"too_short": 1}
    # The bound is the loss's own.
    loss = MultiScaleMelLoss(RATE, [64, 2048])
    wav = torch.rand(1, shortest_input([64, 2048]))
    assert float(loss(wav, wav)) == 0
    with pytest.raises(RuntimeError, match="Padding size"):
        loss(wav[:, 1:], wav[:, 1:])
