"""A plain folder in Hugging Face AudioFolder form: audio beside `metadata.csv` or `metadata.jsonl`.

The metadata has `file_name` (relative to its own folder) and any of: `text`, `caption`,
`description` or `caption_1..` (captions); `tags`, `keywords`, `labels` or `label` (tags; `;`-joined
in CSV, a list in JSONL); `split`, `group`, `title`, `artist`, `genre`, `license`, `duration`.  The
metadata is in the root, or in each split folder (`train/`, `validation/`, `test/`).  Files in a
split folder belong to that split, also if the list in the root names them.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from common.errors import AttuneError, one_line
from common.schema import SPLITS
from common.tables import Row, read_table
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.base import Catalog, CatalogPath, Outcome, Split, locate
from pipeline.catalogs.values import length, texts

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
    """For files whose folder and row do not name a split."""

    def sources(self) -> list[Path]:
        return [path for path, _ in self._metadata_files()]

    def read(self) -> Iterator[Outcome]:
        for path, split in self._metadata_files():
            audio = self.open_audio(path.parent)
            for row in read_table(path, ("file_name",)):
                yield self._outcome(row, split, audio, path.parent.relative_to(self.root))

    def text_columns(self) -> str:
        columns: dict[str, None] = {}
        for path, _ in self._metadata_files():
            rows = read_table(path, ("file_name",))
            first = next((row for row in rows if not row.error), Row("", {}))
            columns |= dict.fromkeys(first.values)
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
                f"{self.root}: no metadata.csv or metadata.jsonl in it or in train/, validation/, "
                "test/; expected a folder in AudioFolder form"
            )
        return found

    def _outcome(self, row: Row, split: str, audio: AudioRoot, folder: Path) -> Outcome:
        """`folder`: where the list is, relative to the root."""
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
            group = "" if group is None else str(group)
            split = split if split in SPLITS else ""
            return self.malformed(row.source, name, problem, group_id=group, split=split)
        # `a.wav` and `./a.wav` are one file, so one clip.
        native_id = posixpath.normpath(posixpath.join(folder, str(name)))
        record = self.record(
            row.source,
            native_id,
            f"{self.label}:{native_id}" if group is None else str(group),
            split=split,
            tags=[tag for key in _TAGS for tag in _tags(values.get(key))],
            captions=[text for key in values if _CAPTION.match(key) for text in texts(values[key])],
            title=_field(values.get("title")),
            artist=_field(values.get("artist")),
            genre=_field(values.get("genre")),
            license=_field(values.get("license")),
            stated_s=length(values.get("duration")),
        )
        return locate(record, audio, str(name))


def _field(value: Any) -> str | None:
    """One text: a list is joined by commas; None if there is no text."""
    return ", ".join(texts(value)) or None


def _tags(value: Any) -> list[str]:
    return texts(value.split(";") if isinstance(value, str) else value)
