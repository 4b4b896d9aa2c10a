"""Files that are not what they claim: read right, or refused in one line; rows found again."""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import write

from common.errors import AttuneError
from common.tables import MAX_RAW, raw_rows, read_csv, read_json_entries

ROWS = "file_name,text\na.wav,A dog\nb.wav,A cat\n"
COLUMNS = ("file_name", "text")


def parquet_bytes() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"file_name": ["a.wav"], "text": ["A dog"]}), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\n\n", "empty; expected a CSV with columns file_name, text"),
        (gzip.compress(ROWS.encode(), mtime=0), "gzip-compressed; unpack"),
        (b"PK\x03\x04rest", "zip archive or .xlsx"),
        (b"\xd0\xcf\x11\xe0rest", "Excel workbook"),
        (parquet_bytes(), "a Parquet file; expected text"),
        (b"\n <!DOCTYPE html><html>404</html>", "a web page"),
        (b"\xef\xbb\xbf<html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "a WAV file"),
        (ROWS.encode("utf-16-le"), "NUL bytes: binary, or UTF-16 without"),
        ("file_name,text\na.wav,caf\u00e9\n".encode("latin-1"), ":2: byte 0xe9: not UTF-8 text"),
        ("file_name,text\na.wav,\ud55c\uad6d\n".encode("cp949"), ":2: byte 0xc7: not UTF-8 text"),
        (b"file_name,text\na.wav,\xff\xfe\n", r":2: byte 0xff: not UTF-8 text; convert it: iconv"),
        (b'file_name,text\na.wav,"open\n', r":2: not valid CSV: ends inside a quoted field"),
        (b'file_name,text\na.wav,"x"y\n', r":2: not valid CSV: ',' expected"),
        (b'file_name,text\na.wav,"' + b"x" * 140_000, "a quote is not closed"),
        (b"a.wav,A dog\nb.wav,A cat\n", "no column file_name, text; the first line must name"),
        (b"file_name,text,text\n", "names column text twice"),
        (b"file_name,text,caption,caption,,\n", "names column caption twice"),
        (b"file_name,text\n" + b"x" * (17 << 20), "a line of over 16777216 characters"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(AttuneError, match=message) as error:
        list(read_csv(path, COLUMNS))
    assert "list.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_and_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AttuneError, match="expected a file, found a folder"):
        list(read_csv(tmp_path, COLUMNS))
    with pytest.raises(AttuneError, match="no such file"):
        list(read_csv(tmp_path / "list.csv", COLUMNS))
    with pytest.raises(AttuneError, match="found a pipe or device"):
        list(read_csv(Path("/dev/null"), COLUMNS))


@pytest.mark.parametrize(
    "content",
    [
        ROWS.encode(),
        ROWS.encode("utf-8-sig"),
        ROWS.encode("utf-16"),
        ROWS.replace("\n", "\r\n").encode(),
        ROWS.replace("\n", "\r").encode(),
        ROWS.replace(",", ";").encode(),
        ROWS.replace(",", "\t").encode(),
        ROWS.replace(",", "|").encode(),
        ROWS.replace("file_name,text", 'file_name ,"text"').encode(),
        ROWS.rstrip("\n").encode(),
    ],
)
def test_other_forms_of_the_same_rows_read_right(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    rows = list(read_csv(path, COLUMNS))
    assert [row.values for row in rows] == [
        {"file_name": "a.wav", "text": "A dog"}, {"file_name": "b.wav", "text": "A cat"},
    ]  # fmt: skip
    assert [row.source for row in rows] == [f"{path}:2", f"{path}:3"]


@pytest.mark.parametrize(
    ("lines", "rows"),
    [
        (
            ["1,a,10,a motor hums with faint", "speech in the distance", "2,b,20,rain"],
            ["a motor hums with faint speech in the distance", "rain"],
        ),
        (
            ["1,a,10,a motor hums", "and, in the distance,", "speech", "2,b,20,rain"],
            ["a motor hums and, in the distance, speech", "rain"],
        ),
        (["1,a,10,rain", "falls"], ["rain falls"]),
        # A row that lacks fields is none of the text.
        (["1,a,10,rain", "2,b,20", "3,c,30,hail"], ["rain", "!", "hail"]),
        (["1,a,10,rain", "b.wav", "3,c,30,hail"], ["rain", "!", "hail"]),
        (['1,a,10,"rain"', "falls"], ["rain", "!"]),
        (["1,a,10", "rain"], ["!", "!"]),
        # Either could be meant: no half text passes.
        (["1,a,10,rain", "2, or 3 drops", "3,c,30,hail"], ["!", "!", "hail"]),
        (["1,a,10,rain", "wind,hail"], ["!", "!"]),
        (["1,a,10,rain", "", "1 row in all"], ["!", "!"]),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_text_over_several_lines_is_joined_or_refused(
    tmp_path: Path, lines: list[str], rows: list[str], end: str
) -> None:
    """`!`: the row has an error."""
    path = write(
        tmp_path / "list.csv", "audiocap_id,youtube_id,start_time,caption", *lines, end=end
    )
    found = list(read_csv(path, ("youtube_id", "caption")))
    assert ["!" if row.error else row.values["caption"] for row in found] == rows
    assert found[0].source == f"{path}:2"


def test_lines_are_not_joined_if_the_last_column_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", "file_name,caption,split", "a,rain,train", "falls")
    assert [bool(row.error) for row in read_csv(path, ("caption",))] == [False, True]


def test_a_nul_byte_far_down_only_spoils_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", "file_name,text", *["a.wav,dog"] * 200, "b\0.wav,cat")
    assert Counter(row.error for row in read_csv(path, COLUMNS)) == {"": 200, "has a NUL byte": 1}


def test_raw_rows_of_csv_and_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(
        b'file_name,text\r\na.wav,"two\r\nlines, ""quoted"""\r\nb.wav,5" pipe\r\n'
        + b"c.wav," + b"x" * 5000 + b"\r\nd.wav,\xff\r\n" + b'e.wav,"open\r\nf.wav,A cat\r\n'
    )  # fmt: skip
    found = raw_rows(path, [2, 4, 5, 6, 7, 8, 99, 0])
    assert found[2] == 'a.wav,"two\r\nlines, ""quoted"""'
    assert found[4] == 'b.wav,5" pipe'
    assert len(found[5]) == MAX_RAW
    assert found[6] == "d.wav,\ufffd"
    assert found[7].startswith('e.wav,"open')
    assert found[8] == "f.wav,A cat"
    assert set(found) == {2, 4, 5, 6, 7, 8}
    lines = write(tmp_path / "list.jsonl", '{"a": "x", "b": "\\","}', '{"a": 2}')
    assert raw_rows(lines, [1, 2]) == {1: '{"a": "x", "b": "\\","}', 2: '{"a": 2}'}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_raw_rows_of_other_forms(tmp_path: Path, encoding: str, separator: str, end: str) -> None:
    rows = ["file_name,text", 'a.wav,"two\nlines"', "b.wav,A dog"]
    path = tmp_path / "list.csv"
    path.write_bytes(end.join(rows).replace(",", separator).encode(encoding))
    assert raw_rows(path, [1, 2, 4]) == {
        number: row.replace(",", separator) for number, row in zip((1, 2, 4), rows, strict=True)
    }


def test_raw_rows_of_parquet_and_json(tmp_path: Path) -> None:
    (tmp_path / "list.parquet").write_bytes(parquet_bytes())
    assert raw_rows(tmp_path / "list.parquet", [1, 2]) == {
        1: '{"file_name": "a.wav", "text": "A dog"}'
    }
    (tmp_path / "list.json").write_text(json.dumps({"data": [{"id": "é"}, "\ud800"]}))
    assert raw_rows(tmp_path / "list.json", [1, 2]) == {1: '{"id": "é"}', 2: '"?"'}
    assert raw_rows(tmp_path / "a.wav", [0]) == {}  # a file of a tree has no rows


def test_entries_that_are_no_objects_keep_their_place(tmp_path: Path) -> None:
    path = write(tmp_path / "list.json", '[{"a": 1}, 2, {"b": "\\ud800"}]')
    rows = list(read_json_entries(path))
    assert [(row.source, bool(row.error)) for row in rows] == [
        (f"{path}:1", False), (f"{path}:2", True), (f"{path}:3", True),
    ]  # fmt: skip
