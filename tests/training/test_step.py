"""Every option of representation regularization against a reference in double precision.

The reference knows the model's layers but none of the objective's code: it takes its double-
precision copy, writes the losses down as the paper has them, one pair at a time, and lets autograd
differentiate that.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from training.config import LMConfig
from training.data import Batch, dropped_text
from training.distributed import World
from training.lm.losses import similarity_correlation
from training.lm.model import LanguageModel
from training.step import TrainingStep

ONE = World(0, 1, torch.device("cpu"))
BASE = {"batch_size": 5, "precision": "fp32"}


@pytest.fixture(scope="module")
def world(
    model_and_batch: Callable[[int], tuple[LanguageModel, Batch]],
) -> tuple[LanguageModel, Batch]:
    return model_and_batch(5)


def reference(
    model: LanguageModel, batch: Batch, config: LMConfig, dropped: np.ndarray
) -> tuple[float, float | None, dict[str, Tensor]]:
    """Cross-entropy (mean over streams), L_rr if it applies, and the objective's gradients."""
    model = copy.deepcopy(model).double()
    codes, lengths = batch.codes, batch.lengths.tolist()
    clips, streams, frames = codes.shape
    steps = frames + streams - 1
    special = model.arch.special
    inputs = torch.full((clips, streams, steps), special)
    for b, k, t in itertools.product(range(clips), range(streams), range(frames)):
        if t < lengths[b] and t + k + 1 < steps:
            inputs[b, k, t + k + 1] = codes[b, k, t]
    mask = batch.text_mask & ~torch.from_numpy(dropped)[:, None]
    logits, hidden = model(inputs, batch.text.double(), mask)
    logs = logits.log_softmax(-1)
    losses = []
    for k in range(streams):
        terms = [
            -logs[b, t + k, k, codes[b, k, t]] for b in range(clips) for t in range(lengths[b])
        ]
        losses.append(torch.stack(terms).mean())
    ce = torch.stack(losses).mean()
    chosen = range(clips) if config.rr.apply == "always" else np.flatnonzero(dropped).tolist()

    def pooled(states: Tensor) -> Tensor:
        return states.max(0).values if config.rr.pool == "max" else states.mean(0)

    audio = {b: pooled(hidden[b, : lengths[b] + streams - 1]) for b in chosen}
    states = batch.text.double()
    if config.rr.text == "projected":
        projection = model.text_projection
        states = (states @ projection.weight.T + projection.bias).detach()
    text = {b: pooled(states[b, batch.text_mask[b]]) for b in chosen}

    def cosine(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum() / (x * x).sum().sqrt() / (y * y).sum().sqrt()

    pairs = [(b, other) for b in chosen for other in chosen if b != other]
    rr = None
    objective = ce
    if pairs:
        terms = [(cosine(text[b], text[c]) - cosine(audio[b], audio[c])) ** 2 for b, c in pairs]
        rr = torch.stack(terms).sum() / (len(audio) * (len(audio) - 1))
        objective = ce + config.rr.weight * rr
    objective.backward()
    gradients = {
        name: parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        for name, parameter in model.named_parameters()
    }
    return ce.item(), None if rr is None else rr.item(), gradients


@pytest.mark.parametrize("kind", ["without text", "with text"])
@pytest.mark.parametrize("granularity", ["batch", "sample"])
@pytest.mark.parametrize("text", ["raw", "projected"])
@pytest.mark.parametrize("apply", ["cfg", "always"])
@pytest.mark.parametrize("pool", ["max", "average"])
def test_values_and_gradients_are_those_of_the_reference(
    world: tuple[LanguageModel, Batch], pool: str, apply: str, text: str, granularity: str,
    kind: str,
) -> None:  # fmt: skip
    model, batch = world
    cfg = {"dropout": 0.5, "granularity": granularity}
    rr = {"weight": 30.0, "pool": pool, "apply": apply, "text": text}
    config = LMConfig.model_validate(BASE | {"cfg": cfg, "rr": rr})
    wanted = range(2, 5) if granularity == "sample" else [5 if kind == "without text" else 0]
    draws = ((step, dropped_text(0, step, 5, 0.5, granularity)) for step in range(100))
    step, dropped = next(draw for draw in draws if draw[1].sum() in wanted)
    ce, rr, expected = reference(model, batch, config, dropped)
    model.zero_grad(set_to_none=True)
    outcome = TrainingStep(model, config, ONE, seed=0)(batch, step)
    row = outcome.row(ONE)
    assert row["loss"] == pytest.approx(ce, rel=1e-6)
    if rr is None:
        assert apply == "cfg" and not dropped.any() and "rr" not in row
    else:
        assert row["rr"] == pytest.approx(rr, rel=1e-5)
        assert -1 <= row["rr_correlation"] <= 1
        assert row["rr_grad_norm"] > 0 and row["ce_grad_norm"] > 0
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, parameter in model.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        error = float((found.double() - expected[name]).abs().max())
        assert error < 1e-5 * scale, name


def test_the_logged_norms_are_those_of_the_two_gradients(
    world: tuple[LanguageModel, Batch],
) -> None:
    """With respect to the last hidden states, each taken by itself."""
    model, batch = world
    shares = {}
    for weight in (1e-9, 7.0):
        options = {"cfg": {"dropout": 1.0}, "rr": {"weight": weight}}
        config = LMConfig.model_validate(BASE | options)
        model.zero_grad(set_to_none=True)
        shares[weight] = TrainingStep(model, config, ONE, 0)(batch, 0).row(ONE)
    small, large = shares[1e-9], shares[7.0]
    assert large["ce_grad_norm"] == pytest.approx(small["ce_grad_norm"], rel=1e-5)
    assert large["rr_grad_norm"] == pytest.approx(7e9 * small["rr_grad_norm"], rel=1e-4)


def test_correlation_of_similarities() -> None:
    rng = np.random.default_rng(0)
    audio, text = rng.standard_normal((7, 5)), rng.standard_normal((7, 9))

    def entries(x: np.ndarray) -> np.ndarray:
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        return (unit @ unit.T)[~np.eye(len(x), dtype=bool)]

    expected = np.corrcoef(entries(audio), entries(text))[0, 1]
    found = similarity_correlation(torch.from_numpy(audio), torch.from_numpy(text))
    assert float(found) == pytest.approx(expected, abs=1e-6)
    assert float(similarity_correlation(torch.from_numpy(text), torch.from_numpy(3 * text))) > 0.999
    assert float(similarity_correlation(torch.ones(4, 3), torch.randn(4, 3))) == 0.0
    assert float(similarity_correlation(torch.randn(2, 3), torch.randn(2, 3))) == 0.0
    assert math.isfinite(float(similarity_correlation(torch.zeros(3, 3), torch.zeros(3, 3))))
