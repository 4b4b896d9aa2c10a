"""How tests plan a recipe and call the command line."""

from __future__ import annotations

from collections.abc import Callable

from common.config import Recipe
from common.storage import open_store
from pipeline.config import PipelineConfig
from pipeline.datadir.frozen_plan import FrozenPlan
from pipeline.planning import make_plan

Call = Callable[..., tuple[int, str, str]]
"""Runs a command with these arguments: exit status, stdout, stderr."""


def freeze(recipe: Recipe) -> tuple[FrozenPlan, bool]:
    """The plan of a recipe in its data folder, and whether it is new there."""
    config = recipe.section("pipeline", PipelineConfig)
    return make_plan(open_store(recipe.data_dir), recipe, config)
