"""The same trainer under torchrun: two processes with FSDP2 over gloo do what one does.

Tolerances: the global batch, the masks and the draws are the same to the bit; sums over it are
taken in another order (two halves added up), which moves fp32 losses by some 1e-7 relative at first
and grows with the steps as weights drift apart, to 5e-7 after 12 steps.  1e-4 leaves room, and a
defect (gradients off by the number of processes, rr over half the batch) shows at 1e-2.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pipeline_process import finish
from safetensors.torch import load_file
from training_process import command, free_port, run_to_end, started, under_torchrun

from common.config import load_recipe
from training import distributed
from training.run.log import read_log
from training.train import train

TOLERANCE = 1e-4


def _train(root: Path, processes: int, run: str, *overrides: str) -> list[dict]:
    if processes == 1:
        train(load_recipe(root / "recipe.yaml", (f"lm.run={run}", *overrides)))
    else:
        run_to_end(under_torchrun(command(root, run, *overrides), processes))
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


@pytest.mark.heavy
@pytest.mark.parametrize("sharding", ["full", "hybrid"])
def test_two_launchers_as_of_two_nodes_follow_one_process(root: Path, sharding: str) -> None:
    heavy = ["lm.rr.weight=30", "lm.cfg.dropout=0.5", "lm.checkpoint_every=6"]
    one = _train(root, 1, f"alone-{sharding}", *heavy)
    two = _train_on_two_nodes(root, f"nodes-{sharding}", f"lm.sharding={sharding}", *heavy)
    _assert_alike(one, two)


def _train_on_two_nodes(root: Path, run: str, *overrides: str) -> list[dict]:
    """Train with the command that `make` starts on every node; here both nodes are this machine."""
    asked = [f"lm.run={run}", *overrides]
    line = subprocess.run(
        ["make", "-s", "-n", "READY=", "train-sfx", f"CONFIG={root}/recipe.yaml", "NNODES=2",
         "NPROC=2", f"RDZV=127.0.0.1:{free_port()}", f"ARGS={' '.join(asked)}"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert line[0].endswith("torchrun")
    program = [sys.executable, "-m", "torch.distributed.run", *line[1:]]
    with started(program) as first, started(program) as second:
        said = [finish(node, 200)[1] for node in (first, second)]
    assert [node.returncode for node in (first, second)] == [0, 0], said
    return read_log(root / "run" / run)


RAW, PROJECTED, CONTRASTIVE = "lm.rr.text=raw", "lm.rr.text=projected", "lm.rr.loss=contrastive"
PIECES, HYBRID = "lm.micro_batch=3", "group=2"
STEPS = {
    1: [RAW, PROJECTED, CONTRASTIVE, f"{CONTRASTIVE},{PIECES}"],
    2: [
        RAW, PROJECTED, CONTRASTIVE, f"{CONTRASTIVE},{PIECES}", f"{RAW},{PIECES}",
        f"{RAW},lm.activation_checkpointing=true,lm.micro_batch=2",
    ],
    4: [RAW, PROJECTED, f"{RAW},{HYBRID}", f"{RAW},{HYBRID},lm.micro_batch=1"],
}  # fmt: skip
"""By the number of processes, the settings of a step without text whose L_rr weighs so much that it
is most of the gradient."""
Gradients = dict[tuple[int, str], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def gradients(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Gradients:
    """Gradients of each of `STEPS`; each number of processes starts once for all of its steps."""
    script = str(Path(__file__).with_name("gradient_process.py"))
    found = {}
    for processes, steps in STEPS.items():
        folder = tmp_path_factory.mktemp("gradients")
        heavy = "lm.batch_size=8,lm.cfg.dropout=1,lm.rr.weight=100,"
        program = [sys.executable, script, str(root / "recipe.yaml"), str(folder)]
        run_to_end(under_torchrun([*program, *(heavy + step for step in steps)], processes))
        for number, step in enumerate(steps):
            found[processes, step] = load_file(folder / f"{number}.safetensors")
    return found


@pytest.mark.parametrize(
    ("processes", "step"), [(n, step) for n, steps in STEPS.items() for step in steps][3:]
)
def test_however_it_is_shared_out_the_gradient_is_that_of_one_process(
    gradients: Gradients, processes: int, step: str
) -> None:
    found, expected = gradients[processes, step], gradients[1, step.partition(",")[0]]
    assert found.keys() == expected.keys()
    assert expected["rr_grad_norm"] > expected["ce_grad_norm"]
    if CONTRASTIVE in step:
        assert float(expected["contrastive.audio_in.weight"].abs().max()) > 0
    for name, value in expected.items():
        # 80 roundings of the largest value: a sum of some thousand terms in another order.
        error = (found[name] - value).abs().max()
        assert error <= 1e-5 * max(1e-3, float(value.abs().max())), name


def test_two_nodes_of_two_train_as_one_process_and_resume_on_one(root: Path) -> None:
    """Hybrid sharding, micro-batches and checkpointed blocks together, saved in the background and
    loaded again."""
    pieces = ["lm.sharding=hybrid", "lm.activation_checkpointing=true", "lm.micro_batch=1"]
    pieces.append("lm.async_checkpoint=true")
    heavy = ["lm.batch_size=8", "lm.rr.weight=30", "lm.cfg.dropout=0.5", "lm.valid_every=6"]
    whole = _train(root, 1, "one-h", *heavy)
    _assert_alike(whole, _train_on_two_nodes(root, "four-h", *heavy, *pieces))
    run = root / "run" / "four-h"
    (run / "latest").write_text("step-00000010\n")
    (run / "log.jsonl").unlink()
    rest = [row for row in whole if row["step"] > 10]
    _assert_alike(rest, _train(root, 1, "four-h", *heavy))


def test_states_are_sharded_and_full_precision_with_bf16(root: Path, tmp_path: Path) -> None:
    """What multiplies is bf16; weights, gradients, moments and average are fp32, in shards."""
    out = tmp_path / "states.json"
    script = str(Path(__file__).with_name("state_process.py"))
    program = [sys.executable, script, str(root / "recipe.yaml"), str(out)]
    run_to_end(under_torchrun(program, 2))
    found = json.loads(out.read_text())
    assert found.pop("multiplied") == ["torch.bfloat16"]
    assert found.keys() == {"weights", "gradients", "exp_avg", "exp_avg_sq", "average"}
    for what, kinds in found.items():
        assert kinds == [["DTensor", "torch.float32", True]], what


def test_text_dropped_per_clip_on_two_processes(root: Path) -> None:
    per_clip = ["lm.cfg.granularity=sample", "lm.cfg.dropout=0.5", "lm.steps=6"]
    _assert_alike(_train(root, 1, "one-s", *per_clip), _train(root, 2, "two-s", *per_clip))


def test_a_mistake_that_the_first_process_finds_ends_all_with_one_line(root: Path) -> None:
    _train(root, 1, "taken", "lm.steps=4", "lm.checkpoint_every=4")
    overrides = ("lm.steps=4", "lm.checkpoint_every=4", "lm.optim.lr=0.5")
    errors = run_to_end(under_torchrun(command(root, "taken", *overrides), 2), status=1).stderr
    assert errors.count("error: ") == 1 and "lm.optim.lr" in errors
    assert "RuntimeError" not in errors and "DistBackendError" not in errors


def test_all_wait_for_the_first_and_an_error_of_one_ends_all(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("agreement_process.py"))
    run_to_end(under_torchrun([sys.executable, script, str(tmp_path)], 3))
    told = [(tmp_path / str(rank)).read_text() for rank in range(3)]
    assert told == ["no room here (process 2)"] * 3


@pytest.mark.heavy
@pytest.mark.skipif(not distributed._has_compiler(torch.device("cpu")), reason="no C++ compiler")
def test_compiled_blocks_on_two_processes(root: Path) -> None:
    plain = _train(root, 2, "plain", "lm.cfg.dropout=0.5")
    _assert_alike(plain, _train(root, 2, "compiled", "lm.cfg.dropout=0.5", "lm.compile=true"))
