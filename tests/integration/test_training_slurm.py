"""The Slurm script of the training README, with stand-ins for Slurm's own commands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from pipeline_process import finish
from tiny_lm import make_world
from training_process import ENVIRONMENT, free_port, rows, started, wait_for_step

STEPS = 300
PROJECT = Path(__file__).parents[2]
STAND_INS = {
    "srun": '#!/bin/sh\nshift\nexec "$@"\n',
    "scontrol": '#!/bin/sh\n[ "$1" = show ] && echo localhost || echo "$@" >> "$TOLD"\n',
}


def _script(root: Path) -> str:
    """The README's script, for two processes and the tiny recipe."""
    readme = (PROJECT / "training" / "README.md").read_text()
    script = re.search(r"```bash\n(#!/bin/bash\n.*?)```", readme, re.DOTALL)
    assert script
    text = script[1]
    recipe = f"{root}/recipe.yaml lm.steps={STEPS} lm.checkpoint_every=1000"
    for old, new in (
        ("configs/sfx.yaml", recipe),
        ("--nproc-per-node 8", "--nproc-per-node 2"),
        (":29500", f":{free_port()}"),
    ):
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.heavy
def test_on_the_signal_before_the_time_limit_it_saves_and_is_queued_again(tmp_path: Path) -> None:
    make_world(tmp_path)
    tools, told = tmp_path / "tools", tmp_path / "told"
    tools.mkdir()
    for name, content in STAND_INS.items():
        (tools / name).write_text(content)
        (tools / name).chmod(0o755)
    venv = Path(sys.executable).parent
    environment = ENVIRONMENT | {
        "PATH": f"{tools}:{venv}:{os.environ['PATH']}",
        "TOLD": str(told),
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_NNODES": "1",
        "SLURM_JOB_ID": "4711",
    }

    def submit() -> AbstractContextManager[subprocess.Popen[str]]:
        return started(["bash", "-c", _script(tmp_path)], env=environment, cwd=PROJECT)

    run = tmp_path / "run" / "lm"
    with submit() as job:
        wait_for_step(job, run, 20)
        job.send_signal(signal.SIGUSR1)
        _, errors = finish(job, 100)
    assert "stopped by SIGUSR1 after step" in errors
    assert told.read_text() == "requeue 4711\n"
    assert rows(run)[-1]["step"] < STEPS
    with submit() as job:
        _, errors = finish(job, 200)
    assert job.returncode == 0, errors
    assert told.read_text() == "requeue 4711\n"
    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))
