"""The sampling loop: guidance, continuation, sliding windows.

The codes of a clip are one grid `[B, K, S]` of delayed steps.  The codes of a clip to continue are
written into the grid first, and read instead of drawn.  A clip longer than the model was trained
for is decoded in windows: when one is full, the next begins at position 0 with the last half
(`OVERLAP`) of its steps, as if the clip began there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.lm.patterns import delayed_steps, undelay
from training.sampling.config import SamplingConfig
from training.sampling.decoder import Decoder, DecodingWeights, States
from training.sampling.draw import Key, choose, draw

OVERLAP = 0.5
"""Share of a window that the next window begins with."""


def sample_codes(
    weights: DecodingWeights,
    states: States,
    keys: Sequence[Key],
    frames: int,
    sampling: SamplingConfig,
    report: Callable[[int], None] | None = None,
    **options: Any,
) -> Tensor:
    """Sample a batch of clips: int64 codes `[B, K, T]`; arguments as for `stream_codes`.

    Args:
        report: called after each step, with the number of steps done.
    """
    grid = torch.empty(0)
    stream = stream_codes(weights, states, keys, frames, sampling, **options)
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
    """Sample a batch of clips, and yield the codes so far after every step.

    Args:
        states: text states `[L_i, D]` of each clip's prompt.
        keys: one per clip.
        frames: T, frames of the prefix included.
        sampling: guidance, top-k, top-p, temperature.
        negative: text states `[L, D]` that guidance leads away from, instead of from no text.
        prefix: codes that the clips begin with, int64 `[B, K, P]` or `[1, K, P]`, P < T.
        window: longest stretch in frames that is decoded in one piece; 0 for any length.

    Yields:
        The number of frames that are complete in all streams, and the grid int64 `[B, K, S]`,
        which is the same tensor every time (`patterns.undelay` gives the codes).
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
    # Only frames after the prefix and before the end are drawn; the grid keeps all others.
    frame = torch.arange(steps)[:, None] - torch.arange(arch.n_codebooks)
    drawn = (frame >= known) & (frame < frames)
    every, drawn = drawn.all(dim=1).tolist(), drawn.to(device)
    guided = sampling.cfg != 1.0
    whole = not window or frames <= window
    room = steps if whole else window
    kept = max(1, min(room - 1, round(OVERLAP * room)))
    begin, decoder = 0, None
    for step in range(known, steps):
        if step - begin >= room:
            decoder = None  # the window is full; this frees its cache before the next one is made
        if decoder is None:
            # The first window starts at 0, also with a prefix that fits into it.
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
        if not every[step]:  # some streams have not begun, are known, or have ended
            codes = torch.where(drawn[step], codes, grid[:, :, step])
        grid[:, :, step] = codes
        yield max(known, step + 2 - arch.n_codebooks), grid


def _columns(grid: Tensor, begin: int, step: int, special: int) -> Tensor:
    """Inputs for steps `begin`...`step` as if the clip began at `begin`: `[B, K, n]`.

    That is a column of special tokens and then the grid's columns, with special tokens where a
    stream has not begun in this window.
    """
    streams, length = grid.shape[1], step - begin
    inputs = grid.new_full((len(grid), streams, length + 1), special)
    for k in range(streams):
        inputs[:, k, k + 1 :] = grid[:, k, begin + k : step]
    return inputs
