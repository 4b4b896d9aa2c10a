"""Source audio and catalogs on a disk, in a bucket, or inside other files (`common.sources`)."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from common.audio import AudioError, Wave, file_faults, read_part
from common.errors import AttuneError
from common.sources import parse, read_bytes
from common.storage import AccessDenied, StorageError, open_store


def read_source(
    uri: str, start_s: float | None = None, end_s: float | None = None
) -> tuple[Wave, int]:
    """Decode a file, an object or an address, or its part from `start_s` to `end_s` seconds.

    Returns:
        Mono float32 [S] and its rate in Hz.

    Raises:
        AudioError: it cannot be used, with the reason.
        StorageError: the disk or the store failed, not the file.
    """
    with opened(uri) as (file, size):
        return read_part(file, uri, size, start_s or 0.0, end_s)


@contextmanager
def opened(uri: str) -> Iterator[tuple[BinaryIO, int]]:
    """A file, an object or what an address leads to, and its size in bytes.

    Raises:
        AudioError: missing, not_a_file or unreadable.
        StorageError: the disk or the store failed, not the file.
    """
    if source := parse(uri):
        data = read_bytes(source)
        yield io.BytesIO(data), len(data)
        return
    try:
        with _refusals(uri):
            if "://" in uri:
                folder, _, name = uri.rpartition("/")
                with _store(folder).open(name) as file:
                    size = file.seek(0, os.SEEK_END)
                    yield file, size
            else:
                path = Path(uri)
                if path.exists() and not path.is_file():
                    raise AudioError("not_a_file", uri)
                with path.open("rb") as file:
                    yield file, os.fstat(file.fileno()).st_size
    except OSError as error:  # the disk, not the file
        raise StorageError(f"{uri}: {error}; run again") from error


@contextmanager
def _refusals(uri: str) -> Iterator[None]:
    """Turn a store's or disk's error that concerns only this file into an `AudioError`."""
    try:
        with file_faults(uri):
            yield
    except AccessDenied:
        if not _store(uri.rpartition("/")[0]).is_listable():
            raise  # these credentials may read nothing here: not the fault of this file
        raise AudioError("unreadable", f"{uri}: access denied") from None


@contextmanager
def on_disk(uri: str) -> Iterator[Path]:
    """An audio file on a local disk: the file itself, or a temporary copy of an object or of what
    an address leads to.

    Raises:
        AudioError: there is no such object, or these credentials may not read it.
        StorageError: the store cannot be reached, or these credentials may read nothing there.
    """
    source = parse(uri)
    if source is None and remote_uri(uri) is None:
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "audio"  # decoders look at its content only
        if source is not None:
            data, uri = read_bytes(source), source.shown
        else:
            folder, _, name = uri.rpartition("/")
            with _refusals(uri):
                data = _store(folder).read(name)
        copy.write_bytes(data)
        try:
            yield copy
        except AudioError as error:
            raise AudioError(error.reason, error.detail.replace(str(copy), uri)) from error


_store = lru_cache(maxsize=64)(open_store)


def remote_uri(path: Path | str) -> str | None:
    """The `s3://` URI of an object's path; None for a path on a disk."""
    text = str(path)
    # `Path` turns `s3://` into `s3:/`.
    place = text.removeprefix("s3:/").removeprefix("/")
    return f"s3://{place}" if text.startswith("s3:/") else None


def cache_folder() -> Path:
    """The folder for what can be made again: `ATTUNE_CACHE`, or `~/.cache/attune` (`attune` below
    `XDG_CACHE_HOME`).

    Raises:
        RuntimeError: none of these is set, and this user has no home folder.
    """
    own, general = (os.environ.get(name) for name in ("ATTUNE_CACHE", "XDG_CACHE_HOME"))
    return Path(own or Path(general or "~/.cache") / "attune").expanduser()


def local_copy(uri: str) -> Path:
    """A local copy of an object; it is fetched again only when the object has changed.

    Raises:
        AttuneError: there is no such object, or the store cannot be reached.
    """
    folder, _, name = uri.rpartition("/")
    store = open_store(folder)
    version = store.version(name)
    if version is None:
        raise AttuneError(f"{uri}: no such file")
    key = hashlib.blake2b(f"{uri}\n{version}".encode(), digest_size=12).hexdigest()
    copy = cache_folder() / "catalogs" / key / name
    if not copy.is_file():
        # A private folder: whoever can write there could replace the catalog.
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=copy.parent, delete=False) as partial:
            partial.write(store.read(name))
        os.replace(partial.name, copy)
    return copy
