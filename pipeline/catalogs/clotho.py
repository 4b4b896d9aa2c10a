"""Clotho v2: `file_name,caption_1..caption_5`, and a metadata file (Latin-1) with keywords,
Freesound id and link, and the licence of each clip.

File names are taken as they stand: leading blanks, commas, `#` and `&amp;` are part of them.  One
name can be in two splits, so the native id carries the split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from common.schema import Record
from pipeline.catalogs.base import (
    AudioRoot,
    Catalog,
    CatalogPath,
    Outcome,
    Refusal,
    Split,
    locate,
)
from pipeline.catalogs.tables import Row, read_csv

_CAPTIONS = tuple(f"caption_{k}" for k in range(1, 6))


class Clotho(Catalog):
    global_ids: ClassVar[bool] = True
    dataset: Literal["clotho"] = "clotho"
    captions: CatalogPath
    """clotho_captions_{development,validation,evaluation}.csv."""
    metadata: CatalogPath | None = None
    """clotho_metadata_*.csv; without it clips have no keywords, source or licence."""
    audio: CatalogPath | None = None
    split: Split = "train"

    def sources(self) -> list[Path]:
        return [self.captions, *([self.metadata] if self.metadata else [])]

    def read(self) -> Iterator[Outcome]:
        root = self.open_audio(self.audio)
        metadata = read_metadata(self.metadata) if self.metadata else {}
        for row in read_csv(self.captions, ("file_name", *_CAPTIONS)):
            yield self._outcome(row, metadata, root)

    def _outcome(self, row: Row, metadata: dict[str, dict[str, str]], root: AudioRoot) -> Outcome:
        name = row.values.get("file_name", "")
        if row.error or not name.strip():
            return Refusal(
                self.label,
                name,
                row.source,
                "catalog",
                "malformed_row",
                row.error or "no file_name",
            )
        more = metadata.get(name, {})
        sound_id = more.get("sound_id", "").strip()
        group = f"freesound:{sound_id}" if sound_id.isdigit() else f"{self.dataset}:{name}"
        link = more.get("sound_link", "").strip()
        record = Record(
            dataset=self.label,
            native_id=f"{self.split}/{name}",
            group_id=group,
            split=self.split,
            audio_uri="",
            source=row.source,
            tags=[word for word in more.get("keywords", "").split(";") if word],
            captions=[row.values[column] for column in _CAPTIONS if row.values[column].strip()],
            title=name.rsplit(".", 1)[0],
            artist=more.get("manufacturer") or None,
            license_url=more.get("license") or None,
            attribution=link if link.startswith("http") else None,
        )
        return locate(record, root, name)


def read_metadata(path: Path) -> dict[str, dict[str, str]]:
    """File name -> its metadata row."""
    rows = read_csv(path, ("file_name", "keywords", "license"), encodings=("utf-8-sig", "latin-1"))
    return {row.values["file_name"]: row.values for row in rows if not row.error}
