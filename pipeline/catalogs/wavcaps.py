"""WavCaps: one JSON file per source, `{"data": [{"id", "caption", "duration", ...}]}`.

Ids are `Y<YTID>.wav` in AudioSet's file, numbers in Freesound's and SoundBible's, file stems in the
BBC's.  Audio lies in one folder as `ID.ext`.  AudioSet ids come without the start of their 10 s, so
those clips are known by their group alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from common.schema import Record
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.base import Catalog, CatalogPath, Outcome, Split, locate_stem
from pipeline.catalogs.tables import Row, read_json_entries
from pipeline.catalogs.values import audio_stem, keywords, length, text

_YOUTUBE_ID = 11
"""Characters."""


class WavCaps(Catalog):
    global_ids: ClassVar[bool] = True
    dataset: Literal["wavcaps"] = "wavcaps"
    captions: CatalogPath
    """as_final.json, fsd_final.json, bbc_final.json or sb_final.json."""
    source: Literal["audioset", "freesound", "bbc", "soundbible"]
    """Which of them it is."""
    audio: CatalogPath | None = None
    split: Split = "train"

    def sources(self) -> list[Path]:
        return [self.captions]

    def read(self) -> Iterator[Outcome]:
        root = self.open_audio(self.audio)
        for row in read_json_entries(self.captions):
            yield self._outcome(row, root)

    def _outcome(self, row: Row, root: AudioRoot) -> Outcome:
        stem = audio_stem(_text(row.values.get("id")) or "")
        group = self._group(stem)
        if row.error or not group:
            detail = row.error or f"id: no {self.source} id: {row.values.get('id')!r:.80}"
            return self.malformed(row.source, stem, detail)
        caption = _text(row.values.get("caption"))
        link = _text(row.values.get("href")) or _text(row.values.get("download_link"))
        record = Record(
            dataset=self.label,
            native_id=f"{self.source}/{stem}",
            group_id=group,
            split=self.split,
            audio_uri="",
            source=row.source,
            tags=keywords(row.values.get("tags")),
            captions=[caption] if caption else [],
            title=_text(row.values.get("title")),
            artist=_text(row.values.get("author")),
            attribution=link,
            clip=group if self.source in ("freesound", "bbc") else "",
            stated_s=length(row.values.get("duration")),
        )
        return locate_stem(record, root, stem)

    def _group(self, stem: str) -> str:
        """Of a file; empty if its id is not of this source."""
        if self.source == "audioset":
            youtube_id = stem[1:]
            whole = stem.startswith("Y") and len(youtube_id) == _YOUTUBE_ID
            return f"youtube:{youtube_id}" if whole else ""
        if self.source in ("freesound", "soundbible") and not (stem.isascii() and stem.isdecimal()):
            return ""
        return f"{self.source}:{stem}" if stem else ""


def _text(value: Any) -> str | None:
    """Of a text or number: a list or object in its place is no value."""
    return text(value) if isinstance(value, (str, int, float)) else None
