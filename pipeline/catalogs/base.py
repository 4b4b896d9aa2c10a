"""What every catalog reader has in common: its outcome per row, and where its audio lies."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from common.config import Section
from common.errors import AttuneError
from common.schema import Record

Split = Literal["train", "valid", "test"]


@dataclass(slots=True)
class Refusal:
    """A clip or row that goes no further, with the stage and the reason.

    Group and split stay with it: a held-out clip that is refused (say, its audio is missing) still
    keeps its group out of training.
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
        record.sample_id, record.group_id, record.split,
    )  # fmt: skip


class Catalog(Section):
    """Base of the readers; a subclass adds `dataset: Literal[...]`, its paths, and `read`."""

    text_kind: ClassVar[Literal["sound", "music"]] = "sound"
    """`sound`: captions, else tags, become prompts. `music`: variants of description and fields."""

    dataset: str
    name: str = ""
    """Name in manifest and reports, where two catalogs of one kind are used; default `dataset`."""

    @property
    def label(self) -> str:
        return self.name or self.dataset

    @abstractmethod
    def sources(self) -> list[Path]:
        """The catalog's own files: their content is part of the plan's hash."""

    @abstractmethod
    def read(self) -> Iterator[Outcome]:
        """Exactly one outcome per row, in the file's order.

        Raises:
            AttuneError: the file is missing or not what it claims to be.
        """


class AudioRoot:
    """The folder that holds a catalog's audio, listed once."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().absolute()
        if not self.folder.is_dir():
            raise AttuneError(f"audio folder {folder}: no such folder")

    def by_stem(self, *stems: str) -> str | None:
        """Path of the first `STEM.*` there is, whatever its extension."""
        for stem in stems:
            if name := self._stems.get(stem):
                return os.path.join(self.folder, name)
        return None

    def by_name(self, name: str) -> str | None:
        """Path of the file with this name (subfolders allowed), or None if there is none.

        Raises:
            ValueError: it lies outside the folder (absolute, `..`, or a link that leads out).
        """
        path = os.path.normpath(os.path.join(self.folder, name))
        if not _is_inside(path, str(self.folder)):
            raise ValueError(f"{name!r} leads outside {self.folder}")
        if not os.path.isfile(path):
            return None
        if not _is_inside(os.path.realpath(path), os.path.realpath(self.folder)):
            raise ValueError(f"{name!r} links to outside {self.folder}")
        return path

    @cached_property
    def _stems(self) -> dict[str, str]:
        stems: dict[str, str] = {}
        for name in sorted(os.listdir(self.folder), reverse=True):
            stems[os.path.splitext(name)[0]] = name  # reversed: the first in order stays
        return stems


def locate(record: Record, root: AudioRoot, name: str) -> Record | Refusal:
    """Give a record the path of its named audio file, or refuse it."""
    try:
        path = root.by_name(name)
    except ValueError as error:
        return refuse(record, "catalog", "outside_root", str(error))
    if path is None:
        return refuse(record, "catalog", "missing_audio", f"no {name!r} in {root.folder}")
    record.audio_uri = path
    return record


def _is_inside(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder and path != folder
