"""AdamW, and the learning-rate schedule of both trainers.

Weight decay acts on the matrices of the blocks, the text projection and the head.  It leaves out

- norm scales and biases: pulling a scale to zero shrinks a branch instead of regularizing it;
- the embedding tables: AdamW decays a row at every step, even if its code did not occur, so rare
  codes would fade towards zero.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from training.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW, its state made, with two groups of parameters: with and without weight decay."""
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
        betas=(0.9, 0.95),
        fused=True,
    )
    make_state(optimizer, config.lr)
    return optimizer


def make_state(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Make the state of an Adam optimizer now: all moments zero, no step counted.

    A checkpoint is loaded into existing tensors, but PyTorch makes the state at the first step.
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
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def fill_missing_gradients(model: nn.Module) -> None:
    """Set gradients that a step without text left at None to zero.

    Skipped cross-attention equals attention to zero keys, whose parameters get a zero gradient.
    Without a gradient AdamW would skip them: no decay, and moments that do not change.
    """
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
