"""AudioSet segment lists: `# YTID, start_seconds, end_seconds, positive_labels` + label names.

Audio lies in one folder as `YTID.ext`, `Y<YTID>.ext` or `YTID_START.ext` (START in whole seconds or
milliseconds), each file holding the segment alone.  The lists have up to two million rows: lines in
the form that Google wrote go through Arrow as columns, every other line through `csv` on its own.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import model_validator

from common.errors import AttuneError
from common.schema import Record, sample_digests
from pipeline.catalogs.as_rows import place, tables
from pipeline.catalogs.base import (
    CatalogPath,
    Outcome,
    Refusal,
    Split,
    locate_stem,
)
from pipeline.catalogs.columnar import (
    WHOLE,
    ColumnarCatalog,
    Piece,
    has_plain_lines,
    line_pieces,
    piece_lines,
)
from pipeline.catalogs.ontology import Ancestors, ancestor_names, read_class_labels, read_ontology
from pipeline.catalogs.tables import Row, check_file, read_csv
from pipeline.rows import ROWS, constant, is_in, no_values, plain

_HEADER = ("ytid", "start_seconds", "end_seconds", "positive_labels")
_LINE = (
    r'^(?P<ytid>[^,"\s#][^,"\s]*), *(?P<start>[0-9]+(?:\.[0-9]+)?), *'
    r'(?P<end>[0-9]+(?:\.[0-9]+)?), *"(?P<labels>[^,"\s]+(?:,[^,"\s]+)*)"\r?$'
)
_SPREADSHEET = "the file was saved by a spreadsheet; take the original list"


class AudioSet(ColumnarCatalog):
    global_ids: ClassVar[bool] = True
    dataset: Literal["audioset"] = "audioset"
    segments: CatalogPath
    """balanced_train_segments.csv, unbalanced_train_segments.csv or eval_segments.csv."""
    class_labels: CatalogPath | None = None
    """class_labels_indices.csv; not needed beside `ontology`."""
    ontology: CatalogPath | None = None
    """ontology.json: names, and who descends from whom (for `text.tags: specific`)."""
    audio: CatalogPath | None = None
    split: Split = "train"

    @model_validator(mode="after")
    def _names_come_from_somewhere(self) -> Self:
        if self.class_labels is None and self.ontology is None:
            raise ValueError("needs class_labels (class_labels_indices.csv) or ontology")
        return self

    def sources(self) -> list[Path]:
        more = (self.class_labels, self.ontology)
        return [self.segments, *(path for path in more if path)]

    def label_names(self) -> dict[str, str]:
        """Machine id -> display name.

        Raises:
            AttuneError: the file that has them cannot be read.
        """
        if self.class_labels is not None:
            return read_class_labels(self.class_labels)
        assert self.ontology is not None
        return {entry["id"]: entry["name"] for entry in read_ontology(self.ontology)}

    def ancestors(self) -> Ancestors | None:
        return ancestor_names(read_ontology(self.ontology)) if self.ontology else None

    def read(self) -> Iterator[Outcome]:
        """Row by row, as the other catalogs: the reference for what the columns hold."""
        root = self.open_audio(self.audio)
        for outcome in self._rows():
            if isinstance(outcome, Record):
                youtube_id, _, start = outcome.clip.removeprefix("youtube:").partition("@")
                outcome = locate_stem(outcome, root, *_stems(youtube_id, start))
            yield outcome

    def _rows(self) -> Iterator[Record | Refusal]:
        names = self.label_names()
        for row in read_csv(self.segments, _HEADER, header=_HEADER, skip_initial_space=True):
            if not _is_header(row):
                yield self._outcome(row, names)

    def pieces(self) -> list[Piece]:
        check_file(self.segments)
        return list(line_pieces(self.segments)) if has_plain_lines(self.segments) else [WHOLE]

    def read_piece(self, piece: Piece) -> pa.Table:
        if piece == WHOLE:
            return pa.concat_tables([ROWS.empty_table(), *tables(self._rows())])
        names = self.label_names()
        lines = pa.array(piece_lines(self.segments, piece), pa.string())
        numbers = pa.array(np.arange(len(lines), dtype=np.int32) + piece.first_line)
        parsed = pc.extract_regex(lines, _LINE)
        odd = np.asarray(pc.is_null(parsed))
        start, end = (
            np.asarray(pc.cast(pc.if_else(pc.is_null(parsed), "0", parsed.field(i)), pa.float64()))
            for i in (1, 2)
        )
        encoded = pc.if_else(pc.is_null(parsed), None, parsed.field(3)).dictionary_encode()
        combinations = [
            [names.get(mid) for mid in labels.split(",")]
            for labels in encoded.dictionary.to_pylist()
        ]
        unknown = pa.array([None in tags for tags in combinations], pa.bool_())
        odd |= np.asarray(unknown.take(encoded.indices).fill_null(False)) | (start >= end)
        usual = pa.array(~odd)
        table = self._columns(
            parsed.field(0).filter(usual),
            start[~odd],
            end[~odd],
            pa.array(combinations, pa.list_(pa.string())).take(encoded.indices.filter(usual)),
            numbers.filter(usual),
        )
        if not odd.any():
            return table
        slow = tables(self._odd_lines(lines.filter(pa.array(odd)), numbers.filter(pa.array(odd))))
        return pa.concat_tables([table, *slow]).sort_by("line")

    def _columns(
        self,
        youtube_id: pa.Array,
        start: np.ndarray,
        end: np.ndarray,
        tags: pa.Array,
        line: pa.Array,
    ) -> pa.Table:
        n = len(youtube_id)
        join = pc.binary_join_element_wise
        times = [
            pa.array(np.rint(seconds * 1000).astype(np.int64)).cast(pa.string())
            for seconds in (start, end)
        ]
        native = join(youtube_id, *times, "_")
        group = join("youtube:", youtube_id, "")
        floor = pa.array(start.astype(np.int64)).cast(pa.string())
        columns = {
            "sample_id": sample_digests(self.label, native),
            "dataset": constant(self.label, n),
            "native_id": native,
            "group_id": group,
            "split": constant(self.split, n),
            "tags": tags,
            "captions": pa.ListArray.from_arrays(np.zeros(n + 1, np.int32), pa.array([], "str")),
            "file": constant(str(self.segments), n),
            "line": line,
            "clip": join(group, floor, "@"),
            "stated_s": pa.array((end - start).astype(np.float32)),
        }
        return pa.table(
            {field.name: columns.get(field.name, no_values(field.type, n)) for field in ROWS},
            schema=ROWS,
        )

    def _odd_lines(self, lines: pa.Array, numbers: pa.Array) -> Iterator[Outcome]:
        names = self.label_names()
        for line, number in zip(lines.to_pylist(), numbers.to_pylist(), strict=True):
            source = f"{self.segments}:{number}"
            if not line.strip() or line.startswith("# "):
                continue
            try:
                (fields,) = csv.reader([line.rstrip("\r")], skipinitialspace=True, strict=True)
            except (csv.Error, ValueError) as error:
                raise AttuneError(f"{source}: not valid CSV: {error}") from error
            if fields[0].startswith("# "):
                continue
            problem = "" if len(fields) == 4 else f"expected 4 fields, found {len(fields)}"
            row = Row(source, dict(zip(_HEADER, fields, strict=False)), problem)
            if not _is_header(row):
                yield self._outcome(row, names)

    def _outcome(self, row: Row, names: Mapping[str, str]) -> Record | Refusal:
        youtube_id = row.values.get("ytid", "")
        problem = row.error
        start = end = 0.0
        mids: list[str] = []
        if not problem:
            mids = [mid for mid in row.values["positive_labels"].split(",") if mid]
            unknown = [mid for mid in mids if mid not in names]
            if unknown:
                listed = self.class_labels or self.ontology
                assert listed is not None
                problem = f"label {unknown[0]!r} is not in {listed.name}"
            try:
                start, end = float(row.values["start_seconds"]), float(row.values["end_seconds"])
                if not 0 <= start < end < math.inf:
                    raise ValueError
            except ValueError:
                problem = f"times {row.values['start_seconds']!r}, {row.values['end_seconds']!r}"
        if not youtube_id or youtube_id.startswith("#NAME"):
            problem = f"id {youtube_id!r}: {_SPREADSHEET}"
        if problem:
            return Refusal(
                self.label, youtube_id, row.source, "catalog", "malformed_row", problem,
                group_id=f"youtube:{youtube_id}", split=self.split,
            )  # fmt: skip
        return Record(
            dataset=self.label,
            native_id=f"{youtube_id}_{round(start * 1000)}_{round(end * 1000)}",
            group_id=f"youtube:{youtube_id}",
            split=self.split,
            audio_uri="",
            source=row.source,
            tags=[names[mid] for mid in mids],
            clip=f"youtube:{youtube_id}@{int(start)}",
            stated_s=end - start,
        )

    def locate(self, table: pa.Table) -> pa.Table:
        root = self.open_audio(self.audio)
        here = np.flatnonzero(is_in(table))
        both = pc.utf8_slice_codeunits(plain(table["clip"].take(here)), len("youtube:"))
        pairs = pc.split_pattern(both, "@")
        youtube_id = pc.list_element(pairs, 0)
        in_seconds = pc.replace_substring(both, "@", "_")
        join = pc.binary_join_element_wise
        found = root.by_stems(
            youtube_id, join("Y", youtube_id, ""), in_seconds, join(in_seconds, "000", "")
        )
        return place(table, here, found, youtube_id, root)


def _stems(youtube_id: str, start: str) -> tuple[str, ...]:
    """Names (without extension) that a segment's file may have, best first."""
    return youtube_id, f"Y{youtube_id}", f"{youtube_id}_{start}", f"{youtube_id}_{start}000"


def _is_header(row: Row) -> bool:
    """A header row that is no comment, as in copies that went through other tools."""
    return str(row.values.get("ytid")).lstrip("# ").lower() == "ytid"
