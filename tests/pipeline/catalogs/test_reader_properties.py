"""Every reader on random rows: legal rows come through, no row is lost, none crashes a reader."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reading import catalog, merged, outcomes_of, records, refusals, touch

from common.errors import AttuneError
from common.schema import RECORD
from common.tables import MAX_RAW, raw_rows, read_jsonl
from pipeline.catalogs import Catalog

HYPOTHESIS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
NO_TEXT = re.compile(r"[+-]?\d+([.,]\d+)?|nan|none|null|<na>|[\[{].*", re.IGNORECASE | re.DOTALL)
LEGAL = TEXT.filter(lambda text: not NO_TEXT.fullmatch(text.strip()))
CLIPS = st.lists(
    st.tuples(st.from_regex(r"[-_A-Za-z0-9]{11}", fullmatch=True), st.integers(0, 999_999), LEGAL),
    max_size=4,
    unique_by=(lambda clip: clip[0], lambda clip: clip[1]),
)
NASTY = [
    ("-abcdefghij", 30, 'A "dog", barks; it\'s\r\nloud\rand\nnear\n'),
    ("--_________", 0, " \u00c9t\u00e9 \u2013 \u96e8\U0001f415\t|\u2028\x85"),
    ("-1234567890", 7, "[dog]"),
    ("ABCDEFGHIJK", 8, "{"),
    ("abcdefghijk", 9, ""),
]


def trimmed(text: str) -> list[str]:
    return [text.strip()] if text.strip() else []


@dataclass(frozen=True)
class Form:
    """How a dataset writes a clip (id, number, text), and what its record then holds."""

    dataset: str
    key: str
    file: str
    header: str
    """Header line of a CSV; empty where the CSV has none, or where rows are JSON."""
    row: Callable[[str, int, str], Any]
    """Fields of a CSV, or an object of JSON."""
    record: Callable[[str, int, str], dict[str, object]]
    options: tuple[tuple[str, str], ...] = ()
    """Further keys of the catalog."""

    def lines(self, clips: list[tuple[str, int, str]]) -> list[str]:
        rows = [self.row(*clip) for clip in clips]
        if self.file.endswith(".csv"):
            return [quoted(*fields) for fields in rows]
        return [json.dumps(values, ensure_ascii=False) for values in rows]

    def write(self, folder: Path, lines: list[str]) -> Path:
        """Write the list with exactly these lines."""
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.file.endswith(".json"):
            text = f'{{"data": [{", ".join(lines)}]}}'
        else:
            header = [self.header] if self.header else []
            text = "".join(f"{line}\n" for line in [*header, *lines])
        path.write_bytes(text.encode())
        return path

    def catalog(self, folder: Path) -> Catalog:
        path = folder if self.key == "root" else folder / self.file
        return catalog(dataset=self.dataset, **{self.key: path}, **dict(self.options))


def quoted(*fields: str) -> str:
    return ",".join('"' + text.replace('"', '""') + '"' for text in fields)


def wavcaps(
    source: str, native: Callable[[str, int], str], file: Callable[[str, int], str]
) -> Form:
    return Form(
        "wavcaps", "captions", "captions.json", "",
        lambda i, n, t: {"id": file(i, n), "caption": t, "duration": n, "tags": [t]},
        lambda i, n, t: {
            "native_id": f"{source}/{native(i, n)}", "captions": trimmed(t), "tags": trimmed(t),
            "stated_s": n or None,
        },
        (("source", source),),
    )  # fmt: skip


FORMS = {
    "audiocaps": Form(
        "audiocaps", "captions", "train.csv", "audiocap_id,youtube_id,start_time,caption",
        lambda i, n, t: ("1", i, str(n), t),
        lambda i, n, t: {
            "native_id": f"{i}_{n}", "captions": trimmed(t),
            "clip": f"youtube:{i}@{n}", "audio_uri": f"{i}_{n}",
        },
    ),
    "audiofolder-csv": Form(
        "audiofolder", "root", "metadata.csv", "file_name,text,group",
        lambda i, n, t: (i, t, f"g{n}"),
        lambda i, n, t: {"native_id": i, "captions": trimmed(t), "group_id": f"g{n}"},
    ),
    "audiofolder-jsonl": Form(
        "audiofolder", "root", "metadata.jsonl", "",
        lambda i, n, t: {"file_name": i, "tags": [t, t], "duration": n, "title": t},
        lambda i, n, t: {
            "native_id": i, "tags": trimmed(t) * 2, "stated_s": n or None,
            "title": t.strip() or None,
        },
    ),
    "bbc": Form(
        "bbc", "sounds", "BBCSoundEffects.csv", '"location","description","secs","CDNumber"',
        lambda i, n, t: (f"{i}.wav", t, str(n), str(n)),
        lambda i, n, t: {
            "native_id": f"{i}.wav", "captions": trimmed(t), "group_id": f"bbc:{n}",
            "audio_uri": i, "stated_s": n or None,
        },
    ),
    "clotho": Form(
        "clotho", "captions", "clotho_captions_development.csv",
        "file_name," + ",".join(f"caption_{k}" for k in range(1, 6)),
        lambda i, n, t: (f" {i},&amp;.wav", t, t, "", f"dog {n}", " "),
        lambda i, n, t: {
            "audio_uri": f" {i},&amp;.wav",
            "captions": [*trimmed(t) * 2, f"dog {n}"],
        },
    ),
    "esc50": Form(
        "esc50", "root", "meta/esc50.csv", "filename,fold,target,category,esc10,src_file,take",
        lambda i, n, t: (i, "1", "0", t, "True", str(n), "A"),
        lambda i, n, t: {
            "native_id": i, "tags": [tag.replace("_", " ") for tag in trimmed(t)],
            "group_id": f"freesound:{n}",
        },
    ),
    "fsd50k": Form(
        "fsd50k", "clips", "dev.csv", "fname,labels,mids,split",
        lambda i, n, t: (str(n), f"Hi-hat,{i}", f"/m/1,/m/{i}", "val"),
        lambda i, n, t: {
            "native_id": str(n), "split": "valid", "clip": f"freesound:{n}",
            "tags": ["Hi-hat", i.replace("_and_", ", ").replace("_", " ")],
        },
    ),
    "music-csv": Form(
        "music", "catalog", "tracks.csv", "path,artist,bpm,description",
        lambda i, n, t: (i, f"Artist {n}", str(n), t),
        lambda i, n, t: {
            "native_id": i, "bpm": float(n), "captions": trimmed(t),
            "group_id": f"artist:artist {n}",
        },
    ),
    "music-jsonl": Form(
        "music", "catalog", "tracks.jsonl", "",
        lambda i, n, t: {"path": i, "bpm": n, "description": t, "moods": [t, i], "genre": [t]},
        lambda i, n, t: {
            "native_id": i, "bpm": float(n), "captions": trimmed(t), "group_id": f"music:{i}",
            "tags": list(dict.fromkeys([*trimmed(t), i])), "genre": t.strip() or None,
        },
    ),
    "musiccaps": Form(
        "musiccaps", "captions", "musiccaps-public.csv", "ytid,start_s,end_s,aspect_list,caption",
        lambda i, n, t: (i, str(n), str(n + 10), repr([t]), t),
        lambda i, n, t: {
            "native_id": f"{i}_{n}", "captions": trimmed(t), "tags": trimmed(t),
            "clip": f"youtube:{i}@{n}", "audio_uri": i, "stated_s": 10.0,
        },
    ),
    "vggsound": Form(
        "vggsound", "clips", "vggsound.csv", "",
        lambda i, n, t: (i, str(n), t.strip() or "dog", "test"),
        lambda i, n, t: {
            "native_id": f"{i}_{n}", "tags": trimmed(t) or ["dog"], "split": "test",
            "clip": f"youtube:{i}@{n}", "audio_uri": f"{i}_{n:06d}",
        },
    ),
    "vggsound-test": Form(
        "vggsound", "clips", "test.csv", "",
        lambda i, n, t: (f"{i}_{n:06d}.mp4", t.strip() or "dog"),
        lambda i, n, t: {
            "native_id": f"{i}_{n}", "tags": trimmed(t) or ["dog"], "split": "test",
            "clip": f"youtube:{i}@{n}",
        },
    ),
    "wavcaps-audioset": wavcaps("audioset", lambda i, n: f"Y{i}", lambda i, n: f"Y{i}.wav"),
    "wavcaps-bbc": wavcaps("bbc", lambda i, n: i, lambda i, n: i),
    "wavcaps-freesound": wavcaps("freesound", lambda i, n: str(n), lambda i, n: str(n)),
    "wavcaps-soundbible": wavcaps("soundbible", lambda i, n: str(n), lambda i, n: f"{n}.flac"),
}  # fmt: skip

every_form = pytest.mark.parametrize("name", FORMS)


@every_form
@HYPOTHESIS
@given(clips=CLIPS)
@example(clips=NASTY)
@example(clips=[("00000000001", 1, "||"), ("00000000000", 0, "")])
def test_any_legal_row_comes_through(
    tmp_path: Path, name: str, clips: list[tuple[str, int, str]]
) -> None:
    """Exactly, in order and with its line number, by which the row is found again."""
    form = FORMS[name]
    if not clips and not form.header and form.file.endswith((".csv", ".jsonl")):
        return  # an empty file
    lines = form.lines(clips)
    path = form.write(tmp_path, lines)
    outcomes = list(form.catalog(tmp_path).without_audio().read())
    found = records(outcomes)
    assert len(found) == len(outcomes) == len(clips)
    pa.Table.from_pylist([record.as_row() for record in found], schema=RECORD)
    for record, clip in zip(found, clips, strict=True):
        expected = form.record(*clip)
        assert {key: getattr(record, key) for key in expected} == expected
        assert clip[0] in record.audio_uri or str(clip[1]) in record.audio_uri
    places = [int(record.source.removeprefix(f"{path}:")) for record in found]
    assert places == sorted(set(places))
    assert [raw_rows(path, [place])[place] for place in places] == [
        line[:MAX_RAW] for line in lines
    ]


@HYPOTHESIS
@given(clips=CLIPS)
@example(clips=NASTY)
def test_any_legal_segment_and_label_come_through(
    tmp_path: Path, clips: list[tuple[str, int, str]]
) -> None:
    labels, segments = tmp_path / "labels.csv", tmp_path / "segments.csv"
    names = [quoted(str(n), f"/m/{n}", text) for _, n, text in clips]
    labels.write_bytes("\n".join(["index,mid,display_name", *names]).encode())
    rows = [f'{i}, {n}.000, {n + 10}.000, "/m/{n}"' for i, n, _ in clips]
    segments.write_bytes("\n".join(["# Segments csv", *rows]).encode())
    made = catalog(dataset="audioset", segments=segments, class_labels=labels).without_audio()
    found = outcomes_of(made)
    assert [(r.clip, r.tags, r.stated_s, r.source) for r in records(found)] == [
        (f"youtube:{i}@{n}", [text], 10.0, f"{segments}:{line}")
        for line, (i, n, text) in enumerate(clips, start=2)
    ]
    assert len(found) == len(clips)


@HYPOTHESIS
@given(clips=CLIPS)
@example(clips=NASTY)
def test_any_legal_text_of_ones_own_comes_through(
    tmp_path_factory: pytest.TempPathFactory, clips: list[tuple[str, int, str]]
) -> None:
    """Captions of the user's own, in each format, for a tree that also has a file without a row."""
    folder = tmp_path_factory.mktemp("tree")
    root = touch(folder / "tree", "rain.wav", *(f"{i}.wav" for i, _, _ in clips))
    (folder / "own.csv").write_bytes(
        "\n".join(["file_name,caption", *(quoted(f"{i}.wav", t) for i, _, t in clips)]).encode()
    )
    rows = [{"file_name": f"{i}.wav", "text": t} for i, _, t in clips]
    (folder / "own.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    schema = pa.schema([("file_name", pa.string()), ("text", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "own.parquet")
    for suffix in ("csv", "jsonl", "parquet"):
        own = folder / f"own.{suffix}"
        outcomes = list(catalog(dataset="freetousesounds", root=root, captions=own).read())
        captions = {record.native_id: record.captions for record in records(outcomes)}
        assert len(captions) == len(clips) + 1
        assert captions["rain.wav"] == ["rain"]
        with_text = [clip for clip in clips if clip[2].strip()]
        assert all(captions[f"{i}.wav"] == [t.strip()] for i, _, t in with_text)
        assert len(merged(outcomes)) == len(with_text)
        assert len(refusals(outcomes)) == len(clips) - len(with_text)  # rows without a text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
FIELD = st.one_of(
    TEXT,
    st.sampled_from(
        ["", "1", "10", "train", "val", "/m/1", "../x", "/x", "[]", "nan", "1e999", "start", "# x"]
    ),
)


@st.composite
def odd_lines(draw: st.DrawFn, form: Form) -> list[str]:
    """Rows of the form as no reader expects them: any fields, any values under its keys."""
    if form.file.endswith(".csv"):
        columns = len(form.row("a", 1, "a"))
        widths = st.one_of(st.just(columns), st.integers(1, columns + 2))
        rows = draw(st.lists(widths.flatmap(lambda n: st.lists(FIELD, min_size=n, max_size=n))))
        return [quoted(*fields) for fields in rows]
    keys = [*form.row("a", 1, "a"), "split", "artist", "keywords"]
    values = st.dictionaries(st.sampled_from(keys), st.one_of(FIELD, JSON)) | JSON
    return [json.dumps(value) for value in draw(st.lists(values))]


@every_form
@HYPOTHESIS
@given(data=st.data())
def test_every_row_has_one_outcome(tmp_path: Path, name: str, data: st.DataObject) -> None:
    """Any row becomes one record or refusal, or is merged, and has its own line number."""
    form = FORMS[name]
    legal = st.sampled_from(form.lines(NASTY))  # again and again: clips with several rows
    lines = [*data.draw(st.lists(legal, max_size=4)), *data.draw(odd_lines(form))]
    if not form.header and form.file.endswith(".csv"):
        lines = [
            *form.lines([("abcdefghijk", 1, "dog")]),
            *lines,
        ]  # shows which form it is
    if not lines and form.file.endswith(".jsonl"):
        return  # an empty file
    path = form.write(tmp_path, lines)
    (tmp_path / "audio").mkdir(exist_ok=True)
    made = form.catalog(tmp_path)
    with_audio = made
    if "audio" in type(made).model_fields:
        with_audio = made.model_copy(update={"audio": tmp_path / "audio"})
    comments = sum(line.startswith('"# ') for line in lines) if not form.header else 0
    for reader in (with_audio, made.without_audio()):
        outcomes = list(reader.read())
        assert len(outcomes) == len(lines) - comments
        places = {int(outcome.source.removeprefix(f"{path}:")) for outcome in outcomes}
        assert len(places) == len(outcomes)
        assert set(raw_rows(path, places)) == places
        pa.Table.from_pylist([record.as_row() for record in records(outcomes)], schema=RECORD)


CONTENT = st.one_of(
    st.binary(max_size=80),
    TEXT.map(str.encode),
    st.text(',"\n\r;[]{}:-/.0a\\u#', max_size=60).map(str.encode),
)
STARTS = st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe", b"PAR1", b"\x1f\x8b", b'{"data": ['])


@every_form
@HYPOTHESIS
@given(start=STARTS, with_header=st.booleans(), content=CONTENT)
@example(start=b"PAR1", with_header=False, content=b"\0" * 40)
@example(start=b"", with_header=False, content=b'[{"id": "../x"}, {"id": "a\\u0000"}]')
@example(start=b"", with_header=False, content=b'{"path": "a\\u0000b"}\n{"path": "a"}\n')
@example(start=b"", with_header=True, content=b'"\n')
def test_no_bytes_crash_a_reader(
    tmp_path: Path, name: str, start: bytes, with_header: bool, content: bytes
) -> None:
    """Any bytes give rows that are each accounted for, or an error of one line."""
    form = FORMS[name]
    path = form.write(tmp_path, [])
    header = f"{form.header}\n".encode() if with_header else b""
    path.write_bytes(start + header + content)
    (tmp_path / "audio").mkdir(exist_ok=True)
    try:
        outcomes = list(form.catalog(tmp_path).without_audio().read())
    except AttuneError as error:
        assert "\n" not in str(error)
        return
    places = [int(outcome.source.removeprefix(f"{path}:")) for outcome in outcomes]
    assert len(set(places)) == len(places)  # a row, an outcome
    assert set(raw_rows(path, places)) == set(places)


@HYPOTHESIS
@given(content=st.binary(max_size=60))
@example(content=b'{"a": "\\ud800"}\n[1]\n{"a": 1}\n{' + b"[" * 50)
@example(content=b"\xef")
def test_json_lines_number_every_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.jsonl"
    path.write_bytes(content)
    try:
        rows = list(read_jsonl(path))
    except AttuneError:
        return
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    lines = StringIO(text, newline="").readlines()
    assert len(rows) == sum(bool(line.strip()) for line in lines)
