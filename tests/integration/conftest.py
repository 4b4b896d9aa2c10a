"""One undisturbed run of the pipeline, for other runs to be compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline_process import run_to_end


@pytest.fixture(scope="session")
def calm_run(
    recipe_text: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The data folder of a run on an embedded Ray, and what the run printed."""
    folder = tmp_path_factory.mktemp("calm")
    (folder / "recipe.yaml").write_text(recipe_text(folder / "data"))
    return folder / "data", run_to_end("run", "--config", str(folder / "recipe.yaml"))
