"""Each reader on the quirks of its real files: what is read, what is refused, where."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError
from reading import (
    catalog,
    held_out,
    merged,
    names,
    outcomes_of,
    read,
    records,
    refusals,
    touch,
    write,
)

from common.errors import AttuneError
from common.schema import RECORD
from pipeline.catalogs import CATALOGS
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.base import Refusal

PATHS = (
    "root", "audio", "captions", "segments", "class_labels", "catalog", "clips", "sounds", "files",
)  # fmt: skip
NEEDED = {"audioset": {"class_labels": "/x"}, "wavcaps": {"source": "bbc"}}
"""What a catalog needs beside its required paths."""

AUDIOSET = """\
# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=4, num_segs=4, num_unique_labels=3, num_positive_labels=6
# YTID, start_seconds, end_seconds, positive_labels
--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"
-0abc, 0.000, 10.000, "/m/0bt9lr"
zzz_9, 570.000, 580.000, "/m/0bt9lr"
#NAME?, 30, 40, "/m/0bt9lr"
abcdefghijk, 30, 40, /m/0bt9lr, /m/09x0r
none, 1.000, 2.000, "/m/0bt9lr"
odd, 1.000, 2.000, "/m/unknown"
-0abc, nan, 10.000, "/m/0bt9lr"
-0abc, 0.000, inf, "/m/0bt9lr"
-0abc, 10.000, 5.000, "/m/0bt9lr"
"""
LABELS = """\
index,mid,display_name
0,/m/09x0r,"Speech"
1,/t/dd00088,"Gush"
2,/m/0bt9lr,"Male speech, man speaking"
"""


def test_audioset(tmp_path: Path) -> None:
    segments, labels = tmp_path / "segments.csv", tmp_path / "labels.csv"
    segments.write_text(AUDIOSET)
    labels.write_text(LABELS)
    audio = touch(tmp_path / "audio", "--PJHxphWEs.wav", "Y-0abc.flac", "zzz_9_570.mp3")
    outcomes = outcomes_of(
        catalog(dataset="audioset", segments=segments, class_labels=labels, audio=audio)
    )
    found = records(outcomes)
    assert [r.tags for r in found[:2]] == [["Speech", "Gush"], ["Male speech, man speaking"]]
    assert names(outcomes) == ["--PJHxphWEs.wav", "Y-0abc.flac", "zzz_9_570.mp3"]
    assert found[0].group_id == "youtube:--PJHxphWEs"
    assert found[0].source == f"{tmp_path}/segments.csv:4"
    assert refusals(outcomes) == [
        ("7", "malformed_row"),  # a spreadsheet took the id for a formula
        ("8", "malformed_row"),  # ... and spread the labels over columns
        ("9", "missing_audio"),
        ("10", "malformed_row"),
        *[(str(line), "malformed_row") for line in (11, 12, 13)],  # no times
    ]


def test_audiocaps_merges_the_captions_of_a_clip(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_bytes(
        b"audiocap_id,youtube_id,start_time,caption\r\n"
        b'1,-abc,30,"Ducks quack, water splashes"\r\n'
        b"2,other,0,A dog barks\r\n"
        b"3,-abc,30,Ducks\r\n"
        b"4,gone,10,A cat\r\n"
        b"5,broken,soon,A cat\r\n"
    )
    audio = touch(tmp_path / "audio", "-abc_30.wav", "other.wav")
    captions = tmp_path / "val.csv"
    outcomes = read(dataset="audiocaps", captions=captions, audio=audio, split="valid")
    assert [(r.native_id, r.captions, r.split) for r in records(outcomes)] == [
        ("-abc_30", ["Ducks quack, water splashes", "Ducks"], "valid"),
        ("other_0", ["A dog barks"], "valid"),
    ]
    assert len(merged(outcomes)) == 1
    assert sorted(refusals(outcomes)) == [("5", "missing_audio"), ("6", "malformed_row")]
    assert "youtube:gone" in held_out(outcomes)


def test_clotho_takes_file_names_as_they_stand(tmp_path: Path) -> None:
    files = [" rain &amp; storm, #2 .wav", "plain.wav", "Not there.wav"]
    captions = "\n".join(f'"{name}",one.,two,three,,five' for name in files)
    (tmp_path / "captions.csv").write_text(
        f"file_name,{','.join(f'caption_{k}' for k in range(1, 6))}\n{captions}\n"
    )
    (tmp_path / "metadata.csv").write_bytes(
        "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license\n"
        f'"{files[0]}",rain;storm,117790,http://f.org/1,"[44100, 926100]",Óscar de Ávila,CC0\n'
        f"{files[1]},,Not found,Not found,,x,CC-BY\n"
        f"elsewhere.wav,,1,,,x,CC-BY\n".encode("latin-1")
    )
    outcomes = read(
        dataset="clotho", captions=tmp_path / "captions.csv",
        metadata=tmp_path / "metadata.csv", audio=touch(tmp_path / "audio", *files[:2]),
    )  # fmt: skip
    first, second = records(outcomes)
    assert Path(first.audio_uri).name == files[0]
    assert (first.artist, first.license_url, first.tags, first.group_id) == (
        "Óscar de Ávila", "CC0", ["rain", "storm"], "freesound:117790",
    )  # fmt: skip
    assert first.captions == ["one.", "two", "three", "five"]
    assert (first.clip, first.stated_s) == ("freesound:117790", 20.0)
    assert (second.group_id, second.attribution) == ("clotho:plain.wav", None)
    assert (second.clip, second.stated_s) == ("", None)
    assert refusals(outcomes) == [("4", "missing_audio")]


def test_esc50_holds_one_fold_out(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text(
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-7-A-0.ogg,1,0,crackling_fire,True,7,A\n5-8-A-0.ogg,5,0,dog,True,8,A\n"
        "x.ogg,6,0,dog,True,8,A\n"
    )
    touch(tmp_path / "audio", "1-7-A-0.ogg", "5-8-A-0.ogg")
    outcomes = read(dataset="esc50", root=tmp_path)
    assert [(r.tags, r.split, r.group_id) for r in records(outcomes)] == [
        (["crackling fire"], "train", "freesound:7"), (["dog"], "test", "freesound:8"),
    ]  # fmt: skip
    assert refusals(outcomes) == [("4", "malformed_row")]


def test_music(tmp_path: Path) -> None:
    (tmp_path / "catalog.jsonl").write_text(
        '{"path": "a.flac", "title": "A", "artist": "Ann", "bpm": "90", "genre": "jazz", '
        '"moods": ["calm"], "keywords": ["piano", "calm"], "instrument": "piano", '
        '"key": "C major", "description": "A calm tune", "license": "CC0-1.0"}\n'
        '{"path": "../b.flac"}\n'
        "{broken\n"
        '{"path": "a.flac", "bpm": "fast"}\n'
        '{"path": "a.flac", "bpm": Infinity}\n'
        f'{{"path": "a.flac", "bpm": 1{"0" * 400}}}\n'
        '{"path": "a\\ud800.flac"}\n'
        f'{{"path": {"[" * 100_000}\n'
    )
    audio = touch(tmp_path / "audio", "a.flac")
    outcomes = read(dataset="music", catalog=tmp_path / "catalog.jsonl", audio=audio)
    (record,) = records(outcomes)
    assert record.tags == ["piano", "calm", "C major"]
    assert (record.bpm, record.genre, record.group_id) == (90.0, "jazz", "artist:ann")
    assert refusals(outcomes) == [
        ("2", "outside_root"),
        *[(str(line), "malformed_row") for line in range(3, 9)],
    ]


def test_audiofolder_in_both_forms(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.wav", "test/sub/b.wav")
    (tmp_path / "train" / "metadata.csv").write_text(
        "\ufefffile_name,text,tags\na.wav,A dog,x; y\n"  # with a BOM
    )
    (tmp_path / "test" / "metadata.jsonl").write_text(
        '{"file_name": "sub/b.wav", "caption_1": "one", "caption_2": "two", "label": "dog"}\n'
    )
    second, first = records(read(dataset="audiofolder", root=tmp_path))
    assert (first.native_id, first.split, first.captions, first.tags) == (
        "train/a.wav", "train", ["A dog"], ["x", "y"],
    )  # fmt: skip
    assert (second.native_id, second.split, second.captions, second.tags) == (
        "test/sub/b.wav", "test", ["one", "two"], ["dog"],
    )  # fmt: skip


def test_links_that_lead_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "secret.wav")
    root = touch(tmp_path / "root", "in.wav")
    (root / "link.wav").symlink_to(tmp_path / "secret.wav")
    (root / "metadata.csv").write_text("file_name,text\nin.wav,a\nlink.wav,b\n/etc/hosts,c\n")
    outcomes = read(dataset="audiofolder", root=root)
    assert len(records(outcomes)) == 1
    assert refusals(outcomes) == [("3", "outside_root"), ("4", "outside_root")]


def test_a_folder_may_be_written_with_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = touch(tmp_path / "audio", "a.wav", "test/b.wav")
    touch(tmp_path / "here" / "x", "c.wav")
    monkeypatch.chdir(tmp_path / "here")
    audio = AudioRoot("../audio")
    assert audio.by_name("a.wav") == audio.by_stem("a") == str(root / "a.wav")
    assert audio.by_stems(pa.array(["a"])).paths.to_pylist() == [str(root / "a.wav")]
    with pytest.raises(ValueError, match="leads outside"):
        audio.by_name("../here/x/c.wav")
    for folder, name in ((root, "a.wav"), (root / "test", "b.wav")):
        write(folder / "metadata.csv", "file_name,text", f"{name},A dog")
    found = records(read(dataset="audiofolder", root="../audio"))
    assert [(r.native_id, r.split, r.audio_uri) for r in found] == [
        ("a.wav", "train", str(root / "a.wav")), ("test/b.wav", "test", str(root / "test/b.wav")),
    ]  # fmt: skip
    touch(tmp_path / "far" / "audio", "d.wav")
    (tmp_path / "here" / "link").symlink_to(touch(tmp_path / "far" / "y"))
    assert AudioRoot("link/../audio").by_name("d.wav") == str(tmp_path / "far/audio/d.wav")


def test_a_name_that_is_no_text_is_no_file_of_a_list(tmp_path: Path) -> None:
    audio = AudioRoot(touch(tmp_path, "a.wav", "caf\udce9.wav"))
    assert audio.by_stem("a") == str(tmp_path / "a.wav")
    found = audio.by_stems(pa.array(["a", "caf"]))
    assert found.paths.to_pylist() == [str(tmp_path / "a.wav"), None]


def test_one_audiofolder_list_above_the_split_folders(tmp_path: Path) -> None:
    files = ["train/a.wav", "./test/b.wav", "validation//c.wav", "test/d.wav", "e.wav", "x/f.wav"]
    rows = [f"{name},A dog,{'train' if 'd.wav' in name else ''}" for name in [*files, "test"]]
    write(tmp_path / "metadata.csv", "file_name,text,split", *rows, "test/g.wav,A,,?")
    touch(tmp_path, *files)
    outcomes = read(dataset="audiofolder", root=tmp_path, split="valid")
    assert [(Path(r.audio_uri).name, r.split) for r in records(outcomes)] == [
        ("a.wav", "train"), ("b.wav", "test"), ("c.wav", "valid"), ("d.wav", "train"),
        ("e.wav", "valid"), ("f.wav", "valid"),
    ]  # fmt: skip
    assert [(o.native_id, o.split) for o in outcomes if isinstance(o, Refusal)] == [
        ("test", "valid"), ("test/g.wav", "test"),
    ]  # fmt: skip


def test_values_of_another_type_become_text(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.wav", "text": "a", "title": 123, "license": ["CC0", "MIT"], "artist": []}'
    )
    (record,) = records(read(dataset="audiofolder", root=touch(tmp_path, "a.wav")))
    assert (record.title, record.license, record.artist) == ("123", "CC0, MIT", None)
    pa.Table.from_pylist([record.as_row()], schema=RECORD)


def test_what_pandas_writes_for_nothing_is_nothing_and_a_group_may_be_zero(tmp_path: Path) -> None:
    rows = (
        '"a.wav", "text": "a", "group": NaN, "title": NaN, "labels": ["x", NaN], "split": NaN',
        '"b.wav", "text": "b", "group": 0, "artist": null', '"c.wav", "group": 0, "split": "?"',
    )  # fmt: skip
    write(tmp_path / "metadata.jsonl", *(f'{{"file_name": {row}}}' for row in rows))
    outcomes = read(dataset="audiofolder", root=touch(tmp_path, "a.wav", "b.wav", "c.wav"))
    first, second = records(outcomes)
    assert (first.group_id, first.title, first.tags) == ("audiofolder:a.wav", None, ["x"])
    assert (first.split, second.group_id, second.artist) == ("train", "0", None)
    assert [o.group_id for o in outcomes if isinstance(o, Refusal)] == ["0"]


def test_files_beside_the_audio_are_not_taken_for_it(tmp_path: Path) -> None:
    touch(tmp_path, "secret.wav")
    root = touch(tmp_path / "root", "a.json", "a.txt", "a.WAV", "a.zip", "b.json", "c.wav/x", "d")
    (root / "e.wav").symlink_to(tmp_path / "secret.wav")
    (root / "f.flac").symlink_to(root / "a.WAV")
    audio = AudioRoot(root)
    assert audio.by_stem("a") == str(root / "a.WAV")
    assert audio.by_stem("f") == str(root / "f.flac")
    assert [audio.by_stem(stem) for stem in "bcd"] == [None, None, None]
    with pytest.raises(ValueError, match="links to outside"):
        audio.by_stem("e")


def test_a_folder_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(AttuneError, match="no such folder"):
        AudioRoot(touch(tmp_path, "file") / "file")
    root = AudioRoot(tmp_path)
    monkeypatch.setattr("os.scandir", denied)
    with pytest.raises(AttuneError, match="Permission denied"):
        root.by_stem("a")
    monkeypatch.setattr("os.stat", denied)
    with pytest.raises(AttuneError, match="Permission denied"):
        AudioRoot(tmp_path)


def test_paths_of_every_catalog_know_the_home_folder_and_are_not_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    for kind in CATALOGS:
        fields = [n for n, f in kind.model_fields.items() if n in PATHS and f.is_required()]
        assert fields
        name = kind.model_fields["dataset"].default
        more = {"dataset": name, **NEEDED.get(name, {})}
        made = catalog(**more, **dict.fromkeys(fields, "~/x"))
        assert [getattr(made, field) for field in fields] == [Path("/home/ann/x")] * len(fields)
        for field in fields:
            with pytest.raises(ValidationError, match=r"is empty; give a path"):
                catalog(**more, **dict.fromkeys(fields, "/x") | {field: ""})


def test_a_caption_over_two_lines_is_read_whole(tmp_path: Path) -> None:
    """As AudioCaps 2.0 has it; what the speech filter looks at is in the second line."""
    captions = write(
        tmp_path / "train.csv", "audiocap_id,youtube_id,start_time,caption",
        "1,AAAAAAAAAA1,10,a motor hums with faint", "speech in the distance",
        "2,BBBBBBBBBB2,20,rain on a tin roof",
    )  # fmt: skip
    outcomes = list(catalog(dataset="audiocaps", captions=captions).without_audio().read())
    assert [(r.source, r.captions) for r in records(outcomes)] == [
        (f"{captions}:2", ["a motor hums with faint speech in the distance"]),
        (f"{captions}:4", ["rain on a tin roof"]),
    ]
    assert len(outcomes) == 2
