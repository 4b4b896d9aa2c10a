"""`shards stats` and `export-audio`: figures against a plain count, files, one-line errors."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from calls import Call
from in_process import copy_to_bucket

from common.codec import load_codec
from common.errors import AttuneError
from common.shards import ShardDataset
from common.storage import open_store
from pipeline.inspect import shards as inspect
from pipeline.inspect.export import decode_clip, export_audio
from pipeline.inspect.shards import shard_stats
from pipeline.inspect.tally import Histogram, smallest_by_hash


def test_statistics_are_those_of_a_plain_count(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "_CLIPS_PER_READ", 2)
    stats = shard_stats(open_store(finished))
    dataset = ShardDataset.open(finished)
    rows = dataset.manifest.to_pylist()
    prompts = [prompt for row in rows for prompt in row["prompts"]]
    tokens = [number for row in rows for number in row["prompt_tokens"]]
    seconds = np.array([row["duration_s"] for row in rows])
    found = stats["datasets"]["small"]
    assert (found["clips"], found["prompts"]) == (24, len(prompts))
    assert found["unique_prompts"] == len(set(prompts))
    assert found["splits"] == {"test": 4, "train": 20}
    assert found["licenses"] == {"not stated": {"clips": 24, "hours": found["hours"]}}
    assert found["hours"] == pytest.approx(seconds.sum() / 3600, abs=1e-6)
    assert found["duration_s"]["median"] == pytest.approx(np.sort(seconds)[11], abs=0.006)
    assert found["duration_s"]["p95"] == pytest.approx(np.sort(seconds)[22], abs=0.006)
    assert (found["duration_s"]["min"], found["duration_s"]["max"]) == (0.6, 1.75)
    expected = {str(number): count for number, count in Counter(tokens).items()}
    assert found["prompt_tokens"]["histogram"] == expected
    for stream in range(4):
        codes = np.concatenate([sample.codes[stream] for sample in dataset])
        p = np.unique_counts(codes).counts / len(codes)
        for usage in (stats["all"]["codebooks"][stream], found["codebooks"][stream]):
            assert usage["used"] == len(p)
            assert usage["perplexity"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert stats["codes_from"] == {"shards": 8, "of_shards": 8, "clips": 24, "seed": None}


def test_datasets_and_licences_are_counted_apart(finished: Path) -> None:
    table = pq.read_table(finished / "manifest.parquet")
    rows = table.to_pylist()
    for i, row in enumerate(rows):
        row["dataset"] = "a" if i < 6 else "b"
        row["license"] = "CC-BY" if i < 6 else ""
        row["license_url"] = "https://cc0" if 6 <= i < 10 else None
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), finished / "manifest.parquet")
    stats = shard_stats(open_store(finished))
    assert {name: found["clips"] for name, found in stats["datasets"].items()} == {"a": 6, "b": 18}
    clips = {
        name: {licence: row["clips"] for licence, row in found["licenses"].items()}
        for name, found in (stats["datasets"] | {"all": stats["all"]}).items()
    }
    assert clips == {
        "a": {"CC-BY": 6}, "b": {"not stated": 14, "https://cc0": 4},
        "all": {"not stated": 14, "CC-BY": 6, "https://cc0": 4},
    }  # fmt: skip
    hours = sum(row["hours"] for row in stats["all"]["licenses"].values())
    assert hours == pytest.approx(stats["all"]["hours"], abs=1e-5)


def test_a_sample_of_shards_is_seeded_and_said(finished: Path) -> None:
    store = open_store(finished)
    one = shard_stats(store, sample=2, seed=1)
    assert one == shard_stats(store, sample=2, seed=1)
    assert one["codes_from"]["shards"] == 2 and one["codes_from"]["seed"] == 1
    assert one["codes_from"]["clips"] < 24 and one["all"]["clips"] == 24
    codes = [shard_stats(store, sample=2, seed=seed)["all"] for seed in range(4)]
    assert any(other != codes[0] for other in codes[1:])
    assert shard_stats(store, sample=99)["all"] == shard_stats(store)["all"]


def test_codes_that_the_codec_lacks_are_an_error(finished: Path) -> None:
    row = pq.read_table(finished / "manifest.parquet").slice(5, 1).to_pylist()[0]
    tar = finished / row["shard_key"]
    content = bytearray(tar.read_bytes())
    at = row["offset"] + 512 + 128
    content[at : at + 2] = np.int16(99).tobytes()
    tar.write_bytes(content)
    with pytest.raises(AttuneError, match=rf"{row['sample_id']} has codes outside 0\.\.31"):
        shard_stats(open_store(finished))
    tar.unlink()
    with pytest.raises(AttuneError, match="shard is gone"):
        shard_stats(open_store(finished))


def test_quantiles_are_whole_steps_between_the_extremes() -> None:
    values = np.random.default_rng(0).uniform(0, 30, 5000)
    histogram = Histogram(values, 0.01)
    for q in (0.05, 0.5, 0.95):
        exact = np.quantile(values, q, method="inverted_cdf")
        assert histogram.quantile(q) == pytest.approx(exact, abs=0.005 + 1e-9)
    assert histogram.figures()["mean"] == pytest.approx(values.mean())
    assert Histogram(np.array([0.996, 0.997]), 0.01).quantile(0.5) == 0.997  # not 1.0
    assert Histogram(np.array([2, 2, 7])).bars() == {"2": 2, "7": 1}
    assert Histogram(np.zeros(0)).figures() == {}


def test_a_draw_depends_only_on_names_and_seed() -> None:
    names = [str(i) for i in range(100)]
    drawn = smallest_by_hash(names, 5, seed=3)
    assert drawn == smallest_by_hash(reversed(names), 5, seed=3)
    assert drawn != smallest_by_hash(names, 5, seed=4)


def test_export_decodes_one_sample(finished: Path, tiny_codec: Path, tmp_path: Path) -> None:
    store = open_store(finished)
    row = ShardDataset.open(finished).manifest.slice(7, 1).to_pylist()[0]
    out = tmp_path / "clip.wav"
    found = export_audio(store, str(tiny_codec), row["sample_id"][:10], str(out))
    wave, rate = soundfile.read(out, dtype="float32")
    assert (found["sample_rate"], rate) == (16000, 16000)
    assert len(wave) == round(row["duration_s"] * 16000) == round(found["seconds"] * 16000)
    assert soundfile.info(out).subtype == "PCM_16"
    exact = tmp_path / "exact.wav"
    found = export_audio(store, str(tiny_codec), row["sample_id"], str(exact), as_float=True)
    floats = soundfile.read(exact, dtype="float32")[0]
    assert soundfile.info(exact).subtype == "FLOAT"
    assert found["peak"] == pytest.approx(np.abs(floats).max())
    np.testing.assert_allclose(wave, np.clip(floats, -1, 1), atol=1e-4)
    with pytest.raises(AttuneError, match=r"clip\.wav: exists already.*--force"):
        export_audio(store, str(tiny_codec), row["sample_id"], str(out))
    time.sleep(1.1)  # the same file in another second
    export_audio(store, str(tiny_codec), row["sample_id"], str(out), as_float=True, force=True)
    assert out.read_bytes() == exact.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*wav*")) == ["clip.wav", "exact.wav"]


def test_mistakes_of_an_export(finished: Path, tiny_codec: Path, tmp_path: Path) -> None:
    store, codec = open_store(finished), str(tiny_codec)
    with pytest.raises(AttuneError, match="is no sample whose id begins with 'zz'"):
        export_audio(store, codec, "zz", str(tmp_path / "a.wav"))
    with pytest.raises(AttuneError, match="are 24 samples"):
        export_audio(store, codec, "", str(tmp_path / "a.wav"))
    with pytest.raises(AttuneError, match="there is no folder"):
        export_audio(store, codec, "a", str(tmp_path / "no" / "a.wav"))
    with pytest.raises(AttuneError, match="is a folder"):
        export_audio(store, codec, "a", str(tmp_path))
    with pytest.raises(AttuneError, match="on this machine"):
        export_audio(store, codec, "a", "s3://bucket/a.wav")
    for name in ("a.mp3", "a.flac", "a", "a.wav.bak"):
        with pytest.raises(AttuneError, match=rf"/{name}: only wav is written.*ends with \.wav"):
            export_audio(store, codec, "a", str(tmp_path / name))
        assert not (tmp_path / name).exists()
    other = tmp_path / "codec"
    shutil.copytree(tiny_codec, other)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"note": "another"}))
    with pytest.raises(AttuneError, match=r"were made with codec [0-9a-f]{16}.*codec\.path="):
        export_audio(store, str(other), "a", str(tmp_path / "a.wav"))
    assert not (tmp_path / "a.wav").exists()


def test_long_clips_are_decoded_in_windows(tiny_codec: Path) -> None:
    import torch

    codec = load_codec(str(tiny_codec))
    codes = np.random.default_rng(0).integers(0, 32, (4, 3500)).astype(np.int16)  # 70 s
    whole = codec.decode(torch.from_numpy(codes.astype(np.int64))[None])[0].numpy()
    windows = decode_clip(codec, codes)
    assert windows.shape == whole.shape
    assert np.abs(windows - whole).max() < 1e-3 * np.abs(whole).max()
    assert len(decode_clip(codec, codes, 69.99)) == round(69.99 * 16000)


def test_the_commands_on_a_folder_and_in_a_bucket(
    pipeline: Call, recipe: str, finished: Path, s3_bucket: str, tmp_path: Path
) -> None:
    uri = f"{s3_bucket}/data"
    copy_to_bucket(finished, uri)
    sample_id = ShardDataset.open(finished).manifest["sample_id"][0].as_py()
    waves = []
    for data in (str(finished), uri):
        there = ("--config", recipe, f"data_dir={data}")
        status, out, _ = pipeline("shards", "stats", *there, "--sample", "3", "--json")
        assert (status, json.loads(out)["codes_from"]["shards"]) == (0, 3)
        status, out, _ = pipeline("shards", "stats", *there, "--sample", "3")
        assert "in 3 of 8 shards, drawn by seed 0" in out and "codebook 3 perplexity" in out
        wav = tmp_path / f"{len(waves)}.wav"
        arguments = ("shards", "export-audio", sample_id, *there, "--out", str(wav))
        status, out, _ = pipeline(*arguments)
        assert status == 0 and "16000 Hz" in out and "peak" in out
        status, out, err = pipeline(*arguments)
        assert (status, out) == (1, "") and "--force" in err and err.count("\n") == 1
        assert json.loads(pipeline(*arguments, "--force", "--json")[1])["out"] == str(wav)
        waves.append(wav.read_bytes())
    assert waves[0] == waves[1]
