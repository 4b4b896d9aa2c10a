"""A plain folder in Hugging Face AudioFolder form: audio beside `metadata.csv` or `metadata.jsonl`.

The metadata has `file_name` (relative to its own folder) and any of: `text`, `caption`,
`description` or `caption_1..` (captions); `tags`, `keywords`, `labels` or `label` (tags; `;`-joined
in CSV, a list in JSONL); `split`, `group`, `title`, `artist`, `genre`, `license`, `duration`; and
`start` (or `offset`) and `end` (or `duration`) for a part of a file.  Rows of one file, or of one
part, are one clip with all their captions.  The metadata is in the root, or in each split folder
(`train/`, `validation/`, `test/`).  Files in a split folder, at any depth, belong to that split,
unless their row says another one.  Without any metadata, text is in a file beside each sound or in
the name of its folder, see `unlisted`.

The audio may also be in archives: those that `audio` names, or, if there is no audio file beside a
list, the zips and tars beside it.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal

from common.errors import AttuneError, one_line
from common.schema import Record
from common.tables import Row, read_table
from pipeline.catalogs.archives import has_archives
from pipeline.catalogs.audio_root import ArchiveRoot, AudioRoot
from pipeline.catalogs.base import (
    Catalog,
    CatalogPath,
    Outcome,
    Refusal,
    Split,
    columns_of,
    locate,
)
from pipeline.catalogs.merging import Survey, merge, survey
from pipeline.catalogs.unlisted import sidecars, unlisted_rows
from pipeline.catalogs.values import (
    CAPTION_COLUMN,
    SPAN_COLUMNS,
    damaged_name,
    length,
    row_split,
    says_train,
    span,
    split_of,
    text,
    texts_of,
)

_CAPTIONS = ("text", "caption", "description")
_TAGS = ("tags", "keywords", "labels", "label")
_OTHERS = ("file_name", "split", "group", "title", "artist", "genre", "license")


class AudioFolder(Catalog):
    searches_folders: ClassVar[bool] = True
    dataset: Literal["audiofolder"] = "audiofolder"
    root: CatalogPath
    audio: CatalogPath | None = None
    """A folder or archives with the files that the lists name, if they are not beside the lists."""
    split: Split = "train"
    """For files whose folder and row do not name a split."""

    def sources(self) -> list[Path]:
        return [path for path, _ in self._metadata_files()] or sidecars(self.root)

    def audio_folder(self) -> Path:
        return self.audio or self.root

    def open_audio(self, folder: str | Path | None) -> AudioRoot:
        found = super().open_audio(folder)
        # Archives beside a list are read only if no file is there: then it is clear what is meant.
        beside = self.audio is None and folder is not None and has_archives(folder)
        if beside and next(iter(found.audio_files(deep=True)), None) is None:
            return ArchiveRoot(folder or "", is_blind=found.is_blind)
        return found

    def read(self) -> Iterator[Outcome]:
        found = survey((self._name(row, path), row.values) for path, _, row in self._rows())
        yield from merge(self._outcomes(found))

    def unread_columns(self) -> list[str]:
        known = {*_TAGS, *_OTHERS, *SPAN_COLUMNS}
        return [n for n in self._columns() if n not in known and not CAPTION_COLUMN.fullmatch(n)]

    def text_columns(self) -> str:
        return (
            f"columns: {one_line(', '.join(self._columns()))}; text is read from "
            f"{', '.join(_CAPTIONS)} (also caption_1, ...), {', '.join(_TAGS)}"
        )

    def _metadata_files(self) -> list[tuple[Path, str]]:
        """Each list, and the split of its folder."""
        folders = [(self.root, str(self.split))]
        if os.path.isdir(self.root):
            names = sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
            beside_train = any(map(says_train, names))
            folders += [
                (self.root / name, split)
                for name in names
                if (split := split_of(name, beside_train=beside_train))
            ]
        return [
            (folder / name, split)
            for folder, split in folders
            for name in ("metadata.csv", "metadata.jsonl")
            if os.path.isfile(folder / name)
        ]

    def _rows(self) -> Iterator[tuple[Path, str, Row]]:
        """Each row with its list and the split of the list's folder."""
        lists = self._metadata_files()
        for path, split in lists:
            for row in read_table(path, ("file_name",)):
                yield path, split, row
        if not lists:
            rows = unlisted_rows(self.root) if os.path.isdir(self.root) else iter(())
            first = next(rows, None)
            if first is None and has_archives(self.root):
                raise AttuneError(
                    f"{self.root}: has archives, but no metadata.csv or metadata.jsonl that names "
                    "their files; for tars with .json or .txt beside the sounds, set dataset: "
                    f"webdataset and audio: {self.root}/*.tar"
                )
            if first is None:
                raise AttuneError(
                    f"{self.root}: no metadata.csv or metadata.jsonl in it or in train/, "
                    "validation/, test/, no NAME.txt or NAME.json beside its audio files, and no "
                    "folders named for what is heard; expected a folder in AudioFolder form"
                )
            for row in chain([first], rows):
                yield self.root / "metadata.csv", str(self.split), row

    def _columns(self) -> dict[str, None]:
        paths = [path for path, _ in self._metadata_files()]
        if not paths:
            return columns_of(row for _, _, row in self._rows())
        lists = (columns_of(read_table(path, ("file_name",))) for path in paths)
        return dict.fromkeys(chain.from_iterable(lists))

    def _name(self, row: Row, path: Path) -> str:
        """The file of a row, relative to the root, as the row writes it."""
        folder = path.parent.relative_to(self.root)
        return posixpath.join(folder, str(row.values.get("file_name")))

    def _outcomes(self, found: Survey) -> Iterator[tuple[bool, Record | Refusal]]:
        roots: dict[Path, AudioRoot] = {}
        for path, split, row in self._rows():
            if path.parent not in roots:
                roots[path.parent] = self.open_audio(self.audio or path.parent)
            has_several = found.has_several(self._name(row, path), row.values)
            folder = path.parent.relative_to(self.root)
            audio = roots[path.parent]
            yield has_several, self._outcome(row, split, audio, folder, found.has_train)

    def _outcome(
        self, row: Row, split: str, audio: AudioRoot, folder: Path, has_train: bool
    ) -> Record | Refusal:
        """`folder`: where the list is, relative to the root."""
        values = row.values
        given = values.get("file_name")
        damage = damaged_name(given)
        problem = damage or row.error
        if not problem and (not isinstance(given, str) or not given.strip()):
            problem = f"file_name: expected a file name, found {given!r:.80}"
        # `a.wav` and `./a.wav` are one file, so one clip.
        is_name = isinstance(given, str) and given.strip() and not damage
        name = posixpath.normpath(audio.spelling(str(given))) if is_name else ""
        native_id = posixpath.normpath(posixpath.join(folder, name)) if name else ""
        if folder == Path():
            folders = name.split("/")[:-1]
            said = (split_of(one, beside_train=has_train) for one in folders)
            split = next(filter(None, said), split)
        group = None
        try:
            group = text(values, "group")
            split = row_split(values, split, beside_train=has_train)
            start, end = span(values)
            texts = texts_of(
                values, filter(CAPTION_COLUMN.fullmatch, values), dict.fromkeys(_TAGS, ";")
            )
            more = {key: text(values, key) for key in ("title", "artist", "genre", "license")}
            problem = problem or texts.problem
        except ValueError as error:
            problem = problem or str(error)
        if problem:
            group = group or (f"{self.label}:{native_id}" if native_id else "")
            real = audio.real_path(name) if name else ""
            return self.malformed(
                row.source, native_id or given, problem, group_id=group, split=split, real_uri=real
            )
        record = self.record(
            row.source,
            native_id,
            group or f"{self.label}:{native_id}",
            split=split,
            start_s=start,
            end_s=end,
            tags=texts.tags,
            captions=texts.captions,
            stated_s=length(values.get("duration")) if end is None else end - (start or 0),
            **more,
        )
        return locate(record, audio, name)
