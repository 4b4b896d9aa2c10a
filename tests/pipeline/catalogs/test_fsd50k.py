"""FSD50K: development and evaluation lists, names and ancestors from AudioSet's ontology."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reading import catalog, held_out, names, read, records, refusals, touch, write

from common.errors import AttuneError
from pipeline.text.tags import chosen_tags

DEV = (
    "fname,labels,mids,split",
    '101,"Hi-hat,Cymbal,Music","/m/hat,/m/cymbal,/m/music",train',
    '102,"Bird_and_bird_call_and_song,Fill_(with_liquid)","/m/bird,/m/fill",val',
    "103,Cymbal,/m/cymbal,train",
    '104,"Cymbal,Music",/m/cymbal,val',
    "one.wav,Cymbal,/m/cymbal,val",
    "106,Cymbal,/m/cymbal,dev",
    "107,Kazoo,/m/kazoo,val",
)
ONTOLOGY = [
    {"id": "/m/music", "name": "Music", "child_ids": ["/m/cymbal", "/m/loop"]},
    {"id": "/m/cymbal", "name": "Cymbal", "child_ids": ["/m/hat"]},
    {"id": "/m/wood", "name": "Things, hit", "child_ids": ["/m/hat"]},
    {"id": "/m/hat", "name": "Hi-hat", "child_ids": []},
    {"id": "/m/bird", "name": "Bird, bird call, and song", "child_ids": []},
    {"id": "/m/loop", "name": "Loop", "child_ids": ["/m/music"]},  # an edited one: a cycle
]


def test_the_development_list(tmp_path: Path) -> None:
    write(tmp_path / "dev.csv", *DEV)
    vocabulary = write(
        tmp_path / "vocabulary.csv",
        *(f"{i},x,/m/{mid}" for i, mid in enumerate(("hat", "cymbal", "music", "bird", "fill"))),
    )
    info = tmp_path / "info.json"
    info.write_text(json.dumps({"101": {
        "title": "hat.wav ", "description": "<b>", "tags": ["x"], "uploader": "ann",
        "license": "http://creativecommons.org/licenses/by/3.0/",
    }, "102": 7}))  # fmt: skip
    outcomes = read(
        dataset="fsd50k", clips=tmp_path / "dev.csv", vocabulary=vocabulary, clips_info=info,
        audio=touch(tmp_path / "audio", "101.wav", "102.flac"),
    )  # fmt: skip
    first, second = records(outcomes)
    assert names(outcomes) == ["101.wav", "102.flac"]
    assert (first.split, second.split) == ("train", "valid")
    assert first.tags == ["Hi-hat", "Cymbal", "Music"]
    assert second.tags == ["Bird, bird call, song", "Fill (with liquid)"]
    assert (first.title, first.artist, first.license_url) == (
        "hat.wav", "ann", "http://creativecommons.org/licenses/by/3.0/",
    )  # fmt: skip
    assert (first.group_id, first.clip, second.artist) == ("freesound:101", "freesound:101", None)
    assert refusals(outcomes) == [
        ("4", "missing_audio"), *[(str(line), "malformed_row") for line in (5, 6, 7, 8)],
    ]  # fmt: skip
    assert held_out(outcomes) == {"freesound:104", "freesound:107"}


def test_the_evaluation_list_is_the_test_split(tmp_path: Path) -> None:
    path = write(tmp_path / "eval.csv", "fname,labels,mids", "9,Music,/m/music")
    for split, found in ((None, "test"), ("train", "train")):
        made = catalog(dataset="fsd50k", clips=path, split=split).without_audio()
        assert [record.split for record in records(list(made.read()))] == [found]


def test_names_and_ancestors_come_from_the_ontology(tmp_path: Path) -> None:
    (tmp_path / "ontology.json").write_text(json.dumps(ONTOLOGY))
    path = write(
        tmp_path / "eval.csv", "fname,labels,mids",
        '1,"Hi-hat,Cymbal,Things,Music","/m/hat,/m/cymbal,/m/wood,/m/music"',
        '2,"Bird_and_bird_call_and_song,Music","/m/bird,/m/music"',
        '3,"Unheard_of,Music","/m/new,/m/music"',
    )  # fmt: skip
    made = catalog(dataset="fsd50k", clips=path, ontology=tmp_path / "ontology.json")
    tags = [record.tags for record in records(list(made.without_audio().read()))]
    assert tags == [
        ["Hi-hat", "Cymbal", "Things, hit", "Music"],
        ["Bird, bird call, and song", "Music"],
        ["Unheard of", "Music"],
    ]
    specific = [" ".join(chosen_tags(one, "specific", made.ancestors())) for one in tags]
    # Both parents of the hi-hat go, and what is above them.
    assert specific == ["hi-hat", "bird bird call and song music", "unheard of music"]


def test_missing_and_wrong_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "eval.csv", "fname,labels,mids", "9,Music,/m/music")
    info = write(tmp_path / "info.json", "[1]")
    with pytest.raises(AttuneError, match=r"\(clips_info\): expected an object, found list"):
        list(catalog(dataset="fsd50k", clips=path, clips_info=info).without_audio().read())
    bad = write(tmp_path / "ontology.json", '[{"id": "a", "name": "b", "child_ids": 3}]')
    made = catalog(dataset="fsd50k", clips=path, ontology=bad)
    with pytest.raises(AttuneError, match=r"not AudioSet's ontology\.json"):
        list(made.without_audio().read())
