"""The training objective: cross-entropy per stream and representation regularization.

All functions only depend on tensors, not on models, files or processes.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.lm.patterns import IGNORE

Pool = Literal["max", "average"]


def stream_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of each stream (the inner sums of equations 1 and 2).

    Sums and counts instead of means, because they can be added over processes.

    Args:
        logits: `[B, S, K, V]`.
        targets: int64 `[B, K, S]`, `IGNORE` where there is no code.

    Returns:
        sums float32 `[K]` in nats, and counts of targets int64 `[K]`.
    """
    targets = targets.transpose(1, 2)  # [B, S, K], like the logits
    losses: Tensor = _CrossEntropy.apply(logits.flatten(0, 2), targets.flatten())
    sums = losses.view(-1, targets.shape[-1]).sum(0)
    return sums, (targets != IGNORE).flatten(0, 1).sum(0)


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of each row in fp32, for logits of any type, a few rows at a time.

    The forward pass already computes the gradient, except for the row's weight.  So exponentials
    are computed once, and only logits and their gradient, in their own type, go through memory.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        keep = ctx.needs_input_grad[0]
        found = torch.empty_like(logits) if keep else logits
        losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        valid = targets != IGNORE
        places = torch.where(valid, targets, 0)[:, None]
        minus = losses.new_full((len(losses), 1), -1.0)
        for rows in _chunks(logits):
            scores = logits[rows].float()
            shares = torch.softmax(scores, dim=-1)
            # The largest share is exp(0) / sum, from which the sum follows.
            total = scores.amax(dim=-1) - shares.amax(dim=-1).log()
            losses[rows] = total - scores.gather(1, places[rows])[:, 0]
            if keep:
                found[rows] = shares.scatter_add_(1, places[rows], minus[rows])
        if keep:
            ctx.save_for_backward(found, valid)
        return losses.mul_(valid)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        found, valid = ctx.saved_tensors
        weights = (gradient * valid)[:, None]
        # In place, because PyTorch refuses a second backward pass through the same graph anyway.
        for rows in _chunks(found):
            found[rows].mul_(weights[rows])
        return found, None


def _chunks(logits: Tensor) -> list[slice]:
    """Groups of rows of `[N, V]`: on a CPU as many as fit its cache, on a GPU many more."""
    elements = 1 << (18 if logits.device.type == "cpu" else 26)
    step = max(1, elements // logits.shape[1])
    return [slice(start, start + step) for start in range(0, len(logits), step)]


def pool(states: Tensor, mask: Tensor, how: Pool) -> Tensor:
    """One vector per sequence (the paper's F), in fp32; zeros for a sequence without valid places.

    Args:
        states: `[B, L, D]`.
        mask: bool `[B, L]`, True for valid places.

    Returns:
        float32 `[B, D]`.
    """
    states = states.float()
    mask = mask[:, :, None]
    if how == "max":
        pooled = states.masked_fill(~mask, float("-inf")).amax(dim=1)
        return torch.where(mask.any(dim=1), pooled, 0.0)
    return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def similarity(vectors: Tensor) -> Tensor:
    """Cosine similarities (equations 3 and 4) of all pairs: float32 `[B, B]` of `[B, D]`."""
    # In fp64, whatever the precision of the model and of fp32 products: it costs a few kFLOP.
    with torch.autocast(vectors.device.type, enabled=False):
        unit = F.normalize(vectors.double(), dim=-1, eps=1e-8)
        return (unit @ unit.T).float()


def representation_regularization(audio: Tensor, text: Tensor) -> Tensor:
    """L_rr (equation 5): whether clips differ from each other as their prompts do.

    Args:
        audio: pooled decoder states `[B, D]`, through which gradients flow.
        text: pooled text states `[B, D']`, held fixed.

    Returns:
        A float32 scalar; 0 for fewer than two samples.
    """
    batch = audio.shape[0]
    if batch < 2:
        return audio.sum() * 0.0
    difference = similarity(text.detach()) - similarity(audio)
    off_diagonal = ~torch.eye(batch, dtype=torch.bool, device=audio.device)
    return (difference.square() * off_diagonal).sum() / (batch * (batch - 1))


def contrastive_loss(audio: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """CLAP's loss (Elizalde et al. 2022, reference 29 of the paper, which tried it, section 2).

    It is the cross-entropy of finding a clip's prompt among all prompts of the batch, and a
    prompt's clip among all clips.  As in CLAP, a prompt that occurs twice counts as two prompts:
    the only right answer for a clip is its own.

    Args:
        audio: `[B, D]`, clips mapped into the common space.
        text: `[B, D]`, their prompts, in the same order.
        scale: `[1]`, factor of the cosine similarities: one over the temperature.

    Returns:
        A float32 scalar in nats, log B if nothing was learnt; 0 for fewer than two samples.
    """
    batch = audio.shape[0]
    if batch < 2:
        return (audio.sum() + text.sum() + scale.sum()) * 0.0
    with torch.autocast(audio.device.type, enabled=False):
        clips, prompts = (F.normalize(v.float(), dim=-1, eps=1e-8) for v in (audio, text))
        logits = scale.float() * (clips @ prompts.T)
    own = torch.arange(batch, device=audio.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def similarity_correlation(audio: Tensor, text: Tensor) -> Tensor:
    """Pearson correlation between the off-diagonal similarities of clips and of their prompts.

    Args:
        audio: pooled decoder states `[B, D]`.
        text: pooled text states `[B, D']`.

    Returns:
        A float32 scalar in -1...1; 0 if all similarities of either kind are equal, or for fewer
        than 3 clips.
    """
    batch = audio.shape[0]
    if batch < 3:
        return audio.new_zeros((), dtype=torch.float32)
    above = torch.triu_indices(batch, batch, 1, device=audio.device).unbind()
    a, t = (similarity(vectors.detach())[above] for vectors in (audio, text))
    a, t = a - a.mean(), t - t.mean()
    return (a @ t) / (a.norm() * t.norm()).clamp(min=1e-12)
