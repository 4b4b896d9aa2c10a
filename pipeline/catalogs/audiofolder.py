"""A plain folder in Hugging Face AudioFolder form: audio beside `metadata.csv` or `metadata.jsonl`.

The metadata has `file_name` (relative to its own folder) and any of: `text`, `caption`,
`description` or `caption_1..` (captions); `tags`, `keywords`, `labels` or `label` (tags; `;`-joined
in CSV, a list in JSONL); `split`, `group`, `title`, `artist`, `genre`, `license`, `duration`.  It
lies in the root, or one in each split folder (`train/`, `validation/`, `test/`).  Files in a split
folder are of that split, whichever list names them.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from common.errors import AttuneError
from common.schema import SPLITS, Record
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.base import Catalog, CatalogPath, Outcome, Split, locate
from pipeline.catalogs.tables import Row, one_line, read_csv, read_jsonl
from pipeline.catalogs.values import length

_SPLIT_NAMES = {
    "train": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test", "eval": "test",
}  # fmt: skip
_CAPTIONS = ("text", "caption", "description")
_CAPTION = re.compile(rf"^({'|'.join(_CAPTIONS)})(_\d+)?$")
_TAGS = ("tags", "keywords", "labels", "label")


class AudioFolder(Catalog):
    dataset: Literal["audiofolder"] = "audiofolder"
    root: CatalogPath
    split: Split = "train"
    """For files that neither their folder nor their row puts into a split."""

    def sources(self) -> list[Path]:
        return [path for path, _ in self._metadata_files()]

    def read(self) -> Iterator[Outcome]:
        for path, split in self._metadata_files():
            audio = self.open_audio(path.parent)
            for row in _rows(path):
                yield self._outcome(row, split, audio, path.parent.relative_to(self.root))

    def text_columns(self) -> str:
        columns: dict[str, None] = {}
        for path, _ in self._metadata_files():
            first = next((row for row in _rows(path) if not row.error), None)
            columns |= dict.fromkeys(first.values if first else ())
        return (
            f"columns: {one_line(', '.join(columns))}; text is read from "
            f"{', '.join(_CAPTIONS)} (also caption_1, ...), {', '.join(_TAGS)}"
        )

    def _metadata_files(self) -> list[tuple[Path, str]]:
        folders = [(self.root, str(self.split))]
        folders += [(self.root / name, split) for name, split in _SPLIT_NAMES.items()]
        found = [
            (folder / name, split)
            for folder, split in folders
            for name in ("metadata.csv", "metadata.jsonl")
            if os.path.isfile(folder / name)
        ]
        if not found:
            raise AttuneError(
                f"{self.root}: no metadata.csv or metadata.jsonl there or in train/, validation/, "
                "test/; expected a folder in AudioFolder form"
            )
        return found

    def _outcome(self, row: Row, split: str, audio: AudioRoot, folder: Path) -> Outcome:
        """`folder` is that of the list, below the root."""
        values = row.values
        name = values.get("file_name")
        group = None if values.get("group") == "" else values.get("group")
        problem = row.error
        if not problem and (not isinstance(name, str) or not name):
            problem = f"file_name: expected a file name, found {name!r}"
        if isinstance(name, str) and folder == Path():
            top, _, below = posixpath.normpath(name).partition("/")
            split = _SPLIT_NAMES.get(top, split) if below else split
        split = _SPLIT_NAMES.get(str(values.get("split") or split), str(values.get("split")))
        if not problem and split not in SPLITS:
            problem = f"split: expected one of {', '.join(SPLITS)}, found {split!r}"
        if problem:
            return self.malformed(
                row.source,
                name,
                problem,
                group_id="" if group is None else str(group),
                split=split if split in SPLITS else "",
            )
        # One file is one clip, however the list writes its name.
        native_id = posixpath.normpath(posixpath.join(folder, str(name)))
        captions = [text for key in values if _CAPTION.match(key) for text in _texts(values[key])]
        record = Record(
            dataset=self.label,
            native_id=native_id,
            group_id=f"{self.label}:{native_id}" if group is None else str(group),
            split=split,
            audio_uri="",
            source=row.source,
            tags=[tag for key in _TAGS for tag in _texts(values.get(key), separator=";")],
            captions=captions,
            title=_field(values.get("title")),
            artist=_field(values.get("artist")),
            genre=_field(values.get("genre")),
            license=_field(values.get("license")),
            stated_s=length(values.get("duration")),
        )
        return locate(record, audio, str(name))


def _rows(path: Path) -> Iterator[Row]:
    """Rows of a list; in JSON lines each has columns of its own."""
    return read_csv(path, ("file_name",)) if path.suffix == ".csv" else read_jsonl(path)


def _field(value: Any) -> str | None:
    """A single text: a number as it is written, a list joined, nothing as None."""
    return ", ".join(_texts(value)) or None


def _texts(value: Any, separator: str | None = None) -> list[str]:
    if isinstance(value, str) and separator:
        value = value.split(separator)
    values = value if isinstance(value, list) else [value]
    return [str(item).strip() for item in values if item is not None and str(item).strip()]
