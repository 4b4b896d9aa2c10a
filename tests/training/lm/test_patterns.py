"""The delay pattern: every code is a target once, and is predicted only from earlier steps."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.lm.patterns import IGNORE, delay, delayed_steps, undelay, valid_steps

CARD = 1000


@st.composite
def clips(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    batch, streams, frames = (draw(st.integers(1, n)) for n in (3, 5, 9))
    lengths = draw(st.lists(st.integers(0, frames), min_size=batch, max_size=batch))
    # Every code is distinct, so that its place can be checked.
    codes = torch.arange(batch * streams * frames).view(batch, streams, frames)
    return codes, torch.tensor(lengths)


@settings(max_examples=60, deadline=None)
@given(clips())
def test_targets_hold_every_valid_code_once_at_its_delayed_step(
    clip: tuple[torch.Tensor, torch.Tensor],
) -> None:
    codes, lengths = clip
    inputs, targets = delay(codes, lengths, CARD)
    batch, streams, frames = codes.shape
    assert inputs.shape == targets.shape == (batch, streams, delayed_steps(frames, streams))
    expected = torch.full_like(targets, IGNORE)
    for b in range(batch):
        for k in range(streams):
            for t in range(int(lengths[b])):
                expected[b, k, t + k] = codes[b, k, t]
    assert torch.equal(targets, expected)
    # Inputs are the targets one step later, the special token where there is none.
    shifted = expected[:, :, :-1]
    assert torch.equal(inputs[:, :, 1:], torch.where(shifted == IGNORE, CARD, shifted))
    assert (inputs[:, :, 0] == CARD).all()


@settings(max_examples=60, deadline=None)
@given(clips())
def test_undelay_inverts_delay(clip: tuple[torch.Tensor, torch.Tensor]) -> None:
    codes, lengths = clip
    frames = codes.shape[2]
    _, targets = delay(codes, lengths.fill_(frames), CARD)
    assert torch.equal(undelay(targets, frames), codes)


@settings(max_examples=60, deadline=None)
@given(clips())
def test_valid_steps_are_those_with_a_target(clip: tuple[torch.Tensor, torch.Tensor]) -> None:
    codes, lengths = clip
    _, targets = delay(codes, lengths, CARD)
    expected = (targets != IGNORE).any(dim=1)
    assert torch.equal(valid_steps(lengths, codes.shape[1], targets.shape[2]), expected)


def test_codes_past_a_clips_end_do_not_matter() -> None:
    codes = torch.arange(24).view(1, 2, 12)
    other = codes.clone()
    other[:, :, 7:] = 999
    for one, two in zip(
        delay(codes, torch.tensor([7]), CARD), delay(other, torch.tensor([7]), CARD), strict=True
    ):
        assert torch.equal(one, two)
