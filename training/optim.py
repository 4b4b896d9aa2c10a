"""AdamW and the learning-rate schedule.

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
    """Fused AdamW with two groups of parameters: decayed and not; its state is made at once.

    Saving would make it otherwise, by a step that counts, where no step has been taken yet.
    """
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
    for parameter in (*decayed, *plain):
        parameter.grad = torch.zeros_like(parameter)
    set_learning_rate(optimizer, 0.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    set_learning_rate(optimizer, config.lr)
    for state in optimizer.state.values():
        state["step"].zero_()
    return optimizer


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Rate of step `step` (from 0) of `steps`: linear warm-up, then a cosine."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, steps - config.warmup)
    low = config.lr * config.final_lr_ratio
    return low + (config.lr - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


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
