"""A disk that fills up while a checkpoint is written costs that checkpoint, and nothing else.

The disk is a small tmpfs that only a mount namespace of the test's own sees.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_lm import make_world
from training_process import assert_same_checkpoint, command, rows, run_program, run_to_end

_IN_NAMESPACE = """\
import os, shutil, subprocess, sys
disk, out, size, *command = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
first = subprocess.run(command, capture_output=True, text=True)
print(first.returncode, first.stderr, sep="\\n")
shutil.copytree(os.path.join(disk, "lm"), os.path.join(out, "first"))
subprocess.run(["mount", "-o", "remount,size=100000000", disk], check=True)
subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
shutil.copytree(os.path.join(disk, "lm"), os.path.join(out, "second"))
"""


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.heavy
def test_what_was_saved_stays_whole(tmp_path: Path) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(disk)]
    if shutil.which("unshare") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("no mount namespaces here")
    make_world(tmp_path)
    run_to_end(command(tmp_path, "whole"))
    whole = tmp_path / "run" / "whole"
    # Room for the checkpoint of step 5 and half of that of step 10.
    size = int(1.5 * _size(whole / "checkpoints" / "step-00000010")) + 50_000
    script = tmp_path / "script.py"
    script.write_text(_IN_NAMESPACE)
    program = command(tmp_path, "lm", f"run_dir={disk}")
    arguments = [str(script), str(disk), str(out), str(size), *program]
    ran = run_program(["unshare", "-rm", sys.executable, *arguments], seconds=280)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    status, *said = ran.stdout.strip().splitlines()
    assert status == "1"
    assert len(said) == 1, said
    assert said[0].startswith("error: checkpoint ") and "cannot be saved" in said[0]
    assert "No space left on device" in said[0]
    left = sorted(path.name for path in (out / "first" / "checkpoints").iterdir())
    assert left == ["step-00000005"]
    assert (out / "first" / "latest").read_text() == "step-00000005\n"
    assert rows(out / "second") == rows(whole)
    name = "checkpoints/step-00000012"
    assert_same_checkpoint(out / "second" / name, whole / name)
