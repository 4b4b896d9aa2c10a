"""Training runs as processes: how they are started, watched and disturbed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pipeline_process import finish, kill_tree, rest
from safetensors.torch import load_file
from tiny_lm import state

from training.run.log import MEASURED

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def command(root: Path, run: str, *overrides: str) -> list[str]:
    """The command line that trains the recipe of `root`, as run `run`."""
    program = [sys.executable, "-m", "training", "lm", "--config", f"{root}/recipe.yaml"]
    return [*program, f"lm.run={run}", *overrides]


def under_torchrun(program: list[str], processes: int, *options: str) -> list[str]:
    """The same on several processes of this machine."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *launcher, *options, *program[1:]]


def run_to_end(
    program: list[str], status: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program that must end with `status`; `variables` are added to the environment."""
    done = run_program(program, **variables)
    assert done.returncode == status, done.stdout[-1000:] + done.stderr[-3000:]
    return done


def run_program(
    program: list[str], seconds: float = 200, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program that must end within `seconds`, with any status."""
    process = subprocess.Popen(
        program, env=ENVIRONMENT | variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    output, errors = finish(process, seconds)
    return subprocess.CompletedProcess(program, process.returncode, output, errors)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def started(
    program: list[str], *, env: dict[str, str] = ENVIRONMENT, cwd: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start a program; at the end of the block it is killed with all of its children."""
    process = subprocess.Popen(
        program, env=env, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        kill_tree(process)


def held(step: int, program: list[str]) -> list[str]:
    """The same command, slowed down once the log has that step."""
    assert program[1:3] == ["-m", "training"]
    script = str(Path(__file__).with_name("held_training.py"))
    return [program[0], script, str(step), *program[3:]]


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Until the run's log has a row of that step, or of a later one."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        log = run / "log.jsonl"
        new = log.read_text() if log.is_file() else ""
        whole = new[: new.rfind("\n") + 1].splitlines()  # the last row may be half written
        if whole and json.loads(whole[-1])["step"] >= step:
            return
        time.sleep(0.002)
    kill_tree(process)
    raise AssertionError(f"no step {step}: {rest(process)[1][-3000:]}")


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of torchrun's children, by rank."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {}
    for pid in found:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        rank = [v for v in variables if v.startswith(b"RANK=")]
        if rank:
            ranks[int(rank[0][5:])] = int(pid)
    return [ranks[rank] for rank in sorted(ranks)]


def rows(run: Path) -> list[dict]:
    """The log without what depends on the clock."""
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in found]


def assert_same_checkpoint(one: Path, two: Path) -> None:
    """Exported average, and weights, optimizer and average of the state, bit for bit."""
    exported = [load_file(folder / "model.safetensors") for folder in (one, two)]
    states = [state(folder) for folder in (one, two)]
    assert any("exp_avg_sq" in key for key in states[0])
    assert any(key.startswith("ema") for key in states[0])
    for a, b in (exported, states):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
