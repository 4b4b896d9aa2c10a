"""Audio inside Parquet files: its address, its bytes, and the files' other columns.

Hugging Face exports audio as a struct of `bytes` and `path` in each row.  A Parquet file is read by
row groups (some hundred rows): one value cannot be read alone.  So a process keeps the last few row
groups, and the plan puts the clips of a row group side by side (`pipeline.plan.decide`).
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from bisect import bisect_left
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.audio import AudioError
from common.errors import AttuneError, one_line
from common.storage import StorageError, open_store
from common.text_files import check_file

_ADDRESS = re.compile(r"(?s)value:(\d+):(\d+):([^:]*):(.+)")
ROW_IN_GROUP = r"^(value:\d+:)\d+:"
"""Pattern for Arrow: with only its first group left, the addresses of a row group are equal."""
_KEPT = 3
"""Row groups that a process keeps: a worker encodes two shards at once, and one of them may already
read ahead into its next row group."""
_BUFFER = 8 << 20
"""Bytes of a column that are read at a time (in a bucket: by one request)."""
_BATCH = 64  # rows; a struct of over 2 GiB in one array cannot be read
DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError)
"""What Arrow raises for a damaged file."""


@dataclass(frozen=True, slots=True)
class Value:
    """The audio in a row of a Parquet file."""

    row_group: int
    row: int
    """Counted in the row group, from 0."""
    column: str
    """A struct with the field `bytes`, or a binary column."""
    file: str
    """Absolute path or `s3://` URI."""

    def __str__(self) -> str:
        return f"value:{self.row_group}:{self.row}:{quote(self.column, safe='')}:{self.file}"

    @property
    def shown(self) -> str:
        """The address for people."""
        return f"{self.file}, row {self.row} of row group {self.row_group}"


def parse_value(uri: str) -> Value | None:
    """The address in a record's `audio_uri`; None for any other text."""
    if not (found := _ADDRESS.fullmatch(uri)):
        return None
    return Value(int(found[1]), int(found[2]), unquote(found[3]), found[4])


@contextmanager
def open_parquet(file: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file on a disk or in a bucket, of which only the columns that are asked for are
    read.

    Raises:
        AttuneError: it is missing, another kind of file, or damaged (also if this is only found
            while it is read).
        StorageError: the store cannot be reached.
    """
    if "://" not in file:
        check_file(Path(file), parquet=True)
    try:
        with _opened(file) as source:
            yield pq.ParquetFile(source, buffer_size=_BUFFER)
    except FileNotFoundError:
        raise AttuneError(f"{file}: no such file") from None
    except DAMAGE as error:
        raise AttuneError(
            f"{file}: damaged Parquet, perhaps an incomplete download; fetch the file again "
            f"({one_line(error)})"
        ) from error


def content_hash(file: str) -> str:
    """SHA-256 of a file's description and of its columns without bytes, in hex.

    The description holds the sizes of the audio; the audio itself is not read.

    Raises:
        AttuneError, StorageError: as `open_parquet`.
    """
    digest = hashlib.sha256()
    with open_parquet(file) as parquet, _opened(file) as source:
        columns = _columns_without_bytes(parquet)
        for group in map(parquet.metadata.row_group, range(parquet.num_row_groups)):
            for chunk in (group.column(i) for i in columns):
                # A dictionary, if there is one, lies before the values.
                first = chunk.data_page_offset
                source.seek(min(first, chunk.dictionary_page_offset or first))
                digest.update(source.read(chunk.total_compressed_size))
        end = source.seek(-8, os.SEEK_END)  # length of the description, magic number
        source.seek(end - int.from_bytes(source.read(4), "little"))
        digest.update(source.read())
    return digest.hexdigest()


def numbered_rows(file: str, numbers: Collection[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows by their numbers (from 1), without their bytes; numbers past the end are left out.

    Raises:
        AttuneError, StorageError: as `open_parquet`.
    """
    wanted = sorted(numbers)
    with open_parquet(file) as parquet:
        names = [parquet.schema.column(i).path for i in _columns_without_bytes(parquet)]
        first = 1
        for group in range(parquet.num_row_groups):
            end = first + parquet.metadata.row_group(group).num_rows
            if here := wanted[bisect_left(wanted, first) : bisect_left(wanted, end)]:
                table = parquet.read_row_group(group, names, use_threads=False)
                rows = table.take([number - first for number in here]).to_pylist()
                yield from zip(here, map(without_nan, rows), strict=True)
            first = end


def without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """The row with None for NaN, as in JSON."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in row.items()
    }


def _columns_without_bytes(parquet: pq.ParquetFile) -> list[int]:
    """Numbers of the columns that are no binary values; in a struct, each field is a column."""
    columns = map(parquet.schema.column, range(parquet.metadata.num_columns))
    return [
        number
        for number, column in enumerate(columns)
        # Text has a logical type, binary values have none.
        if column.physical_type != "BYTE_ARRAY" or column.logical_type.type != "NONE"
    ]


def read_value(source: Value) -> bytes:
    """The bytes of a value.

    Raises:
        AudioError: empty_file: the row has no bytes; unreadable: the row group is damaged.
        StorageError: the file is gone, has changed since the address was made, or cannot be read.
    """
    with _reading:  # decoders that want the same row group wait for one reading of it
        values = _row_group(source.file, source.row_group, source.column)
    if source.row >= len(values):
        raise _changed(source.file)
    data = values[source.row].as_py()
    if not data:
        raise AudioError("empty_file", f"{source.shown}: no bytes")
    return bytes(data)


_reading = Lock()


@lru_cache(maxsize=_KEPT)
def _row_group(file: str, row_group: int, column: str) -> pa.ChunkedArray:
    """The bytes in a column of a row group."""
    is_open = False
    try:
        with _opened(file) as source:
            parquet = pq.ParquetFile(source, buffer_size=_BUFFER)
            is_open = True
            if row_group >= parquet.num_row_groups or column not in parquet.schema_arrow.names:
                raise _changed(file)
            is_struct = pa.types.is_struct(parquet.schema_arrow.field(column).type)
            name = f"{column}.bytes" if is_struct else column
            batches = parquet.iter_batches(
                _BATCH, row_groups=[row_group], columns=[name], use_threads=False
            )
            arrays = [batch.column(0) for batch in batches]
            if is_struct:
                arrays = [pc.struct_field(array, "bytes") for array in arrays]
            return pa.chunked_array(arrays)
    except FileNotFoundError:
        raise StorageError(
            f"{file}: no such file; it was there when the plan was made: is it mounted?"
        ) from None
    except DAMAGE as error:
        # A failing disk has an error number.  A file without its end is not what was planned.
        if not is_open or (isinstance(error, OSError) and error.errno is not None):
            raise StorageError(f"{file}: cannot be read: {one_line(error)}") from error
        detail = f"{file}: row group {row_group} is damaged ({one_line(error)})"
        raise AudioError("unreadable", detail) from error


def _changed(file: str) -> StorageError:
    return StorageError(
        f"{file}: has other rows or columns than when the plan was made; bring the file back, or "
        "plan into another data_dir"
    )


def _opened(file: str) -> BinaryIO:
    if "://" not in file:
        return Path(file).open("rb")
    folder, _, name = file.rpartition("/")
    return _store(folder).open(name)


_store = lru_cache(maxsize=64)(open_store)
