"""AudioCaps 1.0 and 2.0: `audiocap_id,youtube_id,start_time,caption`; 10 s from `start_time`.

Validation and test lists have five rows per clip: they become one record with five captions.  Audio
is in one folder as `YTID_START.ext` (whole seconds), `YTID.ext` or `Y<YTID>.ext`.  Further columns,
which mirrors add, are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from common.tables import Row, read_csv
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.base import (
    Catalog,
    CatalogPath,
    Merged,
    Outcome,
    Split,
    columns_of,
    locate_stem,
)
from pipeline.catalogs.values import Texts, no_youtube_id, texts_of, whole_seconds

CLIP_SECONDS = 10.0
_COLUMNS = ("youtube_id", "start_time", "caption")


class AudioCaps(Catalog):
    global_ids: ClassVar[bool] = True
    dataset: Literal["audiocaps"] = "audiocaps"
    captions: CatalogPath
    """train.csv, val.csv or test.csv."""
    audio: CatalogPath | None = None
    split: Split = "train"

    def read(self) -> Iterator[Outcome]:
        root = self.open_audio(self.audio)
        clips: dict[tuple[str, int], list[tuple[Row, Texts]]] = {}
        for row in read_csv(self.captions, _COLUMNS):
            youtube_id = row.values.get("youtube_id", "")
            start = whole_seconds(row.values.get("start_time"))
            damage = no_youtube_id(youtube_id)
            problem = damage or row.error
            if not problem and start is None:
                problem = f"youtube_id {youtube_id!r}, start_time {row.values.get('start_time')!r}"
            try:
                texts = texts_of(row.values, ("caption",))
                problem = problem or texts.problem
            except ValueError as error:
                problem = problem or str(error)
            if problem or start is None:
                group = "" if damage else f"youtube:{youtube_id}"
                yield self.malformed(row.source, youtube_id, problem, group_id=group)
            else:
                clips.setdefault((youtube_id, start), []).append((row, texts))
        for (youtube_id, start), rows in clips.items():
            yield self._outcome(youtube_id, start, rows, root)
            yield from (Merged(row.source) for row, _ in rows[1:])

    def unread_columns(self) -> list[str]:
        known = {*_COLUMNS, "audiocap_id"}
        return [n for n in columns_of(read_csv(self.captions, _COLUMNS)) if n not in known]

    def _outcome(
        self, youtube_id: str, start: int, rows: list[tuple[Row, Texts]], root: AudioRoot
    ) -> Outcome:
        record = self.record(
            rows[0][0].source,
            f"{youtube_id}_{start}",
            f"youtube:{youtube_id}",
            tags=[tag for _, texts in rows for tag in texts.tags],
            captions=[caption for _, texts in rows for caption in texts.captions],
            clip=f"youtube:{youtube_id}@{start}",
            stated_s=CLIP_SECONDS,
        )
        return locate_stem(record, root, f"{youtube_id}_{start}", youtube_id, f"Y{youtube_id}")
