"""ESC-50 (and ESC-10 in its layout): `ROOT/meta/esc50.csv` and `ROOT/audio/`.

The category is the tag.  One fold is the test split.  Clips cut from one Freesound recording
(`src_file`) share a group and, in the original lists, a fold.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from common.tables import Row, read_csv
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.base import Catalog, CatalogPath, Outcome, locate
from pipeline.catalogs.values import damaged_id, damaged_name, texts_of

CLIP_SECONDS = 5.0
TEST_FOLD = "5"
"""The fold of ESC-50 that is not trained on."""


class Esc50(Catalog):
    dataset: Literal["esc50"] = "esc50"
    root: CatalogPath

    def sources(self) -> list[Path]:
        return [self.root / "meta" / "esc50.csv"]

    def audio_folder(self) -> Path:
        return self.root / "audio"

    def read(self) -> Iterator[Outcome]:
        audio = self.open_audio(self.audio_folder())
        for row in read_csv(self.sources()[0], ("filename", "fold", "category", "src_file")):
            yield self._outcome(row, audio)

    def _outcome(self, row: Row, audio: AudioRoot) -> Outcome:
        name, fold = row.values.get("filename", ""), row.values.get("fold", "")
        recording = row.values.get("src_file", "")
        group = "" if damaged_id(recording) else f"freesound:{recording}"
        problem = damaged_id(recording) or damaged_name(name) or row.error
        if not problem and (not name or fold not in ("1", "2", "3", "4", "5")):
            problem = f"filename {name!r}, fold {fold!r}"
        try:
            texts = texts_of(row.values, (), {"category": ""})
            problem = problem or texts.problem
        except ValueError as error:
            problem = problem or str(error)
        if problem:
            return self.malformed(row.source, name, problem, group_id=group)
        record = self.record(
            row.source,
            name,
            group,
            split="test" if fold == TEST_FOLD else "train",
            tags=[tag.replace("_", " ") for tag in texts.tags],
            attribution=f"https://freesound.org/s/{recording}/",
            stated_s=CLIP_SECONDS,  # no `clip`: several clips are cut from one recording
        )
        return locate(record, audio, name)
