"""The same trainer under torchrun: two processes with FSDP2 over gloo do what one does.

Tolerances: the global batch, the masks and the draws are the same to the bit; sums over it are
taken in another order (two halves added up), which moves fp32 losses by some 1e-7 relative at first
and grows with the steps as weights drift apart.  After 12 steps 1e-4 leaves room, and a defect
(gradients off by the number of processes, rr over half the batch) shows at 1e-2.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_lm import make_world

from common.config import load_recipe
from training.progress import read_log
from training.train import train

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_world(root)
    return root


def _train(root: Path, processes: int, run: str, *overrides: str) -> list[dict]:
    overrides = (f"lm.run={run}", *overrides)
    if processes == 1:
        train(load_recipe(root / "recipe.yaml", overrides))
    else:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *launcher, "-m", "training", "lm"]
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            [*command, "--config", str(root / "recipe.yaml"), *overrides],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    return read_log(root / "run" / run)


def _assert_alike(one: list[dict], two: list[dict]) -> None:
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in ("loss", "rr", "grad_norm", "valid_loss", "valid_loss_uncond"):
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=TOLERANCE), (a["step"], key)
        if "loss_per_stream" in a:
            assert a["loss_per_stream"] == pytest.approx(b["loss_per_stream"], rel=TOLERANCE)


def test_two_processes_follow_one(root: Path) -> None:
    # A large weight, so that an error in the gradient of rr would show at once.
    heavy = ["lm.rr.weight=30", "lm.cfg.dropout=0.5", "lm.valid_every=6"]
    one = _train(root, 1, "one", *heavy)
    two = _train(root, 2, "two", *heavy)
    assert sum("rr" in row for row in one) >= 4
    assert [row["step"] for row in one if "valid_loss" in row] == [6, 12]
    _assert_alike(one, two)
    name = "checkpoints/step-00000012/model.safetensors"
    alone, shared = (load_file(root / "run" / run / name) for run in ("one", "two"))
    assert alone.keys() == shared.keys()
    for key in alone:
        torch.testing.assert_close(alone[key], shared[key], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("text", ["raw", "projected"])
def test_two_and_four_processes_give_the_gradient_of_one(
    root: Path, tmp_path: Path, text: str
) -> None:
    """L_rr over the global batch, weighed so that it is most of the gradient."""
    found = {}
    script = str(Path(__file__).with_name("gradient_process.py"))
    overrides = ["lm.batch_size=8", "lm.cfg.dropout=1", "lm.rr.weight=100", f"lm.rr.text={text}"]
    for processes in (1, 2, 4):
        out = tmp_path / f"{processes}.safetensors"
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        done = subprocess.run(
            [sys.executable, *launcher, script, str(root / "recipe.yaml"), str(out), *overrides],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found[processes] = load_file(out)
    assert found[1]["rr_grad_norm"] > found[1]["ce_grad_norm"]
    for processes in (2, 4):
        assert found[processes].keys() == found[1].keys()
        for name, expected in found[1].items():
            error = (found[processes][name] - expected).abs().max()
            assert error <= 1e-5 * max(1e-3, float(expected.abs().max())), (processes, name)


def test_text_dropped_per_clip_on_two_processes(root: Path) -> None:
    per_clip = ["lm.cfg.granularity=sample", "lm.cfg.dropout=0.5", "lm.steps=6"]
    _assert_alike(_train(root, 1, "one-s", *per_clip), _train(root, 2, "two-s", *per_clip))


def test_two_processes_go_on_as_one(root: Path) -> None:
    """A checkpoint of two processes, loaded by one, goes on with the same global batches."""
    whole = _train(root, 1, "alone")
    _train(root, 2, "moved")
    run = root / "run" / "moved"
    (run / "latest").write_text("step-00000010\n")
    (run / "log.jsonl").unlink()
    _assert_alike(whole[10:], _train(root, 1, "moved"))
