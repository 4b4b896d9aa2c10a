"""The decoder: MusicGen's architecture in a few hundred lines.

- The embeddings of K code streams are summed; one stacked head gives the logits of all streams.
- Pre-norm LayerNorm, a final norm, GELU feed-forward, no bias in attention, feed-forward or head.
- Sinusoidal positions `[cos, sin]`, computed in fp32.
- Cross-attention to projected text masks padding: a prompt's effect does not depend on its batch.
- Dropped text skips cross-attention, which without biases exactly equals attention to zero keys.
- Fused QKV and KV projections; `training/lm/attention.py` chooses the attention kernel.
- No parallelism: `training/distributed.py` applies it from outside.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.lm.attention import Backend, causal_attention, masked_attention


@dataclass(frozen=True)
class Architecture:
    """All sizes on which the shapes of the weights depend."""

    d_model: int
    n_layers: int
    n_heads: int
    n_codebooks: int
    codebook_size: int
    text_dim: int
    ff_mult: int = 4
    contrastive: int = 0
    """Width of the common space of `ContrastiveHead`; 0 for a model without this head."""

    @property
    def special(self) -> int:
        """The special token: one past the last code."""
        return self.codebook_size

    def as_dict(self) -> dict[str, int]:
        """The sizes by name, for `model.json`."""
        return dataclasses.asdict(self)


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention over this step and the steps before it."""

    def __init__(self, d_model: int, n_heads: int, backend: Backend) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.backend: Backend = backend
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, S, d]` to `[B, S, d]`."""
        batch, steps, width = x.shape
        qkv = self.qkv(x).view(batch, steps, 3, self.n_heads, width // self.n_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, S, D]
        y = causal_attention(q, k, v, self.backend)
        return self.out(y.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention from steps to projected text."""

    def __init__(self, d_model: int, n_heads: int, backend: Backend) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.backend: Backend = backend
        self.q = nn.Linear(d_model, d_model, bias=False)
        self.kv = nn.Linear(d_model, 2 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Projected text `[B, L, d]` to keys and values, each `[B, H, L, D]`."""
        batch, length, width = context.shape
        kv = self.kv(context).view(batch, length, 2, self.n_heads, width // self.n_heads)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return k, v

    def forward(self, x: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        """`[B, S, d]` to `[B, S, d]`; context `[B, L, d]` and its additive bias `[B, 1, 1, L]`."""
        batch, steps, width = x.shape
        k, v = self.keys_values(context)
        q = self.q(x).view(batch, steps, self.n_heads, width // self.n_heads).transpose(1, 2)
        y = masked_attention(q, k, v, bias, self.backend)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One pre-norm layer: self-attention, cross-attention, feed-forward."""

    def __init__(self, arch: Architecture, backend: Backend) -> None:
        super().__init__()
        d = arch.d_model
        self.norm_self = nn.LayerNorm(d, eps=1e-5)
        self.self_attention = CausalSelfAttention(d, arch.n_heads, backend)
        self.norm_cross = nn.LayerNorm(d, eps=1e-5)
        self.cross_attention = CrossAttention(d, arch.n_heads, backend)
        self.norm_ff = nn.LayerNorm(d, eps=1e-5)
        self.ff_in = nn.Linear(d, arch.ff_mult * d, bias=False)
        self.ff_out = nn.Linear(arch.ff_mult * d, d, bias=False)

    def forward(self, x: Tensor, context: Tensor | None, bias: Tensor | None) -> Tensor:
        """`[B, S, d]` to `[B, S, d]`; cross-attention without context adds zero, so is skipped."""
        x = x + self.self_attention(self.norm_self(x))
        if context is not None and bias is not None:
            x = x + self.cross_attention(self.norm_cross(x), context, bias)
        return x + self.ff_out(F.gelu(self.ff_in(self.norm_ff(x))))


class ContrastiveHead(nn.Module):
    """Map pooled clips and prompts into a common space, in training only (`contrastive_loss`).

    The paper does not describe its head.  This is the head of LAION's CLAP (Wu et al. 2023, section
    2): for clips and for prompts two layers with a ReLU between them, and a learnt temperature that
    starts at 0.07.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        width = arch.contrastive
        self.audio_in = nn.Linear(arch.d_model, width)
        self.audio_out = nn.Linear(width, width)
        self.text_in = nn.Linear(arch.text_dim, width)
        self.text_out = nn.Linear(width, width)
        # A vector of one value, because FSDP does not shard scalars.
        self.log_scale = nn.Parameter(torch.empty(1))

    def forward(self, audio: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled clips `[B, d_model]` and prompts `[B, text_dim]` to `[B, D]` each, and the scale
        of their similarities, at most 100 (`LanguageModel.keep_bounds`)."""
        # Under FSDP the type of the weights differs from the type of the pooled states.
        kind = self.log_scale.dtype
        return (
            self.audio_out(F.relu(self.audio_in(audio.to(kind)))),
            self.text_out(F.relu(self.text_in(text.to(kind)))),
            self.log_scale.exp(),
        )


class LanguageModel(nn.Module):
    """Logits and final hidden states from delayed codes and text states."""

    def __init__(self, arch: Architecture, backend: Backend = "auto") -> None:
        super().__init__()
        self.arch = arch
        # The tables of all K streams, stacked: code c of stream k is row k * (size + 1) + c.
        self.embedding = nn.Embedding(arch.n_codebooks * (arch.codebook_size + 1), arch.d_model)
        self.text_projection = nn.Linear(arch.text_dim, arch.d_model, bias=True)
        self.blocks = nn.ModuleList(Block(arch, backend) for _ in range(arch.n_layers))
        self.norm = nn.LayerNorm(arch.d_model, eps=1e-5)
        self.head = nn.Linear(arch.d_model, arch.n_codebooks * arch.codebook_size, bias=False)
        self.contrastive = ContrastiveHead(arch) if arch.contrastive else None
        self._positions: Tensor | None = None

    @torch.no_grad()
    def keep_bounds(self) -> None:
        """After an update, limit the scale of the contrastive loss to 100, as CLIP does.

        The parameter is limited itself.  If only its use were, it would never get a gradient again.
        """
        if self.contrastive is not None:
            self.contrastive.log_scale.clamp_(max=math.log(100.0))

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Set weights to truncated normals (at 3 sigma), sigma 1/sqrt(fan_in), and biases to 0.

        The outputs that a block adds to the residual stream are scaled by 1/sqrt(2 depth), so that
        variance does not grow with depth.
        """
        generator = torch.Generator(device="cpu").manual_seed(seed)

        def fill(weight: Tensor, depth: int | None = None) -> None:
            sigma = weight.shape[1] ** -0.5 / (math.sqrt(2 * depth) if depth else 1.0)
            values = torch.empty(weight.shape, dtype=torch.float32)
            nn.init.trunc_normal_(values, std=sigma, a=-3 * sigma, b=3 * sigma, generator=generator)
            weight.copy_(values)

        fill(self.embedding.weight)
        fill(self.text_projection.weight)
        self.text_projection.bias.zero_()
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            fill(block.self_attention.qkv.weight)
            fill(block.self_attention.out.weight, index + 1)
            fill(block.cross_attention.q.weight)
            fill(block.cross_attention.kv.weight)
            fill(block.cross_attention.out.weight, index + 1)
            fill(block.ff_in.weight)
            fill(block.ff_out.weight, index + 1)
        fill(self.head.weight)
        if self.contrastive is not None:  # last, so that all else starts as without this head
            for part in self.contrastive.children():
                assert isinstance(part, nn.Linear)
                fill(part.weight)
                part.bias.zero_()
            self.contrastive.log_scale.fill_(math.log(1 / 0.07))
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(
        self, codes: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict every step from the steps before it.

        Args:
            codes: int64 `[B, K, S]`, delayed, special tokens included.
            text: encoder states `[B, L, text_dim]`; None drops the text of the whole batch.
            text_mask: bool `[B, L]`, True for real tokens; dropped text is a row of False.

        Returns:
            logits `[B, S, K, codebook_size]` and hidden states `[B, S, d_model]` after the final
            norm.
        """
        x = self.embed(codes)
        context, bias = self.context(text, text_mask)
        for block in self.blocks:
            x = block(x, context, bias)
        hidden = self.norm(x)
        return self.logits(hidden), hidden

    def embed(self, codes: Tensor) -> Tensor:
        """Sums of embeddings, plus positions: `[B, S, d]` from codes `[B, K, S]`."""
        streams = torch.arange(self.arch.n_codebooks, device=codes.device)
        rows = codes + (streams * (self.arch.codebook_size + 1))[None, :, None]
        summed = self.embedding(rows).sum(dim=1)
        return summed + self.positions(0, codes.shape[-1], summed.device).to(summed.dtype)

    def context(
        self, text: Tensor | None, text_mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Projected text `[B, L, d]`, zero at padding, and its additive bias `[B, 1, 1, L]`."""
        if text is None or text_mask is None:
            return None, None
        context = self.text_projection(text) * text_mask[:, :, None]
        # A row of dropped text attends to its (zero) keys and values: masking all would give NaN.
        reachable = text_mask | ~text_mask.any(dim=1, keepdim=True)
        bias = torch.zeros(text_mask.shape, dtype=context.dtype, device=context.device)
        return context, bias.masked_fill(~reachable, float("-inf"))[:, None, None]

    def logits(self, hidden: Tensor) -> Tensor:
        """`[B, S, K, codebook_size]` from hidden states `[B, S, d]`."""
        return self.head(hidden).unflatten(-1, (self.arch.n_codebooks, self.arch.codebook_size))

    def positions(self, start: int, steps: int, device: torch.device) -> Tensor:
        """Sinusoidal positions `start`...`start + steps - 1`, float32 `[steps, d]`."""
        table = self._positions
        if table is None or len(table) < start + steps or table.device != device:
            table = sinusoidal_positions(max(start + steps, 512), self.arch.d_model).to(device)
            self._positions = table
        return table[start : start + steps]


def sinusoidal_positions(steps: int, width: int) -> Tensor:
    """Cosines, then sines (MusicGen's layout): float32 `[steps, width]`, for an even width."""
    half = width // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32) * -(math.log(10000) / (half - 1))
    )
    angles = torch.arange(steps, dtype=torch.float32)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)
