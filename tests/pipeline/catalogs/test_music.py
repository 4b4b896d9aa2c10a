"""Music catalogs as CSV and Parquet: the same records as from JSON lines."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import catalog, held_out, merged, records, refusals, touch, write

from common.errors import AttuneError

TRACK = {
    "path": "a.flac", "title": "A", "artist": "Ann", "bpm": 90.0, "genre": "jazz",
    "moods": ["calm", "sad"], "keywords": ["piano"], "instrument": "piano", "key": "C major",
    "description": "A tune, calm", "duration": 61.5,
}  # fmt: skip


def test_three_forms_of_one_track(tmp_path: Path) -> None:
    write(tmp_path / "c.jsonl", json.dumps(TRACK))
    pq.write_table(pa.Table.from_pylist([TRACK]), tmp_path / "c.parquet")
    for name, moods in (("joined", "calm;sad"), ("literal", "['calm', 'sad']")):
        row = [f'"{moods if key == "moods" else _plain(value)}"' for key, value in TRACK.items()]
        write(tmp_path / f"{name}.csv", ",".join(TRACK), ",".join(row))
    found = [
        records(list(catalog(dataset="music", catalog=tmp_path / name).without_audio().read()))[0]
        for name in ("c.jsonl", "c.parquet", "joined.csv", "literal.csv")
    ]
    for record in found:
        assert record.tags == ["piano", "calm", "sad", "C major"]
        assert (record.bpm, record.stated_s, record.genre) == (90.0, 61.5, "jazz")
        assert (record.group_id, record.captions) == ("artist:ann", ["A tune, calm"])


def _plain(value: object) -> object:
    return ";".join(value) if isinstance(value, list) else value


def test_rows_without_a_tempo_and_rows_that_are_wrong(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", "path,artist,bpm,split", "a,Ann,,", ",Bob,,test", "c,,x,test")
    outcomes = list(catalog(dataset="music", catalog=path).without_audio().read())
    assert [(r.bpm, r.split) for r in records(outcomes)] == [(None, "train")]
    assert refusals(outcomes) == [("3", "malformed_row"), ("4", "malformed_row")]
    assert held_out(outcomes) == {"artist:bob", "music:c"}


def test_what_pandas_writes_for_nothing_is_nothing(tmp_path: Path) -> None:
    row = {"path": "a.flac", "artist": math.nan, "bpm": math.nan, "genre": math.nan, "x": math.inf}
    write(tmp_path / "c.jsonl", json.dumps(row | {"moods": [math.nan, "calm"], "title": math.nan}))
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "c.parquet")
    for name, tags in (("c.jsonl", ["calm"]), ("c.parquet", [])):
        made = catalog(dataset="music", catalog=tmp_path / name).without_audio()
        (record,) = records(list(made.read()))
        assert (record.group_id, record.artist, record.bpm) == ("music:a.flac", None, None)
        assert (record.genre, record.title, record.tags) == (None, None, tags)


def test_one_file_is_one_track_however_its_name_is_written(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", "path", "a/b.wav", "./a//b.wav", "a/c/../b.wav")
    outcomes = list(catalog(dataset="music", catalog=path).without_audio().read())
    (found,) = records(outcomes)
    assert (found.native_id, found.group_id) == ("a/b.wav", "music:a/b.wav")
    assert merged(outcomes) == ["3", "4"]


def test_the_list_of_audiocraft(tmp_path: Path) -> None:
    """Absolute paths, and the fields in a file beside each track."""
    audio = touch(tmp_path / "audio", "a.wav", "sub/b.wav", "c.wav", "d.wav", "e.wav")
    write(
        audio / "a.json", json.dumps({"description": "A tune", "bpm": 120, "title": "", "key": "C"})
    )
    write(audio / "other.json", json.dumps({"description": "Another tune", "genre": "house"}))
    write(audio / "c.json", "{broken")
    outside = write(tmp_path / "outside.json", json.dumps({"description": "A secret"}))
    infos = {"a.wav": None, "sub/b.wav": audio / "other.json", "c.wav": None, "d.wav": outside}
    path = write(tmp_path / "data.jsonl", *(
        json.dumps({
            "path": str(audio / name), "duration": 2.0, "sample_rate": 16000, "amplitude": None,
            "weight": None, "info_path": info and str(info),
        })
        for name, info in infos.items()
    ), json.dumps({"path": "/elsewhere/x.wav", "info_path": None}))  # fmt: skip
    made = catalog(dataset="music", catalog=path, audio=audio)
    outcomes = list(made.read())
    first, second, fourth = records(outcomes)
    assert (first.native_id, first.captions, first.bpm, first.stated_s, first.tags) == (
        "a.wav", ["A tune"], 120.0, 2.0, ["C"],
    )  # fmt: skip
    assert (second.native_id, second.captions, second.genre) == (
        "sub/b.wav", ["Another tune"], "house",
    )  # fmt: skip
    assert fourth.captions == []
    assert refusals(outcomes) == [("3", "malformed_row"), ("5", "outside_root")]
    assert made.unread_columns() == []
    blind = records(list(made.without_audio().read()))
    assert [r.sample_id for r in blind] == [r.sample_id for r in (first, second, fourth)]


def test_names_of_audiocrafts_list_that_no_disk_can_have(tmp_path: Path) -> None:
    rows = (json.dumps({"path": name, "info_path": None}) for name in ("a\0.wav", "a" * 300))
    path = write(tmp_path / "data.jsonl", *rows)
    audio = touch(tmp_path / "audio", "b.wav")
    outcomes = list(catalog(dataset="music", catalog=path, audio=audio).read())
    assert refusals(outcomes) == [("1", "missing_audio"), ("2", "missing_audio")]


def test_an_artist_is_one_however_the_name_is_typed(tmp_path: Path) -> None:
    names = "Beyonc\u00e9 X", "BEYONCE\u0301  x", "beyonc\u00e9\u00a0x"
    path = write(tmp_path / "c.csv", "path,artist", *(f"{i}.wav,{n}" for i, n in enumerate(names)))
    found = records(list(catalog(dataset="music", catalog=path).without_audio().read()))
    assert [record.group_id for record in found] == ["artist:beyonc\u00e9 x"] * 3


def test_half_a_parquet_file_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([TRACK]), tmp_path / "c.parquet")
    whole = (tmp_path / "c.parquet").read_bytes()
    (tmp_path / "c.parquet").write_bytes(whole[: len(whole) // 2])
    made = catalog(dataset="music", catalog=tmp_path / "c.parquet").without_audio()
    with pytest.raises(AttuneError, match=r"c\.parquet: damaged Parquet"):
        list(made.read())
