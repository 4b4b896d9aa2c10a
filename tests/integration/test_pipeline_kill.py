"""SIGKILL `pipeline run` at several points: rerunning gives what an undisturbed run gives."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from pipeline_process import marked_processes, run_to_end, start_pipeline

from common.storage import open_store
from pipeline.verify import verify_shards


def kill_when(recipe: Path, condition: Callable[[], bool]) -> None:
    """Start a run, SIGKILL its process group once `condition` holds, and wait for its Ray to go."""
    mark = uuid.uuid4().hex
    driver = start_pipeline("run", "--config", str(recipe), mark=mark)
    deadline = time.monotonic() + 120
    while not (held := condition()) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if not held or driver.poll() is not None:
        ended = driver.poll() is not None
        if not ended:
            os.killpg(driver.pid, signal.SIGKILL)
        output = driver.communicate()[0]
        what = "ended before it could be killed" if ended else "never came to the point to kill it"
        raise AssertionError(f"the run {what}: {output}")
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    while (alive := marked_processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive, "processes of Ray outlived the driver"


def content(data: Path) -> dict[str, bytes]:
    return {str(p.relative_to(data)): p.read_bytes() for p in data.rglob("*") if p.is_file()}


def test_a_killed_run_ends_like_an_undisturbed_one(
    calm_run: tuple[Path, str], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    calm, printed = calm_run
    for part in ("30 clips in 8 shards", "ray: embedded", "24 clips", "10 refused", "real time"):
        assert part in printed

    killed = tmp_path / "killed"
    recipe = write_recipe(killed)
    commits = killed / "commits"
    kill_when(recipe, lambda: (killed / "plan" / "plan.json").exists())
    kill_when(recipe, lambda: len(list(commits.glob("0*.json"))) >= 1)
    kill_when(recipe, lambda: len(list(commits.glob("0*.json"))) >= 4)
    assert not (killed / "summary.json").exists()
    assert "are committed already" in run_to_end("run", "--config", str(recipe))

    left, right = content(killed), content(calm)
    assert left["manifest.parquet"] == right["manifest.parquet"]
    # Also tars, commits, caches and summary; a kill may leave an orphan tar behind, and no more.
    assert {name: left.get(name) for name in right} == right
    assert all(name.startswith("shards/") for name in left.keys() - right.keys())
    assert verify_shards(open_store(killed))["problems"] == []

    started = time.monotonic()
    output = run_to_end("run", "--config", str(recipe))
    assert "nothing to do" in output and "ray" not in output
    assert time.monotonic() - started < 30  # a few seconds, on a machine with nothing else to do
