"""SIGKILL `pipeline run` at several points: rerunning gives what an undisturbed run gives."""

from __future__ import annotations

import os
import re
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from calls import Call
from pipeline_process import content, kill_tree, marked_processes, rest, run_to_end, start_pipeline

from common.storage import open_store
from pipeline.inspect.verify import verify_shards


def kill_when(recipe: Path, condition: Callable[[], bool], *script: str) -> None:
    """Start a run, SIGKILL its process group once `condition` holds, and wait for its Ray to go."""
    mark = uuid.uuid4().hex
    driver = start_pipeline("run", "--config", str(recipe), mark=mark, script=script)
    try:
        deadline = time.monotonic() + 120
        while not (held := condition()) and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if not held or driver.poll() is not None:
            ended = driver.poll() is not None
            kill_tree(driver)
            what = "ended before it could be killed" if ended else "never came to the point"
            raise AssertionError(f"the run {what}: {rest(driver)[0]}")
        os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate(timeout=60)
    finally:
        kill_tree(driver)
    deadline = time.monotonic() + 60  # of its own: the run may have taken all of the first
    while (alive := marked_processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive, "processes of Ray outlived the driver"


@pytest.mark.heavy
@pytest.mark.parametrize("kills", [1, 3])
def test_a_killed_run_ends_like_an_undisturbed_one(
    calm_run: Path, write_recipe: Callable[..., Path], tmp_path: Path, pipeline: Call, kills: int
) -> None:
    killed = tmp_path / "killed"
    recipe = write_recipe(killed)

    def committed() -> int:
        return len(list((killed / "commits").glob("0*.json")))

    if kills > 1:
        kill_when(recipe, lambda: (killed / "plan" / "plan.json").exists())
    for more in range(1, max(kills, 2)):
        # No more than three shards each time, of eight: a killer who comes late finds some to do.
        enough = committed() + more
        kill_when(recipe, lambda enough=enough: committed() >= enough, "held_pipeline.py", "3")
    known = committed()
    assert not (killed / "summary.json").exists()
    printed = run_to_end("run", "--config", str(recipe))
    assert f"({known} are committed already)" in printed
    for part in ("30 clips in 8 shards", "ray: local", "24 clips", "10 refused", "real time"):
        assert part in printed

    left, right = content(killed), content(calm_run)
    assert left["manifest.parquet"] == right["manifest.parquet"]
    # Also tars, commits, caches and summary; a kill may leave behind an orphan tar and files that
    # were not renamed yet (NAME#1), and no more.
    assert {name: left.get(name) for name in right} == right
    leftovers = left.keys() - right.keys()
    assert all(re.fullmatch(r"shards/.+|.+#\d+", name) for name in leftovers), leftovers
    assert verify_shards(open_store(killed))["problems"] == []

    _, output, _ = pipeline("run", "--config", str(recipe))
    assert "nothing to do" in output and "ray" not in output
