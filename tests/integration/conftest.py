"""One undisturbed run of the pipeline, for other runs to be compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline_process import run_to_end


@pytest.fixture(scope="session")
def calm_run(recipe_text: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its data folder.  Without Ray: the others must do as one process that takes all in turn."""
    folder = tmp_path_factory.mktemp("calm")
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe_text(folder / "data"))
    printed = run_to_end("run", "--config", str(recipe), script=["pipeline_in_turn.py"])
    assert "30 clips in 8 shards" in printed and "ray: none" in printed
    return folder / "data"
