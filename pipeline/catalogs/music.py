"""Music catalogs as JSON lines, in the fields of audiocraft's MusicInfo.

`path` (relative to `audio`), `title, artist, key, bpm, genre, moods, keywords, description, name,
instrument`, and optionally `split`, `license`, `license_url`.  Tracks of one artist share a group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from common.schema import SPLITS, Record
from pipeline.catalogs.base import (
    AudioRoot,
    Catalog,
    CatalogPath,
    Outcome,
    Refusal,
    Split,
    locate,
)
from pipeline.catalogs.tables import Row, read_jsonl


class Music(Catalog):
    text_kind: ClassVar[Literal["sound", "music"]] = "music"
    dataset: Literal["music"] = "music"
    catalog: CatalogPath
    """A JSONL file, one track per line."""
    audio: CatalogPath | None = None
    split: Split = "train"
    """For rows that name no split of their own."""

    def sources(self) -> list[Path]:
        return [self.catalog]

    def read(self) -> Iterator[Outcome]:
        root = self.open_audio(self.audio)
        for row in read_jsonl(self.catalog):
            yield self._outcome(row, root)

    def _outcome(self, row: Row, root: AudioRoot) -> Outcome:
        path = row.values.get("path")
        split = row.values.get("split") or self.split
        problem = row.error
        if not problem and (not isinstance(path, str) or not path):
            problem = f"path: expected a file name, found {path!r}"
        if not problem and split not in SPLITS:
            problem = f"split: expected one of {', '.join(SPLITS)}, found {split!r}"
        bpm = row.values.get("bpm")
        if not problem and bpm is not None:
            try:
                bpm = float(bpm)
                if not math.isfinite(bpm):
                    raise ValueError
            except (TypeError, ValueError, OverflowError):
                problem = f"bpm: expected a number, found {bpm!r:.80}"
        if problem:
            return Refusal(
                self.label, str(path or ""), row.source, "catalog", "malformed_row", problem
            )
        artist = _text(row.values.get("artist"))
        title = _text(row.values.get("title"))
        description = _text(row.values.get("description"))
        words = [
            word
            for key in ("keywords", "moods", "instrument", "key")
            for word in _words(row.values.get(key))
        ]
        record = Record(
            dataset=self.label,
            native_id=str(path),
            group_id=f"artist:{artist.casefold()}" if artist else f"{self.label}:{path}",
            split=str(split),
            audio_uri="",
            source=row.source,
            tags=list(dict.fromkeys(words)),
            captions=[description] if description else [],
            title=title,
            artist=artist,
            genre=_text(row.values.get("genre")),
            bpm=bpm,
            license=_text(row.values.get("license")),
            license_url=_text(row.values.get("license_url")),
            attribution=_text(row.values.get("attribution")),
        )
        return locate(record, root, str(path))


def _text(value: Any) -> str | None:
    return (str(value).strip() or None) if value is not None else None


def _words(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in map(_text, values) if text]
