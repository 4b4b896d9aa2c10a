"""Rows as columns: the same outcomes as row by row, however the rows are cut."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.prompts import PromptForm, normalize_prompts
from common.schema import Record, sample_digests, sample_id
from pipeline.catalogs import columnar
from pipeline.catalogs.as_rows import split_source, tables
from pipeline.catalogs.audioset import AudioSet
from pipeline.catalogs.columnar import WHOLE
from pipeline.rows import HELD_OUT, hex_ids, id_words, refuse_where
from pipeline.text.captions import Kind, TextRules, explain
from pipeline.text.columns import assign, collect, unique_texts

LABELS = 'index,mid,display_name\n0,/m/a,Speech\n1,/m/b,"Dog, barking"\n2,/m/c,Rain\n'

line = st.one_of(
    st.builds(
        '{}, {}, {}, "{}"'.format,
        st.text("-_aB9", min_size=1, max_size=4),
        st.sampled_from(["0.000", "30.000", "7.5", "x", "-1", "nan", "1e3"]),
        st.sampled_from(["10.000", "40.000", "5", "inf"]),
        st.lists(st.sampled_from(["/m/a", "/m/b", "/m/c", "/m/d"]), max_size=3).map(",".join),
    ),
    st.sampled_from(
        ["# a comment", "", "#NAME?, 1, 2, /m/a, /m/b", "x, 1.000, 2.000, /m/b",
         '"x", 1, 2, "/m/c"',
         "YTID, start_seconds, end_seconds, positive_labels", "x,1,2", "x, 1, 2, \"/m/a\"\r"]
    ),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(line, max_size=30), st.integers(70, 300), st.booleans())
def test_audioset_in_pieces_equals_audioset_by_the_csv_module(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], size: int, final_newline: bool
) -> None:
    folder = tmp_path_factory.mktemp("audioset")
    (folder / "labels.csv").write_text(LABELS)
    (folder / "s.csv").write_text("\n".join(lines) + "\n" * final_newline, newline="")
    (folder / "audio").mkdir()
    for name in ("a.wav", "YB.flac", "9_30.mp3", "-_7000.wav", "B_30000.ogg"):
        (folder / "audio" / name).touch()
    (folder / "audio" / "aa.wav").symlink_to("/etc/hostname")
    catalog = AudioSet(
        segments=folder / "s.csv", class_labels=folder / "labels.csv", audio=folder / "audio"
    )
    if not any(text and not text.startswith("#") for text in lines):
        return
    pieces = list(columnar.line_pieces(catalog.segments, size))
    parts = [catalog.read_piece(piece) for piece in pieces]
    found = catalog.locate(pa.concat_tables(parts)).to_pylist()
    expected = catalog.locate(catalog.read_piece(WHOLE)).to_pylist()
    assert found == expected
    root = catalog.open_audio(catalog.audio)
    for row in found:
        if row["clip"]:
            stem = row["clip"].removeprefix("youtube:").replace("@", "_")
            youtube_id = row["group_id"].removeprefix("youtube:")
            try:
                path = root.by_stem(youtube_id, f"Y{youtube_id}", stem, f"{stem}000")
            except ValueError:
                assert row["reason"] == "outside_root"
            else:
                assert (row["audio_uri"], row["reason"] is None) == (path, path is not None)


@pytest.mark.parametrize(
    ("encoding", "end"), [("utf-8", "\r"), ("utf-16", "\n"), ("utf-8-sig", "\r\n"), ("utf-8", "\n")]
)
def test_audioset_lists_in_other_encodings(tmp_path: Path, encoding: str, end: str) -> None:
    lines = ["# YTID, a, b, c", '"# num_ytids=2",,,', 'x, 0.000, 9.000, "/m/b"', 'y, 0, 9, "/m/a"']
    (tmp_path / "s.csv").write_bytes((end.join(lines) + end).encode(encoding))
    (tmp_path / "labels.csv").write_text(LABELS)
    made = AudioSet(segments=tmp_path / "s.csv", class_labels=tmp_path / "labels.csv")
    catalog = made.without_audio()
    found = catalog.locate(pa.concat_tables([catalog.read_piece(p) for p in catalog.pieces()]))
    assert found["native_id"].to_pylist() == ["x_0_9000", "y_0_9000"]
    assert found["tags"].to_pylist() == [["Dog, barking"], ["Speech"]]
    assert found["line"].to_pylist() == [3, 4]


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=5))
def test_many_sample_ids_are_the_single_ones(native_ids: list[str]) -> None:
    digests = sample_digests('a "b"', pa.array(native_ids, pa.string()))
    assert [digest.hex() for digest in digests.to_pylist()] == [
        sample_id('a "b"', native, None, None) for native in native_ids
    ]
    if native_ids:
        assert hex_ids(digests).to_pylist() == [d.hex() for d in digests.to_pylist()]
        words = id_words(digests)
        assert [f"{int(a):016x}{int(b):016x}" for a, b in words] == hex_ids(digests).to_pylist()


WORDS = ["A dog barks", "two", "Speech", "rain falls", "the", "Someone talks", "of it", "rain", ""]


def records(seed: int, n: int) -> list[Record]:
    rng = random.Random(seed)
    return [
        Record(
            "d", f"n{i}", f"g{i}", "train", "/x.wav", f"f.csv:{i + 1}",
            tags=rng.choices(["Dog", "Rain, light", "Speech", "Dog", "..."], k=rng.randrange(4)),
            captions=rng.choices(WORDS, k=rng.choice([0, 0, 1, 2])),
            genre=rng.choice([None, "jazz"]), bpm=rng.choice([None, 90.0]),
        )
        for i in range(n)
    ]  # fmt: skip


def by_columns(parts: Sequence[pa.Table], kind: Kind, rules: TextRules) -> list[tuple[str, str]]:
    collected = [collect(part, kind, rules) for part in parts]
    texts = unique_texts(collected, rules)
    prompts = dict(zip(texts, normalize_prompts(texts, rules.prompts), strict=True))
    rows = pa.concat_tables([assign(table, prompts, rules) for table in collected]).to_pylist()
    return [
        ("prompts", " | ".join(row["prompts"]))
        if row["reason"] is None
        else ("refused", f"{row['reason']}: {row['detail']}")
        for row in rows
    ]


@pytest.mark.parametrize("kind", ["sound", "music"])
@pytest.mark.parametrize(
    "rules",
    [
        TextRules(PromptForm("lemmas")),
        TextRules(PromptForm("lemmas"), tag_form="as_is"),
        TextRules(PromptForm("plain"), tags="all", speech="wide", speech_terms=("rain",)),
        TextRules(PromptForm("plain"), speech="keep", seed=3, music_variants=2),
    ],
)
def test_the_text_stage_gives_what_its_explanation_ends_with(kind: Kind, rules: TextRules) -> None:
    clips = records(seed=1, n=200)
    expected = [explain(clip, kind, rules)[-1] for clip in clips]
    for size in (200, 64, 7):
        assert by_columns(list(tables(clips, "d", size)), kind, rules) == expected
    assert {name for name, _ in expected} == {"prompts", "refused"}


def test_of_two_refusals_the_first_stays_unless_overruled() -> None:
    (table,) = tables(records(seed=0, n=3), "d")
    table = refuse_where(table, [True, False, False], "text", "speech", ["x"])
    table = refuse_where(table, [True, True, False], "split", "leakage", ["a", "b"])
    assert table["reason"].to_pylist() == ["speech", "leakage", None]
    assert table["detail"].to_pylist() == ["x", "b", None]
    table = refuse_where(
        table, [True, True, True], "catalog", HELD_OUT, ["1", "2", "3"], over="text"
    )
    assert table["reason"].to_pylist() == [HELD_OUT, "leakage", HELD_OUT]


def test_where_a_row_comes_from() -> None:
    assert split_source("/a b/c:d.csv:12") == ("/a b/c:d.csv", 12)
    assert split_source("/a/file.wav") == ("/a/file.wav", 0)
    assert split_source("/a/take:2nd") == ("/a/take:2nd", 0)
