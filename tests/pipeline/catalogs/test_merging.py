"""Several rows of one clip: one record with all captions and tags, or a refused row."""

from __future__ import annotations

from pathlib import Path

import pytest
from reading import merged, read, records, touch, write

from pipeline.catalogs.base import Outcome, Refusal

COLUMNS = {
    "audiofolder": "file_name,text,tags,split,group,license",
    "music": "path,description,keywords,split,artist,license",
}


def outcomes_of(dataset: str, folder: Path, *rows: str) -> list[Outcome]:
    touch(folder, "a.wav", "b.wav")
    path = write(folder / "metadata.csv", COLUMNS[dataset], *rows)
    keys = {"root": folder} if dataset == "audiofolder" else {"catalog": path, "audio": folder}
    return read(dataset=dataset, **keys)


@pytest.mark.parametrize("dataset", COLUMNS)
def test_rows_of_one_clip_are_its_captions(tmp_path: Path, dataset: str) -> None:
    outcomes = outcomes_of(
        dataset, tmp_path, "a.wav,one,x,test,,", "b.wav,other,,train,,",
        "./a.wav,two,y;x,test,,CC0",
        "a.wav,one,,test,,",
    )  # fmt: skip
    other, first = records(outcomes)
    assert (first.captions, first.tags, first.license, first.split) == (
        ["one", "two"], ["x", "y"], "CC0", "test",
    )  # fmt: skip
    assert first.source == f"{tmp_path}/metadata.csv:2"
    assert other.captions == ["other"]
    assert merged(outcomes) == ["4", "5"]
    assert len(outcomes) == 4


@pytest.mark.parametrize("dataset", COLUMNS)
def test_a_row_that_contradicts_the_first_is_refused(tmp_path: Path, dataset: str) -> None:
    outcomes = outcomes_of(
        dataset, tmp_path, "a.wav,one,,train,,", "a.wav,two,,train,Ann,", "a.wav,three,,test,Ann,",
        "a.wav,four,,test,Bob,", "a.wav,,,,,",
    )  # fmt: skip
    (record,) = records(outcomes)
    assert (record.captions, record.split) == (["one", "two"], "test")  # not trained on
    assert record.group_id == ("Ann" if dataset == "audiofolder" else "artist:ann")
    first = f"{tmp_path}/metadata.csv:2"
    bob = "Bob" if dataset == "audiofolder" else "artist:bob"
    assert [o.detail for o in outcomes if isinstance(o, Refusal)] == [
        f"split: 'test', but {first} says 'train' for the same clip",
        f"group: {bob!r}, but {first} says {record.group_id!r} for the same clip",
        f"split: 'train', but {first} says 'test' for the same clip",
    ]


def test_rows_of_one_part_and_of_other_spellings_are_merged(tmp_path: Path) -> None:
    touch(tmp_path, "caf\u00e9 1.wav")
    write(
        tmp_path / "metadata.csv", "file_name,start,end,text", "caf\u00e9 1.wav,0,1,a",
        "cafe\u0301 1.wav,0,1.0,b", "caf\u00e9%201.wav ,1,2,c",
    )  # fmt: skip
    outcomes = read(dataset="audiofolder", root=tmp_path)
    assert {r.start_s: r.captions for r in records(outcomes)} == {0.0: ["a", "b"], 1.0: ["c"]}
    assert {r.native_id for r in records(outcomes)} == {"caf\u00e9 1.wav"}
