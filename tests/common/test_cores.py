"""The cores of a container, and the settings for OpenMP."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.cores import SPINS, set_up_openmp, usable_cores


def _cgroups(folder: Path, version: int, quota: str) -> Path:
    if version == 2:
        (folder / "cpu.max").write_text(f"{quota} 100000\n")
    else:
        (folder / "cpu").mkdir()
        (folder / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
        (folder / "cpu/cpu.cfs_period_us").write_text("100000\n")
    return folder


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("version", "quota", "expected"),
    [
        (2, "max", 8),
        (2, "200000", 2),
        (2, "250000", 3),
        (2, "50000", 1),
        (2, "6400000", 8),
        (1, "-1", 8),
        (1, "200000", 2),
        (2, "what?", 8),
    ],
)
def test_a_containers_share_of_the_cores(tmp_path: Path, version: int, quota: str, expected: int):
    cgroups = _cgroups(tmp_path, version, quota)
    assert usable_cores(cgroups) == expected
    environment: dict[str, str] = {}
    set_up_openmp(environment, cgroups)
    assert environment.get("OMP_NUM_THREADS") == (str(expected) if expected < 8 else None)


@pytest.mark.usefixtures("eight_cores")
def test_without_cgroups_all_cores_count(tmp_path: Path):
    assert usable_cores(tmp_path) == 8


@pytest.mark.usefixtures("eight_cores")
def test_what_the_user_has_set_stays(tmp_path: Path):
    mine = {"GOMP_SPINCOUNT": "7", "OMP_NUM_THREADS": "5"}
    environment = dict(mine)
    set_up_openmp(environment, _cgroups(tmp_path, 2, "200000"))
    assert environment == mine
    environment = {"OMP_WAIT_POLICY": "active"}
    set_up_openmp(environment, tmp_path / "none")
    assert environment == {"OMP_WAIT_POLICY": "active"}


@pytest.mark.parametrize("program", ["pipeline", "training"])
def test_openmp_is_set_up_before_torch_is_imported(program: str):
    """OpenMP reads its settings once, when torch loads it."""
    asks = (
        "import os, sys, builtins\n"
        "seen = []\n"
        "real = builtins.__import__\n"
        "def watched(name, *rest, **more):\n"
        "    if name.split('.')[0] == 'torch' and not seen:\n"
        "        seen.append(os.environ.get('GOMP_SPINCOUNT'))\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = watched\n"
        f"sys.argv = ['{program}', '--help']\n"
        "import runpy\n"
        "try:\n"
        f"    runpy.run_module('{program}', run_name='__main__')\n"
        "except SystemExit:\n"
        "    pass\n"
        "import torch\n"
        "print('torch saw', seen[0])\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
    out = subprocess.run(
        [sys.executable, "-c", asks], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert f"torch saw {SPINS}" in out
