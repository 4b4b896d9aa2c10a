"""Training survives SIGKILL: what follows is what would have followed, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from tiny_lm import make_world

from training.progress import MEASURED

STEPS = 30


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_world(root)
    return root


def _command(root: Path, run: str) -> list[str]:
    overrides = [f"lm.run={run}", f"lm.steps={STEPS}", "lm.checkpoint_every=4"]
    return [sys.executable, "-m", "training", "lm", "--config", f"{root}/recipe.yaml", *overrides]


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def _rows(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]


def _kill_after(command: list[str], log: Path, step: int) -> None:
    """Start the command and SIGKILL it as soon as its log has a row of that step."""
    process = subprocess.Popen(command, env=_environment(), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if log.is_file() and f'"step": {step},' in log.read_text():
                break
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_killed_and_resumed_equals_undisturbed(root: Path) -> None:
    subprocess.run(
        _command(root, "whole"), env=_environment(), check=True, stdout=subprocess.DEVNULL
    )
    killed = root / "run" / "killed"
    for step in (3, 17):  # before the first checkpoint, and between two others
        _kill_after(_command(root, "killed"), killed / "log.jsonl", step)
        assert len(_rows(killed)) < STEPS
    done = subprocess.run(
        _command(root, "killed"), env=_environment(), check=True, capture_output=True, text=True
    )
    assert "steps are done: going on" in done.stdout
    whole = root / "run" / "whole"
    assert _rows(killed) == _rows(whole)
    name = f"checkpoints/step-{STEPS:08d}"
    one, two = (load_file(run / name / "model.safetensors") for run in (whole, killed))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    # Weights, optimizer and average too.
    states = [_state(run / name / "state") for run in (whole, killed)]
    assert states[0].keys() == states[1].keys()
    assert any("exp_avg" in key for key in states[0])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def _state(folder: Path) -> dict[str, torch.Tensor]:
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        key: torch.empty(value.size, dtype=value.properties.dtype)
        for key, value in metadata.items()
        if hasattr(value, "size")
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is no process group
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def test_a_mistake_is_one_line_and_a_status(root: Path) -> None:
    command = [*_command(root, "bad"), "lm.batch_sise=3"]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "unknown key 'lm.batch_sise'" in lines[0]
    assert "did you mean 'batch_size'" in lines[0]
