"""A folder of somebody's own sounds, as README.md shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from calls import Call
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


@pytest.mark.parametrize("command", ["stats", "verify", "report"])
def test_missing_shards_are_reported_in_one_line(
    pipeline: Call, command: str, tmp_path: Path
) -> None:
    """No line of progress comes before it."""
    (tmp_path / "data").mkdir()
    more = [f"--out={tmp_path}/page.html"] if command == "report" else []
    recipe = str(ROOT / "configs" / "own.yaml")
    _, out, err = pipeline(
        "shards", command, "--config", recipe, *more, f"data_dir={tmp_path}/data"
    )
    assert err.startswith("error: ") and (out + err).count("\n") == 1
