"""Embeddings on disk, named by what they were made of."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np

from common.audio import Wave
from training.evaluation.metrics.backbones.backbone import Backbone, Embeddings, identity


def default_cache() -> Path:
    """`$ATTUNE_CACHE/embeddings`, or `~/.cache/attune/embeddings`."""
    return cache_root() / "embeddings"


def cache_root() -> Path:
    """Where downloads and embeddings lie unless a command says otherwise."""
    return Path(os.environ.get("ATTUNE_CACHE") or Path.home() / ".cache" / "attune")


class EmbeddingCache:
    """A file per clip and backbone: `BACKBONE-IDENTITY/ab/cd...npz`.

    The name is the hash of the very samples that the backbone gets, after resampling and whatever
    was done to the level; the folder's, that of the backbone's weights and settings.  So nothing is
    ever stale, and two runs that share clips share embeddings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hits = self.misses = 0

    def path(self, backbone: Backbone, wave: Wave) -> Path:
        """Where the embeddings of a clip lie."""
        samples = np.ascontiguousarray(wave, "<f4")
        name = hashlib.blake2b(samples.tobytes(), digest_size=16).hexdigest()
        return self.folder / f"{backbone.name}-{identity(backbone)}" / name[:2] / f"{name[2:]}.npz"

    def embed(self, backbone: Backbone, wave: Wave) -> Embeddings:
        """`backbone.embed(wave)`, from disk where it is there; a damaged file is made again."""
        path = self.path(backbone, wave)
        try:
            with np.load(path, allow_pickle=False) as file:
                found: Embeddings = file["embeddings"]
            if found.ndim == 2 and found.dtype == np.float32:
                self.hits += 1
                return found
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass
        self.misses += 1
        made = backbone.embed(wave)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under another name first: whoever reads sees all of a file or none.
        with NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            try:
                np.savez(file, embeddings=made)
            except BaseException:
                os.unlink(file.name)
                raise
        os.replace(file.name, path)
        return made
