"""One small interface over attention backends, which all compute the same function.

- `sdpa`: PyTorch's `scaled_dot_product_attention` (flash or memory-efficient kernels on GPUs).
- `matmul`: explicit batched products; causal ones skip most of what lies ahead.
- `flex`: PyTorch's FlexAttention, compiled on GPUs; on CPUs it has no backward pass.
- `xformers`: its memory-efficient attention (extra `gpu`).

On a CPU, explicit products beat PyTorch's fused kernel at a few hundred steps (forward and backward
at 250 steps: 2x in bf16 and with fp32 matmul precision "medium", 1.2x in fp32, measured); on GPUs
`sdpa` wins.  `auto` chooses by that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import AttuneError

Backend = Literal["auto", "sdpa", "matmul", "flex", "xformers"]

BLOCK = 96
"""Queries whose products with keys are taken together."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor, backend: Backend = "auto") -> Tensor:
    """Each position attends to itself and those before it.

    Args:
        q, k, v: `[B, H, S, D]`.

    Returns:
        `[B, H, S, D]`.
    """
    match _choose(backend, q):
        case "sdpa":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        case "flex":
            return _flex(q, k, v, block_mask=_causal_blocks(q.shape[2], q.device))
        case "xformers":
            ops = _xformers()
            return _memory_efficient(q, k, v, ops.LowerTriangularMask())
        case _ if torch.compiler.is_compiling():  # which cannot see into what follows
            return _matmul(q, k, v, _causal_bias.__wrapped__(q.shape[2], q.dtype, q.device))
        case _:
            found: Tensor = _CausalProducts.apply(q, k, v)
            return found


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, backend: Backend = "auto"
) -> Tensor:
    """Attention with an additive bias.

    Args:
        q: `[B, H, S, D]`; k, v: `[B, H, L, D]`.
        bias: broadcastable to `[B, H, S, L]`, 0 where allowed and -inf where not; None allows all.

    Returns:
        `[B, H, S, D]`.
    """
    if bias is not None:
        bias = bias.to(q.dtype)
    match _choose(backend, q):
        case "sdpa":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        case "flex":
            return _flex(q, k, v, score_mod=None if bias is None else _adding(bias, q, k))
        case "xformers":
            return _memory_efficient(q, k, v, None if bias is None else _aligned(bias, q, k))
        case _:
            return _matmul(q, k, v, bias)


def _choose(backend: Backend, q: Tensor) -> Backend:
    if backend != "auto":
        return backend
    return "matmul" if q.device.type == "cpu" else "sdpa"


def _matmul(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    # Scaling the queries costs S x D products instead of S x L.
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
    if bias is not None:
        scores = scores + bias
    # softmax in the inputs' type: autocast would cast to fp32 and back, at twice the traffic.
    # (Kernels accumulate bf16 rows in fp32 anyway.)
    with torch.autocast(q.device.type, enabled=False):
        weights = torch.softmax(scores, dim=-1)
    return torch.matmul(weights, v)


class _CausalProducts(torch.autograd.Function):
    """Causal attention by batched products over blocks of queries, each with the keys up to its
    end: of S x S scores about half are never computed.

    Written by hand, backward pass included, because it is measured (`LOG.md`: forward and backward
    of the tiny model's attention on a CPU, ms): fp32 10.4 against SDPA's 14.8, "medium" 11.6
    against 21.3, bf16 6.4 to 6.8 against 8.1 to 9.8 for products of the whole square.
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
    """Start and end of blocks of queries."""
    return [(start, min(steps, start + BLOCK)) for start in range(0, steps, BLOCK)]


@functools.lru_cache(maxsize=8)
def _causal_bias(steps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((steps, steps), float("-inf"), dtype=dtype, device=device).triu(1)


def _flex(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    if q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad:
        raise AttuneError(
            "lm.model.attention=flex: FlexAttention has no backward pass on CPUs; train with auto, "
            "sdpa or matmul there"
        )
    found: Tensor = _flex_kernel(q.device.type)(q, k, v, **how)
    return found


@functools.lru_cache(maxsize=2)
def _flex_kernel(device: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if device == "cpu" else torch.compile(flex_attention)


@functools.lru_cache(maxsize=8)
def _causal_blocks(steps: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def earlier(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= key

    return create_block_mask(earlier, None, None, steps, steps, device=device)


def _adding(bias: Tensor, q: Tensor, k: Tensor) -> Callable[..., Tensor]:
    whole = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])

    def add(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + whole[batch, head, query, key]

    return add


def _memory_efficient(q: Tensor, k: Tensor, v: Tensor, bias: Any) -> Tensor:
    ops = _xformers()
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, S, H, D]
    found: Tensor = ops.memory_efficient_attention(q, k, v, attn_bias=bias)
    return found.transpose(1, 2)


def _aligned(bias: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """The bias of every head and query, its rows laid out in multiples of 8 as the kernels ask."""
    length = k.shape[2]
    room = bias.new_zeros(q.shape[0], q.shape[1], q.shape[2], length + -length % 8)
    room[..., :length] = bias
    return room[..., :length]


def _xformers() -> Any:
    try:
        import xformers.ops as ops
    except ImportError:
        raise AttuneError(
            "lm.model.attention=xformers: the package xformers is not installed; install the extra "
            "`gpu` (pip install -e '.[gpu]'), or take sdpa"
        ) from None
    return ops
