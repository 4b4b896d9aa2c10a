"""WavCaps: one JSON file per source, `{"data": [{"id", "caption", "duration", ...}]}`.

Ids are `Y<YTID>.wav` in AudioSet's file, numbers in Freesound's and SoundBible's, file stems in the
BBC's.  Audio is in one folder as `ID.ext`.  AudioSet ids do not contain the start of the 10 s, so
these clips have a group but no `clip`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from common.tables import Row, read_json_entries
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.base import Catalog, CatalogPath, Outcome, Split, columns_of, locate_stem
from pipeline.catalogs.values import YOUTUBE_ID, audio_stem, length, text, texts_of

_COLUMNS = (
    "id", "caption", "tags", "title", "author", "href", "download_link", "duration", "audio",
)  # fmt: skip


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

    def unread_columns(self) -> list[str]:
        return [n for n in columns_of(read_json_entries(self.captions)) if n not in _COLUMNS]

    def _outcome(self, row: Row, root: AudioRoot) -> Outcome:
        given = row.values.get("id")
        stem = audio_stem(str(given).strip()) if isinstance(given, (str, int)) else ""
        group = self._group(stem)
        problem = row.error
        if not problem and not group:
            problem = f"id: no {self.source} id: {given!r:.80}"
        try:
            texts = texts_of(row.values, ("caption",), {"tags": ";,"})
            problem = problem or texts.problem
            more = {
                "title": text(row.values, "title"),
                "artist": text(row.values, "author"),
                "attribution": text(row.values, "href") or text(row.values, "download_link"),
            }
        except ValueError as error:
            problem = problem or str(error)
        if problem:
            return self.malformed(row.source, stem, problem, group_id=group)
        record = self.record(
            row.source,
            f"{self.source}/{stem}",
            group,
            tags=texts.tags,
            captions=texts.captions,
            **more,
            clip=group if self.source in ("freesound", "bbc") else "",
            stated_s=length(row.values.get("duration")),
        )
        return locate_stem(record, root, stem)

    def _group(self, stem: str) -> str:
        """The group of a file; empty if the id is not one of this source."""
        if self.source == "audioset":
            youtube_id = stem[1:]
            whole = stem.startswith("Y") and len(youtube_id) == YOUTUBE_ID
            return f"youtube:{youtube_id}" if whole else ""
        if self.source in ("freesound", "soundbible") and not (stem.isascii() and stem.isdecimal()):
            return ""
        return f"{self.source}:{stem}" if stem else ""
