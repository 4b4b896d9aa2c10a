"""AdamW, and the learning-rate schedule of both trainers.

Weight decay acts on the matrices of the blocks, the text projection and the head.  It leaves out

- norm scales and biases: pulling a scale to zero shrinks a branch instead of regularizing it;
- the embedding tables: AdamW decays a row at every step, also where its code did not occur, so rare
  codes would fade towards zero between their appearances.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from training.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW with two groups of parameters: decayed and not; its moments are there."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and "embedding" not in name
        (decayed if matrix else plain).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )
    make_state(optimizer, config.lr)
    return optimizer


def make_state(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Make an Adam optimizer's moments at once, all zero, with no step counted.

    A checkpoint is loaded into what is there, and PyTorch makes moments at the first step only.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    set_learning_rate(optimizer, 0.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    set_learning_rate(optimizer, rate)
    for state in optimizer.state.values():
        state["step"].zero_()


def learning_rate(step: int, steps: int, peak: float, warmup: int, final: float = 0.0) -> float:
    """Learning rate of step `step` (from 0) of `steps`: linear warm-up to `peak`, then a cosine
    down to `final`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def fill_missing_gradients(model: nn.Module) -> None:
    """Zeros where a step without text left no gradient.

    Skipped cross-attention equals attention to zero keys, whose parameters get a zero gradient;
    with none at all AdamW would pass them over, and decay and moments would differ.
    """
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
