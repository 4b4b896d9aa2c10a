"""Leakage: a clip that is held out stays out of training under every name that it has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from reading import catalog, write

from common.errors import AttuneError
from common.prompts import PromptForm
from pipeline.catalogs.base import CatalogEntry
from pipeline.plan.decide import Decision, decide
from pipeline.text.captions import TextRules


def decided(*catalogs: CatalogEntry) -> Decision:
    return decide(catalogs, rules=TextRules(PromptForm("plain")))


def fates(found: Decision) -> dict[str, str]:
    """{native id: reason of refusal, or "" if it is accepted}, without held-out rows."""
    names = found.rows.select(["native_id", "reason"]).to_pylist()
    return {row["native_id"]: row["reason"] or "" for row in names if row["reason"] != "held_out"}


def music(path: Path, names: Sequence[str], audio: Path | None, **more: Any) -> CatalogEntry:
    rows = [
        json.dumps({"path": name, "description": f"a pluck {i}"}) for i, name in enumerate(names)
    ]
    return catalog(dataset="music", catalog=write(path, *rows), audio=audio, **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`audio/` with a.wav to c.wav; `linked` leads to it; `audio/link.wav` leads to a.wav."""
    (tmp_path / "audio").mkdir()
    for name in "abc":
        (tmp_path / "audio" / f"{name}.wav").touch()
    (tmp_path / "linked").symlink_to(tmp_path / "audio")
    (tmp_path / "audio" / "link.wav").symlink_to("a.wav")
    return tmp_path


@pytest.mark.parametrize("looks", [True, False], ids=["audio", "no-audio"])
@pytest.mark.parametrize(
    ("name", "audio"),
    [
        ("a.wav", "audio"),
        ("x/../a.wav", "audio"),
        ("a.wav", "linked"),
        ("link.wav", "audio"),
        ("x\\..\\a.wav ", "audio"),
        ("A.WAV", "audio"),
        ("{root}/audio/a.wav", "audio"),
        ("{root}/linked/a.wav", None),
        ("audio/a.wav", ""),
    ],
)
def test_a_held_out_list_without_groups_holds_its_files_out(
    folder: Path, name: str, audio: str | None, looks: bool
) -> None:
    where = None if audio is None else folder / audio
    test = music(
        folder / "test.jsonl", [name.format(root=folder)], where, name="held", role="hold_out"
    )
    train = music(folder / "train.jsonl", ["a.wav", "b.wav", "c.wav"], folder / "audio")
    found = decided(*(one if looks else one.without_audio() for one in (train, test)))
    assert fates(found) == {"a.wav": "leakage", "b.wav": "", "c.wav": ""}
    assert found.leakage == {"music <- held hold_out": 1}
    (detail,) = filter(None, found.rows["detail"].to_pylist())
    assert detail.endswith(f"a.wav is linked to a clip in held hold_out ({folder}/test.jsonl:1)")


def test_a_group_is_one_in_every_unicode_form(folder: Path) -> None:
    rows = {"train": ("a.wav", "Zo\u00eb"), "test": ("b.wav", "Zoe\u0308")}
    made = []
    for split, (name, group) in rows.items():
        (folder / split).mkdir()
        (folder / split / name).touch()
        write(folder / split / "metadata.csv", "file_name,group,text", f"{name},{group},A pluck")
        made.append(catalog(dataset="audiofolder", root=folder / split, split=split, name=split))
    assert fates(decided(*made)) == {"a.wav": "leakage", "b.wav": ""}


@pytest.mark.parametrize("looks", [True, False], ids=["audio", "no-audio"])
def test_equal_names_in_two_folders_are_two_clips(folder: Path, looks: bool) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "a.wav").touch()
    test = music(folder / "test.jsonl", ["a.wav"], folder / "other", name="held", role="hold_out")
    train = music(folder / "train.jsonl", ["a.wav"], folder / "audio")
    assert fates(decided(train if looks else train.without_audio(), test)) == {"a.wav": ""}


def test_a_plain_folder_is_held_out_of_a_list_of_its_files(folder: Path) -> None:
    write(folder / "audio" / "metadata.csv", "file_name,text", "a.wav,A pluck", "b.wav,A,?")
    train = music(folder / "train.jsonl", ["a.wav", "b.wav", "c.wav"], folder / "linked")
    test = catalog(dataset="audiofolder", root=folder / "audio", split="test")
    assert decided(train, test).leakage == {
        "music <- audiofolder test": 2
    }  # a row that is damaged too


def test_a_file_known_by_its_stem_is_the_same_file(folder: Path) -> None:
    """FSD50K's list has no extensions; held out, its folder is not looked at."""
    dev = write(folder / "eval.csv", "fname,labels,mids", "7,Rain,/m/a", "8,Rain,/m/a")
    (folder / "audio" / "7.wav").touch()
    train = music(folder / "train.jsonl", ["7.wav", "c.wav"], folder / "audio")
    test = catalog(dataset="fsd50k", clips=dev, audio=folder / "linked", role="hold_out")
    assert fates(decided(train, test)) == {"7.wav": "leakage", "c.wav": ""}


@pytest.mark.parametrize("known", [(), ("train",), ("test",), ("train", "test")])
def test_a_clotho_name_in_two_splits_is_one_clip_whichever_has_metadata(
    tmp_path: Path, known: tuple[str, ...]
) -> None:
    header = "file_name," + ",".join(f"caption_{k}" for k in range(1, 6))
    path = write(tmp_path / "captions.csv", header, "x.wav,a,b,c,d,e")
    more = write(tmp_path / "metadata.csv", "file_name,keywords,sound_id,license", "x.wav,,7,")
    both = [
        catalog(
            dataset="clotho", captions=path, split=split, metadata=more if split in known else None
        ).without_audio()
        for split in ("train", "test")
    ]
    assert fates(decided(*both)) == {"train/x.wav": "leakage", "test/x.wav": ""}


YOUTUBE = ("#NAME?", "1.23E+11", "05-Mar", "", '"x, 30, 40, ""/m/a"""')
CLOTHO = "file_name," + ",".join(f"caption_{k}" for k in range(1, 6))
DAMAGED = [
    *(("audioset", "segments", "# x", f'{i}, 0, 10, "/m/a"', "test") for i in YOUTUBE[:4]),
    ("audioset", "segments", "# x", YOUTUBE[4], "valid"),
    *(("audiocaps", "captions", "a,youtube_id,start_time,caption", f"1,{i},5,Rain", "test")
      for i in (*YOUTUBE[:4], "Yabcdefghijk", "https://youtu.be/abcdefghijk")),
    ("audioset", "segments", "# x", 'abcdefghijk.wav, 0, 10, "/m/a"', "test"),
    ("vggsound", "clips", "abcdefghijk,5,Rain,test", "Yabcdefghijk,5,Rain,test", None),
    ("vggsound", "clips", "abcdefghijk,5,Rain,test", "#NAME?,5,Rain,test", None),
    ("fsd50k", "clips", "fname,labels,mids", "1.23E+05,Rain,/m/a", None),
    ("bbc", "sounds", "location,description,CDNumber", "#NAME?,Rain,", "test"),
    ("clotho", "captions", CLOTHO, "#NAME?,a,b,c,d,e", "test"),
]  # fmt: skip


@pytest.mark.parametrize("role", ["encode", "hold_out"])
@pytest.mark.parametrize(("dataset", "key", "header", "row", "split"), DAMAGED)
def test_a_list_that_lost_ids_in_a_spreadsheet_is_an_error_if_it_holds_out(
    tmp_path: Path, dataset: str, key: str, header: str, row: str, split: str | None, role: str
) -> None:
    path = write(tmp_path / "list.csv", header, row, row)
    more: dict[str, Any] = {"split": split} if split else {}
    if dataset == "audioset":
        more["class_labels"] = write(tmp_path / "labels.csv", "index,mid,display_name", "0,/m/a,R")
    if dataset == "clotho":
        more["metadata"] = write(tmp_path / "more.csv", "file_name,keywords,license", "x,,")
    made = catalog(dataset=dataset, role=role, **{key: path}, **more).without_audio()
    with pytest.raises(AttuneError) as error:
        decided(made)
    assert str(error.value).startswith(f"{path}:2: ")
    assert f"; 2 rows of {path} have no usable id, so the clips that they" in str(error.value)
    reasons = "a spreadsheet saved this file", ": no id;", "is no YouTube id"
    assert sum(reason in str(error.value) for reason in reasons) == 1


def test_a_damaged_row_with_an_id_holds_its_clip_out(tmp_path: Path) -> None:
    labels = write(tmp_path / "labels.csv", "index,mid,display_name", "0,/m/a,Rain", "1,/m/b,Dog")
    good = write(tmp_path / "train.csv", *(f'{i}, 0.0, 10.0, "/m/a,/m/b"' for i in "wxyz"))
    rows = ("x,0,10,/m/a,/m/b", 'y,0,10," ""/m/a"', "w,1-Mar,10,/m/a")
    bad = write(tmp_path / "test.csv", *rows)
    train, test = (
        catalog(dataset="audioset", segments=path, class_labels=labels, split=split).without_audio()
        for path, split in ((good, "train"), (bad, "test"))
    )
    found = decided(train, test)
    assert found.leakage == {"audioset <- audioset test": 3}
    details = found.rows["detail"].to_pylist()[4:]
    assert (
        details[0]
        == "expected 4 fields, found 5: perhaps a spreadsheet spread the labels over columns"
    )
    assert details[1] == "label ' \"/m/a' has changed quotes: a spreadsheet saved this file"


def test_a_held_out_list_of_tracks_says_what_it_needs(folder: Path) -> None:
    test = music(folder / "test.jsonl", ["a.wav"], None, role="hold_out")
    with pytest.raises(AttuneError, match=r"test\.jsonl:1: 'a\.wav' has no artist.*add audio: "):
        decided(music(folder / "train.jsonl", ["a.wav"], folder / "audio", name="b"), test)
