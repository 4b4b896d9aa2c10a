"""A folder of somebody's own sounds, as README.md shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from pipeline.cli import app

ROOT = Path(__file__).parents[2]


def test_the_table_in_the_readme_is_a_catalog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = re.search(r"^file_name,.*?(?=^```)", (ROOT / "README.md").read_text(), re.S | re.M)
    assert table is not None
    (tmp_path / "metadata.csv").write_text(table[0])
    rng = np.random.default_rng(0)
    for name in ("dog.wav", "rain.wav"):
        soundfile.write(tmp_path / name, rng.uniform(-0.5, 0.5, 22050), 22050)
    monkeypatch.setenv("OWN_SOUNDS", str(tmp_path))
    command = ["catalog", "check", str(ROOT / "configs" / "own.yaml"), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["datasets"]["own"]
    assert (found["read"], found["accepted"], found["prompts"]) == (2, 2, 2)
