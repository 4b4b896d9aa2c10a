"""A finished set of shards, made without Ray (the same workers, called directly)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from calls import freeze
from in_process import encode_all

from common.config import Recipe, load_recipe
from pipeline.datadir.frozen_plan import FrozenPlan
from pipeline.encode.finalize import finalize


@pytest.fixture
def planned(write_recipe: Callable[..., Path], tmp_path: Path) -> tuple[FrozenPlan, Recipe]:
    recipe = load_recipe(write_recipe(tmp_path / "data"))
    return freeze(recipe)[0], recipe


_FINISHED: dict[str, Path] = {}


@pytest.fixture
def finished(
    planned: tuple[FrozenPlan, Recipe], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished data folder that the test may spoil."""
    data = tmp_path / "data"
    if "data" not in _FINISHED:  # encode once, copy for every test
        plan, recipe = planned
        encode_all(plan, recipe)
        finalize(plan, recipe.name, recipe.codec.path)
        _FINISHED["data"] = tmp_path_factory.mktemp("finished") / "data"
        shutil.copytree(data, _FINISHED["data"])
    shutil.rmtree(data)
    shutil.copytree(_FINISHED["data"], data)
    return data


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], tmp_path: Path) -> str:
    """Path of a recipe into the folder of `planned` and `finished`."""
    return str(write_recipe(tmp_path / "data"))
