"""BBC Sound Effects, MusicCaps and WavCaps: catalogs of captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reading import catalog, held_out, names, read, records, refusals, touch, write

from common.errors import AttuneError

BBC = (
    '"location","description","secs","category","CDNumber","CDName","tracknum"',
    '"07001.wav"," Kettle \u2013 boils, 3\'45"" in all. ","225","Kettles","ECD01","Home","1"',
    '"07002.wav","Glass Crash.","8","","ECD02","Glass Crashes","1"',
    '"07003.wav","Glass Crash.","","","ECD02","","2"',
    '"07004.wav","Wind.","9","","","","2"',
    '"","Wind.","9","","","","2"',
    '"gone.wav","Wind.","9"',
)


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_bbc(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "BBCSoundEffects.csv"
    path.write_bytes("\n".join(BBC).encode(encoding))
    audio = touch(tmp_path / "audio", "07001.wav", "07002.flac", "07003.mp3")
    outcomes = read(dataset="bbc", sounds=path, audio=audio)
    first, second, third = records(outcomes)
    assert names(outcomes) == ["07001.wav", "07002.flac", "07003.mp3"]
    assert (first.captions, first.tags, first.title, first.stated_s, first.license) == (
        ["Kettle \u2013 boils, 3'45\" in all."], ["Kettles"], "Home", 225.0, "RemArc",
    )  # fmt: skip
    assert (second.tags, second.clip, third.stated_s) == ([], "bbc:07002", None)
    # Takes are on one CD and must not straddle splits.
    assert [r.group_id for r in (first, second, third)] == ["bbc:ECD01", "bbc:ECD02", "bbc:ECD02"]
    assert refusals(outcomes) == [
        ("5", "missing_audio"), ("6", "malformed_row"), ("7", "malformed_row"),
    ]  # fmt: skip


MUSICCAPS = (
    "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,"
    "is_balanced_subset,is_audioset_eval",
    '-0abcdefghi,30,40,"/m/1,/m/2","[\'low quality\', ""singer\'s vocal"", \'sad\', \'sad\']",'
    '"A song.\nIt is sad.",4,False,True',
    "bcdefghijkl,0,10,/m/1,[],Drums,4,True,True",
    "cdefghijklm,0,10,/m/1,\"__import__('os').getcwd()\",Drums,4,True,True",
    "defghijklmn,10,10,/m/1,[],Drums,4,True,True",
    ",0,10,/m/1,[],Drums,4,True,True",
    "efghijklmno,0,10,/m/9,[],Drums,4,False,True",
)
LABELS = ("index,mid,display_name", "0,/m/1,Drum", '1,/m/2,"Sad music"')


def test_musiccaps(tmp_path: Path) -> None:
    path = write(tmp_path / "musiccaps-public.csv", *MUSICCAPS)
    audio = touch(tmp_path / "audio", "-0abcdefghi_30.wav", "bcdefghijkl.mp3", "efghijklmno.wav")
    outcomes = read(dataset="musiccaps", captions=path, audio=audio)
    first, second, third = records(outcomes)
    assert names(outcomes) == ["-0abcdefghi_30.wav", "bcdefghijkl.mp3", "efghijklmno.wav"]
    assert (first.captions, first.tags, first.split) == (
        ["A song.\nIt is sad."], ["low quality", "singer's vocal", "sad"], "test",
    )  # fmt: skip
    assert (first.clip, first.stated_s) == ("youtube:-0abcdefghi@30", 10.0)
    assert (second.tags, second.source) == ([], f"{path}:4")  # the caption before has two lines
    assert third.tags == []
    assert refusals(outcomes) == [(line, "malformed_row") for line in ("5", "6", "7")]
    assert held_out(outcomes) == {"youtube:cdefghijklm", "youtube:defghijklmn"}


def test_musiccaps_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "musiccaps-public.csv", *MUSICCAPS)
    labels = write(tmp_path / "labels.csv", *LABELS)
    made = catalog(dataset="musiccaps", captions=path, class_labels=labels)
    outcomes = list(made.without_audio().read())
    assert [record.tags for record in records(outcomes)][-1] == ["Drum"]
    assert refusals(outcomes)[-1] == ("8", "malformed_row")  # no such label


def test_wavcaps(tmp_path: Path) -> None:
    audio = touch(tmp_path / "audio", "Y-0abcdefghi.flac", "1234.wav", "NHU05.flac")
    expected = {
        "audioset": ("youtube:-0abcdefghi", ""),
        "freesound": ("freesound:1234", "freesound:1234"),
        "bbc": ("bbc:NHU05", "bbc:NHU05"),
        "soundbible": ("soundbible:1234", ""),
    }
    entries = [
        {"id": "Y-0abcdefghi.wav", "caption": "A dog.", "audio": "wav", "duration": 10.0},
        {
            "id": 1234,
            "caption": "A cat.",
            "tags": ["cat", " "],
            "author": "ann",
            "href": "http://x",
        },
        {"id": "NHU05", "caption": "", "duration": "7.5"},
        {"id": ["x"], "caption": "Nothing"},
        "no object",
        {"caption": "\ud800", "id": "1234"},
    ]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"num_captions_per_audio": 1, "data": entries}))
    for source, (group, clip) in expected.items():
        outcomes = read(dataset="wavcaps", captions=path, source=source, audio=audio)
        found = {record.group_id: record for record in records(outcomes)}
        assert found[group].clip == clip
        assert len(outcomes) == len(entries)
        assert ("5", "malformed_row") in refusals(outcomes)
        assert ("6", "malformed_row") in refusals(outcomes)
        assert len(found) == (3 if source == "bbc" else 1)  # ids of other sources are refused
    record = records(read(dataset="wavcaps", captions=path, source="freesound", audio=audio))[0]
    assert (record.captions, record.tags, record.artist, record.attribution, record.source) == (
        ["A cat."], ["cat"], "ann", "http://x", f"{path}:2",
    )  # fmt: skip
    assert record.native_id == "freesound/1234"  # SoundBible has a 1234 of its own


@pytest.mark.parametrize("content", ["{}", '{"data": 3}', "nothing", "[" * 100_000])
def test_wavcaps_that_is_something_else(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "captions.json", content)
    made = catalog(dataset="wavcaps", captions=path, source="bbc").without_audio()
    with pytest.raises(AttuneError, match=r"captions\.json: (expected|not valid JSON)"):
        list(made.read())
