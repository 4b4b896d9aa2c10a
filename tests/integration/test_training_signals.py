"""SIGTERM and SIGUSR1 end a run with a checkpoint and a status of its own; nothing is lost."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from pipeline_process import finish
from training_process import (
    assert_same_checkpoint,
    command,
    held,
    rows,
    run_to_end,
    started,
    under_torchrun,
    wait_for_step,
    workers,
)

from common.config import load_recipe
from training.train import train

STEPS = 40
OVERRIDES = (f"lm.steps={STEPS}", "lm.checkpoint_every=1000", "lm.optim.lr=1e-3")
HANDLED = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


def _saved(run: Path) -> int:
    """The step of the newest checkpoint, which is also the log's last one."""
    name = (run / "latest").read_text().strip()
    step = int(name.removeprefix("step-"))
    assert rows(run)[-1]["step"] == step
    assert not list(run.glob("checkpoints/*.partial"))
    return step


def test_one_process(root: Path) -> None:
    whole, run = root / "run" / "whole", root / "run" / "stopped"
    train(load_recipe(root / "recipe.yaml", ["lm.run=whole", *OVERRIDES]))
    program = command(root, "stopped", *OVERRIDES)
    saved = 0
    for number in (signal.SIGUSR1, signal.SIGTERM):
        step = saved + 5
        with started(held(step, program)) as process:
            wait_for_step(process, run, step)
            process.send_signal(number)
            _, errors = finish(process, 60)
        assert process.returncode == 75, errors
        saved = _saved(run)
        assert step <= saved < STEPS
        lines = errors.strip().splitlines()
        assert len(lines) == 1 and f"stopped by {number.name} after step {saved}" in lines[0]
    run_to_end(program)
    assert rows(run) == rows(whole)
    name = f"checkpoints/step-{STEPS:08d}"
    assert_same_checkpoint(run / name, whole / name)


# The launcher passes signals on; a single worker may also get one.
SECOND_ONLY = [(signal.SIGUSR1, "second worker")]
EVERYBODY = [(signal.SIGUSR1, "launcher"), (signal.SIGTERM, "launcher"), *SECOND_ONLY]


@pytest.mark.parametrize(
    "signals",
    [
        pytest.param(SECOND_ONLY, id="second"),
        pytest.param(EVERYBODY, id="everybody", marks=pytest.mark.heavy),
    ],
)
def test_two_processes_agree_on_the_step(
    root: Path, signals: list[tuple[signal.Signals, str]]
) -> None:
    names = [f"{name}-{len(signals)}" for name in ("stopped", "whole")]
    run, whole = (root / "run" / name for name in names)
    program = command(root, run.name, *OVERRIDES)
    saved = 0
    for number, whom in signals:
        step = saved + 5
        with started(under_torchrun(held(step, program), 2, HANDLED)) as process:
            wait_for_step(process, run, step)
            pid = process.pid if whom == "launcher" else workers(process)[1]
            os.kill(pid, number)
            _, errors = finish(process, 60)
        assert process.returncode == 1, errors  # torchrun has no other
        saved = _saved(run)
        said = [line for line in errors.splitlines() if "stopped by" in line]
        assert len(said) == 1 and f"after step {saved}," in said[0], errors
        by = number.name if whom == "launcher" else "a signal to another process"
        assert f"stopped by {by}" in said[0]
        assert step <= saved < STEPS
    # To its end, and then from the beginning without a break.
    script = str(Path(__file__).with_name("runs_in_turn.py"))
    in_turn = [sys.executable, script, f"{root}/recipe.yaml", ",".join(names), *OVERRIDES]
    run_to_end(under_torchrun(in_turn, 2))
    assert rows(run) == rows(whole)
    name = f"checkpoints/step-{STEPS:08d}"
    assert_same_checkpoint(run / name, whole / name)
