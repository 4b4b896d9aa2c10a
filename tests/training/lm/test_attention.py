"""Attention backends beside `sdpa` and `matmul` compute the same function."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from common.errors import AttuneError
from training.lm.attention import Backend, causal_attention, masked_attention
from training.lm.model import Architecture, LanguageModel

STEPS, KEYS = 29, 13


def _inputs(device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, STEPS, 16, generator=generator)
    k, v = torch.randn(2, 2, 4, KEYS, 16, generator=generator).unbind(0)
    bias = torch.zeros(2, 1, 1, KEYS)
    bias[1] = bias[1].masked_fill(torch.arange(KEYS) >= 9, float("-inf"))
    return q.to(device), k.to(device), v.to(device), bias.to(device)


def _agree(backend: Backend, device: str) -> None:
    q, k, v, bias = _inputs(device)
    own = torch.randn(3, 2, 4, STEPS, 16, generator=torch.Generator().manual_seed(1)).to(device)
    for found, expected in (
        (causal_attention(*own, backend), causal_attention(*own, "matmul")),
        (masked_attention(q, k, v, bias, backend), masked_attention(q, k, v, bias, "matmul")),
        (masked_attention(q, k, v, None, backend), masked_attention(q, k, v, None, "matmul")),
    ):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_flex_computes_the_same() -> None:
    with torch.no_grad():
        _agree("flex", "cpu")


def test_flex_on_a_cpu_says_that_it_cannot_train() -> None:
    arch = Architecture(32, 1, 2, 2, 8, 12)
    model = LanguageModel(arch, "flex")
    model.initialize(0)
    codes = torch.zeros(1, 2, 5, dtype=torch.long)
    with pytest.raises(AttuneError, match=r"attention=flex.*no backward pass on CPUs"):
        model(codes)
    other = LanguageModel(arch, "sdpa")
    other.load_state_dict(model.state_dict())
    text = torch.randn(1, 3, 12)
    mask = torch.tensor([[True, True, False]])
    with torch.no_grad():
        torch.testing.assert_close(
            model(codes, text, mask)[0], other(codes, text, mask)[0], atol=1e-5, rtol=1e-5
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention trains on GPUs alone")
def test_flex_trains_on_a_gpu() -> None:
    gradients = []
    for backend in ("flex", "matmul"):
        q, k, v, bias = (x.requires_grad_() for x in _inputs("cuda"))
        masked_attention(q, k, v, bias.detach(), backend).square().sum().backward()
        gradients.append((q.grad, k.grad, v.grad))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_xformers_computes_the_same() -> None:
    pytest.importorskip("xformers.ops", reason="xformers is not installed")
    if not torch.cuda.is_available():
        pytest.skip("xformers has no kernels for CPUs")
    _agree("xformers", "cuda")


def test_missing_xformers_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    q, k, v, bias = _inputs()
    for attend in (
        lambda: causal_attention(q, q, q, "xformers"),
        lambda: masked_attention(q, k, v, bias, "xformers"),
    ):
        with pytest.raises(AttuneError, match=r"xformers is not installed.*gpu"):
            attend()
