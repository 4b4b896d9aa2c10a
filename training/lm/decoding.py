"""One step of the decoder at a time, over a preallocated cache.

The same function as `LanguageModel.forward`, laid out for a few rows: weights packed once
(`packed.py`), keys and values of the text computed once, those of the steps so far kept.  With
guidance the rows are the clips with their text, then the same clips without it (or with a negative
prompt's); where there is no text, cross-attention adds exactly zero and is skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.lm.model import Block, LanguageModel
from training.lm.packed import Kind, Linear, linear

States = Sequence[NDArray[np.float16]]
"""Text states `[L_i, text_dim]` of each clip's prompt."""


class DecodingWeights:
    """A model's weights as decoding reads them; made once, used for any number of clips.

    Args:
        model: whose weights they are; norms, embeddings and the text projection stay its own.
        kind: of the linear layers.
    """

    def __init__(self, model: LanguageModel, kind: Kind = "fp32") -> None:
        self.model = model
        self.kind: Kind = kind
        self.device = model.head.weight.device
        self.dtype = torch.float32 if kind == "fp32" else torch.bfloat16
        self.blocks = [_Block(block, kind) for block in model.blocks if isinstance(block, Block)]
        self.head = linear(model.head.weight, kind)
        arch = model.arch
        # Row of the embedding table where each stream's codes begin.
        self.rows = torch.arange(arch.n_codebooks, device=self.device) * (arch.codebook_size + 1)


class _Block:
    def __init__(self, block: Block, kind: Kind) -> None:
        self.norm_self, self.norm_cross = block.norm_self, block.norm_cross
        self.norm_ff = block.norm_ff
        attention, cross = block.self_attention, block.cross_attention
        # Queries come scaled.
        scale = (attention.qkv.weight.shape[1] // attention.n_heads) ** -0.5
        width = attention.out.weight.shape[0]
        qkv = attention.qkv.weight.detach().clone()
        qkv[:width] *= scale
        self.qkv: Linear = linear(qkv, kind)
        self.out: Linear = linear(attention.out.weight, kind)
        self.cross_q: Linear = linear(cross.q.weight.detach() * scale, kind)
        self.cross_out: Linear = linear(cross.out.weight, kind)
        self.keys_values = cross.keys_values
        self.ff_in: Linear = linear(block.ff_in.weight, kind, gelu=True)
        self.ff_out: Linear = linear(block.ff_out.weight, kind)


@dataclass(frozen=True)
class _Text:
    """Keys and values of every layer `[rows, H, L, D]`, and what hides the padding."""

    keys_values: list[tuple[Tensor, Tensor]]
    bias: Tensor | None


class Decoder:
    """Steps of one batch of clips."""

    def __init__(
        self,
        weights: DecodingWeights,
        states: States,
        steps: int,
        guided: bool,
        negative: NDArray[np.float16] | None = None,
    ) -> None:
        """
        Args:
            states: of each clip's prompt.
            steps: that the cache holds.
            guided: rows without text (or with `negative`) come after those with it.
            negative: text states `[L, text_dim]` for the second half.
        """
        arch = weights.model.arch
        self._weights = weights
        self._copies = 2 if guided else 1
        self._step = 0
        told = list(states) + ([negative] * len(states) if guided and negative is not None else [])
        self._told = len(told)
        self._text = _text(weights, told)
        self._shape = (len(states) * self._copies, arch.n_heads, arch.d_model // arch.n_heads)
        rows, heads, width = self._shape
        shape = (arch.n_layers, 2, rows, heads, steps, width)
        self._cache = torch.zeros(shape, dtype=weights.dtype, device=weights.device)

    def step(self, columns: Tensor) -> Tensor:
        """Append columns of codes, mostly one.

        Args:
            columns: int64 `[B, K]` or `[B, K, n]`, delayed, special tokens included.

        Returns:
            float32 logits `[B or 2B, K, V]` of what follows the last of them.
        """
        if columns.ndim == 2:
            columns = columns[:, :, None]
        weights, arch = self._weights, self._weights.model.arch
        count = columns.shape[-1]
        x = F.embedding(columns + weights.rows[:, None], weights.model.embedding.weight).sum(1)
        x = x + weights.model.positions(self._step, count, x.device)
        x = x.repeat(self._copies, 1, 1)
        ahead = None
        if count > 1:
            seen = self._step + count
            ahead = torch.full((count, seen), float("-inf"), dtype=weights.dtype, device=x.device)
            ahead = ahead.triu(self._step + 1)
        for block, cache, text in zip(
            weights.blocks, self._cache, self._text.keys_values, strict=True
        ):
            x = x + self._self_attention(block, _normed(block.norm_self, x, weights), cache, ahead)
            # Only the rows with text: for the others cross-attention adds exactly zero.
            told = x[: self._told]
            told += self._cross_attention(block, _normed(block.norm_cross, told, weights), text)
            x = x + block.ff_out(block.ff_in(_normed(block.norm_ff, x, weights)))
        self._step += count
        logits = weights.head(_normed(weights.model.norm, x[:, -1], weights))
        return logits.float().unflatten(-1, (arch.n_codebooks, arch.codebook_size))

    def _self_attention(
        self, block: _Block, x: Tensor, cache: Tensor, ahead: Tensor | None
    ) -> Tensor:
        rows, heads, width = self._shape
        count = x.shape[1]
        qkv = block.qkv(x).view(rows, count, 3, heads, width)
        end = self._step + count
        cache[:, :, :, self._step : end] = qkv[:, :, 1:].permute(2, 0, 3, 1, 4)
        q = qkv[:, :, 0].transpose(1, 2)
        keys, values = cache[0, :, :, :end], cache[1, :, :, :end]
        y = _attention(q, keys, values, ahead)
        return block.out(y.transpose(1, 2).flatten(2))

    def _cross_attention(self, block: _Block, x: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
        _, heads, width = self._shape
        q = block.cross_q(x).view(self._told, x.shape[1], heads, width).transpose(1, 2)
        y = _attention(q, *text, self._text.bias)
        return block.cross_out(y.transpose(1, 2).flatten(2))


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    # One query per row: plain products beat the fused kernel on CPUs.
    scores = q @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return torch.softmax(scores, dim=-1) @ v


def _normed(norm: torch.nn.LayerNorm, x: Tensor, weights: DecodingWeights) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(
        weights.dtype
    )


def _text(weights: DecodingWeights, states: States) -> _Text:
    model, device = weights.model, weights.device
    length = max(len(state) for state in states)
    text = torch.zeros(len(states), length, model.arch.text_dim, device=device)
    mask = torch.zeros(len(states), length, dtype=torch.bool, device=device)
    for i, state in enumerate(states):
        text[i, : len(state)] = torch.from_numpy(state.astype(np.float32))
        mask[i, : len(state)] = True
    context, bias = model.context(text, mask)
    assert context is not None and bias is not None
    keys_values = []
    for block in weights.blocks:
        k, v = block.keys_values(context)
        keys_values.append((k.to(weights.dtype), v.to(weights.dtype)))
    return _Text(keys_values, None if bool(mask.all()) else bias.to(weights.dtype))
