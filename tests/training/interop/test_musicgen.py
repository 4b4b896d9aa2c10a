"""Our loss against that of Hugging Face's `MusicgenForCausalLM`, with the same weights and batch.

The definitions agree: delayed streams, cross-entropy of each stream averaged over its own targets,
then over streams.  They differ

- in the last frames of the delayed streams: a sequence of T steps (audiocraft's, which trains on
  valid steps only) lacks the last k frames of stream k, ours has T + K - 1 steps and all of them;
- over several batches: theirs averages each batch by itself, our sums and counts add up to the loss
  of the global batch;
- where a stream has no target at all: theirs is not a number, ours counts nothing.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.musicgen import Musicgen
from training.interop.musicgen import to_musicgen
from training.lm.losses import stream_losses
from training.lm.model import Architecture, LanguageModel
from training.lm.patterns import IGNORE, delay

ARCH = Architecture(d_model=32, n_layers=2, n_heads=4, n_codebooks=3, codebook_size=11, text_dim=20)
FRAMES = 9


@pytest.fixture
def pair() -> tuple[LanguageModel, Musicgen]:
    torch.manual_seed(0)
    ours = LanguageModel(ARCH)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.2)
    theirs = Musicgen(ARCH).eval()
    theirs.load_state_dict(to_musicgen(ours.state_dict(), ARCH))
    return ours, theirs


def _batch(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and targets of random codes, text states and a ragged mask."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 11, (len(lengths), 3, FRAMES), generator=generator)
    text = torch.randn(len(lengths), 6, 20, generator=generator)
    mask = torch.arange(6) < torch.tensor([[6], [2], [4]])[: len(lengths)]
    return *delay(codes, torch.tensor(lengths), ARCH.special), text, mask


def _our_loss(
    model: LanguageModel, inputs: Tensor, targets: Tensor, text: Tensor, mask: Tensor
) -> Tensor:
    sums, counts = stream_losses(model(inputs, text, mask)[0], targets)
    return (sums / counts.clamp(min=1)).mean()


@pytest.mark.parametrize("lengths", [[9, 9, 9], [9, 5, 7]])
def test_loss_and_gradients_are_musicgens(
    pair: tuple[LanguageModel, Musicgen], lengths: list[int]
) -> None:
    ours, theirs = pair
    inputs, targets, text, mask = _batch(lengths)
    loss = _our_loss(ours, inputs, targets, text, mask)
    expected = theirs(inputs, targets, text, mask).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(ours.parameters()))
    found = to_musicgen(gradients, ARCH)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_musicgens_shift_and_pattern_lay_codes_out_as_ours(
    pair: tuple[LanguageModel, Musicgen],
) -> None:
    """MusicGen's decoder makes our inputs from labels; its delay pattern makes our targets."""
    ours, theirs = pair
    inputs, targets, text, mask = _batch([9, 9, 9])
    context = theirs.enc_to_dec_proj(text) * mask[:, :, None]
    alone = theirs.decoder(
        labels=targets.transpose(1, 2),
        encoder_hidden_states=context,
        encoder_attention_mask=mask.long(),
    )
    torch.testing.assert_close(alone.loss, _our_loss(ours, inputs, targets, text, mask))
    codes = torch.stack([targets[:, k, k : k + FRAMES] for k in range(3)], dim=1)
    started = torch.cat([codes.new_full((3, 3, 1), ARCH.special), codes], dim=2)
    _, pattern = theirs.decoder.build_delay_pattern_mask(
        started.flatten(0, 1), ARCH.special, max_length=FRAMES + 3
    )
    pattern = pattern.view(3, 3, -1)
    assert torch.equal(pattern[:, :, :-1], inputs)
    assert torch.equal(pattern[:, :, 1:], targets.masked_fill(targets == IGNORE, ARCH.special))


def test_a_sequence_of_t_steps_lacks_the_last_frames_of_the_delayed_streams(
    pair: tuple[LanguageModel, Musicgen],
) -> None:
    ours, theirs = pair
    inputs, targets, text, mask = _batch([9, 9, 9])
    logits, _ = ours(inputs, text, mask)
    sums, counts = stream_losses(logits, targets)
    trimmed, fewer = stream_losses(logits[:, :FRAMES], targets[:, :, :FRAMES])
    assert counts.tolist() == [27, 27, 27]
    assert fewer.tolist() == [27, 24, 21]
    upstream = theirs(inputs[:, :, :FRAMES], targets[:, :, :FRAMES], text, mask).loss
    torch.testing.assert_close(upstream, (trimmed / fewer).mean(), atol=1e-5, rtol=1e-5)
    assert abs(float(upstream - (sums / counts).mean())) > 1e-3
    # All of the difference is in the frames that upstream leaves out.
    rest, left_out = stream_losses(logits[:, FRAMES:], targets[:, :, FRAMES:])
    assert left_out.tolist() == [0, 3, 6]
    torch.testing.assert_close(trimmed + rest, sums)


def test_batches_of_unequal_length_average_by_targets_and_not_by_batch(
    pair: tuple[LanguageModel, Musicgen],
) -> None:
    ours, theirs = pair
    whole = _batch([9, 2])
    halves = [[part[i : i + 1] for part in whole] for i in range(2)]
    together = theirs(*whole).loss
    sums, counts = map(sum, zip(*(
        stream_losses(ours(inputs, text, mask)[0], targets)
        for inputs, targets, text, mask in halves
    ), strict=True))  # fmt: skip
    torch.testing.assert_close((sums / counts).mean(), together, atol=1e-5, rtol=1e-5)
    apart = sum(theirs(*half).loss for half in halves) / 2
    assert abs(float(apart - together)) > 1e-3


def test_a_stream_without_a_target_counts_nothing(pair: tuple[LanguageModel, Musicgen]) -> None:
    ours, theirs = pair
    inputs, targets, text, mask = _batch([9, 9, 9])
    inputs, targets = inputs[:, :, :2], targets[:, :, :2]  # the third stream has not begun
    assert theirs(inputs, targets, text, mask).loss.isnan()
    sums, counts = stream_losses(ours(inputs, text, mask)[0], targets)
    assert counts.tolist() == [6, 3, 0]
    assert sums[2] == 0
    assert _our_loss(ours, inputs, targets, text, mask).isfinite()
