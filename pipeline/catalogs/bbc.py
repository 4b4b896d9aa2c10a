"""BBC Sound Effects: BBCSoundEffects.csv, `location,description,secs,category,CDNumber,CDName,...`.

The description is the caption, the category (if any) the tag, the CD's name the title.  Files on
one CD share a group: takes of one sound and parts of one session are on the same CD, while equal
descriptions on different CDs are different recordings.  Audio is in one folder under the names in
`location`; converted files keep the stem.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from common.tables import Row, read_csv
from pipeline.catalogs.audio_root import AudioRoot
from pipeline.catalogs.base import Catalog, CatalogPath, Outcome, Split, locate_stem
from pipeline.catalogs.values import audio_stem, damaged_name, length, text, texts_of

LICENSE = "RemArc"
LICENSE_URL = "https://sound-effects.bbcrewind.co.uk/licensing"


class Bbc(Catalog):
    global_ids: ClassVar[bool] = True
    dataset: Literal["bbc"] = "bbc"
    sounds: CatalogPath
    """BBCSoundEffects.csv."""
    audio: CatalogPath | None = None
    split: Split = "train"

    def read(self) -> Iterator[Outcome]:
        root = self.open_audio(self.audio)
        # Copies of the list are in UTF-8; the list was first published in Windows' Latin-1.
        encodings = ("utf-8-sig", "cp1252", "latin-1")
        for row in read_csv(self.sounds, ("location", "description"), encodings=encodings):
            yield self._outcome(row, root)

    def _outcome(self, row: Row, root: AudioRoot) -> Outcome:
        name = row.values.get("location", "").strip()
        stem = audio_stem(name)
        cd = row.values.get("CDNumber", "").strip()
        damage = damaged_name(name) if stem else "no location"
        clip = "" if damage else f"bbc:{stem}"
        group = f"bbc:{cd}" if cd else clip
        problem = damage or row.error
        try:
            texts = texts_of(row.values, ("description",), {"category": ""})
            problem = problem or texts.problem
        except ValueError as error:
            problem = problem or str(error)
        if problem:
            return self.malformed(row.source, name, problem, group_id=group, clip=clip)
        record = self.record(
            row.source,
            name,
            group,
            tags=texts.tags,
            captions=texts.captions,
            title=text(row.values, "CDName"),
            license=LICENSE,
            license_url=LICENSE_URL,
            attribution="BBC Sound Effects",
            clip=clip,
            stated_s=length(row.values.get("secs")),
        )
        return locate_stem(record, root, stem)
