"""One undisturbed run of the pipeline, a tiny world for training, and a browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_process import run_to_end
from tiny_lm import make_world


@pytest.fixture(scope="session")
def calm_run(recipe_text: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder of a run without Ray: other runs must give what one process does in turn."""
    folder = tmp_path_factory.mktemp("calm")
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe_text(folder / "data"))
    printed = run_to_end("run", "--config", str(recipe), script=["pipeline_in_turn.py"])
    assert "30 clips in 8 shards" in printed and "ray: none" in printed
    return folder / "data"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny world (`make_world`) that a module's training runs share."""
    root = tmp_path_factory.mktemp("tiny")
    make_world(root)
    return root


@pytest.fixture
def browser() -> Iterator[Any]:
    """A Chromium, driven by Playwright."""
    api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium here")
    options = [
        "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
    ]  # fmt: skip
    with api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=options)
        yield found
        found.close()
