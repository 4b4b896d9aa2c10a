"""Folders of sounds without a list: text beside each sound, or in the folder's name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reading import catalog, read, records, refusals, touch, write

from common.errors import AttuneError
from pipeline.catalogs.base import Refusal


def test_text_beside_each_sound(tmp_path: Path) -> None:
    touch(tmp_path, "s0.wav", "test/s1.wav", "s2.wav", "s3.wav", "s4.wav", "s5.wav", "more/s6.wav")
    write(tmp_path / "s0.txt", "a door", "slams")
    write(tmp_path / "test/s1.txt", "water drips")
    about = {
        "description": "a bass line",
        "keywords": ["bass", "slow"],
        "bpm": 90,
        "start": 1,
        "end": 2,
    }
    write(tmp_path / "s2.json", json.dumps(about))
    write(tmp_path / "s3.json", "{broken")
    (tmp_path / "s4.txt").write_bytes(b"\xff\xfe\xfd")
    write(tmp_path / "notes.txt", "of no sound")
    outcomes = read(dataset="audiofolder", root=tmp_path)
    found = {r.native_id: r for r in records(outcomes)}
    assert {name: (r.captions, r.tags, r.split) for name, r in found.items()} == {
        "s0.wav": (["a door\nslams"], [], "train"), "test/s1.wav": (["water drips"], [], "test"),
        "s2.wav": (["a bass line"], ["bass", "slow"], "train"),
        "s5.wav": ([], [], "train"),  # refused by the text stage
        "more/s6.wav": ([], [], "train"),
    }  # fmt: skip
    assert (found["s2.wav"].start_s, found["s2.wav"].end_s) == (1.0, 2.0)
    assert found["s0.wav"].source == str(tmp_path / "s0.txt")
    broken, undecodable = (o for o in outcomes if isinstance(o, Refusal))
    assert (broken.source, broken.reason) == (str(tmp_path / "s3.json"), "malformed_row")
    assert broken.detail.startswith("not valid JSON: ")
    assert "UTF-16" in undecodable.detail
    made = catalog(dataset="audiofolder", root=tmp_path)
    assert {path.name for path in made.sources()} == {f"s{i}.txt" for i in (0, 1, 4)} | {
        "s2.json", "s3.json",
    }  # fmt: skip
    assert made.unread_columns() == ["bpm"]
    assert len(list(made.without_audio().read())) == 7


def test_the_name_of_the_folder_is_the_tag(tmp_path: Path) -> None:
    touch(tmp_path, "dog_bark/0.wav", "test/church bell/0.wav", "train/dog_bark/1.wav", "top.wav",
          "rain/test/2.wav")  # fmt: skip
    outcomes = read(dataset="audiofolder", root=tmp_path)
    assert {r.native_id: (r.tags, r.split) for r in records(outcomes)} == {
        "dog_bark/0.wav": (["dog bark"], "train"), "top.wav": ([], "train"),
        "test/church bell/0.wav": (["church bell"], "test"),
        "train/dog_bark/1.wav": (["dog bark"], "train"), "rain/test/2.wav": (["rain"], "test"),
    }  # fmt: skip
    assert refusals(outcomes) == []
    assert catalog(dataset="audiofolder", root=tmp_path).sources() == []


@pytest.mark.parametrize(
    "names", [(), ("a.wav", "b.wav"), ("wavs/a.wav", "wavs/b.wav"), ("test/a.wav",)]
)
def test_a_folder_without_text_is_an_error(tmp_path: Path, names: tuple[str, ...]) -> None:
    made = catalog(dataset="audiofolder", root=touch(tmp_path, *names))
    with pytest.raises(AttuneError, match=r"no metadata\.csv .* no NAME\.txt or NAME\.json"):
        list(made.read())
