"""A tiny trained world, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_lm import make_world

from common.config import Recipe, load_recipe
from common.shards import ShardDataset
from training.config import LMConfig
from training.data import Batch, ClipOrder, Loader
from training.lm.model import LanguageModel
from training.train import architecture, train


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
def model_and_batch(tiny_recipe: Recipe) -> Callable[[int], tuple[LanguageModel, Batch]]:
    """An untrained model and the first batch of so many clips."""

    def make(batch_size: int) -> tuple[LanguageModel, Batch]:
        dataset = ShardDataset.open(tiny_recipe.data_dir)
        model = LanguageModel(architecture(tiny_recipe.section("lm", LMConfig), dataset.summary))
        model.initialize(1)
        order = ClipOrder(dataset, "train", 0)
        loader = Loader(dataset, order, segment_s=0.4, seed=0, batch_size=batch_size)
        return model, loader.batch(0)

    return make


@pytest.fixture(scope="session")
def tiny_run(tiny_root: Path) -> Path:
    """A finished training run of 12 steps."""
    return train(load_recipe(tiny_root / "recipe.yaml"))
