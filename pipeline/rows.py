"""Catalog rows as Arrow tables, on which planning works.

A row keeps its file and line.  A refused row also has stage, reason and detail; `reason` is null
while a row is accepted.  Tables, not objects, because AudioSet's two million rows must fit into
memory.
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
"""Type of columns with few different values."""

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
        ("also", pa.string()),
        ("real_uri", pa.string()),
        ("stated_s", pa.float32()),
        ("stage", _NAME),
        ("reason", _NAME),
        ("detail", pa.string()),
    ]
)

_HEX = np.array([f"{byte:02x}" for byte in range(256)], "S2")

MERGED = "merged"
"""`reason` of a row whose text was added to another row's clip."""
HELD_OUT = "held_out"
"""`reason` of a row that only keeps its group out of training."""


def is_in(table: pa.Table) -> pa.ChunkedArray:
    """True for each row that is not refused."""
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
    """Refuse the rows where `mask` is true and that are not refused yet.

    Args:
        details: one entry per row where `mask` is true.
        over: refusals of this stage are replaced, for a check that runs late but counts first.
    """
    chosen = np.asarray(mask, bool)
    if not chosen.any():
        return table
    still = np.asarray(is_in(table))
    if over is not None:
        still |= np.asarray(pc.fill_null(pc.equal(plain(table["stage"]), over), False))
    keep = still[chosen]
    chosen = chosen & still
    kept = pa.array(details, pa.string()).filter(pa.array(keep))
    for name, value in (("stage", stage), ("reason", reason), ("detail", kept)):
        value = pa.scalar(value) if isinstance(value, str) else value
        done = pc.replace_with_mask(plain(table[name]), pa.array(chosen), value)
        field = ROWS.field(name)
        done = done.dictionary_encode() if pa.types.is_dictionary(field.type) else done
        table = table.set_column(table.schema.get_field_index(name), field, done)
    return table


def sources_of(file: pa.ChunkedArray, line: pa.ChunkedArray) -> pa.Array:
    """`FILE:LINE` of rows; only `FILE` if the line is 0."""
    file, line = plain(file), plain(line)
    lined = pc.binary_join_element_wise(file, line.cast(pa.string()), ":")
    return pc.if_else(pc.greater(line, 0), lined, file)


def release_memory() -> None:
    """Give the memory of freed tables back: 100 MB and more for two million rows."""
    pa.default_memory_pool().release_unused()


def constant(value: str, n: int) -> pa.DictionaryArray:
    """A column with the same value in every row."""
    return pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), pa.array([value]))


def plain(column: pa.ChunkedArray) -> pa.Array:
    """One array, not chunked and not dictionary-encoded."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def id_words(ids: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Sample ids (binary(16), no nulls) as uint64 [N, 2]; they sort as their hex digits."""
    return np.frombuffer(_bytes(ids), ">u8").reshape(-1, 2).astype(np.uint64)


def hex_ids(ids: pa.ChunkedArray) -> pa.Array:
    """Sample ids (binary(16), no nulls) as 32 hex digits, as in the tables on disk."""
    text = _HEX[np.frombuffer(_bytes(ids), np.uint8)]  # the only copy: these may be 2 million ids
    is_large = 32 * len(ids) >= 2**31
    offsets = np.arange(len(ids) + 1, dtype=np.int64 if is_large else np.int32) * 32
    kind = pa.LargeStringArray if is_large else pa.StringArray
    return kind.from_buffers(len(ids), pa.py_buffer(offsets), pa.py_buffer(text))


def _bytes(ids: pa.ChunkedArray) -> memoryview:
    """The bytes of binary(16) values, one after the other."""
    array = plain(ids)
    if not len(array):
        return memoryview(b"")  # an empty array may have no buffer
    return memoryview(array.buffers()[1])[array.offset * 16 : (array.offset + len(array)) * 16]
