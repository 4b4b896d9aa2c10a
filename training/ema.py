"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class ExponentialMovingAverage:
    """Bias-corrected average: after t updates, sum of d^(t-i) w_i over sum of d^(t-i).

    It is kept in corrected form, updated by `ema += (1 - d) / (1 - d^t) (w - ema)`: after the first
    update it equals the weights, so the initialization does not bias early checkpoints.  Sharded
    parameters stay sharded.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._missed: Tensor | None = None  # updates with `taken` 0 before their `forget`
        self._model = model
        self.weights = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters()
        }

    @torch.no_grad()
    def update(self, taken: Tensor | None = None) -> None:
        """Update the average with the model's current weights.

        Args:
            taken: 1, or 0 to leave the average unchanged, `[]` on the device, so that the CPU need
                not wait for it. After a 0, `forget` must be called before an update without it.
        """
        self.updates += 1
        current = [_local(parameter.detach()) for parameter in self._model.parameters()]
        average = [_local(w) for w in self.weights.values()]
        if taken is None:
            share = (1 - self.decay) / (1 - self.decay**self.updates)
            torch._foreach_lerp_(average, current, share)
            return
        if self._missed is None:
            self._missed = torch.zeros((), dtype=torch.float64, device=taken.device)
        self._missed += 1 - taken
        counted = 1 - self.decay ** (self.updates - self._missed).clamp(min=1)
        steps = torch._foreach_sub(current, average)
        torch._foreach_mul_(steps, (taken * (1 - self.decay) / counted).float())
        torch._foreach_add_(average, steps)

    def forget(self) -> None:
        """Do not count an earlier update whose `taken` was 0."""
        self.updates -= 1
        if self._missed is not None:
            self._missed -= 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the model has the average as its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._model.named_parameters():
            average, weight = _local(self.weights[name]), _local(parameter.detach())
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
