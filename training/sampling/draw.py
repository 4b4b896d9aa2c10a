"""How one step's codes are drawn from logits: top-k, top-p, and noise fixed by key and code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Key = int | Sequence[int]
"""Seed of one clip's draws: what `numpy.random.default_rng` takes."""


def draw(keys: Sequence[Key], steps: int, n_codebooks: int) -> Tensor:
    """Random numbers for all choices of each clip: int64 `[B, steps, K]` in 0...2^32 - 1.

    They come in the order of use, so that a longer clip of the same key begins alike (up to the
    last frames of the delay).
    """
    shape = (steps, n_codebooks)
    drawn = [np.random.default_rng(key).integers(1 << 32, size=shape) for key in keys]
    return torch.from_numpy(np.stack(drawn))


def choose(
    logits: Tensor, draws: Tensor, top_k: int, temperature: float, top_p: float = 1.0
) -> Tensor:
    """Draw one of the likeliest codes by the Gumbel-max trick: the largest of logits plus noise.

    The noise of a code depends only on the draw and the code.  So where rounding, another batch or
    smaller weights change the logits a little, the choice changes only if two codes were nearly
    equal.  Inverting the cumulative distribution, where each code shifts all later ones, changes
    twenty times as many choices (`LOG.md`).

    Args:
        logits: `[B, K, V]`.
        draws: uniform in 0...2^32 - 1, int64 `[B, K]`.
        top_k: number of likeliest codes to choose from; all if there are fewer.
        temperature: 0 takes the likeliest code.
        top_p: of the top k, choose from the fewest likeliest whose probabilities reach this sum.

    Returns:
        int64 `[B, K]`.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    values, codes = _likeliest(logits, top_k)
    if temperature != 1:
        values = values / temperature
    if top_p < 1:
        shares, order = torch.softmax(values.double(), dim=-1).sort(dim=-1, descending=True)
        # The last code that is kept is the one with which the sum reaches top_p.
        beyond = shares.cumsum(dim=-1) - shares >= top_p
        values = values.masked_fill(beyond.gather(-1, order.argsort(dim=-1)), float("-inf"))
    best = (values + gumbel_noise(draws, codes)).argmax(dim=-1, keepdim=True)
    return codes.gather(-1, best)[..., 0]


def gumbel_noise(draws: Tensor, codes: Tensor) -> Tensor:
    """Noise of the standard Gumbel distribution: a hash of draw and code, equal on all devices.

    A random generator would have to draw for all codes in order; here only the likeliest get noise.

    Args:
        draws: int64 `[B, K]` in 0...2^32 - 1.
        codes: int64 `[B, K, n]`.

    Returns:
        float32 `[B, K, n]`.
    """
    low = 0xFFFFFFFF
    # Weyl's sequence of a code's number, then a 32-bit finalizer of two multiplications (shifts
    # and factors of Wellons' hash-prospector).  Sums and products may wrap: only low bits are used.
    bits = (codes * 0x9E3779B1).add_(draws[..., None])
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        bits &= low
        bits ^= bits >> shift
        bits *= factor
    bits &= low
    bits ^= bits >> 15
    # The middle of one of 2^23 intervals, exact in float32: never 0 or 1, where noise is infinite.
    uniform = (bits >> 8).bitwise_or_(1).float().mul_(2.0**-24)
    return uniform.log_().neg_().log_().neg_()


def _likeliest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest logits of the last dimension, in any order, and their codes."""
    size = logits.shape[-1]
    if k >= size:
        return logits, torch.arange(size, device=logits.device).expand_as(logits)
    if logits.device.type != "cpu":
        found = logits.topk(k, dim=-1, sorted=False)
        return found.values, found.indices
    # On a CPU, NumPy's selection takes a fifth of the time of `topk`.
    places = np.argpartition(logits.numpy(), size - k, axis=-1)[..., size - k :]
    indices = torch.from_numpy(places)
    return logits.gather(-1, indices), indices
