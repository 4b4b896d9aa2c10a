"""Values of catalogs: texts, times and splits as people write them; what is none is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reading import catalog, read, records, refusals, touch, write

from pipeline.catalogs.base import Refusal
from pipeline.catalogs.values import Texts, seconds, span, split_of, text, texts_of


@pytest.mark.parametrize(
    ("value", "captions", "tags"),
    [
        ("A dog barks ", ["A dog barks"], []),
        (["Dog", "Bark"], [], ["Dog", "Bark"]),
        ("['Dog', 'Bark']", [], ["Dog", "Bark"]),
        ('["Dog", "Bark"]', [], ["Dog", "Bark"]),
        (["A dog barks", "Rain"], ["A dog barks", "Rain"], []),
        (["a drone"], ["a drone"], []),
        (["Dog", None, "nan"], [], ["Dog"]),
        ("[laughs] a man", ["[laughs] a man"], []),
        ("{", ["{"], []),
        ("808 kick", ["808 kick"], []),
        (None, [], []),
        ("", [], []),
        ([], [], []),
    ],
)
def test_what_a_caption_column_holds(value: object, captions: list[str], tags: list[str]) -> None:
    assert texts_of({"caption": value}, ("caption",)) == Texts(captions, tags)


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        ("dog; bark", ["dog", "bark"]),
        (["dog", "bark;"], ["dog", "bark;"]),
        ("['dog', 'bark']", ["dog", "bark"]),
        ("808;kick", ["808", "kick"]),
        (["808"], ["808"]),
    ],
)
def test_what_a_tag_column_holds(value: object, tags: list[str]) -> None:
    assert texts_of({"tags": value}, (), {"tags": ";"}) == Texts([], tags)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (3, "3 is a number, no text; a class number needs its name"),
        ("3", "'3' is a number"),
        ("-1.5", "'-1.5' is a number"),
        (True, "True is a number"),
        ([3, 5], "[3, 5] is a number"),
        ("[3, 5]", "[3, 5] is a number"),
        ("nan", "'nan' is no text"),
        (" None", "' None' is no text"),
        ("NULL", "'NULL' is no text"),
        ("<NA>", "'<NA>' is no text"),
    ],
)
def test_a_value_that_is_no_text_is_named(value: object, problem: str) -> None:
    for columns in (((), {"label": ";"}), (("label",), {})):
        found = texts_of({"label": value, "other": "dog"}, *columns)
        assert found.problem.startswith(f"label: {problem}")
        assert (found.captions, found.tags) == ([], [])
    # Beside a caption the number of the class does no harm.
    assert texts_of({"label": value, "text": "A dog"}, ("text",), {"label": ";"}) == Texts(
        ["A dog"]
    )


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"en": "a snare"}, "a mapping: {'en': 'a snare'}"),
        ("{'en': 'a snare'}", "a mapping: {'en': 'a snare'}"),
        ([["a"], ["b"]], "a list: ['a']"),
        (b"snare", "a bytes: b'snare'"),
    ],
)
def test_a_value_that_cannot_be_text_is_an_error(value: object, kind: str) -> None:
    for columns in ((("text",),), ((), {"text": ";"})):
        with pytest.raises(ValueError) as error:
            texts_of({"text": value, "caption": "A dog"}, *columns)
        assert str(error.value) == f"text: expected a text, found {kind}"


def test_every_reader_refuses_what_is_no_text(tmp_path: Path) -> None:
    """In CSV and JSON, with the column's name; the other rows are read."""
    bad = ("{'en': 'a snare'}", "3", "nan")
    folder = touch(tmp_path / "folder", *(f"{i}.wav" for i in range(4)))
    write(folder / "metadata.jsonl", *(
        json.dumps({"file_name": f"{i}.wav", "caption": value})
        for i, value in enumerate(({"en": "a snare"}, 3, "nan", "A dog"))
    ))  # fmt: skip
    write(tmp_path / "audiocaps.csv", "audiocap_id,youtube_id,start_time,caption",
          *(f"{i},id{i},{i},{value}" for i, value in enumerate((*bad, "A dog"))))  # fmt: skip
    write(tmp_path / "bbc.csv", "location,description,secs",
          *(f"{i}.wav,{value},1" for i, value in enumerate((*bad, "A dog"))))  # fmt: skip
    write(tmp_path / "clotho.csv", "file_name," + ",".join(f"caption_{k}" for k in range(1, 6)),
          *(f"{i}.wav,{value},,,," for i, value in enumerate((*bad, "A dog"))))  # fmt: skip
    write(tmp_path / "vggsound.csv", *(f"id{i},{i},{v},test" for i, v in enumerate((*bad, "dog"))))
    write(tmp_path / "music.jsonl", *(
        json.dumps({"path": f"{i}.wav", "description": value})
        for i, value in enumerate(({"en": "a snare"}, 3, "nan", "A tune"))
    ))  # fmt: skip
    entries = [{"id": str(i), "caption": v} for i, v in enumerate(({}, 3, "nan", "A dog"))]
    (tmp_path / "wavcaps.json").write_text(json.dumps(entries))
    lists = {
        "audiofolder": {"root": folder},
        "audiocaps": {"captions": tmp_path / "audiocaps.csv"},
        "bbc": {"sounds": tmp_path / "bbc.csv"},
        "clotho": {"captions": tmp_path / "clotho.csv"},
        "vggsound": {"clips": tmp_path / "vggsound.csv"},
        "music": {"catalog": tmp_path / "music.jsonl"},
        "wavcaps": {"captions": tmp_path / "wavcaps.json", "source": "freesound"},
    }
    for dataset, keys in lists.items():
        outcomes = list(catalog(dataset=dataset, **keys).without_audio().read())
        assert len(records(outcomes)) == 1, dataset
        assert [reason for _, reason in refusals(outcomes)] == ["malformed_row"] * 3, dataset
        details = [o.detail.partition(":")[0] for o in outcomes if isinstance(o, Refusal)]
        assert len(set(details)) == 1 and details[0] in (
            "caption", "description", "caption_1", "label",
        ), dataset  # fmt: skip


def test_one_text() -> None:
    values = {"a": 311, "b": ["CC0", None, "MIT"], "c": float("nan"), "d": "None", "e": {"x": 1}}
    assert [text(values, name) for name in "abcdx"] == ["311", "CC0, MIT", None, None, None]
    with pytest.raises(ValueError, match=r"^e: expected a text, found a mapping"):
        text(values, "e")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (4, 4.0), ("4.5", 4.5), ("1:02", 62.0), ("1:02:03.5", 3723.5), ("0:0:7", 7.0),
        ("1:75", None), ("1:75:00", None), ("1:2:3:4", None), ("soon", None), (-1, None),
        ("nan", None), (True, None), ([4], None), (None, None),
    ],
)  # fmt: skip
def test_times(value: object, found: float | None) -> None:
    assert seconds(value) == found


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"start": "4", "end": "8"}, (4.0, 8.0)),
        ({"start_time": "0:04", "end_time": "1:00:00"}, (4.0, 3600.0)),
        ({"start_s": 0, "end_s": 2.5}, (0.0, 2.5)),
        ({"offset": 4, "duration": 2}, (4.0, 6.0)),
        ({"start": 4, "duration": 2, "end": ""}, (4.0, 6.0)),
        ({"duration": 2}, (None, None)),
        ({"start": "", "end": None, "duration": 9}, (None, None)),
        ({"start": 1, "end": 3, "duration": 9}, (1.0, 3.0)),
    ],
)
def test_spans(values: dict[str, object], found: tuple[float | None, float | None]) -> None:
    assert span(values) == found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": 4, "end": ""}, "end: no value, but start is 4 s; a part of a file needs both"),
        ({"end_time": 4}, "start: no value, but end_time is 4 s"),
        ({"offset": 4}, "duration: no value, but offset is 4 s"),
        ({"start": 4, "end": 2}, "end: the part ends at 2 s, but it starts at 4 s"),
        ({"start": 4, "end": 4}, "end: the part ends at 4 s, but it starts at 4 s"),
        ({"start_s": "soon", "end_s": 2}, "start_s: expected seconds or h:m:s, found 'soon'"),
        ({"start": 1, "end": [2]}, r"end: expected seconds or h:m:s, found \[2\]"),
    ],
)
def test_a_span_that_is_none_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        span(values)


@pytest.mark.parametrize("dataset", ["audiofolder", "music"])
def test_parts_of_a_file_are_clips_of_one_group(tmp_path: Path, dataset: str) -> None:
    touch(tmp_path, "long.wav")
    name, about = {"audiofolder": ("file_name", "text"), "music": ("path", "description")}[dataset]
    path = write(
        tmp_path / "metadata.csv", f"{name},start,end,{about}", "long.wav,0,4,a kettle",
        "long.wav,0:04,8.5,a latch", "long.wav,9,8,a fan", "long.wav,,,all of it",
    )  # fmt: skip
    keys = {"root": tmp_path} if dataset == "audiofolder" else {"catalog": path, "audio": tmp_path}
    outcomes = read(dataset=dataset, **keys)
    found = records(outcomes)
    assert [(r.start_s, r.end_s, r.stated_s, r.captions) for r in found] == [
        (0.0, 4.0, 4.0, ["a kettle"]), (4.0, 8.5, 4.5, ["a latch"]),
        (None, None, None, ["all of it"]),
    ]  # fmt: skip
    assert len({r.sample_id for r in found}) == 3
    assert {r.group_id for r in found} == {f"{dataset}:long.wav"}
    (refused,) = [o for o in outcomes if isinstance(o, Refusal)]
    assert refused.detail == "end: the part ends at 8 s, but it starts at 9 s"


def test_splits_in_other_words() -> None:
    for split, words in {
        "train": ("train", "Training ", "development"),
        "valid": ("VAL", "valid", "validation", "dev"),
        "test": ("test", "Testing", "eval", "EVALUATION"),
        None: ("", "fold 1", 3, None),
    }.items():
        assert {split_of(word) for word in words} == {split}
    assert split_of("Development", beside_train=True) == "valid"


def test_readers_know_other_words_for_splits(tmp_path: Path) -> None:
    rows = ("a.wav,A dog,Development", "b.wav,A cat, validation ", "c.wav,A cow,evaluation")
    more = ("d.wav,A pig,Training", "e.wav,A hen,fold 1")
    for some, expected in ((rows, ["train", "valid", "test"]),
                           ((*rows, *more), ["valid", "valid", "test", "train"])):  # fmt: skip
        write(tmp_path / "metadata.csv", "file_name,text,split", *some)
        write(tmp_path / "music.csv", "path,description,split", *some)
        for keys in ({"dataset": "audiofolder", "root": tmp_path},
                     {"dataset": "music", "catalog": tmp_path / "music.csv"}):  # fmt: skip
            outcomes = list(catalog(**keys).without_audio().read())
            assert [record.split for record in records(outcomes)] == expected
            assert len(refusals(outcomes)) == len(some) - len(expected)
    clips = write(tmp_path / "vggsound.csv", "id1,1,dog,Training", "id2,2,dog,testing")
    found = records(list(catalog(dataset="vggsound", clips=clips).without_audio().read()))
    assert [record.split for record in found] == ["train", "test"]
    clips = write(tmp_path / "dev.csv", "fname,labels,mids,split", "1,Dog,/m/1,Training",
                  "2,Dog,/m/1,validation", "3,Dog,/m/1,dev")  # fmt: skip
    outcomes = list(catalog(dataset="fsd50k", clips=clips).without_audio().read())
    assert [record.split for record in records(outcomes)] == ["train", "valid"]


def test_folders_named_for_splits_in_any_case(tmp_path: Path) -> None:
    for folder in ("Training", "development", "TEST", "other"):
        touch(tmp_path, f"{folder}/a.wav")
        write(tmp_path / folder / "metadata.csv", "file_name,text", "a.wav,A dog")
    found = records(read(dataset="audiofolder", root=tmp_path))
    assert {r.native_id: r.split for r in found} == {
        "Training/a.wav": "train", "development/a.wav": "valid", "TEST/a.wav": "test",
    }  # fmt: skip
