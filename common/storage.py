"""Object stores behind one small interface: a folder and `s3://bucket/prefix` behave the same.

Keys are relative, `/`-separated and ASCII. The commit protocol needs two properties. `write`
replaces an object atomically: a reader sees the old bytes or the new bytes, never a part. `create`
is conditional: if several writers create the same key, exactly one succeeds. obstore gives both on
local disks (temporary file + rename or hard link) and on S3 (`If-None-Match: *`), and it retries
transient faults. S3 endpoint, region and credentials come from the `AWS_*` environment variables.
"""

from __future__ import annotations

import io
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
)
from obstore.store import LocalStore, S3Store

from common.errors import AttuneError, one_line

if TYPE_CHECKING:
    from obstore.store import ClientConfig


class StorageError(AttuneError):
    """The store refused a request or could not be reached, after retries."""

    every_rank_reports = True


class AccessDenied(StorageError):
    """The store refuses these credentials access to an object."""


RETRY_VARIABLE = "ATTUNE_STORE_RETRY_S"
"""Environment variable: seconds for which a remote store's faults are retried."""
_RETRY_S = 120.0
_NO_ANSWER = "HTTP error"
"""Part of obstore's message when a connection failed or an answer was incomplete."""
_UPLOADS = 3
"""Attempts at a multipart upload that the store lost, or at a long request that failed."""

_CONNECT = timedelta(seconds=5)
_SILENCE = timedelta(seconds=30)
"""A request without any data for this long is given up and retried."""
_DOWNLOAD = timedelta(hours=1)
"""Limit for a whole download that keeps sending data, such as a long recording on a slow line."""
_UPLOAD = timedelta(minutes=10)
"""Limit for one part of an upload. It gets no answer while it is sent, so `_SILENCE` would end it
on a slow line."""
_QUICK_BYTES = 1 << 20
"""Size of an upload that takes less than `_SILENCE` on any line."""

T = TypeVar("T")


class Entry(NamedTuple):
    """An object as the store lists it; `modified` is the store's time."""

    key: str
    size: int
    modified: datetime


class Store:
    """One folder of objects; made by `open_store`."""

    def __init__(
        self, uri: str, backend: Any, retry_s: float = 0.0, uploads: Any | None = None
    ) -> None:
        self.uri = uri
        self._backend = backend
        self._uploads = uploads or backend
        self._retry_s = retry_s

    def read(self, key: str) -> bytes:
        """The object's bytes.

        Raises:
            FileNotFoundError: there is no such object.
            AccessDenied: these credentials may not read it.
            StorageError: any other failure.
        """
        with self._errors(key):
            return self._patiently(lambda: bytes(obstore.get(self._backend, key).bytes()))

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from byte `start`; raises as `read`, also when the object is shorter."""
        if length == 0:
            return b""
        with self._errors(key):
            data = self._patiently(
                lambda: bytes(obstore.get_range(self._backend, key, start=start, length=length))
            )
        if len(data) != length:
            raise StorageError(
                f"{self.uri}/{key}: asked for {length} bytes at {start}, found {len(data)}"
            )
        return data

    def read_ranges(self, key: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Several `(start, length)` spans of one object; near spans share a request."""
        with self._errors(key):
            parts = self._patiently(
                lambda: obstore.get_ranges(
                    self._backend,
                    key,
                    starts=[start for start, _ in spans],
                    lengths=[length for _, length in spans],
                )
            )
        return [bytes(part) for part in parts]

    def open(self, key: str) -> BinaryIO:
        """The object as a seekable binary file that only requests the ranges that are read."""
        if (found := self.entry(key)) is None:
            raise FileNotFoundError(f"{self.uri}/{key}")
        return io.BufferedReader(_RangeFile(self, key, found.size), buffer_size=1 << 18)

    def write(self, key: str, data: bytes | Path) -> None:
        """Create or atomically replace an object from bytes or a local file."""
        backend = self._for_upload(data)
        self._put(key, lambda: obstore.put(backend, key, data, mode="overwrite"))

    def create(self, key: str, data: bytes | Path) -> bool:
        """Create an object only if there is none; False if there was one already.

        If the store's answer is lost, the retry may find its own object, so an object with the same
        bytes then counts as created. If the store answered with an error but had created the
        object, this returns False; a caller that must know who created it reads it.
        """
        lost = False
        backend = self._for_upload(data)

        def put() -> None:
            nonlocal lost
            try:
                obstore.put(backend, key, data, mode="create")
            except GenericError:
                lost = True
                raise

        try:
            self._put(key, put)
        except (AlreadyExistsError, PreconditionError):
            return lost and self.read(key) == (
                data if isinstance(data, bytes) else data.read_bytes()
            )
        return True

    def entries(self, prefix: str = "") -> list[Entry]:
        """Every object below folder `prefix`, sorted by key."""
        with self._errors(prefix):
            return self._patiently(
                lambda: sorted(
                    Entry(str(meta["path"]), int(meta["size"]), meta["last_modified"])
                    for batch in obstore.list(self._backend, prefix=prefix.rstrip("/") or None)
                    for meta in batch
                )
            )

    def is_listable(self) -> bool:
        """Whether these credentials may list the folder."""
        try:
            with self._errors(""):
                self._patiently(lambda: next(iter(obstore.list(self._backend)), None))
        except StorageError:
            return False
        return True

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        """`(key, size in bytes)` of every object below folder `prefix`, sorted by key."""
        return [(entry.key, entry.size) for entry in self.entries(prefix)]

    def entry(self, key: str) -> Entry | None:
        """One object as `entries` lists it; None if there is none."""
        meta = self._head(key)
        return Entry(key, int(meta["size"]), meta["last_modified"]) if meta else None

    def exists(self, key: str) -> bool:
        return self.entry(key) is not None

    def version(self, key: str) -> str | None:
        """A text that changes when the object does (tag, time, size); None if there is none."""
        if (meta := self._head(key)) is None:
            return None
        return f"{meta['e_tag']} {meta['last_modified'].isoformat()} {meta['size']}"

    def delete(self, key: str) -> None:
        """Remove an object; no error if there is none."""
        with suppress(FileNotFoundError), self._errors(key):
            self._patiently(lambda: obstore.delete(self._backend, key))

    def _for_upload(self, data: bytes | Path) -> Any:
        if self._uploads is self._backend:
            return self._backend
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        return self._uploads if size > _QUICK_BYTES else self._backend

    def _head(self, key: str) -> Any | None:
        with suppress(FileNotFoundError), self._errors(key):
            return self._patiently(lambda: obstore.head(self._backend, key))
        return None

    def _put(self, key: str, put: Callable[[], object]) -> None:
        if not key.isascii() or key.startswith("/") or ".." in key.split("/"):
            raise ValueError(f"bad object key {key!r}")
        for attempt in range(1, _UPLOADS + 1):
            try:
                self._patiently(put)
                return
            except (AlreadyExistsError, PreconditionError):
                raise
            except (NotFoundError, FileNotFoundError) as error:
                # No such bucket; or no such upload, because the answer to its completion was lost.
                if attempt == _UPLOADS or not self._retry_s:
                    raise self._failure(key, error) from error
            except BaseError as error:
                raise self._failure(key, error) from error

    def _patiently(self, action: Callable[[], T]) -> T:
        """Repeat a request that got no answer, or only part of one, for `retry_s` seconds.

        If a request ran for longer than twice that before it failed, the store can be reached. Such
        a request is restarted, at most twice.
        """
        deadline, pause, long_ones = time.monotonic() + self._retry_s, 0.1, 1
        while True:
            began = time.monotonic()
            try:
                return action()
            except GenericError as error:
                now = time.monotonic()
                if _NO_ANSWER not in str(error):
                    raise
                if self._retry_s and now - began > 2 * self._retry_s and long_ones < _UPLOADS:
                    long_ones += 1
                elif now + pause > deadline:
                    raise
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 15.0)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except (NotFoundError, FileNotFoundError):
            raise FileNotFoundError(f"{self.uri}/{key}") from None
        except BaseError as error:
            raise self._failure(key, error) from error

    def _failure(self, key: str, error: Exception) -> StorageError:
        kind = AccessDenied if isinstance(error, PermissionDeniedError) else StorageError
        text = str(error).split("\n\nDebug source")[0]  # obstore appends a debug dump
        return kind(f"{self.uri}/{key}: {one_line(text, 400)}")


class _RangeFile(io.RawIOBase):
    """An object as a file; each read is one range request."""

    def __init__(self, store: Store, key: str, size: int) -> None:
        self._store, self._key, self._size, self._position = store, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._position))
        buffer[:length] = self._store.read_range(self._key, self._position, length)
        self._position += length
        return length


def open_store(uri: str | Path) -> Store:
    """Open a folder (created if it is missing) or `s3://bucket/prefix`.

    Raises:
        AttuneError: the scheme is not supported, the path is a file, or `ATTUNE_STORE_RETRY_S` is
            not a number of seconds.
    """
    text = str(uri).rstrip("/") or "/"
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        if not bucket:
            raise AttuneError(f"{text}: expected s3://bucket/prefix")
        retry_s = _retry_s()
        backend = _bucket(bucket, prefix, retry_s, {"timeout": _DOWNLOAD, "read_timeout": _SILENCE})
        return Store(text, backend, retry_s, _bucket(bucket, prefix, retry_s, {"timeout": _UPLOAD}))
    if separator and scheme != "file":
        raise AttuneError(f"{text}: expected a folder or s3://bucket/prefix, found {scheme}://")
    folder = Path(rest if separator else text).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise AttuneError(f"{folder}: expected a folder, found a file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AttuneError(f"{folder}: cannot create the folder: {error.strerror}") from error
    return Store(str(folder), LocalStore(folder))


def _bucket(bucket: str, prefix: str, retry_s: float, limits: ClientConfig) -> S3Store:
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT", "")
    options: ClientConfig = {"connect_timeout": _CONNECT, **limits}
    if endpoint.startswith("http://"):
        options["allow_http"] = True
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options=options,
        # Only the time is limited: obstore waits up to 15 s between tries.
        retry_config={"max_retries": 10_000, "retry_timeout": timedelta(seconds=retry_s)},
    )


def _retry_s() -> float:
    text = os.environ.get(RETRY_VARIABLE, "") or str(_RETRY_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= 86400:
        raise AttuneError(f"{RETRY_VARIABLE}={text}: expected seconds, 0 to 86400")
    return seconds
