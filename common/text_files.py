"""Checks of a catalog file before it is parsed: the kind of file, its encoding, its line length.

People give the wrong file more often than a damaged one: a download page, a Git LFS pointer, the
archive that has the list in it, a spreadsheet.  Each gets a one-line message.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO, cast

from common.errors import AttuneError

PARQUET_MAGIC = b"PAR1"
MAX_LINE = 16 << 20
"""Longest line, in characters.  Catalog rows are shorter, and a line must fit into memory."""

_COMPRESSED = "-compressed; unpack it first"
_NOT_TEXT = (
    (rb"\x1f\x8b", "gzip" + _COMPRESSED),
    (rb"BZh[1-9]1AY&SY", "bzip2" + _COMPRESSED),
    (rb"\xfd7zXZ\x00", "xz" + _COMPRESSED),
    (rb"\x28\xb5\x2f\xfd", "zstd" + _COMPRESSED),
    (rb"PK\x03\x04", "a zip archive or .xlsx workbook; unpack it, or save the sheet as CSV UTF-8"),
    (rb"\xd0\xcf\x11\xe0", "an Excel workbook; save the sheet as CSV UTF-8"),
    (rb"%PDF-", "a PDF document; expected rows of text"),
    (rb"RIFF....WAVE", "a WAV file; expected the list of the audio files, not one of them"),
    (PARQUET_MAGIC, "a Parquet file; expected text, so export it as CSV or JSON lines"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself; get it: git lfs pull"),
    (rb"(?i)\s*<(!doctype|html|\?xml)", "a web page, not the file itself; download the raw file"),
)
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def check_file(path: Path, *, parquet: bool = False) -> None:
    """Raise unless the path is a text file (or, with `parquet`, a Parquet file).

    Raises:
        AttuneError: missing, a folder, empty, or another kind of file; the message names it.
    """
    try:
        if path.is_dir():
            raise AttuneError(f"{path}: expected a file, found a folder")
        if path.exists() and not path.is_file():
            raise AttuneError(f"{path}: expected a regular file, found a pipe or device")
        with path.open("rb") as file:
            head = file.read(1024)
    except (FileNotFoundError, NotADirectoryError):
        raise AttuneError(f"{path}: no such file") from None
    except OSError as error:
        raise AttuneError(f"{path}: cannot be read: {error.strerror}") from error
    if not head:
        raise AttuneError(f"{path}: empty (0 bytes); the download may have failed")
    if parquet:
        if head.startswith(PARQUET_MAGIC):
            return
        raise AttuneError(f"{path}: not a Parquet file")
    without_bom = head.removeprefix(codecs.BOM_UTF8)
    for pattern, what in _NOT_TEXT:
        if re.match(pattern, without_bom, re.DOTALL):
            raise AttuneError(f"{path}: {what}")
    if b"\0" in head and not head.startswith(_UTF16):
        raise AttuneError(
            f"{path}: has NUL bytes: binary, or UTF-16 without a byte order mark; save as UTF-8"
        )


def is_parquet(path: Path) -> bool:
    """Whether the content is Parquet.  False if the file does not exist."""
    try:
        with path.open("rb") as file:
            return file.read(4) == PARQUET_MAGIC
    except OSError:
        return False


def open_text(path: Path, encodings: Sequence[str] = ("utf-8-sig",)) -> TextIO:
    """Check a file and open it as text; line ends are not translated.

    Args:
        encodings: tried in order on the whole file, unless it has a UTF-16 byte order mark.

    Raises:
        AttuneError: as `check_file`; no encoding fits, or a line is longer than `MAX_LINE`.
    """
    check_file(path)
    with path.open("rb") as file:
        if file.read(2) in _UTF16:
            encodings = ("utf-16",)
    for encoding in encodings:
        try:
            _scan(path, encoding)
        except UnicodeError:
            continue
        return cast(TextIO, path.open(encoding=encoding, newline=""))
    raise AttuneError(_undecodable(path, encodings))


def open_text_anyhow(path: Path) -> TextIO:
    """Open a file as text to show it to people: bytes that cannot be decoded become U+FFFD."""
    with path.open("rb") as file:
        encoding = "utf-16" if file.read(2) in _UTF16 else "utf-8-sig"
    return cast(TextIO, path.open(encoding=encoding, errors="replace", newline=""))


def _scan(path: Path, encoding: str) -> None:
    run = 0  # characters since the last line end
    try:
        # `utf-8-sig` reads a file of half a byte order mark as an empty file.
        with path.open(encoding=encoding.removesuffix("-sig"), newline="") as file:
            while chunk := file.read(1 << 20):
                end = max(chunk.rfind("\n"), chunk.rfind("\r"))
                run = run + len(chunk) if end < 0 else len(chunk) - end
                if run > MAX_LINE:
                    raise AttuneError(
                        f"{path}: a line of over {MAX_LINE} characters; not a list of rows"
                    )
    except LookupError:
        raise AttuneError(f"{path}: unknown encoding {encoding!r}") from None


def _undecodable(path: Path, encodings: Sequence[str]) -> str:
    names = " or ".join(name.removesuffix("-sig").upper() for name in encodings)
    place = ""
    if encodings[-1].startswith("utf-8"):
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    place = f":{number}: byte 0x{line[error.start]:02x}"
                    break
    return f"{path}{place}: not {names} text; convert it: iconv -f ENCODING -t UTF-8"
