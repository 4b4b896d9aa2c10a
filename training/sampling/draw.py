"""Drawing codes step by step: guidance, top-k and top-p, continuation, sliding windows.

Codes lie on one grid `[B, K, S]` of delayed steps from the first to the last.  What is known
beforehand (a clip to continue) is laid on it and read, not drawn.  A clip longer than the model was
trained for is decoded in windows: when one is full the next begins at position 0 with the steps of
its last half (`OVERLAP`), as if the clip began there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.lm.patterns import delayed_steps, undelay
from training.sampling.config import SamplingConfig
from training.sampling.decoder import Decoder, DecodingWeights, States

OVERLAP = 0.5
"""Share of a window that the next one begins with."""

Key = int | Sequence[int]
"""Seeds the draws of one clip: what `numpy.random.default_rng` takes."""


def sample_codes(
    weights: DecodingWeights,
    states: States,
    keys: Sequence[Key],
    frames: int,
    sampling: SamplingConfig,
    report: Callable[[int], None] | None = None,
    *,
    negative: NDArray[np.float16] | None = None,
    prefix: Tensor | None = None,
    window: int = 0,
) -> Tensor:
    """Sample a batch of clips; the arguments are `stream_codes`'.

    Args:
        report: called with the number of steps done.

    Returns:
        int64 codes `[B, K, T]`.
    """
    grid = torch.empty(0)
    stream = stream_codes(
        weights, states, keys, frames, sampling, negative=negative, prefix=prefix, window=window
    )
    for step, (_, grid) in enumerate(stream, start=1):  # noqa: B007
        if report:
            report(step)
    return undelay(grid, frames)


@torch.inference_mode()
def stream_codes(
    weights: DecodingWeights,
    states: States,
    keys: Sequence[Key],
    frames: int,
    sampling: SamplingConfig,
    *,
    negative: NDArray[np.float16] | None = None,
    prefix: Tensor | None = None,
    window: int = 0,
) -> Iterator[tuple[int, Tensor]]:
    """Sample a batch of clips and hand out what is there after every step.

    Args:
        states: text states `[L_i, D]` of each clip's prompt.
        keys: one per clip.
        frames: T, those of the prefix included.
        sampling: guidance, top-k, top-p, temperature.
        negative: text states `[L, D]` that guidance leads away from, instead of no text.
        prefix: codes that the clips begin with, int64 `[B, K, P]`, P < T.
        window: longest stretch in frames that is decoded in one piece; 0 for any length.

    Yields:
        How many frames are complete in all streams, and the grid int64 `[B, K, S]`, filled so far
        (`patterns.undelay` gives the codes); it is the same one every time.
    """
    arch, device = weights.model.arch, weights.device
    steps = delayed_steps(frames, arch.n_codebooks)
    known = 0 if prefix is None else prefix.shape[-1]
    streams = torch.arange(arch.n_codebooks, device=device)
    grid = torch.full(
        (len(states), arch.n_codebooks, steps), arch.special, dtype=torch.long, device=device
    )
    if prefix is not None:
        for k in range(arch.n_codebooks):
            grid[:, k, k : k + known] = prefix[:, k]
    draws = draw(keys, steps, arch.n_codebooks).to(device)
    # Streams that have not begun, or are complete, stay special; those of the prefix, known.
    frame = torch.arange(steps)[:, None] - torch.arange(arch.n_codebooks)
    drawn = (frame >= known) & (frame < frames)
    every, drawn = drawn.all(dim=1).tolist(), drawn.to(device)
    guided = sampling.cfg != 1.0
    whole = not window or frames <= window
    room = steps if whole else window
    kept = max(1, min(room - 1, round(OVERLAP * room)))
    begin, decoder = 0, None
    for step in range(known, steps):
        if decoder is not None and step - begin >= room:
            decoder = None
        if decoder is None:
            begin = step - kept if step >= room else 0
            size = min(room, steps - begin)
            decoder = Decoder(weights, states, size, guided, negative)
            columns = _columns(grid, begin, step, arch.special)
        else:
            columns = grid[:, :, step - 1]
            if step - begin < arch.n_codebooks:
                # Special tokens for streams that have not begun in this window.
                columns = torch.where(streams < step - begin, columns, arch.special)
        logits = decoder.step(columns)
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = torch.lerp(unconditional, conditional, sampling.cfg)
        codes = choose(logits, draws[:, step], sampling.top_k, sampling.temperature, sampling.top_p)
        if not every[step]:
            codes = torch.where(drawn[step], codes, grid[:, :, step])
        grid[:, :, step] = codes
        yield max(known, step + 2 - arch.n_codebooks), grid


def _columns(grid: Tensor, begin: int, step: int, special: int) -> Tensor:
    """Inputs of a window's steps `begin`...`step`, as if the clip began at `begin`.

    Returns:
        `[B, K, step - begin + 1]`: a column of special tokens, then the grid's, with special
        tokens where a stream has not begun.
    """
    streams, length = grid.shape[1], step - begin
    inputs = grid.new_full((len(grid), streams, length + 1), special)
    for k in range(streams):
        inputs[:, k, k + 1 :] = grid[:, k, begin + k : step]
    return inputs


def draw(keys: Sequence[Key], steps: int, n_codebooks: int) -> Tensor:
    """What decides every choice of each clip, beforehand.

    In the order of use, so that a longer clip of the same key begins alike (up to the delay's last
    frames).

    Returns:
        int64 `[B, steps, K]` in 0...2^32 - 1.
    """
    shape = (steps, n_codebooks)
    drawn = [np.random.default_rng(key).integers(1 << 32, size=shape) for key in keys]
    return torch.from_numpy(np.stack(drawn))


def choose(
    logits: Tensor, draws: Tensor, top_k: int, temperature: float, top_p: float = 1.0
) -> Tensor:
    """Sampling of the likeliest codes by the Gumbel-max trick: logits plus noise, and the best.

    A code's noise depends only on the draw and the code.  So what rounding, a batch or smaller
    weights change in the logits changes a choice only where two codes are about to win; inverting
    the cumulative distribution, where every code shifts those after it, changes twenty times as
    many (`LOG.md`).

    Args:
        logits: `[B, K, V]`.
        draws: uniform in 0...2^32 - 1, int64 `[B, K]`.
        top_k: codes in question; all if there are fewer.
        temperature: 0 takes the likeliest.
        top_p: of those, the fewest likeliest whose probabilities reach it (nucleus sampling).

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
        # The last one kept is the first to reach top_p.
        beyond = shares.cumsum(dim=-1) - shares >= top_p
        values = values.masked_fill(beyond.gather(-1, order.argsort(dim=-1)), float("-inf"))
    best = (values + gumbel_noise(draws, codes)).argmax(dim=-1, keepdim=True)
    return codes.gather(-1, best)[..., 0]


def gumbel_noise(draws: Tensor, codes: Tensor) -> Tensor:
    """Noise of the standard Gumbel distribution: a hash of draw and code, alike on all devices.

    A generator would have to draw for all codes, in order; only the likeliest need noise.

    Args:
        draws: int64 `[B, K]` in 0...2^32 - 1.
        codes: int64 `[B, K, n]`.

    Returns:
        float32 `[B, K, n]`.
    """
    low = 0xFFFFFFFF
    # Weyl's sequence of a code's number, then a 32-bit finalizer of two multiplications (shifts
    # and factors of Wellons' hash-prospector).  Sums and products may wrap: low bits count.
    bits = (codes * 0x9E3779B1).add_(draws[..., None])
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        bits &= low
        bits ^= bits >> shift
        bits *= factor
    bits &= low
    bits ^= bits >> 15
    # The middle of one of 2^23 parts, which float32 has exactly: neither 0 nor 1, where noise would
    # be infinite.
    uniform = (bits >> 8).bitwise_or_(1).float().mul_(2.0**-24)
    return uniform.log_().neg_().log_().neg_()


def _likeliest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest of the last dimension, in any order, and their places."""
    size = logits.shape[-1]
    if k >= size:
        return logits, torch.arange(size, device=logits.device).expand_as(logits)
    if logits.device.type != "cpu":
        found = logits.topk(k, dim=-1, sorted=False)
        return found.values, found.indices
    # NumPy's selection takes a fifth of the time of `topk`.
    places = np.argpartition(logits.numpy(), size - k, axis=-1)[..., size - k :]
    indices = torch.from_numpy(places)
    return logits.gather(-1, indices), indices
