"""A lost process ends the others within a minute, and torchrun resumes from what is saved."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from pipeline_process import finish
from training_process import (
    assert_same_checkpoint,
    command,
    free_port,
    held,
    rows,
    run_to_end,
    started,
    under_torchrun,
    wait_for_step,
    workers,
)

STEPS = 300
OVERRIDES = (f"lm.steps={STEPS}", "lm.checkpoint_every=50")


@pytest.mark.heavy
@pytest.mark.parametrize("lost", [0, 1])
def test_the_others_end_and_a_restart_resumes(root: Path, lost: int) -> None:
    whole = root / "run" / "whole"
    if not whole.is_dir():
        run_to_end(under_torchrun(command(root, "whole", *OVERRIDES), 2))
    run = root / "run" / f"lost-{lost}"
    program = command(root, run.name, *OVERRIDES)
    # Nothing restarts it: the launcher ends within a minute.
    with started(under_torchrun(held(60, program), 2)) as process:
        wait_for_step(process, run, 60)
        others = workers(process)
        os.kill(others[lost], signal.SIGKILL)
        began = time.monotonic()
        _, errors = finish(process, 120)
        assert time.monotonic() - began < 60
    assert process.returncode == 1, errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in others)
    last = rows(run)[-1]["step"]
    assert 60 <= last < 160  # else the next wait would be over before it began
    assert (run / "latest").read_text() == f"step-{last // 50 * 50:08d}\n"
    # Again, and now the launcher restarts the run by itself.
    with started(under_torchrun(held(160, program), 2, "--max-restarts=1")) as process:
        wait_for_step(process, run, 160)
        os.kill(workers(process)[lost], signal.SIGKILL)
        _, errors = finish(process, 200)
    assert process.returncode == 0, errors
    assert rows(run) == rows(whole)
    name = f"checkpoints/step-{STEPS:08d}"
    assert_same_checkpoint(run / name, whole / name)


@pytest.mark.heavy
def test_processes_of_two_nodes_find_each_other_after_a_restart(tmp_path: Path) -> None:
    """Each node's launcher only counts the restarts that it began: here the counts differ."""
    node = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
        "--max-restarts=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}",
        str(Path(__file__).with_name("restart_process.py")), str(tmp_path),
    ]  # fmt: skip
    with started(node) as one, started(node) as two:
        said = [finish(launcher, 120)[1] for launcher in (one, two)]
    assert [launcher.returncode for launcher in (one, two)] == [0, 0], said
    starts = [(tmp_path / f"{rank}.starts").read_text().split() for rank in range(2)]
    assert starts == [["0", "1"], ["0", "0"]]
