"""A full disk ends a run with one line; with room again, the next run ends like an undisturbed one.

The disk is a small tmpfs that only a mount namespace of the test's own sees.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline_process import finish

_IN_NAMESPACE = """\
import os, shutil, subprocess, sys
disk, recipe, out, free, scratch = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1000000", "tmpfs", disk], check=True)
filler = os.path.join(disk, "filler")
with open(filler, "wb") as file:
    file.write(bytes(max(shutil.disk_usage(disk).free - int(free), 0)))
environment = dict(os.environ)
environment.pop("RAY_ADDRESS", None)
if scratch == "scratch":
    environment |= {"TMPDIR": disk, "RAY_TMPDIR": "/tmp"}
command = [sys.executable, "-m", "pipeline", "run", "--config", recipe]
first = subprocess.run(command, env=environment, capture_output=True, text=True)
print(first.returncode, first.stderr, sep="\\n")
os.unlink(filler)
subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
if scratch != "scratch":
    shutil.copytree(os.path.join(disk, "data"), out)
"""


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("free", "what"), [(9_000, "data"), (100_000, "data"), (190_000, "data"), (20_000, "scratch")]
)
def test_a_full_disk_is_one_line_and_nothing_is_lost(
    recipe_text: Callable[..., str], calm_run: Path, tmp_path: Path, free: int, what: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(disk)]
    if shutil.which("unshare") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("no mount namespaces here")
    data = disk / "data" if what == "data" else tmp_path / "out"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text(data))
    script = tmp_path / "script.py"
    script.write_text(_IN_NAMESPACE)
    command = ["unshare", "-rm", sys.executable, str(script), str(disk), str(recipe)]
    ran = subprocess.Popen(
        [*command, str(tmp_path / "out"), str(free), what],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    output, errors = finish(ran, 280)
    assert ran.returncode == 0, output + errors
    status, *said = output.splitlines()
    print(output)
    assert status == "1"
    (error,) = [line for line in said if line.startswith("error: ")]
    assert "No space left on device" in error
    assert not any("Traceback" in line for line in said)
    for name in ("manifest.parquet", "quarantine.parquet", "shards.json", "summary.json"):
        assert (tmp_path / "out" / name).read_bytes() == (calm_run / name).read_bytes()
