"""A cache of embeddings on disk, by content of clip and backbone."""

from __future__ import annotations

import hashlib
import uuid
import zipfile
from pathlib import Path

import numpy as np

from common.audio import Wave
from common.uris import cache_folder
from training.evaluation.metrics.backbones.backbone import Backbone, Embeddings, identity


def default_cache() -> Path:
    """`embeddings` in the cache folder."""
    return cache_folder() / "embeddings"


class EmbeddingCache:
    """A file per clip and backbone: `BACKBONE-IDENTITY/ab/cd...npz`.

    The file is named by the hash of the samples that the backbone gets, after resampling and
    loudness normalization; the folder by the hash of the backbone's weights and settings.  So an
    entry is never stale, and runs that share clips share embeddings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, backbone: Backbone, wave: Wave) -> Path:
        """The file of a clip's embeddings."""
        samples = np.ascontiguousarray(wave, "<f4")
        name = hashlib.blake2b(samples.tobytes(), digest_size=16).hexdigest()
        return self.folder / f"{backbone.name}-{identity(backbone)}" / name[:2] / f"{name[2:]}.npz"

    def embed(self, backbone: Backbone, wave: Wave) -> Embeddings:
        """`backbone.embed(wave)`, read from disk if possible; a damaged file is replaced."""
        path = self.path(backbone, wave)
        try:
            with np.load(path, allow_pickle=False) as file:
                found: Embeddings = file["embeddings"]
            if found.ndim == 2 and found.dtype == np.float32:
                return found
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass
        made = backbone.embed(wave)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written under another name first, so that readers never see part of a file.
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with partial.open("wb") as file:
                np.savez(file, embeddings=made)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return made
