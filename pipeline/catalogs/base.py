"""What every catalog reader has in common: its outcome per row, and where its audio lies."""

from __future__ import annotations

import hashlib
import os
import posixpath
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, PrivateAttr

from common.config import Section
from common.errors import AttuneError
from common.schema import Record
from common.storage import open_store

Split = Literal["train", "valid", "test"]

AUDIO_EXTENSIONS = frozenset({
    ".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".caf", ".flac",
    ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpga", ".oga", ".ogg",
    ".ogv", ".opus", ".ra", ".snd", ".w64", ".wav", ".wave", ".webm", ".wma", ".wv",
})  # fmt: skip
"""What `AudioRoot.by_stem` takes for audio; metadata, text and pictures may lie beside it."""


def _not_empty(value: object) -> object:
    if value == "":
        raise ValueError(
            "is empty; give a path (root=/path on the command line, where the recipe takes it from "
            "root) or set the variable that the recipe takes it from"
        )
    return value


def _expand_user(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # no such user
        raise ValueError(str(error)) from None


CatalogPath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_expand_user)]
"""A path in a catalog's config: not empty, `~` expanded."""


@dataclass(slots=True)
class Refusal:
    """A clip or row that goes no further, with the stage and the reason.

    Group, split and clip stay with it: a held-out clip that is refused (say, its audio is missing)
    still keeps its group, and itself in other datasets, out of training.
    """

    dataset: str
    native_id: str
    source: str
    stage: str
    reason: str
    detail: str
    sample_id: str = ""
    group_id: str = ""
    split: str = ""
    clip: str = ""


@dataclass(slots=True)
class Merged:
    """A row that adds to a clip another row stands for, such as a second caption."""

    source: str


Outcome = Record | Refusal | Merged
"""What becomes of one catalog row: rows read = records + refusals + merged."""


def refuse(record: Record, stage: str, reason: str, detail: str) -> Refusal:
    """Refuse a clip that was read."""
    return Refusal(
        record.dataset, record.native_id, record.source, stage, reason, detail,
        record.sample_id, record.group_id, record.split, record.clip,
    )  # fmt: skip


class Catalog(Section):
    """Base of the readers; a subclass adds `dataset: Literal[...]`, its paths, and `read`."""

    text_kind: ClassVar[Literal["sound", "music"]] = "sound"
    """`sound`: captions, else tags, become prompts. `music`: variants of description and fields."""

    global_ids: ClassVar[bool] = False
    """Whether a native id names the same clip wherever this dataset's files lie, so that several
    catalogs (its splits) can share a label."""

    dataset: str
    role: Literal["encode", "hold_out"] = "encode"
    """`hold_out`: nothing of it is encoded and its audio is not looked for, but its groups stay out
    of training and validation, whatever its split."""
    name: str = ""
    """Name in manifest and reports, where two catalogs of one kind are used; default `dataset`."""

    @property
    def label(self) -> str:
        return self.name or self.dataset

    _without_audio: bool = PrivateAttr(default=False)

    def without_audio(self) -> Self:
        """The same catalog, read for its rows alone: no audio file is looked for."""
        blind = self.model_copy()
        blind._without_audio = True
        return blind

    def open_audio(self, folder: str | Path | None) -> AudioRoot:
        """The catalog's audio folder, to be passed to `locate` and `locate_stem`.

        Raises:
            AttuneError: it is missing or cannot be read, or the recipe names none.
        """
        if self._without_audio or self.role == "hold_out":
            return AudioRoot(folder or ".", is_blind=True)
        if folder is None:
            raise AttuneError(f"catalog {self.label}: needs audio= (the folder of its files)")
        uri = remote_uri(folder)
        return AudioRoot(folder) if uri is None else BucketRoot(uri)

    def fetched(self) -> Self:
        """The same catalog with local copies of those of its files that lie in a bucket.

        Raises:
            AttuneError: a file cannot be fetched, or the catalog wants a folder tree on a disk.
        """
        here: dict[str, Path] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            uri = remote_uri(value) if isinstance(value, Path) and name != "audio" else None
            if uri is not None and name == "root":
                raise AttuneError(f"catalog {self.label}: {uri}: root must be a folder on a disk")
            if uri is not None:
                here[name] = local_copy(uri)
        return self.model_copy(update=here) if here else self

    def malformed(
        self,
        source: str,
        native_id: object,
        detail: str,
        *,
        group_id: str = "",
        split: str | None = None,
        clip: str = "",
    ) -> Refusal:
        """Refuse a row that makes no clip; what can be told of group and clip stays held out."""
        if split is None:
            split = getattr(self, "split", None) or ""
        return Refusal(
            self.label, str(native_id or ""), source, "catalog", "malformed_row", detail,
            group_id=group_id, split=split, clip=clip,
        )  # fmt: skip

    def ancestors(self) -> Mapping[str, Set[str]] | None:
        """What lies above each tag (`pipeline.text.tags.Ancestors`): nothing, where tags are free
        words; None, where there is an ontology that the recipe does not name."""
        return {}

    def text_columns(self) -> str:
        """Which columns its lists have and which are read as text, told of rows that have no text;
        empty where all copies of a list have the same columns.

        Raises:
            AttuneError: as `read`.
        """
        return ""

    @abstractmethod
    def sources(self) -> list[Path]:
        """The catalog's own files: their content is part of the plan's hash."""

    @abstractmethod
    def read(self) -> Iterator[Outcome]:
        """Exactly one outcome per row, in the file's order.

        Raises:
            AttuneError: the file is missing or not what it claims to be.
        """


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


def locate(record: Record, root: AudioRoot, name: str) -> Record | Refusal:
    """Give a record the path of its named audio file, or refuse it."""
    return _place(record, lambda: root.by_name(name), f"no {name!r} in {root}")


def locate_stem(record: Record, root: AudioRoot, *stems: str) -> Record | Refusal:
    """Give a record the path of the first audio file `STEM.*` there is, or refuse it."""
    return _place(record, lambda: root.by_stem(*stems), f"no {stems[0]}.* in {root}")


def _place(record: Record, find: Callable[[], str | None], missing: str) -> Record | Refusal:
    try:
        path = find()
    except ValueError as error:
        return refuse(record, "catalog", "outside_root", str(error))
    if path is None:
        return refuse(record, "catalog", "missing_audio", missing)
    record.audio_uri = path
    return record


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
