"""Catalog rows as Arrow tables: what planning works on, from two million rows down to ten.

A row keeps its place (file, line) and, once something decided against it, stage, reason and detail;
`reason` is null while a row is still in.  Columns, not objects: AudioSet whole has to fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.schema import RECORD

_NAME = pa.dictionary(pa.int32(), pa.string())
"""For columns of few different values."""

ROWS = pa.schema(
    [
        ("sample_id", pa.binary(16)),
        ("dataset", _NAME),
        ("native_id", pa.string()),
        ("group_id", pa.string()),
        ("split", _NAME),
        *[RECORD.field(name) for name in ("audio_uri", "start_s", "end_s", "tags", "captions")],
        *[RECORD.field(name) for name in ("title", "artist", "genre", "bpm")],
        ("license", _NAME),
        ("license_url", _NAME),
        ("attribution", pa.string()),
        ("file", _NAME),
        ("line", pa.int32()),
        ("clip", pa.string()),
        ("stated_s", pa.float32()),
        ("stage", _NAME),
        ("reason", _NAME),
        ("detail", pa.string()),
    ]
)

MERGED = "merged"
"""`reason` of a row that adds to a clip which another row stands for."""
HELD_OUT = "held_out"
"""`reason` of a row that is there to keep its group out of training."""


def is_in(table: pa.Table) -> pa.ChunkedArray:
    """Boolean per row: nothing has decided against it yet."""
    return pc.is_null(table["reason"])


def refuse_where(
    table: pa.Table,
    mask: Any,
    stage: str,
    reason: str,
    details: Sequence[str] | pa.Array,
    *,
    over: str | None = None,
) -> pa.Table:
    """Refuse the rows of `mask` that are still in; `details` has one entry per row of the mask.

    Args:
        over: a stage whose refusals give way to this one, for a check that comes late but counts
            first.
    """
    chosen = np.asarray(mask, bool)
    if not chosen.any():
        return table
    still = np.asarray(is_in(table))
    if over is not None:
        still |= np.asarray(pc.fill_null(pc.equal(plain(table["stage"]), over), False))
    keep = still[chosen]
    chosen = chosen & still
    told = pa.array(details, pa.string()).filter(pa.array(keep))
    for name, values in (("stage", stage), ("reason", reason), ("detail", told)):
        column = plain(table[name])
        if isinstance(values, str):
            values = pa.array([values] * int(chosen.sum()), pa.string())
        done = pc.replace_with_mask(column, pa.array(chosen), values)
        field = ROWS.field(name)
        done = done.dictionary_encode() if pa.types.is_dictionary(field.type) else done
        table = table.set_column(table.schema.get_field_index(name), field, done)
    return table


def sources_of(file: pa.ChunkedArray, line: pa.ChunkedArray) -> pa.Array:
    """`FILE:LINE` of rows; `FILE` where the line is 0."""
    file, line = plain(file), plain(line)
    lined = pc.binary_join_element_wise(file, line.cast(pa.string()), ":")
    return pc.if_else(pc.greater(line, 0), lined, file)


def constant(value: str, n: int) -> pa.DictionaryArray:
    """A column that says the same in every row."""
    return pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), pa.array([value]))


def no_values(kind: pa.DataType, n: int) -> pa.Array:
    """A column of nulls."""
    return pa.nulls(n, kind)


def plain(column: pa.ChunkedArray) -> pa.Array:
    """One array of plain strings (or of whatever is not a dictionary)."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def codes(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[Any]]:
    """A column as integers into the list of its different values; null is -1."""
    encoded = plain(column).dictionary_encode()
    return (
        np.asarray(encoded.indices.fill_null(-1), np.int64),
        encoded.dictionary.to_pylist(),
    )


def id_words(ids: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Sample ids (binary(16), no nulls) as uint64 [N, 2], big-endian: they sort as their hex."""
    array = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    if not len(array):
        return np.zeros((0, 2), np.uint64)
    raw = np.frombuffer(array.buffers()[1], np.uint8)
    raw = raw[array.offset * 16 : (array.offset + len(array)) * 16]
    return raw.view(">u8").reshape(-1, 2).astype(np.uint64)


def hex_ids(ids: pa.ChunkedArray) -> pa.Array:
    """Sample ids (binary(16), no nulls) as the 32 hex digits that the rest of the world sees."""
    array = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    raw = memoryview(array.buffers()[1])[array.offset * 16 : (array.offset + len(array)) * 16]
    text = raw.hex().encode()
    offsets = np.arange(len(array) + 1, dtype=np.int64) * 32
    large = pa.LargeStringArray.from_buffers(len(array), pa.py_buffer(offsets), pa.py_buffer(text))
    return large.cast(pa.string()) if offsets[-1] < 2**31 else large
