"""Linear layers for a few rows: weights laid out once, in the type that sampling reads them in.

A decoding step multiplies every weight with two rows or a few, so it is bound by how fast weights
are read.  `F.linear` in fp32 reads them at a third of what the machine can; oneDNN's own layout,
bf16 and int8 come closer (`LOG.md` has the figures).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["fp32", "bf16", "int8"]
"""`fp32`: exact. `bf16`: weights and products. `int8`: weights only, one scale per row, bf16
products."""

Linear = Callable[[Tensor], Tensor]
"""`[..., in]` to `[..., out]`."""


def default_kind(device: torch.device) -> Kind:
    """bf16 where the processor has instructions for it."""
    if device.type != "cpu":
        return "bf16"
    fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16" if fast else "fp32"


def linear(weight: Tensor, kind: Kind, gelu: bool = False) -> Linear:
    """`x @ weight.T`, followed by GELU if asked.

    Args:
        weight: `[out, in]`.
        kind: what the weights are read as; `x` must be float32 for `fp32` and bfloat16 otherwise.
    """
    weight = weight.detach()
    if kind == "int8":
        return _with_gelu(_int8(weight), gelu)
    weight = weight.to(torch.float32 if kind == "fp32" else torch.bfloat16)
    if weight.device.type == "cpu" and _has_packing():
        return _packed(weight, gelu)
    return _with_gelu(lambda x: F.linear(x, weight), gelu)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest int8 `[out, in]` and scales bf16 `[out]`: `weight` is about their product."""
    weight = weight.float()
    # Scales as they will be read: their rounding is made up for by the codes.
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12).to(torch.bfloat16)
    codes = (weight / scale.float()[:, None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scale


def _int8(weight: Tensor) -> Linear:
    codes, scale = quantize(weight)
    if weight.device.type != "cpu":
        return lambda x: F.linear(x, codes.to(x.dtype)) * scale
    product: Any = torch.ops.aten._weight_int8pack_mm
    width, out = weight.shape[1], weight.shape[0]

    def apply(x: Tensor) -> Tensor:
        found: Tensor = product(x.reshape(-1, width), codes, scale)
        return found.view(*x.shape[:-1], out)

    return apply


def _packed(weight: Tensor, gelu: bool) -> Linear:
    # What PyTorch's own compiler calls for a frozen model on a CPU; tests hold it to F.linear.
    ops: Any = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight.contiguous(), 1)
    product, after = ops._linear_pointwise, "gelu" if gelu else "none"

    def apply(x: Tensor) -> Tensor:
        found: Tensor = product(x, packed, None, after, [], "none" if gelu else "")
        return found

    return apply


def _has_packing() -> bool:
    ops = torch.ops.mkldnn
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(ops, name) for name in names)


def _with_gelu(apply: Linear, gelu: bool) -> Linear:
    return (lambda x: F.gelu(apply(x))) if gelu else apply
