"""The decoder one step at a time, with a preallocated cache.

It computes the same function as `LanguageModel.forward`, made fast for a few rows.  Weights are
packed once (`packed.py`), keys and values of the text are computed once, and keys and values of
earlier steps are cached.  With guidance the rows are the clips with their text, then the same clips
without text (or with a negative prompt).  For rows without text cross-attention adds exactly zero,
so it is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from training.lm.model import Block, LanguageModel
from training.sampling.packed import Kind, Linear, Processor, head_kind, linear, processor_of

States = Sequence[NDArray[np.float16]]
"""Text states `[L_i, text_dim]` of each clip's prompt."""


class DecodingWeights:
    """A model's weights in the form that decoding reads; made once, used for any number of clips.

    Args:
        model: its weights must not change afterwards, because some are used without a copy: norms,
            embeddings, the text projection and maybe others.
        kind: what the weights of the linear layers are read as.
        processor: the processor that layouts are chosen for; the model's own if None.
    """

    def __init__(
        self, model: LanguageModel, kind: Kind = "fp32", processor: Processor | None = None
    ) -> None:
        self.model = model
        self.kind: Kind = kind
        self.device = model.head.weight.device
        self.processor = processor or processor_of(self.device)
        self.dtype = _products(kind)
        self.cached = _cached(self.dtype, self.device)
        self.blocks = [
            _Block(block, partial(linear, kind=kind, processor=self.processor), self.dtype)
            for block in model.blocks
            if isinstance(block, Block)
        ]
        head = head_kind(kind, self.processor)
        self.norm = _norm(model.norm, _products(head))
        self.head = linear(model.head.weight, head, processor=self.processor)
        arch = model.arch
        # The first row of each stream's codes in the embedding table.
        self.rows = torch.arange(arch.n_codebooks, device=self.device) * (arch.codebook_size + 1)

    def expect(self, rows: int, prompted: int) -> None:
        """Choose layouts for steps of this many rows, of which `prompted` have a text."""
        self.head.expect(rows)
        for block in self.blocks:
            for product in (block.qkv, block.out, block.ff_in, block.ff_out):
                product.expect(rows)
            for product in (block.cross_q, block.cross_out):
                product.expect(prompted)


class _Block:
    def __init__(self, block: Block, lay_out: Callable[..., Linear], dtype: torch.dtype) -> None:
        self.norm_self, self.norm_ff = _norm(block.norm_self, dtype), _norm(block.norm_ff, dtype)
        self.norm_cross = block.norm_cross
        self.cross = block.cross_attention
        # Queries are scaled here, once.  Rows are sorted by head: query, key, value `[H, 3, D]`.
        qkv = block.self_attention.qkv.weight.detach().clone()
        width = qkv.shape[1]
        qkv[:width] *= (width // self.cross.n_heads) ** -0.5
        by_head = qkv.view(3, self.cross.n_heads, -1, width).transpose(0, 1)
        self.qkv = lay_out(by_head.reshape(-1, width))
        self.out = lay_out(block.self_attention.out.weight)
        self.cross_q = lay_out(self.queries())
        self.cross_out = lay_out(self.cross.out.weight)
        self.ff_in = lay_out(block.ff_in.weight, gelu=True)
        self.ff_out = lay_out(block.ff_out.weight)

    def queries(self) -> Tensor:
        """Weights `[d, d]` of cross-attention's queries, scaled."""
        weight = self.cross.q.weight.detach()
        return weight * (weight.shape[0] // self.cross.n_heads) ** -0.5


class Decoder:
    """Decodes one batch of clips, step by step."""

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
            states: text states of each clip's prompt.
            steps: size of the cache.
            guided: after the rows with text, add rows without text (or with `negative`).
            negative: text states `[L, text_dim]` for these added rows.
        """
        arch = weights.model.arch
        self._weights = weights
        self._copies = 2 if guided else 1
        self._step = 0
        prompted = list(states)
        if guided and negative is not None:
            prompted += [negative] * len(states)
        self._prompted = len(prompted)
        self._cross = _cross_attentions(weights, prompted)
        self._shape = (len(states) * self._copies, arch.n_heads, arch.d_model // arch.n_heads)
        rows, heads, width = self._shape
        weights.expect(rows, self._prompted)
        # Keys and values of each layer, row and head.
        shape = (arch.n_layers, rows * heads, 2, steps, width)
        self._cache = torch.zeros(shape, dtype=weights.cached, device=weights.device)

    def step(self, columns: Tensor) -> Tensor:
        """Append one or more columns of codes.

        Args:
            columns: int64 `[B, K]` or `[B, K, n]`, delayed, special tokens included.

        Returns:
            float32 logits `[B or 2B, K, V]` of the codes after the last column.
        """
        if columns.ndim == 2:
            columns = columns[:, :, None]
        begin, count = self._step, columns.shape[-1]
        end = self._step = begin + count
        ahead = None
        if count > 1:
            ahead = torch.full(
                (count, end), float("-inf"), dtype=self._cache.dtype, device=columns.device
            ).triu(begin + 1)
        weights, arch = self._weights, self._weights.model.arch
        rows, heads, width = self._shape
        positions = weights.model.positions(begin, count, columns.device)
        x = F.embedding(columns + weights.rows[:, None], weights.model.embedding.weight).sum(1)
        # [rows x n, d] from here on.
        x = torch.cat([(x + positions).flatten(0, 1)] * self._copies)
        prompted = self._prompted * count
        # Views of all layers at once, because small operations take most of a step's time.
        new = self._cache[:, :, :, begin:end].unbind(0)
        keys = self._cache[:, :, 0, :end].transpose(2, 3).unbind(0)
        values = self._cache[:, :, 1, :end].unbind(0)
        for i, block in enumerate(weights.blocks):
            qkv = block.qkv(block.norm_self(x)).view(rows, count, heads, 3, width)
            qkv = qkv.permute(0, 2, 3, 1, 4).flatten(0, 1)
            new[i].copy_(qkv[:, 1:])
            y = _attention(qkv[:, 0], keys[i], values[i], ahead)
            x = block.out.plus(x, _by_step(y, rows, weights.dtype))
            # Only the rows with text: cross-attention adds exactly zero to all others.  In place,
            # as `plus` has just made `x` and nothing else refers to it.
            has_text = x[:prompted]
            has_text.add_(self._cross[i](has_text, count))
            x = block.ff_out.plus(x, block.ff_in(block.norm_ff(x)))
        last = x if count == 1 else x.view(rows, count, -1)[:, -1]
        logits = weights.head(weights.norm(last)).view(rows, arch.n_codebooks, arch.codebook_size)
        return logits.float()


class _CrossAttention:
    """Cross-attention of one block to fixed texts, whose keys and values are computed once."""

    def __init__(self, block: _Block, context: Tensor, bias: Tensor | None, dtype: torch.dtype):
        self._block = block
        k, v = block.cross.keys_values(context)  # [B, H, L, D]
        self._rows, self._heads, _, self._width = k.shape
        self._dtype = dtype
        self._norm = _norm(block.norm_cross, dtype)
        self._keys = k.flatten(0, 1).transpose(1, 2).to(_cached(dtype, k.device))
        self._values = v.flatten(0, 1).to(self._keys.dtype).contiguous()
        self._bias = bias

    def __call__(self, x: Tensor, count: int) -> Tensor:
        """`[B x n, d]` to `[B x n, d]`, norm included; `count` is n."""
        q = self._block.cross_q(self._norm(x))
        q = q.view(self._rows, count, self._heads, self._width).transpose(1, 2).flatten(0, 1)
        y = _attention(q, self._keys, self._values, self._bias)
        return self._block.cross_out(_by_step(y, self._rows, self._dtype))


class _FoldedCrossAttention:
    """Cross-attention with its projections multiplied into keys and values.

    q . k = (W_q x) . k = x . (W_q^T k).  With few keys the last product is smaller than W_q x, and
    the whole step is two products and a softmax.  For one clip these products are packed like
    weights, in fp32: at this size, rounding to bf16 would cost as much as it saves.
    """

    def __init__(self, block: _Block, context: Tensor, bias: Tensor | None):
        k, v = block.cross.keys_values(context)  # [B, H, L, D]
        self._rows, self._heads, self._length, width = k.shape
        query = block.queries().view(self._heads, width, -1)
        out = block.cross.out.weight.detach().t().view(self._heads, width, -1)
        keys = torch.einsum("bhld,hdm->bmhl", k, query).flatten(2).contiguous()
        values = torch.einsum("bhld,hdm->bhlm", v, out).flatten(1, 2).contiguous()
        self._score, self._mix = _products_by_clip(keys), _products_by_clip(values)
        self._norm = _norm(block.norm_cross, torch.float32)
        # [B x H, 1, L] to [B, 1, H, L]
        self._bias = None if bias is None else bias.view(-1, 1, self._heads, self._length)

    def __call__(self, x: Tensor, count: int) -> Tensor:
        """`[B x n, d]` to `[B x n, d]`, norm included; `count` is n."""
        scores = self._score(self._norm(x)).view(self._rows, count, self._heads, self._length)
        if self._bias is not None:
            scores = scores + self._bias
        return self._mix(torch.softmax(scores, dim=-1).view(x.shape[0], -1))


def _products_by_clip(weights: Tensor) -> Callable[[Tensor], Tensor]:
    """`[B x n, in]` to `[B x n, out]`: the rows of each clip times its own of `[B, in, out]`."""
    if len(weights) == 1:
        product = linear(weights[0].t(), "fp32")
        product.expect(1)
        return product
    return lambda x: torch.bmm(x.view(len(weights), -1, x.shape[-1]), weights).flatten(0, 1)


def _cross_attentions(
    weights: DecodingWeights, states: States
) -> list[_CrossAttention | _FoldedCrossAttention]:
    """Cross-attention of every block to the texts of all rows that have one."""
    model, device = weights.model, weights.device
    lengths, heads = torch.tensor([len(state) for state in states]), model.arch.n_heads
    text = pad_sequence([torch.from_numpy(s.astype(np.float32)) for s in states], batch_first=True)
    mask = torch.arange(text.shape[1]) < lengths[:, None]
    context, found = model.context(text.to(device), mask.to(device))
    assert context is not None and found is not None
    bias = None
    if not bool(mask.all()):
        bias = found[:, 0].repeat_interleave(heads, dim=0).to(weights.cached)
    # Folding pays while the folded keys are at most twice as large as the weights they replace.
    if weights.cached == torch.float32 and mask.numel() * heads <= 2 * model.arch.d_model:
        return [_FoldedCrossAttention(block, context, bias) for block in weights.blocks]
    return [_CrossAttention(block, context, bias, weights.dtype) for block in weights.blocks]


def _by_step(x: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """`[B x H, n, D]` to `[B x n, d]`."""
    count = x.shape[1]
    if count > 1:
        x = x.unflatten(0, (rows, -1)).transpose(1, 2)
    return _as(x.reshape(rows * count, -1), dtype)


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """`q` `[B x H, n, D]`, `k` `[B x H, D, L]`, `v` `[B x H, L, D]`."""
    # With one query per row, plain products are faster than the fused kernel on CPUs.
    scores = torch.bmm(_as(q, k.dtype), k)
    if bias is not None:
        scores = scores + bias
    return torch.bmm(torch.softmax(scores, dim=-1), v)


def _norm(norm: torch.nn.LayerNorm, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A layer norm of float32 rows, with a result of the type of the products that follow."""
    arguments = (norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return lambda x: _as(torch.layer_norm(x, *arguments), dtype)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    # The comparison is cheaper than a call of `to` without effect.
    return x if x.dtype == dtype else x.to(dtype)


def _products(kind: Kind) -> torch.dtype:
    return torch.float32 if kind == "fp32" else torch.bfloat16


def _cached(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    # On a CPU, products of one query with bf16 keys take three times as long as with fp32 keys.
    return torch.float32 if device.type == "cpu" else dtype
