"""Exactness where the number of processes changes, or one of them meets what is not finite."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tiny_lm import state
from training_process import rows, run_to_end, under_torchrun

TOLERANCE = 1e-4
"""Relative error of losses; test_training_torchrun.py gives the reason."""
WATCHED = str(Path(__file__).with_name("watched_process.py"))


def _watch(
    root: Path, run: str, processes: int, *overrides: str, **variables: str
) -> dict[int, list[str]]:
    """Train; sample ids of each step's global batch, in its order."""
    folder = root / "ids"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    program = [sys.executable, WATCHED, f"{root}/recipe.yaml", str(folder), f"lm.run={run}"]
    program += overrides
    if processes > 1:
        program = under_torchrun(program, processes)
    run_to_end(program, **variables)
    steps: dict[int, list[str]] = {}
    for rank in range(processes):
        for line in (folder / f"ids-{rank}.jsonl").read_text().splitlines():
            number, *ids = json.loads(line)
            steps.setdefault(number, []).extend(ids)
    return steps


@pytest.mark.heavy
def test_two_processes_resume_as_one_and_as_four(root: Path) -> None:
    whole = _watch(root, "whole", 1)
    assert list(whole) == list(range(1, 13))
    assert _watch(root, "moved", 2, "lm.keep=3") == whole
    run, saved, reference = root / "run" / "moved", root / "saved", rows(root / "run" / "whole")
    run.rename(saved)
    for processes in (1, 4):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(saved, run)
        (run / "latest").write_text("step-00000005\n")
        seen = _watch(root, "moved", processes)
        assert seen == {step: ids for step, ids in whole.items() if step > 5}
        for one, other in zip(reference, rows(run), strict=True):
            assert one.keys() == other.keys()
            for key in ("loss", "rr", "grad_norm"):
                if key in one:
                    assert other[key] == pytest.approx(one[key], rel=TOLERANCE), one["step"]


@pytest.mark.heavy
@pytest.mark.parametrize("later", ["", "1"], ids=["at once", "a step later"])
def test_all_processes_skip_the_step_of_one(root: Path, later: str) -> None:
    """The loss of the last of two processes is not finite: neither takes the step."""
    run = root / "run" / f"broken{later}"
    overrides = ["lm.skip_non_finite=1", "lm.checkpoint_every=1", "lm.keep=12", "lm.steps=8"]
    ids = _watch(root, run.name, 2, *overrides, BROKEN_STEP="5", LATER=later)
    odd = [row for row in rows(run) if "non_finite" in row]
    assert [row["step"] for row in odd] == [5]
    assert odd[0]["sample_ids"] == ids[5]
    before, skipped, after = (state(run / "checkpoints" / f"step-{step:08d}") for step in (4, 5, 6))
    assert all(torch.equal(before[key], skipped[key]) for key in before)
    assert not all(torch.equal(before[key], after[key]) for key in before)
    assert all(torch.isfinite(value).all() for value in after.values())
