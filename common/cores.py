"""Processor cores: how many this process may use, and how its threads wait for each other.

OpenMP, which torch computes with, reads its settings once, when torch is imported.
"""

from __future__ import annotations

import math
import os
from collections.abc import MutableMapping
from pathlib import Path

SPINS = 10_000
"""Turns that a thread spins while it waits for the others, before it sleeps.

OpenMP's default of 300,000 takes longer than the time slice that the scheduler gives to another
program, and a step of sampling waits 200 times. Beside two busy programs on two cores a step took
1,700 ms instead of 12; with this value it takes 100. On idle cores there is no measurable
difference (`training/LOG.md`).
"""

_CGROUPS = Path("/sys/fs/cgroup")


def set_up_openmp(
    environment: MutableMapping[str, str] = os.environ, cgroups: Path = _CGROUPS
) -> None:
    """Set OpenMP's environment variables before torch is imported; the user's values are kept.

    Args:
        environment: gets `GOMP_SPINCOUNT`. It also gets `OMP_NUM_THREADS` if a container may use
            fewer cores than it sees, because threads without a core hold up all others.
        cgroups: the folder where the kernel reports a container's share.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", str(SPINS))
    if usable_cores(cgroups) < _visible_cores():
        environment.setdefault("OMP_NUM_THREADS", str(usable_cores(cgroups)))


def usable_cores(cgroups: Path = _CGROUPS) -> int:
    """Number of cores that this process may keep busy: the cores it may run on, or its container's
    share of them, rounded up."""
    visible = _visible_cores()
    try:
        if (cgroups / "cpu.max").exists():
            quota, period = (cgroups / "cpu.max").read_text().split()
        else:
            quota = (cgroups / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroups / "cpu/cpu.cfs_period_us").read_text()
        share = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no cgroups, or "max": no limit
        return visible
    return min(visible, math.ceil(share)) if share > 0 else visible


def _visible_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
