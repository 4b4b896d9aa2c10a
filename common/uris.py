"""Audio that shards were made of, wherever it lies: a disk or a bucket."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from common.audio import AudioError, Waveform, read_part
from common.errors import AttuneError
from common.storage import AccessDenied, StorageError, Store, open_store


def read_source(
    uri: str, start_s: float | None = None, end_s: float | None = None
) -> tuple[Waveform, int]:
    """Decode a file or an object, or its part from `start_s` to `end_s` seconds.

    Returns:
        Mono float32 [S] and its rate in Hz.

    Raises:
        AudioError: it cannot be used; says why.
        StorageError: the disk or the store failed, not the file.
    """
    with opened(uri) as (file, size):
        return read_part(file, uri, size, start_s or 0.0, end_s)


@contextmanager
def opened(uri: str) -> Iterator[tuple[BinaryIO, int]]:
    """A file or an object, and its size in bytes.

    Raises:
        AudioError: missing, not_a_file or unreadable.
        StorageError: the disk or the store failed, not the file.
    """
    try:
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
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError("missing", uri) from None
    except PermissionError as error:
        raise AudioError("unreadable", f"{uri}: {error.strerror}") from error
    except AccessDenied:
        if not _store(uri.rpartition("/")[0]).is_listable():
            raise  # nobody gets in: no fault of this file
        raise AudioError("unreadable", f"{uri}: access denied") from None
    except OSError as error:  # the disk, not the file
        raise StorageError(f"{uri}: {error}; run again") from error


@contextmanager
def on_disk(uri: str) -> Iterator[Path]:
    """An audio file on a local disk: itself, or for a while a copy of an object.

    Raises:
        AudioError: there is no such object, or it alone is not for these credentials.
        StorageError: the store cannot be reached, or not with these credentials; tried again.
    """
    if remote_uri(uri) is None:
        yield Path(uri)
        return
    folder, _, name = uri.rpartition("/")
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / f"audio{Path(name).suffix}"
        try:
            copy.write_bytes(_store(folder).read(name))
        except FileNotFoundError:
            raise AudioError("missing", uri) from None
        except AccessDenied:
            if not _store(folder).is_listable():
                raise  # nobody gets in: no fault of this file
            raise AudioError("unreadable", f"{uri}: access denied") from None
        try:
            yield copy
        except AudioError as error:
            raise AudioError(error.reason, error.detail.replace(str(copy), uri)) from error


@lru_cache(maxsize=64)
def _store(folder: str) -> Store:
    return open_store(folder)


def remote_uri(path: Path | str) -> str | None:
    """`s3://...` of a path that names an object; None for a path on a disk."""
    text = str(path)
    if text.startswith("s3://"):
        return text
    # What `Path` makes of it.
    return f"s3://{text.removeprefix('s3:/')}" if text.startswith("s3:/") else None


def local_copy(uri: str) -> Path:
    """A local copy of an object, fetched once for each of its contents.

    Raises:
        AttuneError: there is no such object, or the store cannot be reached.
    """
    folder, _, name = uri.rpartition("/")
    store = open_store(folder)
    version = store.version(name)
    if version is None:
        raise AttuneError(f"{uri}: no such file")
    key = hashlib.blake2b(f"{uri}\n{version}".encode(), digest_size=12).hexdigest()
    # A folder of one's own: whoever could write there could pass off another catalog.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    copy = cache / "attune" / "catalogs" / key / name
    if not copy.is_file():
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=copy.parent, delete=False) as partial:
            partial.write(store.read(name))
        os.replace(partial.name, copy)
    return copy
