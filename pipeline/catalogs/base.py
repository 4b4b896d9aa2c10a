"""The base of all catalog readers: their config, the outcomes of a row, and the audio lookup."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, PrivateAttr

from common.config import Section
from common.errors import AttuneError
from common.schema import Record
from common.tables import Row
from common.uris import local_copy, remote_uri
from pipeline.catalogs.archives import is_archive
from pipeline.catalogs.audio_root import ArchiveRoot, AudioRoot, BucketRoot

_FIRST_ROWS = 1000

Split = Literal["train", "valid", "test"]


def _expanded(value: object) -> object:
    if value == "":
        raise ValueError(
            "is empty; give a path (if the recipe takes it from root: root=/path on the command "
            "line) or set the environment variable that the recipe takes it from"
        )
    return os.path.expanduser(value) if isinstance(value, (str, Path)) else value


CatalogPath = Annotated[Path, BeforeValidator(_expanded)]
"""A path in a catalog's config: not empty, `~` expanded."""


@dataclass(slots=True)
class Refusal:
    """A clip or row that is not encoded, with the stage and the reason.

    It keeps group, split and clip: if a held-out clip is refused (say, its audio is missing), its
    group, and the same clip in other datasets, must still stay out of training.
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
    also: str = ""
    real_uri: str = ""


@dataclass(slots=True)
class Merged:
    """A row whose text was added to another row's clip, such as a second caption."""

    source: str


Outcome = Record | Refusal | Merged
"""The result of reading one catalog row: rows read = records + refusals + merged."""


def refuse(record: Record, stage: str, reason: str, detail: str) -> Refusal:
    """Refuse a clip that was read."""
    return Refusal(
        record.dataset, record.native_id, record.source, stage, reason, detail,
        record.sample_id, record.group_id, record.split, record.clip, record.also, record.real_uri,
    )  # fmt: skip


class CatalogEntry(Section):
    """A catalog in a recipe's list; base of the readers, which read by row or by column."""

    text_kind: ClassVar[Literal["sound", "music"]] = "sound"
    """`sound`: captions become prompts, or tags if there are none.  `music`: prompts are variants
    of the description and the other fields."""

    global_ids: ClassVar[bool] = False
    """Whether a native id names the same clip in all files of the dataset, so that several catalogs
    (its splits) can share a label."""

    dataset: str
    searches_folders: ClassVar[bool] = False
    """Whether its lists may name files in folders below the audio folder."""

    role: Literal["encode", "hold_out"] = "encode"
    """`hold_out`: no clip of the catalog is encoded and no audio is needed, but its groups stay out
    of training and validation, whatever its split.  For benchmarks without their audio."""
    name: str = ""
    """Name in manifest and reports, if a recipe has two catalogs of one kind; default `dataset`."""

    @property
    def label(self) -> str:
        return self.name or self.dataset

    _without_audio: bool = PrivateAttr(default=False)

    def without_audio(self) -> Self:
        """A copy of this catalog that reads its rows and looks for no audio file."""
        blind = self.model_copy()
        blind._without_audio = True
        return blind

    def open_audio(self, folder: str | Path | None) -> AudioRoot:
        """Open the catalog's audio folder or archives, for `locate` and `locate_stem`.

        Raises:
            AttuneError: the folder or an archive is missing or cannot be read, or the recipe names
                none.
        """
        is_blind = self._without_audio or self.role == "hold_out"
        if folder is not None and is_archive(folder):
            return ArchiveRoot(folder, is_blind=is_blind)
        if is_blind:
            return AudioRoot(folder, is_blind=True)
        if folder is None:
            raise AttuneError(
                f"catalog {self.label}: needs audio: (the folder or archives of its audio files)"
            )
        uri = remote_uri(folder)
        return AudioRoot(folder) if uri is None else BucketRoot(uri)

    def audio_folder(self) -> Path | None:
        """The folder with the audio files that the lists name; None if there is none."""
        return getattr(self, "audio", None)

    def fetched(self) -> Self:
        """A copy of this catalog, with local copies of the files that are in a bucket.

        Raises:
            AttuneError: a file cannot be fetched, or `root`, a folder tree, is in a bucket.
        """
        uris = {name: uri for name, path in self._paths() if (uri := remote_uri(path))}
        if "root" in uris:
            raise AttuneError(
                f"catalog {self.label}: {uris['root']}: root must be a folder on a disk"
            )
        return self.model_copy(update={name: local_copy(uri) for name, uri in uris.items()})

    def _paths(self) -> Iterator[tuple[str, Path]]:
        """The paths that are set, without the audio folder."""
        for name in type(self).model_fields:
            if name != "audio" and isinstance(path := getattr(self, name), Path):
                yield name, path

    def sources(self) -> list[Path]:
        """The catalog's list files.  Their content is part of the plan's hash."""
        return [path for name, path in self._paths() if name != "root"]

    def fingerprints(self) -> dict[str, str]:
        """Hashes of list files that are not in `sources`, because they hold the audio too.

        Raises:
            AttuneError: as `read`.
        """
        return {}

    def record(
        self, source: str, native_id: str, group_id: str, *, split: str | None = None, **more: Any
    ) -> Record:
        """A clip of this catalog, its audio not located yet; `more`: other fields of `Record`."""
        return Record(self.label, native_id, group_id, split or self._own_split, "", source, **more)

    @property
    def _own_split(self) -> str:
        """The recipe's `split` of this catalog; empty if only the rows have one."""
        return getattr(self, "split", None) or ""

    def malformed(
        self, source: str, native_id: object, detail: str, *, split: str | None = None, **known: str
    ) -> Refusal:
        """Refuse a row that is not a clip; `known`: group_id, clip, also and real_uri, which are
        still held out."""
        return Refusal(
            self.label, str(native_id or ""), source, "catalog", "malformed_row", detail,
            split=self._own_split if split is None else split, **known,
        )  # fmt: skip

    def ancestors(self) -> Mapping[str, Set[str]] | None:
        """The classes above each tag, see `pipeline.catalogs.ontology`.  Empty if the tags are free
        words; None if they belong to an ontology that the recipe does not name."""
        return {}

    def unread_columns(self) -> list[str]:
        """Columns that the lists have and the reader does not know.

        Raises:
            AttuneError: as `read`.
        """
        return []

    def text_columns(self) -> str:
        """Which columns the lists have and which are read as text, for the refusal of rows without
        text.  Empty if all copies of a list have the same columns.

        Raises:
            AttuneError: as `read`.
        """
        return ""


class Catalog(CatalogEntry):
    """A reader by row.  A subclass adds `dataset: Literal[...]`, its paths and `read`."""

    @abstractmethod
    def read(self) -> Iterator[Outcome]:
        """Exactly one outcome per row, in the file's order.

        Raises:
            AttuneError: a file is missing or is another kind of file.
        """


def columns_of(rows: Iterable[Row]) -> dict[str, None]:
    """The columns of a list, in order; in JSON lines, the keys in the first rows."""
    return dict.fromkeys(name for row in islice(rows, _FIRST_ROWS) for name in row.values)


def locate(record: Record, root: AudioRoot, name: str) -> Record | Refusal:
    """Set the path of the audio file with this name, or refuse the record."""
    return _place(record, root, lambda: root.by_name(root.spelling(name)), name, repr(name))


def locate_stem(record: Record, root: AudioRoot, *stems: str) -> Record | Refusal:
    """Set the path of the first audio file `STEM.*` that exists, or refuse the record."""
    return _place(record, root, lambda: root.by_stem(*stems), stems[0], f"{stems[0]}.*")


def _place(
    record: Record, root: AudioRoot, find: Callable[[], str | None], name: str, shown: str
) -> Record | Refusal:
    record.real_uri = root.real_path(name)  # a refused clip is still held out
    try:
        path = find()
    except ValueError as error:
        return refuse(record, "catalog", "outside_root", str(error))
    if path is None:
        return refuse(record, "catalog", "missing_audio", absent(root, name, shown))
    real = root.real_path(path)
    record.audio_uri, record.real_uri = path, "" if real == path else real
    return record


def absent(root: AudioRoot, name: str, shown: str) -> str:
    """That there is no such file, and which files are there with a similar name."""
    there = " and ".join(map(repr, root.similar(name)[:2]))
    return f"no {shown} in {root}" + (f"; there is {there}" if there else "")
