"""The delay pattern: K parallel streams as one sequence of steps.

Frame t of stream k is predicted at step s = t + k, from the codes of earlier steps, so a stream
sees the same frame of the streams before it.  T frames take S = T + K - 1 steps:

    stream 0    c0 c1 c2 c3  .  .        inputs are the same grid one step later, with the special
    stream 1     . c0 c1 c2 c3  .        token (the codebook's size) where there is no code:
    stream 2     .  . c0 c1 c2 c3        before a stream begins and past a clip's end

All T frames of all K streams are targets.  (audiocraft leaves the last k frames of stream k out of
the loss, and generates them nevertheless.)
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE = -100
"""Target where there is no code."""


def delayed_steps(frames: int, n_codebooks: int) -> int:
    """Number of steps S that `frames` frames of `n_codebooks` streams take."""
    return frames + n_codebooks - 1


def delay(codes: Tensor, lengths: Tensor, special: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets for training.

    Args:
        codes: int64 `[B, K, T]`; values past a clip's end are ignored.
        lengths: int64 `[B]`, valid frames of each clip, at most T.
        special: the special token.

    Returns:
        inputs int64 `[B, K, S]` and targets int64 `[B, K, S]`, `IGNORE` where there is no code.
    """
    batch, n_codebooks, frames = codes.shape
    steps = delayed_steps(frames, n_codebooks)
    valid = torch.arange(frames, device=codes.device) < lengths[:, None, None]
    targets = codes.new_full((batch, n_codebooks, steps), IGNORE)
    for k in range(n_codebooks):
        targets[:, k, k : k + frames] = codes[:, k].masked_fill(~valid[:, 0], IGNORE)
    inputs = torch.full_like(targets, special)
    inputs[:, :, 1:] = targets[:, :, :-1]
    return inputs.masked_fill_(inputs == IGNORE, special), targets


def undelay(delayed: Tensor, frames: int) -> Tensor:
    """Codes `[B, K, T]` from predicted steps.

    Args:
        delayed: `[B, K, S]`, with the predictions of step s in column s.
        frames: T.
    """
    streams = [delayed[:, k, k : k + frames] for k in range(delayed.shape[1])]
    return torch.stack(streams, dim=1)


def valid_steps(lengths: Tensor, n_codebooks: int, steps: int) -> Tensor:
    """Steps that predict at least one code of the clip: bool `[B, S]` for `lengths` int64 `[B]`."""
    reach = torch.where(lengths > 0, lengths + n_codebooks - 1, 0)
    return torch.arange(steps, device=lengths.device) < reach[:, None]
