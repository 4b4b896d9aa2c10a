"""Clotho v1, v2 and v2.1: `file_name,caption_1..caption_5`, and a metadata file (Latin-1) with
keywords, Freesound id and link, excerpt in samples at 44.1 kHz, and the licence of each clip.

File names are used unchanged: leading blanks, commas, `#` and `&amp;` are part of them.  One name
can be in two splits, so the native id contains the split.  Clips are excerpts of 15 to 30 s: the
Freesound id names a clip only if the metadata has a single excerpt of the recording.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import model_validator

from common.tables import Row, read_csv
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.base import Catalog, CatalogPath, Outcome, Split, columns_of, locate
from pipeline.catalogs.values import damaged_name, texts_of

_CAPTIONS = tuple(f"caption_{k}" for k in range(1, 6))
_COLUMNS = ("file_name", *_CAPTIONS)
_SPAN = re.compile(r"\[\s*(\d{1,12})\s*,\s*(\d{1,12})\s*\]")
_SPAN_RATE = 44100


class Clotho(Catalog):
    global_ids: ClassVar[bool] = True
    dataset: Literal["clotho"] = "clotho"
    captions: CatalogPath
    """clotho_captions_{development,validation,evaluation}.csv."""
    metadata: CatalogPath | None = None
    """clotho_metadata_*.csv; without it clips have no keywords, source or licence, and the same
    recording in FSD50K or WavCaps is not recognized."""
    audio: CatalogPath | None = None
    split: Split = "train"
    encoding: str = "utf-8-sig"
    """Encoding of `captions`, for copies that are not UTF-8 (the one with Korean translations is
    `cp949`)."""

    @model_validator(mode="after")
    def _what_is_held_out_is_known(self) -> Clotho:
        if self.role == "hold_out" and self.metadata is None:
            raise ValueError(
                "role: hold_out needs metadata (clotho_metadata_*.csv): only the metadata says "
                "which recordings of Freesound must stay out of other datasets"
            )
        return self

    def read(self) -> Iterator[Outcome]:
        root = self.open_audio(self.audio)
        metadata: dict[str, Mapping[str, str]] = {}
        if self.metadata:
            columns = ("file_name", "keywords", "license")
            rows = read_csv(self.metadata, columns, encodings=("utf-8-sig", "latin-1"))
            metadata = {row.values["file_name"]: row.values for row in rows if not row.error}
        excerpts = Counter(more.get("sound_id", "").strip() for more in metadata.values())
        for row in self._rows():
            more = metadata.get(row.values.get("file_name", ""), {})
            sound_id = more.get("sound_id", "").strip()
            yield self._outcome(row, more, sound_id, excerpts[sound_id] == 1, root)

    def _rows(self) -> Iterator[Row]:
        return read_csv(self.captions, _COLUMNS, encodings=(self.encoding,))

    def unread_columns(self) -> list[str]:
        return [name for name in columns_of(self._rows()) if name not in _COLUMNS]

    def _outcome(
        self, row: Row, more: Mapping[str, str], sound_id: str, is_single: bool, root: AudioRoot
    ) -> Outcome:
        name = row.values.get("file_name", "")
        freesound = f"freesound:{sound_id}" if sound_id.isdecimal() else ""
        damage = damaged_name(name) or damaged_name(sound_id)
        # A list without metadata knows the recording only by its file name.
        by_name = f"{self.dataset}:{name}" if name.strip() and not damage else ""
        group = freesound or by_name
        problem = damage or row.error or ("" if by_name else "no file_name")
        try:
            texts = texts_of(row.values, _CAPTIONS)
            problem = problem or texts.problem
        except ValueError as error:
            problem = problem or str(error)
        if problem:
            return self.malformed(row.source, name, problem, group_id=group, also=by_name)
        link = more.get("sound_link", "").strip()
        span = _SPAN.fullmatch(more.get("start_end_samples", "").strip())
        record = self.record(
            row.source,
            f"{self.split}/{name}",
            group,
            tags=[*texts.tags, *(word for word in more.get("keywords", "").split(";") if word)],
            captions=texts.captions,
            title=name.rsplit(".", 1)[0],
            artist=more.get("manufacturer") or None,
            license_url=more.get("license") or None,
            attribution=link if link.startswith("http") else None,
            clip=freesound if is_single else "",
            also=by_name,
            stated_s=(int(span[2]) - int(span[1])) / _SPAN_RATE if span else None,
        )
        return locate(record, root, name)
