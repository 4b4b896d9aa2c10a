"""VGG-Sound in both of its forms."""

from __future__ import annotations

from pathlib import Path

import pytest
from reading import catalog, held_out, names, read, records, refusals, touch, write

from common.errors import AttuneError

FULL = (
    "-k_1aB2-x_Y,40,playing hammond organ,train",
    'q7zW-xx_3Zg,30,"bird chirping, tweeting",test',
    "noAudio0000,0,dog barking,test",
    "badStart000,soon,dog barking,test",
    "badSplit000,10,dog barking,fold 1",
    "tooFew00000,10,dog barking",
    "../../etc/x,10,dog barking,train",
)


def test_the_full_list(tmp_path: Path) -> None:
    write(tmp_path / "vggsound.csv", *FULL, end="\r\n")
    audio = touch(tmp_path / "audio", "-k_1aB2-x_Y_000040.wav", "q7zW-xx_3Zg_30.flac")
    outcomes = read(dataset="vggsound", clips=tmp_path / "vggsound.csv", audio=audio)
    first, second = records(outcomes)
    assert names(outcomes) == ["-k_1aB2-x_Y_000040.wav", "q7zW-xx_3Zg_30.flac"]
    assert (first.native_id, first.tags, first.split) == (
        "-k_1aB2-x_Y_40", ["playing hammond organ"], "train",
    )  # fmt: skip
    assert (second.tags, second.split, second.group_id, second.clip, second.stated_s) == (
        ["bird chirping, tweeting"], "test", "youtube:q7zW-xx_3Zg", "youtube:q7zW-xx_3Zg@30", 10.0,
    )  # fmt: skip
    assert refusals(outcomes) == [
        ("3", "missing_audio"), ("4", "malformed_row"), ("5", "malformed_row"),
        ("6", "malformed_row"), ("7", "missing_audio"),
    ]  # fmt: skip
    assert held_out(outcomes) == {"youtube:noAudio0000", "youtube:badStart000"}


def test_the_test_list_has_the_start_in_the_file_name(tmp_path: Path) -> None:
    rows = ("gl_Q-Eij_Kg_000300.mp4,playing hammond organ", "nostart.mp4,dog", "-a_000007.mp4,cat")
    write(tmp_path / "test.csv", *rows)
    audio = touch(tmp_path / "audio", "gl_Q-Eij_Kg.mp4", "-a_7.wav")
    outcomes = read(dataset="vggsound", clips=tmp_path / "test.csv", audio=audio)
    assert [(r.native_id, r.split, r.clip) for r in records(outcomes)] == [
        ("gl_Q-Eij_Kg_300", "test", "youtube:gl_Q-Eij_Kg@300"), ("-a_7", "test", "youtube:-a@7"),
    ]  # fmt: skip
    assert refusals(outcomes) == [("2", "malformed_row")]
    # The same ids in both forms: listed twice, a clip is known to be one.
    full = write(tmp_path / "vggsound.csv", "gl_Q-Eij_Kg,300,playing hammond organ,test")
    (same,) = records(list(catalog(dataset="vggsound", clips=full).without_audio().read()))
    assert same.sample_id == records(outcomes)[0].sample_id


def test_a_header_that_a_copy_has_is_no_row(tmp_path: Path) -> None:
    path = write(tmp_path / "v.csv", "youtube_id,start_seconds,label,split", "a,1,dog,train")
    assert len(list(catalog(dataset="vggsound", clips=path).without_audio().read())) == 1


def test_another_list_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "stat.csv", "ambulance siren,1050,vehicle")
    with pytest.raises(AttuneError, match=r"expected vggsound\.csv .* found 3 columns"):
        list(catalog(dataset="vggsound", clips=path).without_audio().read())


def test_a_path_that_leaves_the_folder_is_refused_without_audio_too(tmp_path: Path) -> None:
    path = write(tmp_path / "v.csv", "../../etc/x,10,dog,train")
    assert refusals(list(catalog(dataset="vggsound", clips=path).without_audio().read())) == [
        ("1", "outside_root")
    ]
