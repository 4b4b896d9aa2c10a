"""Writes what weights, gradients, moments and average are under FSDP, after two steps in bf16.

python state_process.py RECIPE OUT
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from common.config import load_recipe
from common.shards import ShardDataset
from training.config import LMConfig
from training.data import ClipOrder, Loader
from training.distributed import parallelize, start, sum_over_processes
from training.ema import ExponentialMovingAverage
from training.lm.model import LanguageModel
from training.optim import build_optimizer, fill_missing_gradients
from training.step import TrainingStep
from training.train import architecture


def kinds(tensors: Iterable[torch.Tensor]) -> list[tuple[str, str, bool]]:
    """Type, dtype and whether this process has but a part, each combination once."""
    return sorted(
        {
            (
                type(t).__name__,
                str(t.dtype),
                isinstance(t, DTensor) and t.to_local().shape != t.shape,
            )
            for t in tensors
        }
    )


def main(path: str, out: str) -> None:
    recipe = load_recipe(path, ["lm.precision=bf16"])
    config = recipe.section("lm", LMConfig)
    dataset = ShardDataset.open(recipe.data_dir)
    world = start(1)
    model = LanguageModel(architecture(config, dataset.summary))
    model.initialize(3)
    multiplied: set[str] = set()
    for block in model.blocks:
        for module in block.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(
                    lambda module, _: multiplied.add(str(module.weight.dtype))
                )
    parallelize(model, world, config.precision)
    optimizer = build_optimizer(model, config.optim)
    ema = ExponentialMovingAverage(model, config.ema_decay)
    loader = Loader(
        dataset, ClipOrder(dataset, "train", 0), segment_s=0.4, seed=0,
        batch_size=config.batch_size, rank=world.rank, world=world.size,
    )  # fmt: skip
    step_fn = TrainingStep(model, config, world, 0)
    gradients: list[torch.Tensor] = []
    for step in range(2):
        optimizer.zero_grad(set_to_none=True)
        step_fn(loader.batch(step), step)
        fill_missing_gradients(model)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        optimizer.step()
        ema.update()
    found = {
        "multiplied": sorted(multiplied),
        "weights": kinds(model.parameters()),
        "gradients": kinds(gradients),
        "exp_avg": kinds(state["exp_avg"] for state in optimizer.state.values()),
        "exp_avg_sq": kinds(state["exp_avg_sq"] for state in optimizer.state.values()),
        "average": kinds(ema.weights.values()),
    }
    if world.is_first:
        Path(out).write_text(json.dumps(found))
    sum_over_processes(torch.zeros(1), world)  # nobody leaves while another is still at work
    # gloo's threads now and then abort a process that takes itself down in good order.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
