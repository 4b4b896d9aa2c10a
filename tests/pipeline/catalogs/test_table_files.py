"""Files that are not what they claim: read right, or told in one line; rows found again."""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reading import catalog, records, write

from common.errors import AttuneError
from pipeline.catalogs.tables import MAX_RAW, raw_rows, read_csv, read_json_entries, read_jsonl

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
        (gzip.compress(ROWS.encode()), "gzip-compressed; unpack"),
        (b"PK\x03\x04rest", "zip archive or .xlsx"),
        (b"\xd0\xcf\x11\xe0rest", "Excel workbook"),
        (parquet_bytes(), "a Parquet file; expected text"),
        (b"\n <!DOCTYPE html><html>404</html>", "a web page"),
        (b"\xef\xbb\xbf<html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "a WAV file"),
        (ROWS.encode("utf-16-le"), "NUL bytes: binary, or UTF-16 without"),
        (b"file_name,text\na.wav,\xff\xfe\n", r":2: byte 0xff: not UTF-8 text; convert it: iconv"),
        (b'file_name,text\na.wav,"open\n', r":2: not valid CSV: ends inside a quoted field"),
        (b'file_name,text\na.wav,"x"y\n', r":2: not valid CSV: ',' expected"),
        (b'file_name,text\na.wav,"' + b"x" * 140_000, "a quote is not closed"),
        (b"a.wav,A dog\nb.wav,A cat\n", "no column file_name, text; the first line must name"),
        (b"file_name,text,text\n", "column text is there twice"),
        (b"file_name,text\n" + b"x" * (17 << 20), "a line of over 16777216 characters"),
    ],
)
def test_another_file_is_told_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(AttuneError, match=message) as error:
        list(read_csv(path, COLUMNS))
    assert "list.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(AttuneError, match="expected a file, found a folder"):
        list(read_csv(tmp_path, COLUMNS))
    with pytest.raises(AttuneError, match="no such file"):
        list(read_csv(tmp_path / "list.csv", COLUMNS))
    with pytest.raises(AttuneError, match="found a pipe or device"):
        list(read_csv("/dev/null", COLUMNS))


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


def test_a_nul_byte_far_down_spoils_its_row_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", "file_name,text", *["a.wav,dog"] * 200, "b\0.wav,cat")
    assert Counter(row.error for row in read_csv(path, COLUMNS)) == {"": 200, "holds a NUL byte": 1}


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


def test_raw_rows_of_parquet_and_json(tmp_path: Path) -> None:
    (tmp_path / "list.parquet").write_bytes(parquet_bytes())
    assert raw_rows(tmp_path / "list.parquet", [1, 2]) == {
        1: '{"file_name": "a.wav", "text": "A dog"}'
    }
    (tmp_path / "list.json").write_text(json.dumps({"data": [{"id": "é"}, "\ud800"]}))
    assert raw_rows(tmp_path / "list.json", [1, 2]) == {1: '{"id": "é"}', 2: '"?"'}
    assert raw_rows(tmp_path / "a.wav", [0]) == {}  # a file of a tree has no rows


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
IDS = st.from_regex(r"[-_A-Za-z0-9]{11}", fullmatch=True)


def quoted(*fields: str) -> str:
    return ",".join('"' + field.replace('"', '""') + '"' for field in fields) + "\n"


HYPOTHESIS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@HYPOTHESIS
@given(
    rows=st.lists(st.tuples(IDS, st.integers(0, 600), TEXT), max_size=5, unique_by=lambda r: r[0])
)
@example(rows=[("-abcdefghij", 30, 'A "dog", barks\r\nand\rruns\n')])
def test_any_legal_row_comes_through(tmp_path: Path, rows: list[tuple[str, int, str]]) -> None:
    """By each reader of text with free captions: ids, times and texts as they were written."""
    lists = {
        "audiocaps": ("captions", "youtube_id,start_time,caption", lambda i, s, t: (i, str(s), t)),
        "musiccaps": (
            "captions", "ytid,start_s,end_s,aspect_list,caption",
            lambda i, s, t: (i, str(s), str(s + 10), repr([t]), t),
        ),
        "bbc": ("sounds", "location,description,secs", lambda i, s, t: (i, t, str(s))),
        "clotho": (
            "captions", "file_name,caption_1,caption_2,caption_3,caption_4,caption_5",
            lambda i, s, t: (i, t, "", "", "", ""),
        ),
        "vggsound": ("clips", "", lambda i, s, t: (i, str(s), t.strip() or "dog", "train")),
        "music": ("catalog", "path,description", lambda i, s, t: (i, t)),
    }  # fmt: skip
    for dataset, (key, header, fields) in lists.items():
        if not header and not rows:
            continue  # without rows a list without header is empty
        path = tmp_path / f"{dataset}.csv"
        text = (header + "\n" if header else "") + "".join(quoted(*fields(*row)) for row in rows)
        path.write_bytes(text.encode())
        outcomes = list(catalog(dataset=dataset, **{key: path}).without_audio().read())
        found = records(outcomes)
        assert len(found) == len(outcomes) == len(rows)
        for record, (name, start, caption) in zip(found, rows, strict=True):
            assert name in record.audio_uri
            if dataset == "vggsound":
                assert record.tags == [caption.strip() or "dog"]
            else:
                kept = [caption] if caption.strip() else []
                assert [c.strip() for c in record.captions] == [c.strip() for c in kept]
            if record.clip.startswith("youtube:"):
                assert record.clip == f"youtube:{name}@{start}"
            raw = raw_rows(path, [int(record.source.rpartition(":")[2])])
            assert name in next(iter(raw.values()))


READERS = {
    "audiocaps": "captions", "clotho": "captions", "musiccaps": "captions", "bbc": "sounds",
    "vggsound": "clips", "fsd50k": "clips", "music": "catalog", "wavcaps": "captions",
}  # fmt: skip
HEADERS = (
    "", "youtube_id,start_time,caption\n", "ytid,start_s,end_s,aspect_list,caption\n",
    "location,description\n", "fname,labels,mids,split\n", "path,bpm\n", '{"data": [', "\ufeff",
    "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n", "\ufeffpath,bpm\n",
)  # fmt: skip
CONTENT = st.builds(
    lambda header, rest: header.encode() + rest,
    st.sampled_from(HEADERS),
    st.one_of(
        st.binary(max_size=80),
        TEXT.map(str.encode),
        st.text(',"\n\r;[]{}:-/.0a\\u#', max_size=60).map(str.encode),
    ),
)


@HYPOTHESIS
@given(content=CONTENT, suffix=st.sampled_from([".csv", ".jsonl", ".parquet"]))
@example(content=b"PAR1" + b"\0" * 40, suffix=".parquet")
@example(content=b'[{"id": "../x"}, {"id": "a\\u0000"}]', suffix=".csv")
@example(content=b'{"path": "a\\u0000b"}\n{"path": "a", "keywords": "["}\n', suffix=".jsonl")
def test_no_content_gets_past_the_readers(tmp_path: Path, content: bytes, suffix: str) -> None:
    """Whatever the bytes: rows that are each accounted for, or one line."""
    path = tmp_path / f"list{suffix}"
    path.write_bytes(content)
    (tmp_path / "audio").mkdir(exist_ok=True)
    for dataset, key in READERS.items():
        more = {"source": "freesound"} if dataset == "wavcaps" else {}
        made = catalog(dataset=dataset, **{key: path}, audio=tmp_path / "audio", **more)
        for reader in (made, made.without_audio()):
            try:
                outcomes = list(reader.read())
            except AttuneError as error:
                assert "\n" not in str(error)
                continue
            places = [int(outcome.source.rpartition(":")[2]) for outcome in outcomes]
            assert len(set(places)) == len(places)  # a row, an outcome
            assert set(raw_rows(path, places)) == set(places) or dataset == "wavcaps"


@HYPOTHESIS
@given(content=st.binary(max_size=60))
@example(content=b'{"a": "\\ud800"}\n[1]\n{"a": 1}\n{' + b"[" * 50)
def test_json_lines_number_every_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.jsonl"
    path.write_bytes(content)
    try:
        rows = list(read_jsonl(path))
    except AttuneError:
        return
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    lines = io.StringIO(text, newline="").readlines()
    assert len(rows) == sum(bool(line.strip()) for line in lines)


def test_entries_that_are_no_objects_keep_their_place(tmp_path: Path) -> None:
    path = write(tmp_path / "list.json", '[{"a": 1}, 2, {"b": "\\ud800"}]')
    rows = list(read_json_entries(path))
    assert [(row.source, bool(row.error)) for row in rows] == [
        (f"{path}:1", False), (f"{path}:2", True), (f"{path}:3", True),
    ]  # fmt: skip
