"""Catalogs: one file per dataset, each a class that is both its config and its reader.

To add one: write a `Catalog` subclass with a `dataset: Literal["name"]`, put it into `CATALOGS` and
`AnyCatalog`, and test it on a few rows of the real file (`pipeline/README.md` walks through it).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.catalogs.audiocaps import AudioCaps
from pipeline.catalogs.audiofolder import AudioFolder
from pipeline.catalogs.audioset import AudioSet
from pipeline.catalogs.base import Catalog, CatalogEntry
from pipeline.catalogs.bbc import Bbc
from pipeline.catalogs.clotho import Clotho
from pipeline.catalogs.esc50 import Esc50
from pipeline.catalogs.freetouse import FreeToUse
from pipeline.catalogs.fsd50k import Fsd50k
from pipeline.catalogs.music import Music
from pipeline.catalogs.musiccaps import MusicCaps
from pipeline.catalogs.vggsound import VggSound
from pipeline.catalogs.wavcaps import WavCaps

CATALOGS: tuple[type[CatalogEntry], ...] = (
    AudioSet, AudioCaps, Clotho, VggSound, Fsd50k, Bbc, FreeToUse, WavCaps, Esc50, Music, MusicCaps,
    AudioFolder,
)  # fmt: skip

AnyCatalog = Annotated[
    AudioSet
    | AudioCaps
    | Clotho
    | VggSound
    | Fsd50k
    | Bbc
    | FreeToUse
    | WavCaps
    | Esc50
    | Music
    | MusicCaps
    | AudioFolder,
    Field(discriminator="dataset"),
]
"""A catalog entry of a recipe, told apart by its `dataset` key."""

__all__ = ["CATALOGS", "AnyCatalog", "Catalog", "CatalogEntry"]
