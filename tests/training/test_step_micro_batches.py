"""Micro-batches and checkpointed blocks: the same step, in pieces."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import train_tiny
from torch import Tensor

from training.config import LMConfig
from training.data import Batch, dropped_text
from training.distributed import World, parallelize
from training.lm.model import Architecture, LanguageModel
from training.preflight import forward_again, memory
from training.step import TrainingStep

ONE = World(0, 1, torch.device("cpu"))
KEYS = ("loss", "loss_per_stream", "rr", "rr_correlation", "rr_grad_norm", "ce_grad_norm")


@pytest.fixture(scope="module")
def world(
    model_and_batch: Callable[[int], tuple[LanguageModel, Batch]],
) -> tuple[LanguageModel, Batch]:
    return model_and_batch(7)


def _step(
    model: LanguageModel, batch: Batch, config: LMConfig, step: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The logged row and the gradients of one step, from a copy of the model."""
    model = copy.deepcopy(model)
    again = config.activation_checkpointing
    parallelize(model, ONE, activation_checkpointing=again)
    row = TrainingStep(model, config, ONE, seed=0)(batch, step).row(ONE)
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }
    return row, gradients


def _assert_alike(model: LanguageModel, batch: Batch, rr: dict, cfg: dict, **changed: Any) -> None:
    """Steps with, without and partly with text are the same under the settings `changed`."""
    told: dict[str, Any] = {"batch_size": 7, "precision": "fp32", "rr": rr, "cfg": cfg}
    config = LMConfig.model_validate(told)
    pieces = LMConfig.model_validate(told | changed)
    draws = {
        int(dropped_text(0, step, 7, config.cfg.dropout, config.cfg.granularity).sum()): step
        for step in range(40)
    }
    for wanted in (0, 7) if config.cfg.granularity == "batch" else (3, 4):
        row, gradients = _step(model, batch, config, draws[wanted])
        found_row, found = _step(model, batch, pieces, draws[wanted])
        assert row.keys() == found_row.keys()
        for key in row.keys() & set(KEYS):
            # A correlation is a small difference of numbers around 1.
            slack = 1e-6 if key == "rr_correlation" else 1e-9
            assert found_row[key] == pytest.approx(row[key], rel=1e-5, abs=slack), key
        scale = max(float(gradient.abs().max()) for gradient in gradients.values())
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert float((found[name] - gradient).abs().max()) < 1e-5 * scale, (wanted, name)


@pytest.mark.parametrize("pool", ["max", "average"])
@pytest.mark.parametrize("apply", ["cfg", "always"])
@pytest.mark.parametrize("text", ["raw", "projected"])
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_micro_batches_make_the_same_step(
    world: tuple[LanguageModel, Batch], pool: str, apply: str, text: str, scope: str,
    granularity: str,
) -> None:  # fmt: skip
    """Three, three and one clip; rr weighs so much that a pair left out would show."""
    rr = {"weight": 30.0, "pool": pool, "apply": apply, "text": text, "scope": scope}
    _assert_alike(*world, rr, {"dropout": 0.5, "granularity": granularity}, micro_batch=3)


@pytest.mark.parametrize("apply", ["cfg", "always"])
@pytest.mark.parametrize("text", ["raw", "projected"])
def test_rr_that_is_only_watched_is_the_same(
    world: tuple[LanguageModel, Batch], apply: str, text: str
) -> None:
    rr = {"weight": 0.0, "apply": apply, "text": text}
    _assert_alike(*world, rr, {"dropout": 0.5}, micro_batch=2)


def test_a_second_pass_is_made_where_rr_acts_only(world: tuple[LanguageModel, Batch]) -> None:
    model, batch = world
    model = copy.deepcopy(model)
    passes: list[bool] = []
    model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    told = {"batch_size": 7, "precision": "fp32", "micro_batch": 3, "cfg": {"dropout": 0.5}}
    config = LMConfig.model_validate(told)
    draws = {bool(dropped_text(0, step, 7, 0.5, "batch").any()): step for step in range(20)}
    step = TrainingStep(model, config, ONE, seed=0)
    step(batch, draws[False])
    assert passes == [True] * 3
    passes.clear()
    step(batch, draws[True])
    assert passes == [False] * 3 + [True] * 3
    assert forward_again(config, ONE) == 0.5
    assert forward_again(LMConfig.model_validate(told | {"micro_batch": 7}), ONE) == 0
    assert forward_again(LMConfig.model_validate(told | {"rr": {"weight": 0}}), ONE) == 0


def test_a_run_in_micro_batches_follows_one_without(tiny_root: Path, tmp_path: Path) -> None:
    options = ["lm.micro_batch=3", "lm.activation_checkpointing=true"]
    whole = train_tiny(tiny_root, tmp_path, "lm.run=whole", "lm.valid_every=6")
    pieces = train_tiny(tiny_root, tmp_path, "lm.run=pieces", "lm.valid_every=6", *options)
    assert [row.keys() for row in whole] == [row.keys() for row in pieces]
    for key in ("loss", "rr", "grad_norm", "valid_loss", "valid_loss_uncond"):
        one, two = ([row[key] for row in run if key in row] for run in (whole, pieces))
        assert one and two == pytest.approx(one, rel=1e-4), key


@pytest.mark.parametrize("pool", ["max", "average"])
def test_checkpointed_blocks_make_the_same_step(
    world: tuple[LanguageModel, Batch], pool: str
) -> None:
    model, batch = world
    rr, cfg = {"weight": 30.0, "pool": pool}, {"dropout": 0.5}
    _assert_alike(model, batch, rr, cfg, activation_checkpointing=True)
    _assert_alike(model, batch, rr, cfg, activation_checkpointing=True, micro_batch=3)
    wrapped = copy.deepcopy(model)
    parallelize(wrapped, ONE, activation_checkpointing=True)
    assert list(wrapped.state_dict()) == list(model.state_dict())
    assert [name for name, _ in wrapped.named_parameters()] == [
        name for name, _ in model.named_parameters()
    ]


_STEP = """
import os, sys, torch
from training.config import LMConfig
from training.data import Batch
from training.distributed import World, parallelize
from training.lm.model import Architecture, LanguageModel
from training.step import TrainingStep
torch.set_num_threads(1)
arch = Architecture(d_model=256, n_layers=6, n_heads=4, n_codebooks=4, codebook_size=256,
                    text_dim=64)
world = World(0, 1, torch.device("cpu"))

def peak():
    with open("/proc/self/status") as file:  # getrusage counts the parent's peak as well
        found = dict(line.split(":", 1) for line in file)
    return int(found["VmHWM"].split()[0]) * 1024

def step(clips, model, config):
    batch = Batch(torch.randint(0, 256, (clips, 4, 200)), torch.full((clips,), 200),
                  torch.randn(clips, 8, 64), torch.ones(clips, 8, dtype=torch.bool), ())
    TrainingStep(model, config, world, 0)(batch, 0)

for config in map(LMConfig.model_validate_json, sys.argv[1:]):
    if os.fork():  # a child's peak begins with what it has
        os.wait()
        continue
    model = LanguageModel(arch)
    model.initialize(0)
    parallelize(model, world, activation_checkpointing=config.activation_checkpointing)
    step(1, model, config.model_copy(update={"batch_size": 1}))  # kernels, gradients
    before = peak()
    step(config.batch_size, model, config)
    print(peak() - before, flush=True)
    os._exit(0)
"""


def test_memory_of_a_step_is_about_the_estimate_and_less_in_pieces() -> None:
    """Within a third, the growth of a process from a step of one clip to a step of 24.

    malloc returns every large block at once here, so that only memory in use is counted.
    """
    arch = Architecture(
        d_model=256, n_layers=6, n_heads=4, n_codebooks=4, codebook_size=256, text_dim=64
    )
    configs = [
        LMConfig.model_validate(
            {"batch_size": 24, "precision": "fp32", "cfg": {"dropout": 1.0}} | changed
        )
        for changed in (
            {}, {"activation_checkpointing": True}, {"micro_batch": 4}, {"precision": "bf16"}
        )
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _STEP, *(config.model_dump_json() for config in configs)],
        cwd=Path(__file__).parents[2], env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = list(map(int, done.stdout.split()))
    estimates = [
        sum(memory(arch, config, ONE, 24, 203).values())
        - sum(memory(arch, config, ONE, 1, 203).values())
        for config in configs
    ]
    assert max(found[1:3]) < 0.4 * found[0]
    assert found == pytest.approx(estimates, rel=1 / 3)
