"""A catalog's audio: a folder on a disk, a prefix in a bucket or archives, listed once."""

from __future__ import annotations

import html
import os
import posixpath
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.errors import AttuneError
from common.sources import Member, parse
from common.storage import open_store
from common.uris import remote_uri
from pipeline.catalogs.archives import Listing, find_archives, list_archives
from pipeline.catalogs.file_names import has_audio_extension, is_audio, is_utf8


@dataclass(frozen=True)
class FoundFiles:
    """The result of `AudioRoot.by_stems`, one entry per row."""

    paths: pa.Array
    """Null if there is no usable file."""
    missing: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    """True if the file is a link to a place outside the folder."""
    real: pa.Array
    """Real paths, as `AudioRoot.real_path`; null where they are the same as `paths`."""


class AudioRoot:
    """The folder with a catalog's audio, listed once.

    With `is_blind` no audio is needed: every file is taken to exist, and is called by its name.
    Then the folder may also be in a bucket, or not known (None).

    Raises:
        AttuneError: the folder is missing or cannot be read.
    """

    def __init__(self, folder: str | Path | None, *, is_blind: bool = False) -> None:
        self.is_blind = is_blind
        self.is_known = folder is not None
        remote = remote_uri(folder) if folder is not None else None
        self._bucket = remote and remote.rstrip("/")
        self._links: set[str] = set()
        self._real_folder = lru_cache(maxsize=1024)(os.path.realpath)
        given = Path(folder or ".").absolute()
        self._real = os.path.realpath(given)
        # Normalized, as `by_name` writes paths.  After a link, `..` leads elsewhere than it reads:
        # then only the real path is right.
        normal = os.path.normpath(given)
        self.folder = Path(normal if os.path.realpath(normal) == self._real else self._real)
        self.place = os.path.join(self.folder, "")
        """What paths of its files begin with."""
        if is_blind:
            return
        try:
            os.stat(self.place)
        except (FileNotFoundError, NotADirectoryError):
            raise AttuneError(f"audio folder {folder}: no such folder") from None
        except OSError as error:
            raise AttuneError(f"audio folder {folder}: {error.strerror}") from error

    def __str__(self) -> str:
        return self._bucket or (str(self.folder) if self.is_known else "the audio folder")

    def by_stem(self, *stems: str) -> str | None:
        """Path of the first `STEM.*` that exists, with any extension of audio files.

        Raises:
            ValueError: as `by_name`.
        """
        if self.is_blind:
            return self.by_name(stems[0])
        for stem in stems:
            if name := self._stems.get(stem):
                return self.by_name(name)
        return None

    def spelling(self, name: str) -> str:
        """The name that the file has in the folder, if a list spells it in another way.

        Another Unicode form, `\\` for `/`, blanks around a name, `%20` or an HTML entity is another
        way, if exactly one file fits; upper and lower case is not.  Else the name unchanged.
        Absolute paths into the folder become names.
        """
        name = self._relative(name)
        if self.is_blind or self._is_there(name):
            return name
        found = self._by_plain_name.get(plain_name(name), [])
        return found[0] if len(found) == 1 else name

    def similar(self, name: str) -> list[str]:
        """Files whose names differ only in upper and lower case or as in `spelling`, sorted.

        Args:
            name: of a file, or a stem.
        """
        if self.is_blind:
            return []
        plain = plain_name(name).casefold()
        return self._by_folded_name.get(plain) or self._by_folded_stem.get(plain, [])

    def audio_files(self, *, deep: bool) -> Iterable[str]:
        """Names of the audio files in the folder and, if `deep`, in the folders below it."""
        return self._tree() if deep else self._stems.values()

    @property
    def knows_names(self) -> bool:
        """Whether any names of files are known; else only the first stem of a file counts."""
        return not self.is_blind

    def by_stems(self, *candidates: pa.Array) -> FoundFiles:
        """`by_stem` for columns: each candidate is a string array with the same N rows."""
        n = len(candidates[0])
        if self.is_blind:
            real = pa.nulls(n, pa.string())
            if self.is_known:
                real = pc.binary_join_element_wise(self.real_path(""), candidates[0], "/")
            return FoundFiles(candidates[0], np.zeros(n, bool), np.zeros(n, bool), real)
        stems = pa.array(self._stems.keys(), pa.string())
        found = np.full(n, -1, np.int64)
        for candidate in candidates:
            left = np.flatnonzero(found < 0)
            hits = pc.index_in(candidate.take(pa.array(left)), value_set=stems)
            found[left] = np.asarray(hits.fill_null(-1))
        names = list(self._stems.values())
        there = found >= 0
        used, found[there] = np.unique(found[there], return_inverse=True)
        names = [names[i] for i in used]
        # Only links can lead out; asking the file system about every file is slow.
        leads_out = [
            name in self._links and not _is_inside(os.path.realpath(self.place + name), self._real)
            for name in names
        ]
        outside = (found >= 0) & np.array([*leads_out, False])[found]
        there = (found >= 0) & ~outside
        order = pa.array(found, mask=~there)
        paths = [self._path(name) for name in names]
        real = [self._behind(name) for name in names]
        return FoundFiles(
            pa.array(paths, pa.string()).take(order),
            found < 0,
            outside,
            pa.array(real, pa.string()).take(order),
        )

    def by_name(self, name: str) -> str | None:
        """Path of the file with this name (subfolders allowed), or None if there is no such file.

        Raises:
            ValueError: the name leads outside the folder (absolute, `..`, or a link).
        """
        if self.is_blind and not self.is_known and os.path.isabs(name):
            return name
        path = os.path.normpath(os.path.join(self.folder, name))
        if not _is_inside(path, str(self.folder)):
            raise ValueError(f"{name!r} leads outside {self}")
        if self.is_blind:
            return name
        if not os.path.isfile(path):
            return None
        if not _is_inside(self.real_path(name), self._real):
            raise ValueError(f"{name!r} links to outside {self.folder}")
        return path

    def _relative(self, name: str) -> str:
        if os.path.isabs(name):
            path = os.path.normpath(name)
            for folder in (str(self.folder), self._real):
                if _is_inside(path, folder):
                    return os.path.relpath(path, folder)
        return name

    def real_path(self, name: str) -> str:
        """The file that a name or path leads to, behind links, also if the file is not there.

        Lists that write a name in different ways, or start from different folders, mean the same
        file if this is the same.  Empty if the folder is not known.
        """
        if self._bucket is not None:
            return name if remote_uri(name) else f"{self._bucket}/{posixpath.normpath(name)}"
        if "\0" in name or not (self.is_known or os.path.isabs(name)):
            return ""
        folder, base = os.path.split(os.path.normpath(os.path.join(self.folder, name)))
        # The folder's path is the same for many files: asked once.
        path = os.path.join(self._real_folder(folder), base)
        return os.path.realpath(path) if os.path.islink(path) else path

    def _path(self, name: str) -> str:
        return self.place + name

    def _behind(self, name: str) -> str | None:
        """As `real_path`; None if it is the same as `_path`."""
        is_plain = self._bucket is not None or self._real == str(self.folder)
        return None if is_plain and name not in self._links else self.real_path(name)

    def _is_there(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self.folder, name))

    def _tree(self) -> Iterable[str]:
        """Names of all audio files below the folder, relative to it.  Links are not followed."""
        for folder, folders, names in os.walk(self.folder):
            folders.sort()
            for name in sorted(names):
                path = os.path.relpath(os.path.join(folder, name), self.folder)
                if is_utf8(path) and is_audio(path):
                    yield path

    @cached_property
    def _by_plain_name(self) -> dict[str, list[str]]:
        return _grouped((plain_name(name), name) for name in self._tree())

    @cached_property
    def _by_folded_name(self) -> dict[str, list[str]]:
        return _grouped((plain_name(name).casefold(), name) for name in self._tree())

    @cached_property
    def _by_folded_stem(self) -> dict[str, list[str]]:
        return _grouped((plain_name(s).casefold(), name) for s, name in self._stems.items())

    @cached_property
    def _stems(self) -> dict[str, str]:
        try:
            with os.scandir(self.folder) as entries:
                # No list can name a file whose name is not UTF-8.
                found = [
                    (e.name, e.is_symlink())
                    for e in entries
                    if is_utf8(e.name) and has_audio_extension(e.name) and e.is_file()
                ]
        except OSError as error:
            raise AttuneError(f"audio folder {self.folder}: {error.strerror}") from error
        self._links = {name for name, is_link in found if is_link}
        # Reversed, so that of `a.flac` and `a.wav` the first in order stays.
        return {os.path.splitext(name)[0]: name for name, _ in sorted(found, reverse=True)}


class BucketRoot(AudioRoot):
    """The audio at `s3://bucket/prefix`: one listing, no links.

    Raises:
        AttuneError: the bucket cannot be listed, or has no objects there.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(uri, is_blind=True)
        self.is_blind = False
        self.uri = uri.rstrip("/")
        self.place = f"{self.uri}/"
        self._names = {key for key, _ in open_store(self.uri).list()}
        if not self._names:
            raise AttuneError(f"audio folder {uri}: no such folder")

    def by_name(self, name: str) -> str | None:
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{name!r} leads outside {self.uri}")
        # An object can really be named `a//./b`; on a disk this name means `a/b`.
        for key in (name, posixpath.normpath(name)):
            if key in self._names:
                return self.place + key
        return None

    def _relative(self, name: str) -> str:
        return name.removeprefix(self.place)

    def _is_there(self, name: str) -> bool:
        return name in self._names or posixpath.normpath(name) in self._names

    def _tree(self) -> Iterable[str]:
        return sorted(filter(is_audio, self._names))

    @cached_property
    def _stems(self) -> dict[str, str]:
        audio = (name for name in self._names if "/" not in name and has_audio_extension(name))
        return {os.path.splitext(name)[0]: name for name in sorted(audio, reverse=True)}

    def __str__(self) -> str:
        return self.uri


class ArchiveRoot(AudioRoot):
    """The audio in zip and tar archives: the directory of each is read once, nothing is unpacked.

    A name is that of a file in an archive.  It may leave out the folders that all files of the
    archive are in (`FSD50K.dev_audio/`), or begin with a folder of the archive's own name, as if
    the archive was unpacked there.  A name that two files could have is not found.

    With `is_blind` the archives need not be there.

    Args:
        pattern: a path or URI, which may have `*`.

    Raises:
        AttuneError: there are no such archives, or one cannot be read.
    """

    def __init__(self, pattern: str | Path, *, is_blind: bool = False) -> None:
        super().__init__(None, is_blind=True)
        self.is_blind, self.is_known = is_blind, True
        self.pattern = remote_uri(pattern) or os.path.abspath(pattern)
        self.place = ""
        self._listings: list[Listing] = []
        try:
            self._listings = list_archives(find_archives(self.pattern))
        except AttuneError:
            if not is_blind:
                raise
        self._starts = [0, *accumulate(len(listing.names) for listing in self._listings)]
        self._numbers = cache(self._named)
        self._problems = {
            name: f"in {listing.archive} {problem}"
            for listing in self._listings
            for name, problem in listing.problems.items()
        }

    def by_name(self, name: str) -> str | None:
        if self.is_blind:
            return name
        normal = posixpath.normpath(name)
        if problem := self._problems.get(normal):
            raise ValueError(f"{name!r} {problem}")
        if posixpath.isabs(normal) or normal.split("/")[0] == "..":
            raise ValueError(f"{name!r} leads outside {self}")
        number = self._number(normal)
        return None if number is None else str(self._member(number))

    def spelling(self, name: str) -> str:
        if self._number(posixpath.normpath(name)) is not None:
            return name
        found = self._by_plain_name.get(plain_name(name), [])
        return found[0] if len(found) == 1 else name

    def real_path(self, name: str) -> str:
        member = parse(name)
        if not isinstance(member, Member):
            name = self._stems.get(name, name)  # of a list that only has stems
            number = self._number(posixpath.normpath(name))
            if number is None:
                return f"{self.pattern}!/{posixpath.normpath(name)}"
            member = self._member(number)
        return f"{_real_archive(member.archive)}!/{posixpath.normpath(member.name)}"

    def audio_files(self, *, deep: bool) -> Iterable[str]:
        """`ARCHIVE!/NAME` of all audio files, whatever folder they are in."""
        for listing in self._listings:
            place = _real_archive(listing.archive)
            yield from (f"{place}!/{name}" for name in listing.names if is_audio(name))

    @property
    def knows_names(self) -> bool:
        return True

    def by_stems(self, *candidates: pa.Array) -> FoundFiles:
        if not self.is_blind:
            return super().by_stems(*candidates)
        rows = zip(*(candidate.to_pylist() for candidate in candidates), strict=True)
        real = [
            self.real_path(next((stem for stem in stems if stem in self._stems), stems[0]))
            for stems in rows
        ]
        none = np.zeros(len(real), bool)
        return FoundFiles(candidates[0], none, none, pa.array(real, pa.string()))

    def _number(self, name: str) -> int | None:
        """The number of the one file that a normalized name can mean.

        First the name as it is in an archive counts, then the shorter, then the longer one.
        """
        for form in range(3):
            if (found := self._numbers(form).get(name)) is not None:
                return None if found < 0 else found
        return None

    def _named(self, form: int) -> dict[str, int]:
        """Numbers of the files by name, -1 for names that several files have.

        Args:
            form: 0 for names as in the archive, 1 without the folders that all files are in, 2 with
                the archive's own name instead of them.
        """
        found: dict[str, int] = {}
        for listing, start in zip(self._listings, self._starts, strict=False):
            folder = listing.folder if form else ""
            top = f"{_archive_stem(listing.archive)}/" if form == 2 else ""
            if form != 1 or folder:
                for number, name in enumerate(listing.names, start):
                    key = top + name.removeprefix(folder)
                    found[key] = -1 if key in found else number
        return found

    def _audio(self) -> Iterator[tuple[int, Listing, str]]:
        """Number, archive and name of each audio file."""
        for listing, start in zip(self._listings, self._starts, strict=False):
            for number, name in enumerate(listing.names, start):
                if is_audio(name):
                    yield number, listing, name

    def _labels(self) -> Iterator[tuple[str, str]]:
        """Each name that an audio file can be given, and how to show the file."""
        for number, listing, name in self._audio():
            is_only = self._numbers(0)[name] == number
            label = name if is_only else f"{posixpath.basename(listing.archive)}!/{name}"
            yield from ((key, label) for key in {name, name.removeprefix(listing.folder)})

    def _member(self, number: int) -> Member:
        i = bisect_right(self._starts, number) - 1
        return self._listings[i].member(number - self._starts[i])

    def _path(self, name: str) -> str:
        return str(self._member(self._numbers(0)[name]))

    def _behind(self, name: str) -> str | None:
        return self.real_path(name)

    @cached_property
    def _by_plain_name(self) -> dict[str, list[str]]:
        return _grouped((plain_name(name), label) for name, label in self._labels())

    @cached_property
    def _by_folded_name(self) -> dict[str, list[str]]:
        return _grouped((plain_name(name).casefold(), label) for name, label in self._labels())

    @cached_property
    def _by_folded_stem(self) -> dict[str, list[str]]:
        stems = ((_stem(label), label) for label in dict(self._labels()).values())
        return _grouped((plain_name(stem).casefold(), label) for stem, label in stems)

    @cached_property
    def _stems(self) -> dict[str, str]:
        """The file of each stem: the first in order if a folder has several, such as `a.flac` and
        `a.wav`; none if several folders have one."""
        found: dict[str, tuple[str, str, str] | None] = {}
        for _, listing, name in self._audio():
            stem, here = _stem(name), (listing.archive, posixpath.dirname(name), name)
            other = found.setdefault(stem, here)
            if other is not None:
                found[stem] = min(other, here) if other[:2] == here[:2] else None
        return {stem: place[2] for stem, place in found.items() if place}

    def __str__(self) -> str:
        return self.pattern


def plain_name(name: str) -> str:
    """A file name as every list and disk would spell it: what `AudioRoot.spelling` compares."""
    name = html.unescape(unquote(name)).replace("\\", "/")
    name = posixpath.normpath("/".join(part.strip() for part in name.split("/")))
    return unicodedata.normalize("NFC", name)


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, name in pairs:
        found.setdefault(key, []).append(name)
    return found


def _archive_stem(archive: str) -> str:
    return os.path.splitext(posixpath.basename(archive))[0]


def _real_archive(archive: str) -> str:
    return archive if "://" in archive else os.path.realpath(archive)


def _stem(name: str) -> str:
    return os.path.splitext(posixpath.basename(name))[0]


def _is_inside(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder and path != folder
