"""AudioSet segment lists: `# YTID, start_seconds, end_seconds, positive_labels` + class labels.

Audio lies in one folder as `YTID.ext`, `Y<YTID>.ext` or `YTID_START.ext` (START in whole seconds or
milliseconds), each file holding the segment alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from common.errors import AttuneError
from common.schema import Record
from pipeline.catalogs.base import (
    AudioRoot,
    Catalog,
    CatalogPath,
    Outcome,
    Refusal,
    Split,
    locate_stem,
)
from pipeline.catalogs.tables import Row, read_csv


class AudioSet(Catalog):
    global_ids: ClassVar[bool] = True
    dataset: Literal["audioset"] = "audioset"
    segments: CatalogPath
    """balanced_train_segments.csv, unbalanced_train_segments.csv or eval_segments.csv."""
    class_labels: CatalogPath
    """class_labels_indices.csv."""
    audio: CatalogPath | None = None
    split: Split = "train"

    def sources(self) -> list[Path]:
        return [self.segments, self.class_labels]

    def read(self) -> Iterator[Outcome]:
        names = read_class_labels(self.class_labels)
        root = self.open_audio(self.audio)
        header = ("ytid", "start_seconds", "end_seconds", "positive_labels")
        for row in read_csv(self.segments, header, header=header, skip_initial_space=True):
            yield self._outcome(row, names, root)

    def _outcome(self, row: Row, names: dict[str, str], root: AudioRoot) -> Outcome:
        youtube_id = row.values.get("ytid", "")
        problem = row.error
        start = end = 0.0
        mids: list[str] = []
        if not problem:
            mids = [mid for mid in row.values["positive_labels"].split(",") if mid]
            unknown = [mid for mid in mids if mid not in names]
            if unknown:
                problem = f"label {unknown[0]!r} is not in {self.class_labels.name}"
            try:
                start, end = float(row.values["start_seconds"]), float(row.values["end_seconds"])
                if not 0 <= start < end < math.inf:
                    raise ValueError
            except ValueError:
                problem = f"times {row.values['start_seconds']!r}, {row.values['end_seconds']!r}"
            if not youtube_id or youtube_id.startswith("#NAME"):
                problem = f"id {youtube_id!r}: the file was saved by a spreadsheet"
        if problem:
            return Refusal(
                self.label, youtube_id, row.source, "catalog", "malformed_row", problem,
                group_id=f"youtube:{youtube_id}", split=self.split,
            )  # fmt: skip
        record = Record(
            dataset=self.label,
            native_id=f"{youtube_id}_{round(start * 1000)}_{round(end * 1000)}",
            group_id=f"youtube:{youtube_id}",
            split=self.split,
            audio_uri="",
            source=row.source,
            tags=[names[mid] for mid in mids],
        )
        return locate_stem(
            record,
            root,
            youtube_id,
            f"Y{youtube_id}",
            f"{youtube_id}_{start:.0f}",
            f"{youtube_id}_{start:.0f}000",
        )


def read_class_labels(path: Path) -> dict[str, str]:
    """Machine id -> display name, from `index,mid,display_name`."""
    names: dict[str, str] = {}
    for row in read_csv(path, ("index", "mid", "display_name"), skip_initial_space=True):
        if row.error:
            raise AttuneError(f"{row.source}: {row.error}")
        names[row.values["mid"]] = row.values["display_name"]
    return names
