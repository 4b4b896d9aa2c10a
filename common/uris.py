"""Audio that shards were made of, wherever it lies: a disk or a bucket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from common.audio import AudioError, Waveform, read_part
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


@lru_cache(maxsize=64)
def _store(folder: str) -> Store:
    return open_store(folder)
