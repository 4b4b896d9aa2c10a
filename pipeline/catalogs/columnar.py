"""Catalogs with too many rows for a Python object each: read piece by piece, as Arrow tables."""

from __future__ import annotations

import mmap
import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import AttuneError
from common.tables import MAX_RAW
from pipeline.catalogs.base import CatalogEntry

PIECE_BYTES = 4 << 20


@dataclass(frozen=True)
class Piece:
    """Whole lines of a file: bytes `start` to `end`, the first of them line `first_line` (from 1).

    `end` 0 means the whole file, if it cannot be cut.
    """

    start: int
    end: int
    first_line: int


WHOLE = Piece(0, 0, 1)


class ColumnarCatalog(CatalogEntry):
    """Base of the readers by column: `ROWS` tables with one row per catalog row."""

    @abstractmethod
    def pieces(self) -> list[Piece]:
        """The parts that can be read independently, in the file's order.

        Raises:
            AttuneError: the file is missing or is another kind of file.
        """

    @abstractmethod
    def read_piece(self, piece: Piece) -> pa.Table:
        """One row per catalog row of a piece, in order; audio files are not located yet."""

    @abstractmethod
    def locate(self, table: pa.Table) -> pa.Table:
        """Set the paths of the audio files in the rows of all pieces, or refuse rows without."""


def line_pieces(path: Path, size: int | None = None) -> Iterator[Piece]:
    """Cut a file of lines into pieces of about `size` bytes.

    Raises:
        AttuneError: the file cannot be read, or a line is longer than a piece.
    """
    size = size or PIECE_BYTES
    start, line = 0, 1
    with path.open("rb") as file:
        while chunk := file.read(size):
            end = start + len(chunk)
            rest = file.readline()
            if len(rest) > size:
                raise AttuneError(f"{path}:{line}: a line of over {size} bytes: not a list of rows")
            yield Piece(start, end + len(rest), line)
            line += chunk.count(b"\n") + rest.count(b"\n")
            start = end + len(rest)


def has_plain_lines(path: Path) -> bool:
    """Whether a file can be cut at LFs: all lines end in LF or CRLF, and there is no NUL.

    UTF-16 files and files of old Macintoshes (lines end in CR) cannot.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b"\0") < 0 and not re.search(rb"\r(?!\n|\Z)", data)


def piece_lines(path: Path, piece: Piece) -> list[str]:
    """The lines of a piece, without LF.

    Raises:
        AttuneError: the lines are not UTF-8.
    """
    with path.open("rb") as file:
        file.seek(piece.start)
        data = file.read(piece.end - piece.start)
    try:
        text = data.decode("utf-8-sig" if piece.start == 0 else "utf-8")
    except UnicodeDecodeError as error:
        line = piece.first_line + data.count(b"\n", 0, error.start)
        raise AttuneError(f"{path}:{line}: not UTF-8 text; convert it first") from None
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def raw_lines(path: Path, numbers: pa.Array) -> pa.Array:
    """The lines with these numbers (from 1, ascending), cut as in `raw_rows`."""
    wanted = np.asarray(numbers)
    parts = [pa.array([], pa.string())]
    for piece in line_pieces(path):
        lines = pa.array(piece_lines(path, piece), pa.string())
        first, last = np.searchsorted(wanted, [piece.first_line, piece.first_line + len(lines)])
        parts.append(lines.take(pa.array(wanted[first:last] - piece.first_line)))
    texts = pc.utf8_rtrim(pa.concat_arrays(parts), "\r")
    return pc.utf8_slice_codeunits(texts, 0, MAX_RAW)
