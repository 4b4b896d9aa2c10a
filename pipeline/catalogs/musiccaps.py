"""MusicCaps: musiccaps-public.csv, 10 s of music per row, for evaluation (split `test`).

`ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,...,is_balanced_subset,...`; the
aspects are a Python list literal and become tags.  Audio is in one folder as `YTID.ext` or
`YTID_START.ext`; each file is just the 10 s.  The clips are in AudioSet too: with `role: hold_out`
this catalog keeps them out of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from common.tables import Row, read_csv
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.base import Catalog, CatalogPath, Outcome, Split, locate_stem
from pipeline.catalogs.ontology import read_names
from pipeline.catalogs.values import literal_list, no_youtube_id, number, texts_of

_REQUIRED = ("ytid", "start_s", "end_s", "aspect_list", "caption")


class MusicCaps(Catalog):
    text_kind: ClassVar[Literal["sound", "music"]] = "music"
    global_ids: ClassVar[bool] = True
    dataset: Literal["musiccaps"] = "musiccaps"
    captions: CatalogPath
    """musiccaps-public.csv."""
    class_labels: CatalogPath | None = None
    """AudioSet's class_labels_indices.csv: the clips' labels become tags too, after the aspects."""
    audio: CatalogPath | None = None
    split: Split = "test"

    def read(self) -> Iterator[Outcome]:
        root = self.open_audio(self.audio)
        names = read_names(self.class_labels, None)
        more = ["audioset_positive_labels"] if self.class_labels else []
        for row in read_csv(self.captions, (*_REQUIRED, *more)):
            yield self._outcome(row, names, root)

    def _outcome(self, row: Row, names: Mapping[str, str], root: AudioRoot) -> Outcome:
        youtube_id = row.values.get("ytid", "")
        start, end = number(row.values.get("start_s")), number(row.values.get("end_s"))
        aspects = literal_list(row.values.get("aspect_list", ""))
        mids = row.values.get("audioset_positive_labels", "").split(",") if names else []
        unknown = [mid for mid in mids if mid and mid not in names]
        damage = no_youtube_id(youtube_id)
        problem = damage or row.error
        if start is None or end is None or start >= end:
            found = (row.values.get("start_s"), row.values.get("end_s"))
            problem = problem or f"times {found[0]!r:.40}, {found[1]!r:.40}"
            start = end = 0.0
        if not problem and aspects is None:
            problem = f"aspect_list: expected a list, found {row.values['aspect_list']!r:.80}"
        if not problem and unknown and self.class_labels:
            problem = f"label {unknown[0]!r:.80} is not in {self.class_labels.name}"
        try:
            texts = texts_of(row.values, ("caption",))
            problem = problem or ("" if aspects else texts.problem)
        except ValueError as error:
            problem = problem or str(error)
        group = "" if damage else f"youtube:{youtube_id}"
        if problem:
            return self.malformed(row.source, youtube_id, problem, group_id=group)
        tags = [*(aspects or ()), *texts.tags, *(names[mid] for mid in mids if mid)]
        record = self.record(
            row.source,
            f"{youtube_id}_{int(start)}",
            group,
            tags=list(dict.fromkeys(tags)),
            captions=texts.captions,
            clip=f"{group}@{int(start)}",
            stated_s=end - start,
        )
        return locate_stem(record, root, youtube_id, f"{youtube_id}_{int(start)}")
