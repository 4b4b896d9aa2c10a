"""Audio inside other files: its address, which a plan keeps like a path, and its bytes.

An address is `member:OFFSET:LENGTH:FORMAT:ARCHIVE!/NAME`, a file in a zip or tar archive, or
`value:ROW_GROUP:ROW:COLUMN:FILE`, a value in a Parquet file (`common.parquet_values`).  It says
where the bytes are, so a worker reads one range (one row group) and needs no index.  Paths are
absolute and URIs begin with `s3://`, so neither can be taken for an address.
"""

from __future__ import annotations

import io
import re
import struct
import tarfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from common.audio import AudioError
from common.parquet_values import Value, parse_value, read_value
from common.storage import StorageError, open_store

Format = Literal["zip", "tar"]

_ADDRESS = re.compile(r"(?is)member:(\d+):(\d+):(zip|tar):(.+?\.\3)!/(.+)")
_LOCAL = struct.Struct("<4s2xHH4xL8xHH")
"""A member's header in a zip: signature, flags, method, CRC, lengths of name and extra field."""
_AFTER_ZIP = 46 + 22
"""Bytes without names that a zip has at least after each member: its directory entry, the end."""
_STORED, _DEFLATED = 0, 8
_UTF8, _HAS_DESCRIPTOR = 0x800, 0x8
_MOST_BYTES = 2 << 30
_ANY_RATIO_BYTES = 64 << 20
_MOST_RATIO = 100
"""A member may expand to 64 MiB, or to 100 times its compressed size, but not beyond 2 GiB."""
_store = lru_cache(maxsize=64)(open_store)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    The span includes the member's header.  So reading can check that the archive is still the same:
    in another archive other bytes would be there, perhaps of another sound.
    """

    offset: int
    """First byte of the member's header (in a tar, of its first header)."""
    length: int
    """Zip: bytes of the compressed content.  Tar: bytes of headers and content together."""
    format: Format
    archive: str
    """Absolute path or `s3://` URI; ends with the format's extension."""
    name: str
    """As the archive writes it."""

    def __str__(self) -> str:
        return f"member:{self.offset}:{self.length}:{self.format}:{self.shown}"

    @property
    def shown(self) -> str:
        """The address for people: `ARCHIVE!/NAME`."""
        return f"{self.archive}!/{self.name}"


Source = Member | Value


def parse(uri: str) -> Source | None:
    """The address in a record's `audio_uri`; None for a path or the URI of an object."""
    if uri.startswith("value:"):
        return parse_value(uri)
    found = _ADDRESS.fullmatch(uri) if uri.startswith("member:") else None
    if found is None:
        return None
    offset, length, kind, archive, name = found.groups()
    return Member(int(offset), int(length), "zip" if kind == "zip" else "tar", archive, name)


def file_of(uri: str) -> str:
    """The path or URI of the file that a record's audio is in; for a plain file, itself."""
    source = parse(uri)
    if source is None:
        return uri
    return source.archive if isinstance(source, Member) else source.file


def read_bytes(source: Source) -> bytes:
    """The content of a member, decompressed, or of a value.

    Raises:
        AudioError: unreadable: the content is damaged, or larger than the limits; empty_file: a
            value without bytes.
        StorageError: the archive or file is gone, has changed since the address was made, or
            cannot be read.
    """
    if isinstance(source, Value):
        return read_value(source)
    if source.length > _MOST_BYTES:
        raise AudioError("unreadable", f"{source.shown}: over 2 GiB; unpack it to read it")
    return _read_zip(source) if source.format == "zip" else _read_tar(source)


def zip_name(raw: bytes, flags: int) -> str:
    """The name of a member of a zip.  Names without the flag for UTF-8 are often UTF-8 all the
    same."""
    if not flags & _UTF8:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw.decode("cp437")
    return raw.decode(errors="surrogateescape")


def _read_tar(source: Member) -> bytes:
    data = _range(source, source.offset, source.length)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            header = tar.next()
    except tarfile.TarError:
        header = None
    if header is None or header.name != source.name:
        raise _changed(source)
    content = data[header.offset_data :]
    if len(content) != header.size:
        raise _changed(source)
    return content


def _read_zip(source: Member) -> bytes:
    # Nearly always holds the whole member: only the length of its extra field is not known before.
    size = _LOCAL.size + source.length + _AFTER_ZIP + 2 * len(source.name)
    data = _range(source, source.offset, size)
    signature, flags, method, crc, name_length, extra_length = _LOCAL.unpack_from(data)
    start = _LOCAL.size + name_length
    name = zip_name(data[_LOCAL.size : start], flags)
    if signature != b"PK\3\4" or name != source.name:
        raise _changed(source)
    start += extra_length
    end = start + source.length
    if end + 8 > len(data):
        data = _range(source, source.offset, end + 8)
    if flags & _HAS_DESCRIPTOR:  # the CRC comes after the content, mostly behind a signature
        after = data[end : end + 8]
        crc = int.from_bytes(after[4:] if after[:4] == b"PK\7\x08" else after[:4], "little")
    content = data[start:end]
    if method == _DEFLATED:
        content = _inflated(content, source)
    elif method != _STORED:
        raise _changed(source)
    if zlib.crc32(content) != crc:
        raise AudioError("unreadable", f"{source.shown}: damaged: its CRC does not match")
    return content


def _inflated(data: bytes, source: Member) -> bytes:
    most = min(max(_MOST_RATIO * len(data), _ANY_RATIO_BYTES), _MOST_BYTES)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = stream.decompress(data, most + 1)
    except zlib.error as error:
        raise AudioError("unreadable", f"{source.shown}: damaged: {error}") from error
    if len(content) > most:
        raise AudioError(
            "unreadable",
            f"{source.shown}: {len(data)} bytes expand to over {most}; no audio does that",
        )
    if not stream.eof:
        raise AudioError("unreadable", f"{source.shown}: damaged: its compressed data is cut")
    return content


def _range(source: Member, offset: int, length: int) -> bytes:
    archive = source.archive
    try:
        if "://" in archive:
            folder, _, name = archive.rpartition("/")
            return _store(folder).read_range(name, offset, length)
        with open(archive, "rb") as file:
            file.seek(offset)
            data = file.read(length)
    except FileNotFoundError:
        raise StorageError(
            f"archive {archive}: no such file; it was there when the plan was made: is it mounted?"
        ) from None
    except OSError as error:
        raise StorageError(f"archive {archive}: {error.strerror or error}") from error
    if len(data) != length:
        raise _changed(source)
    return data


def _changed(source: Member) -> StorageError:
    return StorageError(
        f"archive {source.archive}: {source.name} is not where it was when the plan was made: the "
        "archive has changed; bring it back, or plan into another data_dir"
    )
