"""Music catalogs as JSON lines, CSV or Parquet, in the fields of audiocraft's MusicInfo.

`path` (relative to `audio`), `title, artist, key, bpm, genre, moods, keywords, description, name,
instrument`, and optionally `split`, `license`, `license_url`, `attribution`, `duration`; `start`
and `end`, or `offset` and `duration`, for a part of a file.  In CSV, moods and keywords are joined
by `;` or `,` or are a list literal.  Tracks by one artist share a group.  Rows of one file, or of
one part, are one track with all their descriptions.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import ClassVar, Literal

from common.schema import SPLITS, Record
from common.tables import Row, read_table
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.base import Catalog, CatalogPath, Outcome, Refusal, Split, columns_of, locate
from pipeline.catalogs.merging import merge, survey
from pipeline.catalogs.values import SPAN_COLUMNS, length, number, span, split_of, text, texts_of

_TAGS = {"keywords": ";,", "moods": ";,", "instrument": "", "key": ""}
"""Columns of tags, each with the characters that join them."""
_OTHERS = (
    "path", "title", "artist", "bpm", "genre", "description", "name", "split", "license",
    "license_url", "attribution",
)  # fmt: skip


class Music(Catalog):
    text_kind: ClassVar[Literal["sound", "music"]] = "music"
    searches_folders: ClassVar[bool] = True
    dataset: Literal["music"] = "music"
    catalog: CatalogPath
    """A row per track: `.csv`, `.parquet`, else JSON lines."""
    audio: CatalogPath | None = None
    split: Split = "train"
    """For rows that do not name a split."""

    def read(self) -> Iterator[Outcome]:
        root = self.open_audio(self.audio)
        found = survey((row.values.get("path"), row.values) for row in self._rows())
        outcomes = (
            (
                found.has_several(row.values.get("path"), row.values),
                self._outcome(row, root, found.has_train),
            )
            for row in self._rows()
        )
        yield from merge(outcomes)

    def unread_columns(self) -> list[str]:
        known = {*_TAGS, *_OTHERS, *SPAN_COLUMNS}
        return [name for name in columns_of(self._rows()) if name not in known]

    def _rows(self) -> Iterator[Row]:
        return read_table(self.catalog, ("path",))

    def _outcome(self, row: Row, root: AudioRoot, has_train: bool) -> Record | Refusal:
        values = row.values
        path = values.get("path")
        problem = row.error
        if not problem and (not isinstance(path, str) or not path.strip()):
            problem = f"path: expected a file name, found {path!r:.80}"
        # `a.wav` and `./a.wav` are one file, so one track.
        name = posixpath.normpath(root.spelling(path)) if isinstance(path, str) and path else ""
        split: str = self.split
        artist, bpm = None, values.get("bpm")
        try:
            artist = text(values, "artist")
            if said := text(values, "split"):
                split = split_of(said, beside_train=has_train) or ""
            if not split:
                raise ValueError(f"split: expected one of {', '.join(SPLITS)}, found {said!r:.80}")
            if text(values, "bpm") and number(bpm) is None:
                raise ValueError(f"bpm: expected a number, found {bpm!r:.80}")
            start, end = span(values)
            texts = texts_of(values, ("description",), _TAGS)
            more = {
                column: text(values, column)
                for column in ("genre", "license", "license_url", "attribution")
            }
            title = text(values, "title") or text(values, "name")
            problem = problem or (texts.problem if not more["genre"] else "")
        except ValueError as error:
            problem = problem or str(error)
        group = f"{self.label}:{name}" if name else ""
        group = f"artist:{artist.casefold()}" if artist else group
        if problem:
            return self.malformed(row.source, name, problem, group_id=group, split=split)
        record = self.record(
            row.source,
            name,
            group,
            split=split,
            start_s=start,
            end_s=end,
            tags=list(dict.fromkeys(texts.tags)),
            captions=texts.captions,
            title=title,
            artist=artist,
            bpm=number(bpm),
            stated_s=length(values.get("duration")) if end is None else end - (start or 0),
            **more,
        )
        return locate(record, root, name)
