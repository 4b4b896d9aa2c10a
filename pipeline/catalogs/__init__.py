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
from pipeline.catalogs.base import Catalog
from pipeline.catalogs.clotho import Clotho
from pipeline.catalogs.esc50 import Esc50
from pipeline.catalogs.music import Music

CATALOGS: tuple[type[Catalog], ...] = (AudioSet, AudioCaps, Clotho, Esc50, Music, AudioFolder)

AnyCatalog = Annotated[
    AudioSet | AudioCaps | Clotho | Esc50 | Music | AudioFolder, Field(discriminator="dataset")
]
"""A catalog entry of a recipe, told apart by its `dataset` key."""

__all__ = ["CATALOGS", "AnyCatalog", "Catalog"]
