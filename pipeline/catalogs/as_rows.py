"""Outcomes of a catalog reader as `ROWS` tables, and the file lines of such rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.schema import Record
from common.tables import raw_rows
from common.text_files import is_parquet
from common.uris import local_copy, remote_uri
from pipeline.catalogs.audio_root import AudioRoot, FoundFiles
from pipeline.catalogs.base import Merged, Outcome, Refusal
from pipeline.catalogs.columnar import has_plain_lines, raw_lines
from pipeline.rows import MERGED, ROWS, plain, refuse_where

_MANY = 50_000
"""More rows of one file than this are looked up as columns, not one by one."""


def tables(outcomes: Iterable[Outcome], label: str, size: int = 8192) -> Iterator[pa.Table]:
    """The outcomes of a catalog's reader as `ROWS` tables of at most `size` rows."""
    iterator = iter(outcomes)
    while batch := list(islice(iterator, size)):
        yield pa.Table.from_pylist([_as_row(outcome, label) for outcome in batch], schema=ROWS)


def _as_row(outcome: Outcome, label: str) -> dict[str, Any]:
    file, line = split_source(outcome.source)
    row: dict[str, Any]
    if isinstance(outcome, Record):
        row = outcome.as_row() | {"stated_s": outcome.stated_s}
        row["sample_id"] = bytes.fromhex(outcome.sample_id)
    elif isinstance(outcome, Refusal):
        names = ("native_id", "dataset", "group_id", "split", "stage", "reason", "detail")
        row = {name: getattr(outcome, name) for name in names}
        row["sample_id"] = bytes.fromhex(outcome.sample_id) if outcome.sample_id else None
    else:
        row = {"dataset": label, "stage": "catalog", "reason": MERGED}
    if not isinstance(outcome, Merged):
        row |= {name: getattr(outcome, name) or None for name in ("clip", "also", "real_uri")}
    return row | {"file": file, "line": line}


def split_source(source: str) -> tuple[str, int]:
    """File and line of `FILE:LINE`; the line is 0 if a source is a whole file."""
    file, _, line = source.rpartition(":")
    return (file, int(line)) if file and line.isdigit() else (source, 0)


def place(
    table: pa.Table, rows: NDArray[np.int64], found: FoundFiles, stems: pa.Array, root: AudioRoot
) -> pa.Table:
    """Set the paths found for the stems of these rows (row numbers), or refuse the rows."""
    chosen = np.zeros(len(table), bool)
    chosen[rows] = True
    for name, paths in (("audio_uri", found.paths), ("real_uri", found.real)):
        column = pc.replace_with_mask(pa.nulls(len(table), pa.string()), pa.array(chosen), paths)
        table = table.set_column(table.schema.get_field_index(name), ROWS.field(name), column)
    for mask, reason, form in (
        (found.outside, "outside_root", f"{{!r}} links to outside {root}"),
        (found.missing, "missing_audio", f"no {{}}.* in {root}"),
    ):
        refused = np.zeros(len(table), bool)
        refused[rows[mask]] = True
        details = [form.format(stem) for stem in stems.filter(pa.array(mask)).to_pylist()]
        table = refuse_where(table, refused, "catalog", reason, details, over="text")
    return table


def raw_of(table: pa.Table, order: pa.Array) -> pa.Array:
    """The texts of the rows at `order`; their files are read again."""
    file, line = (plain(table[name].take(order)) for name in ("file", "line"))
    raw = pa.nulls(len(order), pa.string())
    has_line = pc.fill_null(pc.greater(line, 0), False)
    for name in pc.unique(file.filter(has_line)).drop_null().to_pylist():
        chosen = np.asarray(pc.fill_null(pc.equal(file, name), False)) & np.asarray(has_line)
        uri = remote_uri(name)
        if uri is not None and uri.endswith(".parquet"):  # may hold gigabytes of audio
            lines = line.filter(pa.array(chosen)).to_pylist()
            found = raw_rows(uri, lines)
            texts = pa.array([found.get(number) for number in lines], pa.string())
            raw = pc.replace_with_mask(raw, pa.array(chosen), texts)
            continue
        path = Path(name) if uri is None else local_copy(uri)
        if path.is_file():
            lines = line.filter(pa.array(chosen))
            # So long a list (AudioSet's) has no rows of several lines.  In JSON and Parquet, a
            # number is an entry's, not a line's.
            is_lines = path.suffix.lower() != ".json" and not is_parquet(path)
            is_listed = is_lines and len(lines) > _MANY
            if is_listed and has_plain_lines(path):
                ascending = pc.sort_indices(lines)
                texts = raw_lines(path, lines.take(ascending)).take(pc.sort_indices(ascending))
            else:
                found = raw_rows(path, lines.to_pylist())
                texts = pa.array([found.get(number) for number in lines.to_pylist()], pa.string())
            raw = pc.replace_with_mask(raw, pa.array(chosen), texts)
    return raw


def rename_files(table: pa.Table, names: Mapping[str, str]) -> pa.Table:
    """Rename the files of rows: a local copy gets back the name of its object in the bucket."""
    column = plain(table["file"]).dictionary_encode()
    renamed = [names.get(name, name) for name in column.dictionary.to_pylist()]
    column = pa.DictionaryArray.from_arrays(column.indices, pa.array(renamed, pa.string()))
    return table.set_column(table.schema.get_field_index("file"), ROWS.field("file"), column)
