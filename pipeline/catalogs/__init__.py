"""Catalogs: one file per dataset, each a class that is both its config and its reader.

To add one: write a `Catalog` subclass with a `dataset: Literal["name"]`, add it to `AnyCatalog`,
and test it on a few rows of the real file (see "Add one" in `pipeline/README.md`).
"""

from __future__ import annotations

from typing import Annotated, get_args

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
from pipeline.catalogs.parquet import Parquet
from pipeline.catalogs.vggsound import VggSound
from pipeline.catalogs.wavcaps import WavCaps
from pipeline.catalogs.webdataset import WebDataset

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
    | AudioFolder
    | WebDataset
    | Parquet,
    Field(discriminator="dataset"),
]
"""A catalog entry of a recipe; its `dataset` key says which."""
CATALOGS: tuple[type[CatalogEntry], ...] = get_args(get_args(AnyCatalog)[0])

__all__ = ["CATALOGS", "AnyCatalog", "Catalog", "CatalogEntry"]
