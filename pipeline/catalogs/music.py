"""Music catalogs as JSON lines, CSV or Parquet, in the fields of audiocraft's MusicInfo.

`path` (relative to `audio`), `title, artist, key, bpm, genre, moods, keywords, description, name,
instrument`, and optionally `split`, `license`, `license_url`, `attribution`, `duration`; `start`
and `end`, or `offset` and `duration`, for a part of a file.  In CSV, moods and keywords are joined
by `;` or `,` or are a list literal.  Tracks by one artist share a group.  Rows of one file, or of
one part, are one track with all their descriptions.

audiocraft's own `data.jsonl` has none of these fields, but `info_path`: they are in that JSON file,
or, if it is null, in NAME.json beside the audio.  Its absolute paths must lead into `audio`.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Literal

from common.errors import AttuneError
from common.letters import compose
from common.schema import Record
from common.tables import Row, object_row, read_json, read_table
from common.uris import remote_uri
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.base import Catalog, CatalogPath, Outcome, Refusal, Split, columns_of, locate
from pipeline.catalogs.merging import merge, survey
from pipeline.catalogs.values import (
    SPAN_COLUMNS,
    damaged_name,
    length,
    number,
    row_split,
    span,
    text,
    texts_of,
)

_TAGS = {"keywords": ";,", "moods": ";,", "instrument": "", "key": ""}
"""Columns of tags, each with the characters that join them."""
_OTHERS = (
    "path", "title", "artist", "bpm", "genre", "description", "name", "split", "license",
    "license_url", "attribution", "info_path", "sample_rate", "amplitude", "weight",
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
        for row in read_table(self.catalog, ("path",)):
            yield self._with_info(row) if "info_path" in row.values else row

    def _with_info(self, row: Row) -> Row:
        """A row of audiocraft's list, with the fields of the JSON file about its track."""
        path = row.values.get("info_path") or row.values.get("path")
        if row.error or not isinstance(path, str) or self.audio is None or remote_uri(self.audio):
            return row
        root = AudioRoot(self.audio, is_blind=True)
        file = root.folder / (os.path.splitext(root.spelling(path))[0] + ".json")
        # `isfile` also answers for names that no disk can have.
        if not os.path.isfile(file) or not file.resolve().is_relative_to(root.folder.resolve()):
            return row
        try:
            info = object_row(str(file), read_json(file))
        except AttuneError as problem:
            return replace(row, error=str(problem))
        said = {name: value for name, value in row.values.items() if value is not None}
        error = f"{file}: {info.error}" if info.error else ""
        return replace(row, values=info.values | said, error=error)

    def _outcome(self, row: Row, root: AudioRoot, has_train: bool) -> Record | Refusal:
        values = row.values
        path = values.get("path")
        damage = damaged_name(path)
        problem = damage or row.error
        if not problem and (not isinstance(path, str) or not path.strip()):
            problem = f"path: expected a file name, found {path!r:.80}"
        # `a.wav` and `./a.wav` are one file, so one track.
        is_name = isinstance(path, str) and path and not damage
        name = posixpath.normpath(root.spelling(str(path))) if is_name else ""
        real = root.real_path(name) if name else ""
        split: str = self.split
        artist, bpm = None, values.get("bpm")
        try:
            artist = text(values, "artist")
            split = row_split(values, split, beside_train=has_train)
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
        # Two lists may write one name in two Unicode forms, or with other blanks.
        group = f"artist:{' '.join(compose(artist).casefold().split())}" if artist else group
        if name and self.role == "hold_out" and not (artist or real):
            group = ""
            problem = problem or (
                f"{name!r:.80} has no artist and its folder is not known; add audio: (the folder "
                "that paths start from; its files need not be there)"
            )
        if problem:
            return self.malformed(
                row.source, name or path, problem, group_id=group, split=split, real_uri=real
            )
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
