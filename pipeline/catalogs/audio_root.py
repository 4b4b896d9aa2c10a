"""Where a catalog's audio lies: a folder on a disk or a prefix in a bucket, listed once."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.audio import AUDIO_EXTENSIONS
from common.errors import AttuneError
from common.storage import open_store


@dataclass(frozen=True)
class FoundFiles:
    """What `AudioRoot.by_stems` found, one entry per row."""

    paths: pa.Array
    """Null where there is no usable file."""
    missing: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    """There is a file, but it is a link that leads out of the folder."""


class AudioRoot:
    """The folder that holds a catalog's audio, listed once; blind: every file is taken to be there.

    Raises:
        AttuneError: it is missing or cannot be read.
    """

    def __init__(self, folder: str | Path, *, is_blind: bool = False) -> None:
        self.is_blind = is_blind
        self._links: set[str] = set()
        given = Path(folder).absolute()
        self._real = os.path.realpath(given)
        # As `by_name` writes paths; behind a link `..` leads elsewhere than it reads.
        self.folder = Path(os.path.normpath(given))
        if os.path.realpath(self.folder) != self._real:
            self.folder = Path(self._real)
        self._place = os.path.join(self.folder, "")
        if is_blind:
            return
        try:
            os.stat(os.path.join(self.folder, ""))
        except (FileNotFoundError, NotADirectoryError):
            raise AttuneError(f"audio folder {folder}: no such folder") from None
        except OSError as error:
            raise AttuneError(f"audio folder {folder}: {error.strerror}") from error

    def __str__(self) -> str:
        return str(self.folder)

    def by_stem(self, *stems: str) -> str | None:
        """Path of the first `STEM.*` there is, of any extension of audio files.

        Raises:
            ValueError: as `by_name`.
        """
        if self.is_blind:
            return self.by_name(stems[0])
        for stem in stems:
            if name := self._stems.get(stem):
                return self.by_name(name)
        return None

    def by_stems(self, *candidates: pa.Array) -> FoundFiles:
        """As `by_stem`, for columns: each candidate is a string array of the same N rows."""
        n = len(candidates[0])
        if self.is_blind:
            return FoundFiles(candidates[0], np.zeros(n, bool), np.zeros(n, bool))
        stems = pa.array(self._stems.keys(), pa.string())
        found = np.full(n, -1, np.int64)
        for candidate in candidates:
            left = np.flatnonzero(found < 0)
            if not len(left):
                break
            hits = pc.index_in(candidate.take(pa.array(left)), value_set=stems)
            found[left] = np.asarray(hits.fill_null(-1))
        names = list(self._stems.values())
        suspect = np.array([name in self._links and self._leads_out(name) for name in names], bool)
        outside = (found >= 0) & np.append(suspect, False)[found]
        there = (found >= 0) & ~outside
        chosen = pa.array(names, pa.string()).take(pa.array(found, mask=~there))
        paths = pc.binary_join_element_wise(self._place, chosen, "")
        return FoundFiles(paths, found < 0, outside)

    def _leads_out(self, name: str) -> bool:
        return not _is_inside(os.path.realpath(os.path.join(self.folder, name)), self._real)

    def by_name(self, name: str) -> str | None:
        """Path of the file with this name (subfolders allowed), or None if there is none.

        Raises:
            ValueError: it lies outside the folder (absolute, `..`, or a link that leads out).
        """
        if self.is_blind:
            if os.path.isabs(name) or ".." in Path(name).parts:
                raise ValueError(f"{name!r} leads outside the audio folder")
            return name
        path = os.path.normpath(os.path.join(self.folder, name))
        if not _is_inside(path, str(self.folder)):
            raise ValueError(f"{name!r} leads outside {self.folder}")
        if not os.path.isfile(path):
            return None
        if not _is_inside(os.path.realpath(path), self._real):
            raise ValueError(f"{name!r} links to outside {self.folder}")
        return path

    @cached_property
    def _stems(self) -> dict[str, str]:
        try:
            with os.scandir(self.folder) as entries:
                # No list can name a file whose name is no text.
                found = [
                    (e.name, e.is_symlink()) for e in entries if _is_text(e.name) and _is_audio(e)
                ]
        except OSError as error:
            raise AttuneError(f"audio folder {self.folder}: {error.strerror}") from error
        self._links = {name for name, is_link in found if is_link}
        # Reversed: the first in order stays.
        return {os.path.splitext(name)[0]: name for name, _ in sorted(found, reverse=True)}


class BucketRoot(AudioRoot):
    """The same for `s3://bucket/prefix`: one listing, no links.

    Raises:
        AttuneError: the bucket cannot be listed, or nothing is there.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(".", is_blind=True)
        self.is_blind = False
        self.uri = uri.rstrip("/")
        self._place = f"{self.uri}/"
        self._names = {key for key, _ in open_store(self.uri).list()}
        if not self._names:
            raise AttuneError(f"audio folder {uri}: no such folder")

    def by_name(self, name: str) -> str | None:
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{name!r} leads outside {self.uri}")
        # Objects may have such names themselves; a disk knows `a//./b` as `a/b` only.
        for key in (name, posixpath.normpath(name)):
            if key in self._names:
                return self._place + key
        return None

    @cached_property
    def _stems(self) -> dict[str, str]:
        audio = (name for name in self._names if "/" not in name and _has_audio_extension(name))
        return {os.path.splitext(name)[0]: name for name in sorted(audio, reverse=True)}

    def __str__(self) -> str:
        return self.uri


def _is_audio(entry: os.DirEntry[str]) -> bool:
    return _has_audio_extension(entry.name) and entry.is_file()


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_audio_extension(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in AUDIO_EXTENSIONS


def _is_inside(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder and path != folder
