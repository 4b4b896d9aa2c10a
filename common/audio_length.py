"""Does an audio file hold all that its header announces?

Decoders give what is left of a file that was cut off and say nothing of the rest: a download that
broke would pass for a shorter clip.  What each format says of its own length is compared with the
file's size here, without decoding.  FLAC and MP3 need none of this: where they state a count of
samples, it is compared with what decodes.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

_STREAMED_WAV = (0, 0x7FFFF000, 0x7FFFFFFF)
"""Data lengths left by writers that could not go back to fill them in; also those near 2**32."""
_W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def missing_end(file: BinaryIO, size: int) -> str | None:
    """What is missing at the end of a file of `size` bytes, None if it is whole or unknown."""
    file.seek(0)
    magic = file.read(16)
    file.seek(12)
    if magic[:4] in (b"RIFF", b"RF64") and magic[8:12] == b"WAVE":
        return _wav(file, size)
    if magic[:4] == b"FORM" and magic[8:12] in (b"AIFF", b"AIFC"):
        length = int.from_bytes(magic[4:8], "big") + 8
        return _compare(length, size, grace=1)  # the pad byte may be left out
    if magic[:4] == b"OggS":
        return _ogg(file, size)
    if magic == _W64_RIFF:
        return _w64(file, size)
    if magic[:4] == b"caff":
        return _caf(file, size)
    if magic[:4] == b".snd":
        start, length = struct.unpack(">II", magic[4:12])
        return None if length == 0xFFFFFFFF else _compare(start + length, size)
    if magic[4:8] == b"ftyp":
        return _mp4(file, size)
    if magic[:4] == _EBML:
        return _matroska(file, size)
    return None


def states_mp3_length(file: BinaryIO) -> bool:
    """Whether an MP3's first frame holds a count of its frames that libsndfile reads: one under
    Xing or Info, which VBRI is not; leaves the file where it was."""
    before = file.tell()
    at = 0
    file.seek(at)
    # Tags in front, ID3v2: their length in 4 times 7 bits.
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
    # After the frame's header, the check sum that it may have, and the side information.
    at = 4 + (0 if frame[1] & 1 else 2) + side
    return frame[at : at + 4] in (b"Xing", b"Info") and bool(frame[at + 7] & 1)


def _compare(expected: int, size: int, grace: int = 0) -> str | None:
    return f"{size} of {expected} bytes" if expected > size + grace else None


def _wav(file: BinaryIO, size: int) -> str | None:
    """The data chunk must not run past the end of the file; streamed ones go to the end."""
    long_data = 0
    while len(header := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", header)
        start = file.tell()
        if name == b"ds64":  # RF64: 64-bit lengths of the file and of the data
            long_data = int.from_bytes(file.read(16)[8:], "little")
        if name == b"data":
            if length == 0xFFFFFFFF and long_data:
                length = long_data
            elif length in _STREAMED_WAV or length >= 0xFFFFFF00:
                return None
            return _compare(start + length, size, grace=1)  # as above, the pad byte
        file.seek(start + length + length % 2)
    return None


def _w64(file: BinaryIO, size: int) -> str | None:
    """Chunks named by 16 bytes, lengths with their header, aligned to 8."""
    file.seek(40)
    while len(header := file.read(24)) == 24:
        length = int.from_bytes(header[16:], "little")
        if length < 24:
            return None
        start = file.tell() - 24
        if header[:16] == _W64_DATA:
            return _compare(start + length, size)
        file.seek(min(start + length + -length % 8, size))
    return None


def _caf(file: BinaryIO, size: int) -> str | None:
    file.seek(8)
    while len(header := file.read(12)) == 12:
        name, length = struct.unpack(">4sq", header)
        if length < 0:  # -1: a data chunk that goes to the end
            return None
        end = file.tell() + length
        if name == b"data":
            return _compare(end, size)
        file.seek(min(end, size))
    return None


def _mp4(file: BinaryIO, size: int) -> str | None:
    """No box of the outermost level may run past the end of the file."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        header = file.read(16)
        length, name = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        # 0: goes to the end.  No name or an impossible length: something else is appended.
        if length < 8 or not name.isascii() or not name.decode().isprintable():
            return None
        if at + length > size:
            return f"{size} of {at + length} bytes, ends inside {name.decode()!r}"
        at += length
    return None


def _matroska(file: BinaryIO, size: int) -> str | None:
    """The segment must not run past the end of the file; a live one has no length."""
    file.seek(4)
    header = _ebml_length(file)
    if header is None:
        return None
    file.seek(header, 1)
    if file.read(4) != _SEGMENT or (length := _ebml_length(file)) is None:
        return None
    return _compare(file.tell() + length, size)


def _ebml_length(file: BinaryIO) -> int | None:
    """A variable-length number (RFC 8794): leading zeros tell its bytes, all ones is unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(first + file.read(more), "big") & ((1 << 7 * (more + 1)) - 1)
    return None if value == (1 << 7 * (more + 1)) - 1 else value


def _ogg(file: BinaryIO, size: int) -> str | None:
    """The last page (RFC 3533) must be whole and bear the end-of-stream flag."""
    file.seek(max(0, size - 2 * 65_307))  # two pages of the largest size: one begins in there
    tail = file.read()
    at = tail.rfind(b"OggS\0")
    header = tail[at : at + 27]
    if at < 0 or len(header) < 27:
        return "ends inside an Ogg page"
    lacing = tail[at + 27 : at + 27 + header[26]]
    if len(lacing) < header[26] or at + 27 + header[26] + sum(lacing) > len(tail):
        return "ends inside an Ogg page"
    return None if header[5] & 4 else "its last Ogg page is not the end of a stream"
