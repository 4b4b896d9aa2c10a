"""The text in a Broadcast Wave file (`bext` description, iXML note), and the file's length.

Reads the chunk headers and skips the chunks: a few hundred bytes of a file of any size.
"""

from __future__ import annotations

import html
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_MAX_CHUNKS = 64
_MAX_IXML = 64 << 10
_BEXT_DESCRIPTION = 256
_NOTE = re.compile(r"<NOTE>([^<]{1,2000})</NOTE>")
# Field recorders write settings into the description, one per line: `sSPEED=025.000-ND`.
_SETTING = re.compile(r"^\s*\w+=.*$", re.MULTILINE)


@dataclass
class WavText:
    """The texts, empty if there are none, and the length in seconds."""

    description: str = ""
    note: str = ""
    seconds: float | None = None


def read_wav_text(path: Path) -> WavText | None:
    """The text in a file; None if it is not RIFF/WAVE or cannot be read (decoding reports why)."""
    try:
        with path.open("rb") as file:
            return _read(file)
    except OSError:
        return None


def _read(file: BinaryIO) -> WavText | None:
    head = file.read(12)
    if len(head) < 12 or head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
        return None
    found = WavText()
    rate, data_size = 0, 0
    file_size = os.fstat(file.fileno()).st_size
    for _ in range(_MAX_CHUNKS):
        chunk = file.read(8)
        if len(chunk) < 8:
            break
        kind, size = chunk[:4], struct.unpack("<I", chunk[4:])[0]
        body = file.tell()
        if kind == b"fmt " and size >= 16:
            rate = struct.unpack("<8xI4x", file.read(16).ljust(16, b"\0"))[0]  # bytes a second
        elif kind == b"ds64" and size >= 16:
            data_size = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))[0]
        elif kind == b"bext":
            found.description = _words(file.read(min(size, _BEXT_DESCRIPTION)))
        elif kind == b"iXML":
            note = _NOTE.search(file.read(min(size, _MAX_IXML)).decode(errors="replace"))
            found.note = _words(html.unescape(note[1]).encode()) if note else ""
        elif kind == b"data":
            if head[:4] == b"RIFF":
                data_size = size
            size = data_size
        if size > file_size - body:  # the file is cut short, or the size is wrong
            break
        file.seek(body + size + size % 2)
    found.seconds = data_size / rate if rate and data_size else None
    return found


def _words(raw: bytes) -> str:
    """The text up to the first NUL, without settings; empty if it has no letter."""
    raw = raw.split(b"\0", 1)[0]
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    text = " ".join(_SETTING.sub("", text.replace("\r", "\n")).split())
    return text if re.search(r"[^\W\d_]", text) and text.isprintable() else ""
