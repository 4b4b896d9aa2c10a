"""Drawing codes step by step: guidance, top-k and top-p, continuation, sliding windows.

Codes lie on one grid `[B, K, S]` of delayed steps from the first to the last.  What is known
beforehand (a clip to continue) is laid on it and read, not drawn.  A clip longer than the model was
trained for is decoded in windows: when one is full the next begins at position 0 with the steps of
its last `overlap`, as if the clip began there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.config import SamplingConfig
from training.lm.decoding import Decoder, DecodingWeights, States, StaticDecoder
from training.lm.patterns import delayed_steps, undelay

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
        sampling: guidance, top-k, top-p, temperature, overlap of windows.
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
    # One uniform number per code, drawn beforehand: [steps, K] per clip, in the order of use, so
    # that a longer clip of the same key begins alike (up to the delay's last frames).
    draws = torch.from_numpy(
        np.stack([np.random.default_rng(key).random((steps, arch.n_codebooks)) for key in keys])
    ).to(device)
    guided = sampling.cfg != 1.0
    whole = not window or frames <= window
    room = steps if whole else window
    kept = max(1, min(room - 1, round(sampling.overlap * room)))
    kind = StaticDecoder if sampling.cuda_graphs and device.type == "cuda" else Decoder
    begin, decoder = 0, None
    for step in range(known, steps):
        if decoder is not None and step - begin >= room:
            decoder = None
        if decoder is None:
            begin = step - kept if step >= room else 0
            size = min(room, steps - begin)
            decoder = kind(weights, states, size, guided, negative)
            columns = _columns(grid, begin, step, arch.special)
        else:
            # Special tokens for streams that have not begun in this window.
            columns = torch.where(streams < step - begin, grid[:, :, step - 1], arch.special)
        logits = decoder.step(columns)
        if guided:
            told, untold = logits.chunk(2)
            logits = untold + sampling.cfg * (told - untold)
        codes = choose(logits, draws[:, step], sampling.top_k, sampling.temperature, sampling.top_p)
        # Streams that have not begun, or are complete, stay special; those of the prefix, known.
        drawn = (step - streams >= known) & (step - streams < frames)
        grid[:, :, step] = torch.where(drawn, codes, grid[:, :, step])
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


def choose(
    logits: Tensor, draws: Tensor, top_k: int, temperature: float, top_p: float = 1.0
) -> Tensor:
    """Sampling by inverting the cumulative distribution of the likeliest codes.

    Args:
        logits: `[B, K, V]`.
        draws: uniform in [0, 1), `[B, K]`.
        top_k: codes in question; all if there are fewer.
        temperature: 0 takes the likeliest.
        top_p: of those, the fewest likeliest whose probabilities reach it (nucleus sampling).

    Returns:
        int64 `[B, K]`.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    values, indices = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    cumulative = torch.softmax(values.double() / temperature, dim=-1).cumsum(dim=-1)
    total = cumulative[..., -1:]
    if top_p < 1:
        # The last one kept is the first to reach top_p.
        last = torch.searchsorted(cumulative, top_p * total).clamp(max=values.shape[-1] - 1)
        total = cumulative.gather(-1, last)
    place = torch.searchsorted(cumulative, draws[..., None] * total, right=True)
    return indices.gather(-1, place.clamp(max=values.shape[-1] - 1))[..., 0]
