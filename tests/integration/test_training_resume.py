"""Training survives SIGKILL: what follows is what would have followed, bit for bit."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from training_process import assert_same_checkpoint, command, rows, run_to_end

STEPS = 40


@pytest.mark.parametrize("behind", ["false", "true"])
def test_killed_five_times_and_resumed_equals_undisturbed(root: Path, behind: str) -> None:
    """Also while a checkpoint is written in the background."""
    # The last one leaves a dozen steps that take their time: no killer is too late.
    steps = sorted(random.sample(range(1, STEPS - 16), 5))
    script = str(Path(__file__).with_name("killed_process.py"))
    overrides = [f"lm.steps={STEPS}", "lm.checkpoint_every=4", "lm.valid_every=6"]
    overrides += [f"run_dir={root}/{behind}", f"lm.async_checkpoint={behind}"]
    told = ",".join(map(str, steps))
    done = run_to_end([sys.executable, script, f"{root}/recipe.yaml", told, *overrides])
    assert "steps are done: resuming" in done.stdout, told
    whole, killed = root / behind / "whole", root / behind / "killed"
    assert [row["step"] for row in rows(whole) if "loss" in row] == list(range(1, STEPS + 1))
    assert rows(killed) == rows(whole), told
    name = f"checkpoints/step-{STEPS:08d}"
    assert_same_checkpoint(whole / name, killed / name)
    assert not list(killed.glob("checkpoints/*.partial"))


def test_a_mistake_is_one_line_and_a_status(root: Path) -> None:
    done = run_to_end(command(root, "bad", "lm.batch_sise=3"), status=1)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "unknown key 'lm.batch_sise'" in lines[0]
    assert "did you mean 'batch_size'" in lines[0]
