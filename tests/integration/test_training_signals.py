"""SIGTERM and SIGUSR1 end a run with a checkpoint and a status of its own; nothing is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tiny_lm import make_world
from training_process import (
    assert_same_checkpoint,
    command,
    rows,
    run_to_end,
    start,
    under_torchrun,
    wait_for_step,
    workers,
)

STEPS = 240
OVERRIDES = (f"lm.steps={STEPS}", "lm.checkpoint_every=1000", "lm.optim.lr=1e-3")
HANDLED = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_world(root)
    return root


def _saved(run: Path) -> int:
    """The step of the newest checkpoint; the log goes just as far."""
    name = (run / "latest").read_text().strip()
    step = int(name.removeprefix("step-"))
    assert rows(run)[-1]["step"] == step
    assert not list(run.glob("checkpoints/*.partial"))
    return step


def test_one_process(root: Path) -> None:
    run_to_end(command(root, "whole", *OVERRIDES))
    run = root / "run" / "told"
    for number, step in ((signal.SIGUSR1, 3), (signal.SIGTERM, 80)):
        process = start(command(root, "told", *OVERRIDES))
        wait_for_step(process, run, step)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 75, errors
        saved = _saved(run)
        assert step <= saved < STEPS
        lines = errors.strip().splitlines()
        assert len(lines) == 1 and f"stopped by {number.name} after step {saved}" in lines[0]
    run_to_end(command(root, "told", *OVERRIDES))
    assert rows(run) == rows(root / "run" / "whole")
    name = f"checkpoints/step-{STEPS:08d}"
    assert_same_checkpoint(run / name, root / "run" / "whole" / name)


def test_two_processes_agree_on_the_step(root: Path) -> None:
    run_to_end(under_torchrun(command(root, "whole-2", *OVERRIDES), 2))
    run = root / "run" / "told-2"
    program = command(root, "told-2", *OVERRIDES)
    # The launcher passes signals on; a worker may also be told alone.
    for number, whom, step in (
        (signal.SIGUSR1, "launcher", 3),
        (signal.SIGTERM, "launcher", 50),
        (signal.SIGUSR1, "second worker", 100),
    ):
        process = start(under_torchrun(program, 2, HANDLED))
        wait_for_step(process, run, step)
        pid = process.pid if whom == "launcher" else workers(process)[1]
        os.kill(pid, number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1, errors  # torchrun has no other
        said = [line for line in errors.splitlines() if "stopped by" in line]
        assert len(said) == 1 and f"after step {_saved(run)}," in said[0], errors
        by = number.name if whom == "launcher" else "a signal to another process"
        assert f"stopped by {by}" in said[0]
        assert step <= _saved(run) < STEPS
    run_to_end(under_torchrun(program, 2))
    assert rows(run) == rows(root / "run" / "whole-2")
    name = f"checkpoints/step-{STEPS:08d}"
    assert_same_checkpoint(run / name, root / "run" / "whole-2" / name)
