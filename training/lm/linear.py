"""Linear layers that train in fp32 on CPUs by oneDNN.

PyTorch takes MKL for fp32 products unless `torch.set_float32_matmul_precision` allows less; on CPUs
that are not from Intel, MKL leaves half of the vector units idle.  The products of oneDNN are as
exact (they follow the same switch) and up to twice as fast there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear` without a bias; the same function, parameters and gradients."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        if _suits(x, self.weight):
            found: Tensor = _Product.apply(x.flatten(0, -2), self.weight)
            return found.view(*x.shape[:-1], -1)
        return F.linear(x, self.weight)


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


class _Product(torch.autograd.Function):
    """`x @ weight.T` and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _times_transposed(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _times_transposed(gradient, weight.T)
        if ctx.needs_input_grad[1]:
            grad_weight = _times_transposed(gradient.T, x.T)
        return grad_x, grad_weight


def _times_transposed(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b.T`."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return found
