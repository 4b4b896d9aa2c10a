"""The decoder: causality, text, initialization (MusicGen's logits: `interop/test_imports.py`)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from training.config import OptimConfig
from training.lm.attention import causal_attention, masked_attention
from training.lm.losses import stream_losses
from training.lm.model import Architecture, LanguageModel, sinusoidal_positions
from training.lm.patterns import delay
from training.optim import build_optimizer, fill_missing_gradients

ARCH = Architecture(d_model=32, n_layers=2, n_heads=4, n_codebooks=3, codebook_size=11, text_dim=20)


@pytest.fixture
def model() -> LanguageModel:
    model = LanguageModel(ARCH)
    model.initialize(0)
    with torch.no_grad():
        # Trained text projections have a bias; a fresh one's is zero and would hide a missing mask.
        model.text_projection.bias.normal_()
    return model


def _inputs(batch: int = 3, frames: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 12, (batch, 3, frames), generator=generator)
    text = torch.randn(batch, 6, 20, generator=generator)
    mask = torch.arange(6) < torch.tensor([[6], [2], [4]])[:batch]
    return codes, text, mask


def test_a_step_only_sees_itself_and_earlier_steps(model: LanguageModel) -> None:
    codes, text, mask = _inputs()
    before, _ = model(codes, text, mask)
    changed = codes.clone()
    changed[:, 1, 5] = (changed[:, 1, 5] + 1) % 12
    after, _ = model(changed, text, mask)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(dim=(0, 2, 3)).min() > 0


def test_padding_of_prompts_changes_nothing(model: LanguageModel) -> None:
    codes, text, mask = _inputs()
    together, _ = model(codes, text * 1e3 * ~mask[:, :, None] + text * mask[:, :, None], mask)
    for b in range(3):
        length = int(mask[b].sum())
        alone, _ = model(
            codes[b : b + 1], text[b : b + 1, :length], torch.ones(1, length, dtype=torch.bool)
        )
        torch.testing.assert_close(together[b : b + 1], alone, atol=2e-6, rtol=1e-5)


def test_text_matters(model: LanguageModel) -> None:
    codes, text, mask = _inputs()
    with_text, _ = model(codes, text, mask)
    without, _ = model(codes)
    assert (with_text - without).abs().mean() > 1e-3


def test_skipping_dropped_text_equals_computing_with_zero_keys() -> None:
    """Outputs, and after further steps weights and optimizer state, decay and moments included."""
    codes, text, mask = _inputs()
    inputs, targets = delay(codes % 11, torch.tensor([9, 5, 7]), 11)
    worlds = []
    for skip in (True, False):
        model = LanguageModel(ARCH)
        model.initialize(0)
        optimizer = build_optimizer(model, OptimConfig(lr=1e-2, warmup=0))
        for dropped in (False, True, True, False):
            words = () if dropped and skip else (text, mask & (not dropped))
            sums, counts = stream_losses(model(inputs, *words)[0], targets)
            (sums / counts).mean().backward()
            fill_missing_gradients(model)
            optimizer.step()
            optimizer.zero_grad()
        moments = [
            optimizer.state[p][key] for p in model.parameters() for key in ("exp_avg", "step")
        ]
        worlds.append((list(model.parameters()), moments))
    for skipped, computed in zip(worlds[0], worlds[1], strict=True):
        for a, b in zip(skipped, computed, strict=True):
            torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)


def test_text_dropped_for_single_clips_equals_no_text_for_them(model: LanguageModel) -> None:
    codes, text, mask = _inputs()
    mask = mask & torch.tensor([[True], [False], [True]])
    mixed, _ = model(codes, text, mask)
    without, _ = model(codes)
    told, _ = model(codes[::2], text[::2], mask[::2])
    torch.testing.assert_close(mixed[1], without[1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mixed[::2], told, atol=1e-6, rtol=1e-5)
    mixed.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_only_norms_and_the_text_projection_have_biases(model: LanguageModel) -> None:
    biased = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    norms = {
        f"{name}.bias" for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)
    }
    assert biased == norms | {"text_projection.bias"}


def test_positions_are_cosines_then_sines() -> None:
    table = sinusoidal_positions(7, 8)
    for position in range(7):
        for i in range(4):
            angle = position / 10000 ** (i / 3)
            assert abs(float(table[position, i]) - math.cos(angle)) < 1e-6
            assert abs(float(table[position, 4 + i]) - math.sin(angle)) < 1e-6


def test_initialization_is_seeded_truncated_and_scaled_by_depth() -> None:
    arch = Architecture(256, 3, 4, 4, 64, 384)
    model, again, other = (LanguageModel(arch) for _ in range(3))
    model.initialize(1)
    again.initialize(1)
    other.initialize(2)
    assert torch.equal(model.head.weight, again.head.weight)
    assert not torch.equal(model.head.weight, other.head.weight)
    block = model.blocks[2]
    for weight, fan_in, depth in (
        (model.embedding.weight, 256, 0.5),
        (model.text_projection.weight, 384, 0.5),
        (block.self_attention.qkv.weight, 256, 0.5),
        (block.cross_attention.out.weight, 256, 3),
        (block.ff_out.weight, 1024, 3),
    ):
        sigma = 1 / math.sqrt(fan_in * 2 * depth)
        assert abs(weight.std().item() / sigma - 0.987) < 0.02  # a normal cut at 3 sigma
        assert float(weight.abs().max()) <= 3 * sigma + 1e-6


# Some roundings to the type: of scores, weights and products, 2**-24 or 2**-9 of values up to 3.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_attention_backends_agree(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 13, 8, generator=generator).to(dtype).unbind(0)
    bias = torch.zeros(2, 1, 1, 13).masked_fill(torch.arange(13) >= 9, float("-inf"))
    for one, two in (
        (causal_attention(q, k, v, "sdpa"), causal_attention(q, k, v, "matmul")),
        (masked_attention(q, k, v, bias, "sdpa"), masked_attention(q, k, v, bias, "matmul")),
    ):
        torch.testing.assert_close(one, two, atol=tolerance, rtol=tolerance)
    expected = []
    for step in range(13):  # by definition, one query at a time
        scores = (q[:, :, step, None].double() * k[:, :, : step + 1].double()).sum(-1) / 8**0.5
        weights = scores.softmax(-1)
        expected.append((weights[..., None] * v[:, :, : step + 1].double()).sum(-2))
    torch.testing.assert_close(
        causal_attention(q, k, v, "matmul").double(),
        torch.stack(expected, dim=2),
        atol=tolerance,
        rtol=tolerance,
    )


@pytest.mark.parametrize("steps", [5, 96, 97, 250])
def test_products_by_blocks_have_the_gradients_of_the_definition(steps: int) -> None:
    """One block, a whole one, a last one of a single query, several."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 2, 3, steps, 8, generator=generator)
    found, expected = inputs[:3].clone().requires_grad_(), inputs[:3].double().requires_grad_()
    q, k, v = found.unbind(0)
    causal_attention(q, k, v, "matmul").mul(inputs[3]).sum().backward()
    q, k, v = expected.unbind(0)
    scores = (q @ k.transpose(-2, -1)) / 8**0.5
    future = torch.ones(steps, steps, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    ((weights @ v) * inputs[3]).sum().backward()
    assert found.grad is not None
    torch.testing.assert_close(found.grad.double(), expected.grad, atol=2e-5, rtol=1e-4)
