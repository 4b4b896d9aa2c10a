"""Attention, computed by one of several backends that all give the same result.

- `sdpa`: PyTorch's `scaled_dot_product_attention` (flash or memory-efficient kernels on GPUs).
- `matmul`: explicit batched products.  Causal attention skips most keys ahead of the queries.
- `xformers`: the memory-efficient kernels that the paper trained with (section 4.2; extra `gpu`).

On a CPU, explicit products are faster than PyTorch's fused kernel at a few hundred steps (forward
and backward at 250 steps: 2x in bf16 and with fp32 matmul precision "medium", 1.2x in fp32,
measured).  On GPUs `sdpa` is faster.  `auto` chooses by device.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import AttuneError

Backend = Literal["auto", "sdpa", "matmul", "xformers"]

BLOCK = 96
"""Number of queries whose products with the keys are computed together."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor, backend: Backend = "auto") -> Tensor:
    """Each position attends to itself and to the positions before it.

    Args:
        q, k, v: `[B, H, S, D]`.

    Returns:
        `[B, H, S, D]`.
    """
    match _choose(backend, q):
        case "sdpa":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        case "xformers":
            return _memory_efficient(q, k, v, _xformers().LowerTriangularMask())
        case _ if torch.compiler.is_compiling():  # the compiler cannot trace `_CausalProducts`
            return _matmul(q, k, v, _causal_bias.__wrapped__(q.shape[2], q.dtype, q.device))
        case _:
            found: Tensor = _CausalProducts.apply(q, k, v)
            return found


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, backend: Backend = "auto"
) -> Tensor:
    """Attention with an additive bias.

    Args:
        q: `[B, H, S, D]`; k, v: `[B, H, L, D]`.
        bias: broadcastable to `[B, H, S, L]`; 0 where attention is allowed, -inf where it is not.

    Returns:
        `[B, H, S, D]`.
    """
    bias = bias.to(q.dtype)
    match _choose(backend, q):
        case "sdpa":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        case "xformers":
            # The kernels need the rows of the bias to start at multiples of 8 values.
            length = k.shape[2]
            padded = bias.new_zeros(*q.shape[:3], length + -length % 8)
            padded[..., :length] = bias
            return _memory_efficient(q, k, v, padded[..., :length])
        case _:
            return _matmul(q, k, v, bias)


def _choose(backend: Backend, q: Tensor) -> Backend:
    if backend != "auto":
        return backend
    return "matmul" if q.device.type == "cpu" else "sdpa"


def _matmul(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    # Scaling the queries costs S x D products, scaling the scores would cost S x L.
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1)) + bias
    # The softmax stays in the inputs' type: autocast would convert to fp32 and back, which doubles
    # the memory traffic.  (The kernels accumulate bf16 rows in fp32 anyway.)
    with torch.autocast(q.device.type, enabled=False):
        weights = torch.softmax(scores, dim=-1)
    return torch.matmul(weights, v)


class _CausalProducts(torch.autograd.Function):
    """Causal attention by batched products: each block of queries with the keys up to its end.

    About half of the S x S scores are never computed.  The backward pass is written by hand,
    because it is faster (`LOG.md`: forward and backward of the tiny model's attention on a CPU, in
    ms): fp32 10.4 against SDPA's 14.8, "medium" 11.6 against 21.3, bf16 6.4 to 6.8 against 8.1 to
    9.8 for products of the whole square.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, steps, width = q.shape
        scale = width**-0.5
        q = (q * scale).reshape(-1, steps, width)
        k, v = k.reshape(q.shape), v.reshape(q.shape)
        found = torch.empty_like(q)
        kept = []
        with torch.autocast(q.device.type, enabled=False):  # see `_matmul`
            for start, end in _blocks(steps):
                scores = torch.bmm(q[:, start:end], k[:, :end].transpose(1, 2))
                scores[:, :, start:] += _causal_bias(end - start, q.dtype, q.device)
                weights = torch.softmax(scores, dim=-1)
                found[:, start:end] = torch.bmm(weights, v[:, :end])
                kept.append(weights)
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, *kept)
        return found.view(batch, heads, steps, width)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *kept = ctx.saved_tensors
        shape, steps = gradient.shape, q.shape[1]
        gradient = gradient.reshape(q.shape)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (start, end), weights in zip(_blocks(steps), kept, strict=True):
            part = gradient[:, start:end]
            grad_v[:, :end] += torch.bmm(weights.transpose(1, 2), part)
            grad = torch.bmm(part, v[:, :end].transpose(1, 2))
            grad = torch._softmax_backward_data(grad, weights, -1, weights.dtype)
            grad_q[:, start:end] = torch.bmm(grad, k[:, :end])
            grad_k[:, :end] += torch.bmm(grad.transpose(1, 2), q[:, start:end])
        return (grad_q * ctx.scale).view(shape), grad_k.view(shape), grad_v.view(shape)


def _blocks(steps: int) -> list[tuple[int, int]]:
    """Start and end of each block of queries."""
    return [(start, min(steps, start + BLOCK)) for start in range(0, steps, BLOCK)]


@functools.lru_cache(maxsize=8)
def _causal_bias(steps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((steps, steps), float("-inf"), dtype=dtype, device=device).triu(1)


def _memory_efficient(q: Tensor, k: Tensor, v: Tensor, bias: Any) -> Tensor:
    ops = _xformers()
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, S, H, D]
    found: Tensor = ops.memory_efficient_attention(q, k, v, attn_bias=bias)
    return found.transpose(1, 2)


def _xformers() -> Any:
    try:
        import xformers.ops as ops
    except ImportError:
        raise AttuneError(
            "lm.model.attention=xformers: the package xformers is not installed; install the extra "
            "`gpu` (pip install -e '.[gpu]'), or set lm.model.attention=sdpa"
        ) from None
    return ops
