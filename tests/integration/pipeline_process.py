"""`python -m pipeline` as a process of its own, its files and what is left of its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

MARK = "ATTUNE_TEST_RUN"
"""Environment variable that every process of a run inherits."""


def start_pipeline(
    *arguments: str, mark: str = "", ray_address: str = "", script: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start `python -m pipeline ARGUMENTS` as the leader of its own process group.

    Args:
        script: a file of this folder in place of `-m pipeline`, and its own arguments.
    """
    environment = os.environ | {MARK: mark, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": ray_address}
    if not ray_address:
        del environment["RAY_ADDRESS"]
    program = ["-m", "pipeline"]
    if script:
        program = [str(Path(__file__).with_name(script[0])), *script[1:]]
        tests = Path(__file__).parents[1]
        environment["PYTHONPATH"] = f"{tests.parent}{os.pathsep}{tests / 'helpers'}"
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_to_end(*arguments: str, ray_address: str = "", script: Sequence[str] = ()) -> str:
    """Run the pipeline to its end; returns what it printed, and fails unless it succeeds."""
    process = start_pipeline(*arguments, ray_address=ray_address, script=script)
    output = finish(process, 240)[0]
    assert process.returncode == 0, output
    return output


def finish(process: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
    """What it wrote to its pipes, once it has ended.

    Not in time, or is the test itself cut short, then it is killed with all below it: it would take
    the CPU from the tests that follow.
    """
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill_tree(process)
        output, errors = rest(process)
        said = f"{output[-1000:]}{errors[-3000:]}"
        raise AssertionError(f"not at its end after {seconds:g} s: {said}") from None
    finally:
        kill_tree(process)


def rest(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a killed process left in its pipes; an orphan of its own may hold them open."""
    try:
        output, errors = process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        return "", ""
    return output or "", errors or ""


def below(pid: int) -> list[int]:
    """All descendants of a process, whichever of its threads made them."""
    children: list[str] = []
    with suppress(OSError):  # gone meanwhile
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children += (thread / "children").read_text().split()
    return [found for child in map(int, children) for found in (child, *below(child))]


def send(pid: int, number: signal.Signals) -> None:
    """A signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """SIGKILL for a process and all below it: a Ray head would take half a minute to leave."""
    for pid in [*below(process.pid), process.pid] if process.poll() is None else []:
        send(pid, signal.SIGKILL)
    process.wait()


def marked_processes(mark: str) -> list[str]:
    """Command lines of the living processes that descend from a run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().decode().replace("\0", " "))
        except OSError:  # gone meanwhile, or not ours
            continue
    return [line for line in found if line]


def content(data: Path) -> dict[str, bytes]:
    """All files of a data folder by name."""
    return {str(p.relative_to(data)): p.read_bytes() for p in data.rglob("*") if p.is_file()}
