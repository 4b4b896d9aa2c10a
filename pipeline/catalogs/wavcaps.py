"""WavCaps: one JSON file per source, `{"data": [{"id", "caption", "duration", ...}]}`.

Ids are `Y<YTID>.wav` in AudioSet's file, numbers in Freesound's and SoundBible's, file stems in the
BBC's.  Audio is in one folder as `ID.ext`.  AudioSet ids do not contain the start of the 10 s, so
these clips have a group but no `clip`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from common.tables import Row, read_json_entries
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.base import Catalog, CatalogPath, Outcome, Split, locate_stem
from pipeline.catalogs.values import audio_stem, keywords, length, text, texts

_YOUTUBE_ID = 11  # characters


class WavCaps(Catalog):
    global_ids: ClassVar[bool] = True
    dataset: Literal["wavcaps"] = "wavcaps"
    captions: CatalogPath
    """as_final.json, fsd_final.json, bbc_final.json or sb_final.json."""
    source: Literal["audioset", "freesound", "bbc", "soundbible"]
    """Which of these lists `captions` is."""
    audio: CatalogPath | None = None
    split: Split = "train"

    def read(self) -> Iterator[Outcome]:
        root = self.open_audio(self.audio)
        for row in read_json_entries(self.captions):
            yield self._outcome(row, root)

    def _outcome(self, row: Row, root: AudioRoot) -> Outcome:
        stem = audio_stem(_text(row.values.get("id")) or "")
        group = self._group(stem)
        if row.error or not group:
            found = f"id: no {self.source} id: {row.values.get('id')!r:.80}"
            return self.malformed(row.source, stem, row.error or found)
        record = self.record(
            row.source,
            f"{self.source}/{stem}",
            group,
            tags=keywords(row.values.get("tags")),
            captions=texts(_text(row.values.get("caption"))),
            title=_text(row.values.get("title")),
            artist=_text(row.values.get("author")),
            attribution=_text(row.values.get("href")) or _text(row.values.get("download_link")),
            clip=group if self.source in ("freesound", "bbc") else "",
            stated_s=length(row.values.get("duration")),
        )
        return locate_stem(record, root, stem)

    def _group(self, stem: str) -> str:
        """The group of a file; empty if the id is not one of this source."""
        if self.source == "audioset":
            youtube_id = stem[1:]
            whole = stem.startswith("Y") and len(youtube_id) == _YOUTUBE_ID
            return f"youtube:{youtube_id}" if whole else ""
        if self.source in ("freesound", "soundbible") and not (stem.isascii() and stem.isdecimal()):
            return ""
        return f"{self.source}:{stem}" if stem else ""


def _text(value: Any) -> str | None:
    """A text or number as text; None for anything else, such as a list."""
    return text(value) if isinstance(value, (str, int, float)) else None
