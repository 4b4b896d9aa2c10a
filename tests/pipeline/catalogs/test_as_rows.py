"""The rows of one list as Arrow tables: what a spreadsheet broke is refused, rows found again."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from reading import catalog, outcomes_of, read, records, refusals, write

from pipeline.catalogs import as_rows, columnar
from pipeline.catalogs.as_rows import raw_of, tables

AUDIOSET = (
    "# YTID, start_seconds, end_seconds, positive_labels",
    '-abcdefghij, 0.000, 10.000, "/m/a,/m/b"',
    'bcdefghijkl, 30, 40, "/m/b"',
)


@pytest.mark.parametrize(
    ("lines", "accepted"),
    [
        (AUDIOSET, ["2", "3"]),
        (AUDIOSET[1:], ["1", "2"]),  # without the comments
        (("YTID,start_seconds,end_seconds,positive_labels", *AUDIOSET[1:]), ["2", "3"]),
        (('"# num_ytids=2, num_segs=2",,,', *AUDIOSET[1:]), ["2", "3"]),
        ((AUDIOSET[0], '#NAME?,0,10,"/m/a,/m/b"', AUDIOSET[2]), ["3"]),
        ((AUDIOSET[0], "-abcdefghij,0,10,/m/a,/m/b", AUDIOSET[2]), ["3"]),
        ((AUDIOSET[0], '-abcdefghij,0,10," ""/m/a",/m/b"', AUDIOSET[2]), ["3"]),
        (tuple(line.replace(", ", ";") for line in AUDIOSET[1:]), []),
    ],
)
def test_segment_lists_after_a_spreadsheet(
    tmp_path: Path, lines: tuple[str, ...], accepted: list[str]
) -> None:
    """Rows that a spreadsheet left whole are read; rows that it broke are refused by line."""
    segments = write(tmp_path / "segments.csv", *lines, end="\r\n")
    labels = write(tmp_path / "labels.csv", "index,mid,display_name", "0,/m/a,A", "1,/m/b,B")
    made = catalog(dataset="audioset", segments=segments, class_labels=labels).without_audio()
    outcomes = outcomes_of(made)
    assert [record.source.rpartition(":")[2] for record in records(outcomes)] == accepted
    assert len(outcomes) == 2
    assert {reason for _, reason in refusals(outcomes)} <= {"malformed_row"}


CLIPS = 40


def long_lists(folder: Path) -> dict[str, dict[str, object]]:
    """Catalogs of which nearly every row is refused; AudioCaps' also has malformed rows."""
    entries = [{"id": str(i), "caption": f"A dog, {i}"} for i in range(CLIPS)]
    (folder / "indented.json").write_text(json.dumps({"data": entries}, indent=1))
    (folder / "one_line.json").write_text(json.dumps({"data": entries}))
    lines = [f"{i},id{i:08},{'x' if i % 7 == 0 else i},A dog{' ' * i * 70}" for i in range(CLIPS)]
    header = "audiocap_id,youtube_id,start_time,caption"
    write(folder / "audiocaps.csv", header, *lines, end="\r\n")
    freesound = {"dataset": "wavcaps", "source": "freesound", "name": "w"}
    return {
        "indented": freesound | {"captions": folder / "indented.json"},
        "one line": freesound | {"captions": folder / "one_line.json"},
        "audiocaps": {"dataset": "audiocaps", "captions": folder / "audiocaps.csv"},
    }


@pytest.mark.parametrize("kind", ["indented", "one line", "audiocaps"])
def test_raw_rows_of_long_lists_are_those_of_short_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    values = long_lists(tmp_path)[kind]
    (tmp_path / "audio").mkdir()
    (table,) = tables(read(**values, audio=tmp_path / "audio"), "list")
    refused = pa.array([i for i, there in enumerate(table["line"].to_pylist()) if there])
    short = raw_of(table, refused)
    assert len(short) == CLIPS and not short.null_count
    monkeypatch.setattr(as_rows, "_MANY", 3)
    monkeypatch.setattr(columnar, "PIECE_BYTES", 3000)
    assert raw_of(table, refused).to_pylist() == short.to_pylist()
