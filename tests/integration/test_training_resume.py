"""Training survives SIGKILL: log and weights are those of an undisturbed run, bit for bit."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from training_process import assert_same_checkpoint, rows, run_to_end

STEPS = 40


@pytest.mark.parametrize("behind", ["false", "true"])
def test_killed_five_times_and_resumed_equals_undisturbed(root: Path, behind: str) -> None:
    """Also while a checkpoint is written in the background."""
    # A dozen slow steps follow the last kill, so that no kill comes too late.
    steps = sorted(random.sample(range(1, STEPS - 16), 5))
    script = str(Path(__file__).with_name("killed_process.py"))
    overrides = [f"lm.steps={STEPS}", "lm.checkpoint_every=4", "lm.valid_every=6"]
    overrides += [f"run_dir={root}/{behind}", f"lm.async_checkpoint={behind}"]
    given = ",".join(map(str, steps))
    done = run_to_end([sys.executable, script, f"{root}/recipe.yaml", given, *overrides])
    assert "steps are done: resuming" in done.stdout, given
    whole, killed = root / behind / "whole", root / behind / "killed"
    assert [row["step"] for row in rows(whole) if "loss" in row] == list(range(1, STEPS + 1))
    assert rows(killed) == rows(whole), given
    name = f"checkpoints/step-{STEPS:08d}"
    assert_same_checkpoint(whole / name, killed / name)
    assert not list(killed.glob("checkpoints/*.partial"))
