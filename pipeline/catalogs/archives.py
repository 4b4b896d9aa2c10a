"""Zip and tar archives: which files they hold, and where; nothing is unpacked.

A zip has a directory at its end.  A tar has a header before each file, so its headers are read and
its contents are skipped.  Archives are on a disk or at `s3://`.
"""

from __future__ import annotations

import glob
import hashlib
import os
import posixpath
import re
import shlex
import stat
import struct
import tarfile
import tempfile
import zipfile
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import AttuneError, one_line
from common.sources import Format, Member, zip_name
from common.storage import open_store
from common.uris import cache_folder, remote_uri
from pipeline.catalogs.file_names import is_audio, is_utf8

_ENDING = re.compile(r"(?i)\.(zip|tar|t(ar\.)?(gz|bz2|xz|zst))$")
_READABLE = re.compile(r"(?i)\.(zip|tar)$")
_COMPRESSED = {
    b"\x1f\x8b": "gzip -dk",
    b"BZh": "bzip2 -dk",
    b"\xfd7zXZ": "xz -dk",
    b"\x28\xb5\x2f\xfd": "zstd -d",
}
"""How compressed files begin, and what decompresses them."""
_END_RECORD = b"PK\5\6"
_END_BYTES = 22 + 65535  # with the longest comment
_UTF8 = 0x800
_ENCRYPTED = 0x1
_INDEX = pa.schema(
    [
        ("name", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("problem", pa.string()),
        ("size", pa.int64()),
    ]
)
_READERS = 8
"""Archives that are indexed at the same time: in a store, each header is a request."""


@dataclass
class Listing:
    """The readable files of an archive, some hundred bytes each: an archive may have millions."""

    archive: str
    names: list[str] = field(default_factory=list)
    """Normalized: `a.wav` for `./a.wav`."""
    problems: dict[str, str] = field(default_factory=dict)
    """The files that cannot be read, each with the reason."""
    _offsets: array[int] = field(default_factory=lambda: array("q"))
    _lengths: array[int] = field(default_factory=lambda: array("q"))
    _written: dict[int, str] = field(default_factory=dict)

    def add(self, name: str, member: Member) -> None:
        if member.name != name:
            self._written[len(self.names)] = member.name
        self.names.append(name)
        self._offsets.append(member.offset)
        self._lengths.append(member.length)

    def member(self, i: int) -> Member:
        name = self._written.get(i, self.names[i])
        kind: Format = "zip" if self.archive.lower().endswith(".zip") else "tar"
        return Member(self._offsets[i], self._lengths[i], kind, self.archive, name)

    @cached_property
    def folder(self) -> str:
        """The folders that all audio files are in, `a/b/`; empty if there are none."""
        folders = {posixpath.dirname(name) for name in self.names if is_audio(name)}
        common = posixpath.commonpath(folders) if folders else ""
        return f"{common}/" if common else ""


class Entry(NamedTuple):
    """A file in an archive."""

    member: Member
    problem: str
    """Why it cannot be read (it is a link, say); empty if it can."""
    size: int
    """Bytes of its content."""


def is_archive(path: Path | str) -> bool:
    """Whether a path or a pattern means archives, by its ending; a folder is none."""
    return bool(_ENDING.search(str(path))) and not os.path.isdir(path)


def read_tar(
    archive: str, is_wanted: Callable[[str], bool], most_bytes: int
) -> Iterator[tuple[Entry, bytes]]:
    """The files of a tar in one pass, with the content of those whose names are wanted.

    Other contents, and those of more than `most_bytes`, are skipped and empty here.

    Raises:
        AttuneError: the tar is missing, cut, damaged or compressed as a whole.
    """
    with _opened(archive) as file:
        _check_compression(archive, file)
        file.seek(0)
        for entry in _tar_entries(archive, file):
            content, member = b"", entry.member
            if is_wanted(member.name) and not entry.problem and entry.size <= most_bytes:
                file.seek(member.offset + member.length - entry.size)
                content = file.read(entry.size)
            yield entry, content


def has_archives(folder: Path | str) -> bool:
    """Whether a folder on a disk has archives in it."""
    return os.path.isdir(folder) and any(map(_READABLE.search, os.listdir(folder)))


def find_archives(pattern: Path | str) -> list[str]:
    """Absolute paths or URIs of the archives that a path, URI or pattern means, sorted; of a folder
    on a disk the archives in it.

    Raises:
        AttuneError: there is none, or one is neither a zip nor a tar by its ending.
    """
    uri = remote_uri(pattern)
    if uri is None:
        path = os.path.abspath(pattern)
        if os.path.isdir(path):
            found = [os.path.join(path, n) for n in sorted(os.listdir(path)) if _READABLE.search(n)]
        else:
            found = [path] if os.path.isfile(path) else sorted(glob.glob(path))
    else:
        found = _objects(uri)
    if not found:
        raise AttuneError(f"audio {uri or path}: no such archive")
    for name in found:
        if not _READABLE.search(name):
            with _opened(name) as file:
                _check_compression(name, file)
            raise AttuneError(f"audio {name}: expected .zip or .tar; unpack it, or repack it")
    return found


def list_archives(archives: list[str]) -> list[Listing]:
    """What each archive holds.

    Raises:
        AttuneError: an archive is damaged, encrypted, compressed as a whole, or one part of
            several.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(_listing, archives, map(_version, archives)))


def fixed_folder(pattern: Path | str) -> str:
    """The folder of a path or URI; of a pattern, the folders before its first `*`."""
    place = remote_uri(pattern) or os.path.abspath(pattern)
    parts = place.split("/")
    plain = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return "/".join(parts[:plain])


def _objects(uri: str) -> list[str]:
    folder = fixed_folder(uri)
    left = uri.removeprefix(f"{folder}/").split("/")
    return [
        f"{folder}/{key}"
        for key, _ in open_store(folder).list()
        if len(names := key.split("/")) == len(left) and all(map(fnmatchcase, names, left))
    ]


@contextmanager
def _opened(archive: str) -> Iterator[BinaryIO]:
    try:
        if "://" in archive:
            folder, _, name = archive.rpartition("/")
            with open_store(folder).open(name) as file:
                yield file
        else:
            # A small buffer: between two headers of a tar lies a sound.
            with open(archive, "rb", buffering=1024) as file:
                yield file
    except OSError as error:
        raise AttuneError(f"archive {archive}: {error.strerror or error}") from error


def _version(archive: str) -> str:
    if "://" in archive:
        folder, _, name = archive.rpartition("/")
        return open_store(folder).version(name) or ""
    try:
        found = os.stat(archive)
    except OSError as error:
        raise AttuneError(f"archive {archive}: {error.strerror}") from error
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns}"


@lru_cache(maxsize=10_000)
def _listing(archive: str, version: str) -> Listing:
    """What an archive holds; it is read once while `version` is the same."""
    listing = Listing(archive)
    is_zip = archive.lower().endswith(".zip")
    # In a store, each header of a tar costs a request.
    index = None if is_zip or "://" not in archive else _index_file(archive, version)
    entries = _read_index(index, archive) if index else []
    if not entries:
        with _opened(archive) as file:
            _check_compression(archive, file)
            file.seek(0)
            found = (_zip_entries if is_zip else _tar_entries)(archive, file)
            # If two members have one name, the later one counts, as it would after unpacking.
            last = {posixpath.normpath(entry.member.name): entry for entry in found}
        entries = [entry for name, entry in last.items() if is_utf8(name)]
        if index:
            _keep_index(index, entries)
    for member, problem, _ in entries:
        name = posixpath.normpath(member.name)
        if problem:
            listing.problems[name] = problem
        else:
            listing.add(name, member)
    return listing


def _index_file(archive: str, version: str) -> Path | None:
    """The file that keeps what an archive holds; None if this user has no cache folder."""
    key = hashlib.blake2b(f"1\n{archive}\n{version}".encode(), digest_size=12).hexdigest()
    with suppress(RuntimeError):
        return cache_folder() / "archives" / f"{key}.parquet"
    return None


def _read_index(file: Path, archive: str) -> list[Entry]:
    """The files of a tar as `_keep_index` kept them; none if they are not there or damaged."""
    with suppress(OSError, pa.ArrowException):
        table = pq.read_table(file, page_checksum_verification=True)
        return [
            Entry(Member(offset, length, "tar", archive, name), problem, size)
            for name, offset, length, problem, size in zip(
                *(column.to_pylist() for column in table.columns), strict=True
            )
        ]
    return []


def _keep_index(file: Path, entries: list[Entry]) -> None:
    """Keep the files of an archive for later commands, if the disk allows."""
    rows = [(e.member.name, e.member.offset, e.member.length, e.problem, e.size) for e in entries]
    table = pa.Table.from_pylist(
        [dict(zip(_INDEX.names, row, strict=True)) for row in rows], schema=_INDEX
    )
    with suppress(OSError):  # a full or read-only disk
        # A private folder: whoever can write there could replace an index.
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
            partial = Path(scratch) / file.name
            pq.write_table(table, partial, write_page_checksum=True)
            os.replace(partial, file)


def _check_compression(archive: str, file: BinaryIO) -> None:
    file.seek(0)
    start = file.read(6)
    for magic, command in _COMPRESSED.items():
        if start.startswith(magic):
            raise AttuneError(
                f"archive {archive}: is compressed as a whole, so its files cannot be read one by "
                f"one; decompress it ({command} {shlex.quote(archive)}) and name the .tar"
            )


def _zip_entries(archive: str, file: BinaryIO) -> Iterator[Entry]:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END_BYTES))
    tail = file.read(_END_BYTES)
    disk = tail[(end := tail.rfind(_END_RECORD)) + 4 : end + 6] if _END_RECORD in tail else b""
    if disk not in (b"", b"\0\0", b"\xff\xff"):
        whole = re.sub(r"(?i)\.zip$", ".whole.zip", archive)
        raise AttuneError(
            f"archive {archive}: is one part of several; join them: zip -s 0 "
            f"{shlex.quote(archive)} --out {shlex.quote(whole)}"
        )
    try:
        with zipfile.ZipFile(file) as found:
            infos = found.infolist()
    except (zipfile.BadZipFile, struct.error, ValueError) as error:
        raise AttuneError(
            f"archive {archive}: not a whole zip: {one_line(error)}; it may be cut: fetch it again"
        ) from error
    yield from (_zip_entry(archive, info) for info in infos if not info.is_dir())


def _zip_entry(archive: str, info: zipfile.ZipInfo) -> Entry:
    if info.flag_bits & _ENCRYPTED:
        raise AttuneError(
            f"archive {archive}: {info.orig_filename} is encrypted; unpack it (unzip "
            f"{shlex.quote(archive)}) and name the folder"
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise AttuneError(
            f"archive {archive}: {info.orig_filename} is compressed by method "
            f"{info.compress_type}; only stored and deflated files can be read: repack it (zip -0)"
        )
    # zipfile decodes names without the flag for UTF-8 as cp437, whatever they are.
    raw = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437", "replace")
    name = zip_name(raw, info.flag_bits)
    problem = "is a link" if stat.S_ISLNK(info.external_attr >> 16) else _leaving(name)
    member = Member(info.header_offset, info.compress_size, "zip", archive, name)
    return Entry(member, problem, info.file_size)


def _tar_entries(archive: str, file: BinaryIO) -> Iterator[Entry]:
    """The files of an open tar; contents are skipped.

    Raises:
        AttuneError: the tar is cut or damaged.
    """
    problem = "it has no end mark"
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
                if not info.isdir():
                    yield _tar_entry(archive, info)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE):
                return
    except tarfile.TarError as error:
        problem = one_line(error)
    raise AttuneError(f"archive {archive}: not a whole tar: {problem}; fetch it again")


def _tar_entry(archive: str, info: tarfile.TarInfo) -> Entry:
    length = info.offset_data + info.size - info.offset
    problem = _leaving(info.name)
    if info.issparse():
        problem = "has holes (a sparse file)"
    elif not info.isreg():
        problem = "is a link" if info.issym() or info.islnk() else "is no file"
    return Entry(Member(info.offset, length, "tar", archive, info.name), problem, info.size)


def _leaving(name: str) -> str:
    leads_out = posixpath.isabs(name) or posixpath.normpath(name).split("/")[0] == ".."
    return "leads outside" if leads_out else ""
