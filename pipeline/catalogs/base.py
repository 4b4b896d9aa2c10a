"""What every catalog reader has in common: its outcome per row, and where its audio lies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, PrivateAttr

from common.config import Section
from common.errors import AttuneError
from common.schema import Record
from common.uris import local_copy, remote_uri
from pipeline.catalogs.audio_root import AudioRoot, BucketRoot

Split = Literal["train", "valid", "test"]


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


class CatalogEntry(Section):
    """A catalog as a recipe lists it; base of the readers, by row or by column."""

    text_kind: ClassVar[Literal["sound", "music"]] = "sound"
    """`sound`: captions, else tags, become prompts. `music`: variants of description and fields."""

    global_ids: ClassVar[bool] = False
    """Whether a native id names the same clip wherever this dataset's files lie, so that several
    catalogs (its splits) can share a label."""

    dataset: str
    role: Literal["encode", "hold_out"] = "encode"
    """`hold_out`: nothing of it is encoded and its audio is not looked for, but its groups stay out
    of training and validation, whatever its split.  For benchmarks whose audio is not here."""
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
        """The classes above each tag (`pipeline.catalogs.ontology.Ancestors`): empty where tags are
        free words; None where there is an ontology that the recipe does not name."""
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


class Catalog(CatalogEntry):
    """A reader by row; a subclass adds `dataset: Literal[...]`, its paths, `sources`, `read`."""

    @abstractmethod
    def read(self) -> Iterator[Outcome]:
        """Exactly one outcome per row, in the file's order.

        Raises:
            AttuneError: the file is missing or not what it claims to be.
        """


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
