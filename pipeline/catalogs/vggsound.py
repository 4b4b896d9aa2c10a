"""VGG-Sound: `vggsound.csv`, or the older `test.csv`; recognized by the number of columns.

Neither has a header.  `vggsound.csv` has `YTID,start,label,split` for both splits; `test.csv` has
`YTID_SSSSSS.mp4,label`, the start in six digits.  Clips are 10 s.  The label with its commas is the
tag.  Audio is in one folder as `YTID_SSSSSS.ext`, `YTID_START.ext` or `YTID.ext`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar, Literal

from common.errors import AttuneError
from common.tables import Row, read_csv
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.base import Catalog, CatalogPath, Outcome, locate_stem
from pipeline.catalogs.values import no_youtube_id, split_of, texts_of, whole_seconds

CLIP_SECONDS = 10.0
_FULL = ("youtube_id", "start", "label", "split")
_TEST = ("file", "label")
# Ids can contain `_` and `-`: the start is after the last `_`.
_FILE = re.compile(r"(?P<youtube_id>.+)_(?P<start>[0-9]{1,9})\.[a-z0-9]+", re.IGNORECASE)


class VggSound(Catalog):
    global_ids: ClassVar[bool] = True
    dataset: Literal["vggsound"] = "vggsound"
    clips: CatalogPath
    """vggsound.csv (train and test) or test.csv."""
    audio: CatalogPath | None = None

    def read(self) -> Iterator[Outcome]:
        root = self.open_audio(self.audio)
        columns = self._columns()
        for number, row in enumerate(read_csv(self.clips, columns, header=columns)):
            if number == 0 and str(row.values.get("start")).lower().startswith("start"):
                continue  # some copies have a header row
            yield self._outcome(row, root)

    def _columns(self) -> tuple[str, ...]:
        first = next(read_csv(self.clips, (), header="abcde"), Row("", {}))
        if len(first.values) in (len(_FULL), len(_TEST)):
            return _FULL if len(first.values) == len(_FULL) else _TEST
        raise AttuneError(
            f"{self.clips}: expected vggsound.csv (YTID,start,label,split) or test.csv "
            f"(YTID_SSSSSS.mp4,label), found {len(first.values)} columns"
        )

    def _outcome(self, row: Row, root: AudioRoot) -> Outcome:
        youtube_id, start = row.values.get("youtube_id", ""), row.values.get("start")
        file = row.values.get("file", "")
        if file:
            match = _FILE.fullmatch(file)
            youtube_id, start = match.groups() if match else ("", None)
        label = row.values.get("label")
        split = split_of(row.values.get("split", "test" if file else "")) or ""
        at = whole_seconds(start)
        damage = no_youtube_id(youtube_id)
        problem = (damage if youtube_id else "") or row.error
        if not problem and (not youtube_id or at is None):
            problem = f"id and start: {list(row.values.values())[:2]!r:.100}"
        try:
            texts = texts_of(row.values, (), {"label": ""})
            if not texts.tags or not split:
                found = f"label {label!r:.80}, split {row.values.get('split')!r:.20}"
                problem = problem or texts.problem or found
        except ValueError as error:
            problem = problem or str(error)
        if problem or at is None:
            group = "" if damage else f"youtube:{youtube_id}"
            return self.malformed(row.source, youtube_id, problem, group_id=group, split=split)
        record = self.record(
            row.source,
            f"{youtube_id}_{at}",
            f"youtube:{youtube_id}",
            split=split,
            tags=texts.tags,
            clip=f"youtube:{youtube_id}@{at}",
            stated_s=CLIP_SECONDS,
        )
        return locate_stem(record, root, f"{youtube_id}_{at:06d}", f"{youtube_id}_{at}", youtube_id)
