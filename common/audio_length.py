"""Does an audio file hold everything that its header announces?

Decoders return the rest of a file that was cut off without an error, so an incomplete download
would count as a shorter clip. This module compares the length in each format's header with the
file's size, without decoding. FLAC and MP3 do not need this: if they state a number of samples, it
is compared with the number that decodes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

_STREAMED_WAV = (0, 0x7FFFF000, 0x7FFFFFFF)
"""Data lengths of writers that could not seek back to fill them in; also lengths near 2**32."""
_W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def missing_end(file: BinaryIO, size: int) -> str | None:
    """A message if the end of a file of `size` bytes is missing; None if it is whole or unknown."""
    file.seek(0)
    magic = file.read(16)
    if magic[:4] in (b"RIFF", b"RF64") and magic[8:12] == b"WAVE":
        return _wav(file, size)
    if magic[:4] == b"FORM" and magic[8:12] in (b"AIFF", b"AIFC"):
        length = int.from_bytes(magic[4:8], "big") + 8
        return _compare(length, size, grace=1)  # the pad byte may be left out
    if magic[:4] == b"OggS":
        return _ogg(file, size)
    if magic == _W64_RIFF:
        return _data(_chunks(file, size, 40, "<16sQ", counted=24, align=8), _W64_DATA, size)
    if magic[:4] == b"caff":
        return _data(_chunks(file, size, 8, ">4sq"), b"data", size)
    if magic[:4] == b".snd":
        start, length = struct.unpack(">II", magic[4:12])
        return None if length == 0xFFFFFFFF else _compare(start + length, size)
    if magic[4:8] == b"ftyp":
        return _mp4(file, size)
    if magic[:4] == _EBML:
        return _matroska(file, size)
    return None


def states_mp3_length(file: BinaryIO) -> bool:
    """Whether an MP3's first frame has a number of frames that libsndfile reads (Xing or Info, not
    VBRI). Keeps the position in the file."""
    before = file.tell()
    at = 0
    file.seek(at)
    # ID3v2 tags come first; their length has 4 x 7 bits.
    while (tag := file.read(10))[:3] == b"ID3" and len(tag) == 10:
        at += 10 + sum(byte << 7 * i for i, byte in enumerate(reversed(tag[6:])))
        file.seek(at)
    file.seek(at)
    frame = file.read(64)
    file.seek(before)
    if len(frame) < 64:
        return False
    is_first_version, is_mono = bool(frame[1] & 8), frame[3] >> 6 == 3
    side = (17 if is_mono else 32) if is_first_version else (9 if is_mono else 17)
    # It comes after the frame's header, an optional checksum and the side information.
    at = 4 + (0 if frame[1] & 1 else 2) + side
    return frame[at : at + 4] in (b"Xing", b"Info") and bool(frame[at + 7] & 1)


def _compare(expected: int, size: int, grace: int = 0) -> str | None:
    return f"{size} of {expected} bytes" if expected > size + grace else None


def _chunks(
    file: BinaryIO, size: int, at: int, layout: str, counted: int = 0, align: int = 1
) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the contents of each chunk, from byte `at` on.

    Args:
        layout: `struct` format of a chunk's header: name and length.
        counted: bytes of the header that the length includes.
        align: every chunk starts at a multiple of so many bytes.
    """
    head = struct.calcsize(layout)
    file.seek(at)
    while len(header := file.read(head)) == head:
        name, length = struct.unpack(layout, header)
        start, end = at + head, at + head + length - counted
        yield name, start, end
        at = min(end + -end % align, size)
        file.seek(at)


def _wav(file: BinaryIO, size: int) -> str | None:
    """The data chunk must not go past the end of the file; streamed data goes to the end."""
    long_data = 0
    for name, start, end in _chunks(file, size, 12, "<4sI", align=2):
        if name == b"ds64":  # RF64: 64-bit lengths of the file and of the data
            file.seek(start)
            long_data = int.from_bytes(file.read(16)[8:], "little")
        if name == b"data":
            if end - start == 0xFFFFFFFF and long_data:
                end = start + long_data
            elif end - start in _STREAMED_WAV or end - start >= 0xFFFFFF00:
                return None
            return _compare(end, size, grace=1)  # the pad byte may be missing
    return None


def _data(chunks: Iterator[tuple[bytes, int, int]], data: bytes, size: int) -> str | None:
    """The chunk named `data` must not go past the end of the file."""
    for name, start, end in chunks:
        if end < start:  # CAF: -1 is a data chunk that goes to the end; W64: a damaged length
            return None
        if name == data:
            return _compare(end, size)
    return None


def _mp4(file: BinaryIO, size: int) -> str | None:
    """No box of the outermost level may go past the end of the file."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        header = file.read(16)
        length, name = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        # 0: goes to the end. No name or an impossible length: something else was appended.
        if length < 8 or not name.isascii() or not name.decode().isprintable():
            return None
        if at + length > size:
            return f"{size} of {at + length} bytes, ends inside {name.decode()!r}"
        at += length
    return None


def _matroska(file: BinaryIO, size: int) -> str | None:
    """The segment must not go past the end of the file; a live stream has no length."""
    file.seek(4)
    header = _ebml_length(file)
    if header is None:
        return None
    file.seek(header, 1)
    if file.read(4) != _SEGMENT or (length := _ebml_length(file)) is None:
        return None
    return _compare(file.tell() + length, size)


def _ebml_length(file: BinaryIO) -> int | None:
    """A variable-length number (RFC 8794): leading zeros give its size; all ones means unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(first + file.read(more), "big") & ((1 << 7 * (more + 1)) - 1)
    return None if value == (1 << 7 * (more + 1)) - 1 else value


def _ogg(file: BinaryIO, size: int) -> str | None:
    """The last page (RFC 3533) must be whole and have the end-of-stream flag."""
    file.seek(max(0, size - 2 * 65_307))  # two pages of the largest size contain a page's start
    tail = file.read()
    at = tail.rfind(b"OggS\0")
    header = tail[at : at + 27]
    if at < 0 or len(header) < 27:
        return "ends inside an Ogg page"
    lacing = tail[at + 27 : at + 27 + header[26]]
    if len(lacing) < header[26] or at + 27 + header[26] + sum(lacing) > len(tail):
        return "ends inside an Ogg page"
    return None if header[5] & 4 else "its last Ogg page is not the end of a stream"
