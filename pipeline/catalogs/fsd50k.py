"""FSD50K: dev.csv (`fname,labels,mids,split`) or eval.csv (`fname,labels,mids`).

`fname` is a Freesound id, the audio file is `FNAME.*`.  Labels have machine ids beside them, the
most specific first, then their ancestors.  Their text is AudioSet's names with `_` for blanks and
`_and_` for commas; AudioSet's own files have the original names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from common.schema import Record
from common.tables import Row, intact, object_row, read_csv, read_json
from pipeline.catalogs.base import (
    Catalog,
    CatalogPath,
    Outcome,
    Refusal,
    Split,
    locate_stem,
    refuse,
)
from pipeline.catalogs.ontology import (
    Ancestors,
    read_ancestors,
    read_names,
)
from pipeline.catalogs.values import damaged_name, split_of, text

_VOCABULARY = ("index", "label", "mid")


class Fsd50k(Catalog):
    global_ids: ClassVar[bool] = True
    dataset: Literal["fsd50k"] = "fsd50k"
    clips: CatalogPath
    """dev.csv (its clips are train or valid) or eval.csv (test)."""
    vocabulary: CatalogPath | None = None
    """vocabulary.csv (`index,label,mid`, no header): rows with other labels are refused."""
    clips_info: CatalogPath | None = None
    """dev_ or eval_clips_info_FSD50K.json: title, uploader and licence of each clip."""
    class_labels: CatalogPath | None = None
    """AudioSet's class_labels_indices.csv, for the names."""
    ontology: CatalogPath | None = None
    """AudioSet's ontology.json, for the names and for `text.tags: specific`."""
    audio: CatalogPath | None = None
    split: Split | None = None
    """Split of every row, in place of the list's; for training on the evaluation clips too."""

    def ancestors(self) -> Ancestors | None:
        return read_ancestors(self.ontology)

    def read(self) -> Iterator[Outcome]:
        root = self.open_audio(self.audio)
        names = read_names(self.class_labels, self.ontology)
        known = None
        if self.vocabulary:
            rows = read_csv(self.vocabulary, _VOCABULARY, header=_VOCABULARY)
            known = {values["mid"] for values in intact(rows)}
        info = {}
        if self.clips_info:
            row = object_row(f"{self.clips_info} (clips_info)", read_json(self.clips_info))
            info = next(intact([row]))
        for row in read_csv(self.clips, ("fname", "labels", "mids")):
            outcome = self._outcome(row, names, known)
            if isinstance(outcome, Record):
                more = info.get(outcome.native_id)
                if isinstance(more, dict):
                    try:
                        outcome.title = text(more, "title")
                        outcome.artist = text(more, "uploader")
                        outcome.license_url = text(more, "license")
                    except ValueError as error:
                        detail = f"{outcome.native_id} in {self.clips_info}: {error}"
                        yield refuse(outcome, "catalog", "malformed_row", detail)
                        continue
                outcome = locate_stem(outcome, root, outcome.native_id)
            yield outcome

    def _outcome(
        self, row: Row, names: Mapping[str, str], known: set[str] | None
    ) -> Record | Refusal:
        name = row.values.get("fname", "").strip()
        listed = row.values.get("split")  # eval.csv has no such column
        # FSD50K's "dev" is the set that train and val are parts of, so it says neither.
        is_part = listed is None or not listed.strip().lower().startswith("dev")
        said = "test" if listed is None else split_of(listed) if is_part else None
        split = self.split or said or ""
        labels = row.values.get("labels", "").split(",")
        mids = row.values.get("mids", "").split(",")
        problem = damaged_name(name) or row.error
        if not problem and not (name.isascii() and name.isdecimal()):
            problem = f"fname: expected a Freesound id, found {name!r:.80}"
        if not problem and not split:
            problem = f"split: expected train or val, found {listed!r:.80}"
        if not problem and (len(labels) != len(mids) or not all((*labels, *mids))):
            problem = f"{len(labels)} labels, {len(mids)} mids"
        if not problem and known is not None:
            unknown = [mid for mid in mids if mid not in known]
            if unknown and self.vocabulary:
                problem = f"label {unknown[0]!r:.80} is not in {self.vocabulary.name}"
        group = f"freesound:{name}" if name.isdecimal() else ""
        if problem:
            return self.malformed(row.source, name, problem, group_id=group, split=split)
        tags = [
            names.get(mid) or plain_label(label) for label, mid in zip(labels, mids, strict=True)
        ]
        return self.record(
            row.source,
            name,
            group,
            split=split,
            tags=list(dict.fromkeys(tags)),
            attribution=f"https://freesound.org/s/{name}/",
            clip=group,
        )


def plain_label(label: str) -> str:
    """`Bird_vocalization_and_bird_call` -> `Bird vocalization, bird call`."""
    return label.replace("_and_", ", ").replace("_", " ")
