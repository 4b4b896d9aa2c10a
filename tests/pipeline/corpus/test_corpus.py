"""The embedded corpus: deterministic, in the real layouts, with its planted defects."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from common.errors import AttuneError
from pipeline.corpus import layout
from pipeline.corpus.sounds import CLASSES, SAMPLE_RATE, draw_params, render


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "corpus"
    layout.write_corpus(out, seed=3)
    return out


def test_every_class_sounds_and_its_parameters_change_it():
    assert len(CLASSES) >= 16
    for sound in CLASSES:
        waves = []
        for seed in (1, 2):
            rng = np.random.default_rng(seed)
            waves.append(render([sound], 2.0, [draw_params(rng)], rng))
        for wave in waves:
            assert wave.dtype == np.float32 and len(wave) == 2 * SAMPLE_RATE
            assert np.isfinite(wave).all() and 0.1 < np.abs(wave).max() <= 1
        assert np.abs(waves[0] - waves[1]).max() > 0.05, sound.name


def test_same_seed_gives_the_same_bytes_another_seed_others(corpus: Path, tmp_path: Path):
    layout.write_corpus(tmp_path / "again", seed=3)
    files = sorted(p.relative_to(corpus) for p in corpus.rglob("*") if p.is_file())
    assert files == sorted(
        p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file()
    )
    for name in files:
        assert (corpus / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert layout.youtube_id(3, 1, 0) != layout.youtube_id(4, 1, 0)


def test_a_finished_corpus_is_kept_and_a_foreign_folder_refused(corpus: Path, tmp_path: Path):
    before = (corpus / "corpus.json").stat().st_mtime_ns
    layout.write_corpus(corpus, seed=3)
    assert (corpus / "corpus.json").stat().st_mtime_ns == before
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(AttuneError, match="not an embedded corpus"):
        layout.write_corpus(tmp_path, seed=3)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "corpus"):
        with pytest.raises(AttuneError, match=r"cannot write the corpus there: .*Not a directory"):
            layout.write_corpus(out)
    (tmp_path / "torn").mkdir()
    for content in ("{", "[]", "{}"):
        (tmp_path / "torn" / "corpus.json").write_text(content)
        with pytest.raises(AttuneError, match=r"corpus\.json: is damaged"):
            layout.write_corpus(tmp_path / "torn")


def test_audioset_has_the_comment_header_and_the_space_after_each_comma(corpus: Path):
    lines = (corpus / "audioset/balanced_train_segments.csv").read_text().splitlines()
    assert [line[0] for line in lines[:3]] == ["#"] * 3
    assert lines[2] == "# YTID, start_seconds, end_seconds, positive_labels"
    rows = list(csv.reader(lines[3:], skipinitialspace=True))
    assert all(len(row) == 4 and len(row[0]) == 11 for row in rows)
    assert any(row[0].startswith("-") for row in rows)
    assert any("/m/09x0r" in row[3] for row in rows)
    assert f"num_ytids={len(rows)}," in lines[1]


def test_audiocaps_and_clotho_keep_their_quirks(corpus: Path):
    raw = (corpus / "audiocaps/train.csv").read_bytes()
    assert raw.startswith(b"audiocap_id,youtube_id,start_time,caption\r\n")
    captions = list(csv.reader((corpus / "clotho/clotho_captions_development.csv").open()))
    assert captions[0] == ["file_name", *(f"caption_{k}" for k in range(1, 6))]
    names = [row[0] for row in captions[1:]]
    assert any("," in name for name in names) and any("&amp;" in name for name in names)
    assert any(name.startswith(" ") for name in names) and any("#" in name for name in names)
    metadata = (corpus / "clotho/clotho_metadata_development.csv").read_bytes()
    with pytest.raises(UnicodeDecodeError):
        metadata.decode("utf-8")
    assert len(metadata.decode("latin-1").splitlines()) == len(captions)


def test_the_broken_files_are_broken_each_in_its_way(corpus: Path):
    folder = corpus / "audioset/balanced_train_segments"
    paths = {
        kind: folder / f"{layout.youtube_id(3, 3, i)}.wav" for i, kind in enumerate(layout.BROKEN)
    }
    assert paths["zero_byte"].stat().st_size == 0
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(paths["not_audio"])
    assert np.isnan(soundfile.read(paths["nan"])[0]).any()
    assert not soundfile.read(paths["silent"])[0].any()
    short, rate = soundfile.read(paths["too_short"])
    assert len(short) / rate == pytest.approx(0.14e-3, rel=0.05)


def test_music_tracks_are_long_and_described(corpus: Path):
    rows = [json.loads(line) for line in (corpus / "music/catalog.jsonl").open()]
    assert len(rows) == 8
    for row in rows:
        info = soundfile.info(corpus / "music/audio" / row["path"])
        assert 40 <= info.duration <= 90
        assert row["bpm"] and row["key"] and row["instrument"] and row["genre"]
