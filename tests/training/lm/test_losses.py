"""Losses against closed forms and plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from training.lm import losses
from training.lm.losses import (
    Pool,
    pool,
    representation_regularization,
    similarity,
    stream_losses,
)
from training.lm.patterns import IGNORE


def _loop(audio: list[list[list[float]]], text: list[list[list[float]]], how: Pool) -> float:
    """Equations 3 to 5 as they are written, over lists of valid vectors, in double precision."""

    def pooled(sequence: list[list[float]]) -> list[float]:
        columns = list(zip(*sequence, strict=True))
        return [max(c) if how == "max" else sum(c) / len(c) for c in columns]

    def cosine(x: list[float], y: list[float]) -> float:
        dot = sum(a * b for a, b in zip(x, y, strict=True))
        return dot / math.sqrt(sum(a * a for a in x)) / math.sqrt(sum(b * b for b in y))

    a, t = [pooled(s) for s in audio], [pooled(s) for s in text]
    batch = len(a)
    total = 0.0
    for b in range(batch):
        for other in range(batch):
            if b != other:
                total += (cosine(t[b], t[other]) - cosine(a[b], a[other])) ** 2
    return total / (batch * (batch - 1))


def _ragged(batch: int, length: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (batch, 1), generator=generator)
    states = torch.randn(batch, length, width, generator=generator) - 0.3
    return states, torch.arange(length) < lengths


@pytest.mark.parametrize("how", ["max", "average"])
@pytest.mark.parametrize(("batch", "seed"), [(2, 0), (5, 1), (9, 2)])
def test_rr_equals_a_double_loop_over_pairs(how: Pool, batch: int, seed: int) -> None:
    audio, audio_mask = _ragged(batch, 17, 12, seed)
    text, text_mask = _ragged(batch, 6, 20, seed + 100)
    expected = _loop(
        [a[m].tolist() for a, m in zip(audio, audio_mask, strict=True)],
        [t[m].tolist() for t, m in zip(text, text_mask, strict=True)],
        how,
    )
    # Values under the mask must not matter.
    audio = audio.masked_fill(~audio_mask[:, :, None], 1e4)
    text = text.masked_fill(~text_mask[:, :, None], 1e4)
    found = representation_regularization(pool(audio, audio_mask, how), pool(text, text_mask, how))
    assert abs(float(found) - expected) < 1e-6


def test_rr_gradient_reaches_audio_and_not_text() -> None:
    audio = torch.randn(4, 8, requires_grad=True)
    text = torch.randn(4, 6, requires_grad=True)
    representation_regularization(audio, text).backward()
    assert audio.grad is not None
    assert audio.grad.abs().sum() > 0
    assert text.grad is None


@pytest.mark.parametrize("how", ["max", "average"])
def test_degenerate_batches_give_numbers(how: Pool) -> None:
    states = torch.randn(3, 4, 5, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    pooled = pool(states, mask, how)
    assert torch.equal(pooled[1], torch.zeros(5))
    loss = representation_regularization(pooled, torch.zeros(3, 7))
    loss.backward()
    assert math.isfinite(loss.item())
    assert states.grad is not None
    assert states.grad.isfinite().all()
    assert float(representation_regularization(torch.randn(1, 5), torch.randn(1, 5))) == 0.0


def test_equal_similarities_cost_nothing() -> None:
    vectors = torch.randn(6, 9)
    assert float(representation_regularization(3 * vectors, vectors)) < 1e-12
    torch.testing.assert_close(similarity(vectors).diagonal(), torch.ones(6))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
def test_stream_losses_have_the_gradient_of_plain_cross_entropy(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the chunks: one row each, a ragged last one, all; ignored places get zero."""
    torch.manual_seed(0)
    plain = (3 * torch.randn(2, 5, 3, 7)).to(dtype)
    targets = torch.randint(0, 7, (2, 3, 5))
    targets[0, 1, 2:] = IGNORE
    targets[1, 2, :] = IGNORE
    weights = torch.tensor([0.5, -2.0, 3.0])
    exact = plain.double().requires_grad_()
    expected = torch.zeros(3, dtype=torch.float64)
    for k in range(3):
        expected[k] = torch.nn.functional.cross_entropy(
            exact[:, :, k].flatten(0, 1), targets[:, k].flatten(), reduction="sum"
        )
    (expected * weights).sum().backward()
    assert exact.grad is not None
    for rows in (1, 4, 100):
        chunks = [slice(i, i + rows) for i in range(0, targets.numel(), rows)]
        monkeypatch.setattr(losses, "_chunks", lambda _, chunks=chunks: chunks)
        logits = plain.clone().requires_grad_()
        sums, counts = stream_losses(logits, targets)
        assert counts.tolist() == [10, 7, 5]
        torch.testing.assert_close(sums.double(), expected, atol=1e-4, rtol=1e-6)
        (sums * weights).sum().backward()
        assert logits.grad is not None and logits.grad.dtype == dtype
        torch.testing.assert_close(logits.grad.double(), exact.grad, atol=tolerance, rtol=tolerance)
        assert not logits.grad[0, 2:, 1].any()
        assert torch.equal(logits.detach(), plain)


def test_chunks_cover_all_rows_once() -> None:
    found = losses._chunks(torch.empty(1001, 2048))
    assert [i for rows in found for i in range(1001)[rows]] == list(range(1001))
    assert len(found) > 2
