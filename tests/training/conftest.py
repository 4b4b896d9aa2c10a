"""A tiny trained world, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_lm import make_world

from common.config import Recipe, load_recipe
from training.train import train


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with codec, encoder, shards of 24 clips and `recipe.yaml`."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("tiny")
    make_world(root)
    return root


@pytest.fixture(scope="session")
def tiny_recipe(tiny_root: Path) -> Recipe:
    """The recipe of `tiny_root`."""
    return load_recipe(tiny_root / "recipe.yaml")


@pytest.fixture(scope="session")
def tiny_run(tiny_root: Path) -> Path:
    """A finished training run of 12 steps."""
    return train(load_recipe(tiny_root / "recipe.yaml"))
