"""Columns that no reader knows, and audio files that no row names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from calls import Call
from reading import catalog, touch, write

from common.prompts import PromptForm
from common.storage import open_store
from pipeline.catalogs import CatalogEntry
from pipeline.inspect.left_out import left_out
from pipeline.plan.decide import decide
from pipeline.text.captions import TextRules


def found_in(*catalogs: CatalogEntry) -> dict[str, Any]:
    return left_out(catalogs, decide(catalogs, rules=TextRules(PromptForm("plain"))).rows)


def test_files_of_a_folder_that_lists_share(tmp_path: Path) -> None:
    audio = touch(
        tmp_path / "audio", "ab_10.wav", "Ycd.flac", "ef.wav", "bad.wav", "gh.wav", "notes.txt",
        "ef.mp3", "sub/ij.wav",
    )  # fmt: skip
    header = "audiocap_id,youtube_id,start_time,caption"
    train = write(tmp_path / "train.csv", header, "1,ab,10,A dog", "2,cd,0,A cat", "3,bad,soon,A")
    test = write(tmp_path / "test.csv", header, "1,ef,3,A cow")
    lists = [
        catalog(dataset="audiocaps", captions=path, audio=audio, split=path.stem)
        for path in (train, test)
    ]
    assert found_in(*lists)["unlisted_files"] == {
        str(audio): {"files": 1, "examples": ["gh.wav"]}  # a folder below is not looked into
    }
    assert found_in(*lists)["unread_columns"] == {}
    blind = [one.without_audio() for one in lists]
    assert found_in(*blind)["unlisted_files"] == {}
    held_out = lists[1].model_copy(update={"role": "hold_out"})
    (entry,) = found_in(lists[0], held_out)["unlisted_files"].values()
    assert entry["files"] == 1


def test_files_of_refused_segments_are_named(tmp_path: Path) -> None:
    audio = touch(tmp_path / "audio", "a-b.wav", "Yc.wav", "d_30.wav", "e_30000.wav", "f.wav")
    segments = write(tmp_path / "s.csv", *(f'{i}, 30.000, 40.000, "/m/1"' for i in ("a-b", *"cde")))
    labels = write(tmp_path / "labels.csv", "index,mid,display_name", "0,/m/1,Speech")
    made = catalog(dataset="audioset", segments=segments, class_labels=labels, audio=audio)
    (entry,) = found_in(made)["unlisted_files"].values()
    assert entry == {"files": 1, "examples": ["f.wav"]}


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_files_of_a_tree(tmp_path: Path, place: str, request: pytest.FixtureRequest) -> None:
    names = ("a.wav", "b/c.wav", "b/d.wav", "e.wav", "._a.wav", "__MACOSX/a.wav", "f.wav")
    audio: Path | str = touch(tmp_path / "audio", *names)
    if place == "bucket":
        store = open_store(f"{request.getfixturevalue('s3_bucket')}/audio")
        for name in names:
            store.write(name, b"x")
        audio = store.uri
    tracks = [{"path": name, "description": "A tune"} for name in ("a.wav", "b/c.wav")]
    tracks += [{"path": "e.wav", "bpm": "fast"}, {"path": "f.wav", "mood": "calm", "x": 1}]
    path = write(tmp_path / "tracks.jsonl", *map(json.dumps, tracks))
    found = found_in(catalog(dataset="music", catalog=path, audio=audio))
    (entry,) = found["unlisted_files"].values()
    assert entry == {"files": 1, "examples": ["b/d.wav"]}
    assert found["unread_columns"] == {"music": ["mood", "x"]}


def test_columns_of_every_list(tmp_path: Path) -> None:
    audio = touch(tmp_path, "a.wav", "train/b.wav")
    write(tmp_path / "metadata.csv", "file_name,text,start,mood", "a.wav,A dog,,calm")
    write(tmp_path / "train/metadata.jsonl", '{"file_name": "b.wav", "captions": ["x y"], "z": 1}')
    header = "file_name,kor_1," + ",".join(f"caption_{k}" for k in range(1, 6))
    clotho = write(tmp_path / "clotho.csv", header, "a.wav,x,one,two,three,four,five")
    found = found_in(
        catalog(dataset="audiofolder", root=audio),
        catalog(dataset="clotho", captions=clotho).without_audio(),
    )
    assert found["unread_columns"] == {"audiofolder": ["mood", "z"], "clotho": ["kor_1"]}


def test_check_says_what_is_left_out(pipeline: Call, recipe: str, tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a.wav", "b.wav", *(f"more/{i}.wav" for i in range(4)))
    write(root / "metadata.csv", "file_name,text,mood,take", "a.wav,A dog barks,calm,1")
    command = (
        "catalog", "check", recipe,
        f"pipeline.catalogs=[{{dataset: audiofolder, root: {root}, name: own}}]",
    )  # fmt: skip
    found = json.loads(pipeline(*command, "--json")[1])
    examples = ["b.wav", "more/0.wav", "more/1.wav"]
    assert found["unlisted_files"] == {str(root): {"files": 5, "examples": examples}}
    text = pipeline(*command)[1]
    assert text.count("columns not read  mood, take\n") == 1
    assert f"audio files that no row names\n  {root}  5, e.g. {', '.join(examples)}\n" in text
    text = pipeline(*command, "--no-audio")[1]
    assert "no row names" not in text and "columns not read" in text
