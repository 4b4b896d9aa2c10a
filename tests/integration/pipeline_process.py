"""`python -m pipeline` as a process of its own, and what remains of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MARK = "ATTUNE_TEST_RUN"
"""Environment variable that every process of a run inherits."""


def start_pipeline(
    *arguments: str, mark: str = "", ray_address: str = "", count: Path | None = None
) -> subprocess.Popen[str]:
    """Start `python -m pipeline ARGUMENTS` as the leader of its own process group.

    Args:
        count: file that gets a byte for each clip that goes through the codec.
    """
    environment = os.environ | {MARK: mark, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": ray_address}
    if not ray_address:
        del environment["RAY_ADDRESS"]
    program = ["-m", "pipeline"]
    if count is not None:
        program = [str(Path(__file__).with_name("counting_pipeline.py")), str(count)]
        environment["PYTHONPATH"] = str(Path(__file__).parent.parent.parent)
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_to_end(*arguments: str, ray_address: str = "") -> str:
    """Run it to the end and return what it printed; it must succeed."""
    process = start_pipeline(*arguments, ray_address=ray_address)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    return output


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
