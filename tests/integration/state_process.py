"""Writes the types of weights, gradients, moments and average under FSDP, after two bf16 steps.

python state_process.py RECIPE OUT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from gradient_process import prepare
from torch.distributed.tensor import DTensor

from training.distributed import leave
from training.ema import ExponentialMovingAverage
from training.optim import build_optimizer, fill_missing_gradients


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
    config, world, model, loader, step_fn = prepare(path, ["lm.precision=bf16"])
    multiplied: set[str] = set()
    for block in model.blocks:
        for module in block.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(
                    lambda module, _: multiplied.add(str(module.weight.dtype))
                )
    optimizer = build_optimizer(model, config.optim)
    ema = ExponentialMovingAverage(model, config.ema_decay)
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
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
