"""AudioSet segment lists: `# YTID, start_seconds, end_seconds, positive_labels` + label names.

Audio is in one folder as `YTID.ext`, `Y<YTID>.ext` or `YTID_START.ext` (START in whole seconds or
milliseconds); each file is just the segment.  The lists have up to two million rows: Arrow parses
the lines in Google's form, and the csv module parses all others, into the same columns.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import model_validator

from common.errors import AttuneError
from common.schema import sample_digests
from common.tables import Row, check_file, read_csv
from pipeline.catalogs.as_rows import place, split_source
from pipeline.catalogs.base import CatalogPath, Split
from pipeline.catalogs.columnar import (
    WHOLE,
    ColumnarCatalog,
    Piece,
    has_plain_lines,
    line_pieces,
    piece_lines,
)
from pipeline.catalogs.ontology import Ancestors, read_ancestors, read_names
from pipeline.catalogs.values import NO_ID, no_youtube_id
from pipeline.rows import ROWS, constant, is_in, plain, refuse_where

_HEADER = ("ytid", "start_seconds", "end_seconds", "positive_labels")
_LINE = (
    r'^(?P<ytid>[^,"\s#][^,"\s]*), *(?P<start>[0-9]+(?:\.[0-9]+)?), *'
    r'(?P<end>[0-9]+(?:\.[0-9]+)?), *"(?P<labels>[^,"\s]+(?:,[^,"\s]+)*)"\r?$'
)
_FIELDS = pa.schema(
    [*((name, pa.string()) for name in _HEADER), ("line", pa.int32()), ("error", pa.string())]
)
"""A row as text.  `error`: why its line could not be split into the four fields, or null."""
_LONGEST_S = 1e9
"""Later times are refused, as they are kept in milliseconds as 64-bit integers."""


class AudioSet(ColumnarCatalog):
    global_ids: ClassVar[bool] = True
    dataset: Literal["audioset"] = "audioset"
    segments: CatalogPath
    """balanced_train_segments.csv, unbalanced_train_segments.csv or eval_segments.csv."""
    class_labels: CatalogPath | None = None
    """class_labels_indices.csv; not needed beside `ontology`."""
    ontology: CatalogPath | None = None
    """ontology.json: names, and which class is above which; for `text.tags: specific`."""
    audio: CatalogPath | None = None
    split: Split = "train"

    @model_validator(mode="after")
    def _names_come_from_somewhere(self) -> Self:
        if self.class_labels is None and self.ontology is None:
            raise ValueError("needs class_labels (class_labels_indices.csv) or ontology")
        return self

    def ancestors(self) -> Ancestors | None:
        return read_ancestors(self.ontology)

    def pieces(self) -> list[Piece]:
        check_file(self.segments)
        return list(line_pieces(self.segments)) if has_plain_lines(self.segments) else [WHOLE]

    def read_piece(self, piece: Piece) -> pa.Table:
        fields = self._fields(piece)
        names = read_names(self.class_labels, self.ontology)
        youtube_id, start_text, end_text, labels = (plain(fields[name]) for name in _HEADER)
        # Two million rows have a hundred thousand different combinations of labels.
        labels = labels.dictionary_encode()
        named = [
            [names.get(mid) for mid in text.split(",") if mid]
            for text in labels.dictionary.to_pylist()
        ]
        unknown = pa.array([None in tags for tags in named], pa.bool_())
        tags = pa.array(named, pa.list_(pa.string()))
        start, end = _seconds(start_text), _seconds(end_text)
        bad = ~((start >= 0) & (start < end) & (end < _LONGEST_S))  # NaN is bad too
        bad |= np.asarray(unknown.take(labels.indices)) | np.asarray(pc.is_valid(fields["error"]))
        no_id = pc.match_substring_regex(youtube_id, NO_ID)
        bad |= np.asarray(no_id)
        problems = [self._problem(row, names) for row in fields.filter(pa.array(bad)).to_pylist()]
        start, end, good = np.where(bad, 0, start), np.where(bad, 0, end), pa.array(~bad)
        n, join = len(fields), pc.binary_join_element_wise
        native = join(youtube_id, _text(np.rint(start * 1000)), _text(np.rint(end * 1000)), "_")
        group = pc.if_else(no_id, None, join("youtube:", youtube_id, ""))
        of_good = {
            "sample_id": sample_digests(self.label, native),
            "tags": tags.take(labels.indices),
            "captions": pa.ListArray.from_arrays(np.zeros(n + 1, np.int32), pa.array([], "str")),
            "clip": join(group, _text(start), "@"),
            "stated_s": pa.array((end - start).astype(np.float32)),
        }
        columns = {
            "dataset": constant(self.label, n),
            "native_id": pc.if_else(good, native, youtube_id),
            "group_id": group,
            "split": constant(self.split, n),
            "file": constant(str(self.segments), n),
            "line": plain(fields["line"]),
            **{
                name: pc.if_else(good, column, None) if bad.any() else column
                for name, column in of_good.items()
            },
        }
        rows = pa.table(
            {field.name: columns.get(field.name, pa.nulls(n, field.type)) for field in ROWS},
            schema=ROWS,
        )
        return refuse_where(rows, bad, "catalog", "malformed_row", problems)

    def _fields(self, piece: Piece) -> pa.Table:
        """The rows of a piece as text, `_FIELDS`."""
        if piece == WHOLE:
            rows = read_csv(self.segments, _HEADER, header=_HEADER, skip_initial_space=True)
            return _as_fields(rows)
        lines = pa.array(piece_lines(self.segments, piece), pa.string())
        numbers = pa.array(np.arange(len(lines), dtype=np.int32) + piece.first_line)
        parsed = pc.extract_regex(lines, _LINE)
        usual = pc.is_valid(parsed)
        odd_lines = pc.invert(usual)
        is_usual = not pc.any(odd_lines).as_py()
        found = (parsed if is_usual else parsed.filter(usual)).flatten()
        no_error = pa.nulls(len(found[0]), pa.string())
        if is_usual:
            return pa.table([*found, numbers, no_error], schema=_FIELDS)
        table = pa.table([*found, numbers.filter(usual), no_error], schema=_FIELDS)
        odd = (column.filter(odd_lines).to_pylist() for column in (lines, numbers))
        rows = (row for line, number in zip(*odd, strict=True) for row in self._row(line, number))
        return pa.concat_tables([table, _as_fields(rows)]).sort_by("line")

    def _row(self, line: str, number: int) -> Iterator[Row]:
        """Parse a line with the csv module, as `read_csv`; nothing for blank lines and comments."""
        source = f"{self.segments}:{number}"
        try:
            text = [line.rstrip("\r")] if line.strip() else []
            for fields in csv.reader(text, skipinitialspace=True, strict=True):
                if fields and not fields[0].startswith("# "):
                    problem = "" if len(fields) == 4 else f"expected 4 fields, found {len(fields)}"
                    yield Row(source, dict(zip(_HEADER, fields, strict=False)), problem)
        except (csv.Error, ValueError) as error:
            raise AttuneError(f"{source}: not valid CSV: {error}") from error

    def _problem(self, row: Mapping[str, str], names: Mapping[str, str]) -> str:
        """Why a row (`_FIELDS`) is refused."""
        if problem := no_youtube_id(row["ytid"]):
            return problem
        unknown = [mid for mid in row["positive_labels"].split(",") if mid and mid not in names]
        if any('"' in mid for mid in unknown):
            return f"label {unknown[0]!r} has changed quotes: a spreadsheet saved this file"
        start, end = _seconds(pa.array([row["start_seconds"], row["end_seconds"]]))
        if unknown and 0 <= start < end < _LONGEST_S:
            listed = self.class_labels or self.ontology
            assert listed is not None
            return row["error"] or f"label {unknown[0]!r} is not in {listed.name}"
        if row["error"] and 0 <= start < end:
            return f"{row['error']}: perhaps a spreadsheet spread the labels over columns"
        return row["error"] or f"times {row['start_seconds']!r}, {row['end_seconds']!r}"

    def locate(self, table: pa.Table) -> pa.Table:
        root = self.open_audio(self.audio)
        here = np.flatnonzero(is_in(table))

        def without_prefix(name: str) -> pa.Array:
            return pc.utf8_slice_codeunits(plain(table[name].take(here)), len("youtube:"))

        youtube_id = without_prefix("group_id")
        stems = [youtube_id]
        if root.knows_names:
            in_seconds = pc.replace_substring(without_prefix("clip"), "@", "_")
            join = pc.binary_join_element_wise
            stems += [join("Y", youtube_id, ""), in_seconds, join(in_seconds, "000", "")]
        return place(table, here, root.by_stems(*stems), youtube_id, root)


def _as_fields(rows: Iterable[Row]) -> pa.Table:
    """`_FIELDS` without header rows, which other tools put into copies of the list."""
    return pa.Table.from_pylist(
        [
            {name: row.values.get(name, "") for name in _HEADER}
            | {"line": split_source(row.source)[1], "error": row.error or None}
            for row in rows
            if str(row.values.get("ytid")).lstrip("# ").lower() != "ytid"
        ],
        schema=_FIELDS,
    )


def _seconds(texts: pa.Array) -> np.ndarray:
    """Texts as float64; NaN if a text is not a number."""
    with suppress(pa.ArrowInvalid):
        return np.asarray(pc.cast(texts, pa.float64()))
    usual = pc.match_substring_regex(texts, r"^[0-9]+(\.[0-9]+)?$")
    seconds = np.array(pc.cast(pc.if_else(usual, texts, "nan"), pa.float64()))
    for i in np.flatnonzero(~np.asarray(usual)):
        with suppress(ValueError):
            seconds[i] = float(texts[int(i)].as_py())
    return seconds


def _text(numbers: np.ndarray) -> pa.Array:
    """The integer parts of numbers, as text."""
    return pa.array(numbers.astype(np.int64)).cast(pa.string())
