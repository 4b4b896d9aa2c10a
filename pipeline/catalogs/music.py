"""Music catalogs as JSON lines, CSV or Parquet, in the fields of audiocraft's MusicInfo.

`path` (relative to `audio`), `title, artist, key, bpm, genre, moods, keywords, description, name,
instrument`, and optionally `split`, `duration`, `license`, `license_url`, `attribution`.  In CSV,
moods and keywords are joined by `;` or `,` or are a list literal.  Tracks by one artist share a
group.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from common.schema import SPLITS
from common.tables import Row, read_table
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.base import Catalog, CatalogPath, Outcome, Split, locate
from pipeline.catalogs.values import keywords, length, number, text, texts


class Music(Catalog):
    text_kind: ClassVar[Literal["sound", "music"]] = "music"
    dataset: Literal["music"] = "music"
    catalog: CatalogPath
    """A row per track: `.csv`, `.parquet`, else JSON lines."""
    audio: CatalogPath | None = None
    split: Split = "train"
    """For rows that do not name a split."""

    def read(self) -> Iterator[Outcome]:
        root = self.open_audio(self.audio)
        for row in read_table(self.catalog, ("path",)):
            yield self._outcome(row, root)

    def _outcome(self, row: Row, root: AudioRoot) -> Outcome:
        values = row.values
        path = values.get("path")
        # `a.wav` and `./a.wav` are one file, so one track.
        name = posixpath.normpath(path) if isinstance(path, str) and path else path
        split = values.get("split") or self.split
        problem = row.error
        if not problem and (not isinstance(path, str) or not path):
            problem = f"path: expected a file name, found {path!r:.80}"
        if not problem and split not in SPLITS:
            problem = f"split: expected one of {', '.join(SPLITS)}, found {split!r:.80}"
        bpm = values.get("bpm")
        if not problem and bpm not in (None, "") and number(bpm) is None:
            problem = f"bpm: expected a number, found {bpm!r:.80}"
        artist = text(values.get("artist"))
        group = f"artist:{artist.casefold()}" if artist else f"{self.label}:{name}"
        if problem:
            group = group if artist or path else ""
            split = split if split in SPLITS else ""
            return self.malformed(row.source, path, problem, group_id=group, split=split)
        record = self.record(
            row.source,
            str(name),
            group,
            split=str(split),
            tags=_tags(values),
            captions=texts(text(values.get("description"))),
            title=text(values.get("title")) or text(values.get("name")),
            artist=artist,
            genre=", ".join(texts(values.get("genre"))) or None,
            bpm=number(bpm),
            license=text(values.get("license")),
            license_url=text(values.get("license_url")),
            attribution=text(values.get("attribution")),
            stated_s=length(values.get("duration")),
        )
        return locate(record, root, str(path))


def _tags(values: dict[str, Any]) -> list[str]:
    words = [word for key in ("keywords", "moods") for word in keywords(values.get(key))]
    words += [word for key in ("instrument", "key") for word in texts(values.get(key))]
    return list(dict.fromkeys(words))
