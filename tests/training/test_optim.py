"""Schedule, weight-decay groups and the average of the weights."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from training.config import OptimConfig
from training.ema import ExponentialMovingAverage
from training.lm.model import Architecture, LanguageModel
from training.optim import build_optimizer, learning_rate


def test_rate_warms_up_linearly_then_follows_a_cosine() -> None:
    rates = [learning_rate(step, 104, peak=2.0, warmup=4, final=0.2) for step in range(105)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[54] == pytest.approx(0.2 + 1.8 / 2)
    assert rates[29] == pytest.approx(0.2 + 1.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[104] == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))


def test_decay_spares_norms_biases_and_embeddings() -> None:
    model = LanguageModel(Architecture(16, 2, 2, 2, 8, 12))
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1))
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    plain = {names[parameter] for parameter in groups[0.0]}
    decayed = {names[parameter] for parameter in groups[0.1]}
    assert plain | decayed == set(names.values())
    assert {"embedding.weight", "norm.weight", "text_projection.bias"} <= plain
    assert {"head.weight", "text_projection.weight", "blocks.1.ff_in.weight"} <= decayed
    assert not any("norm" in name or "bias" in name for name in decayed)


def test_average_is_bias_corrected_and_swaps_in_and_out() -> None:
    model = torch.nn.Linear(3, 2)
    ema = ExponentialMovingAverage(model, 0.9)
    history = []
    for value in (1.0, 5.0, -2.0, 7.0):
        with torch.no_grad():
            model.weight.fill_(value)
        history.append(value)
        ema.update()
        weights = [0.9 ** (len(history) - 1 - i) for i in range(len(history))]
        expected = sum(w * v for w, v in zip(weights, history, strict=True)) / sum(weights)
        assert ema.weights["weight"][0, 0].item() == pytest.approx(expected, abs=1e-5)
    with ema.applied():
        assert model.weight[0, 0].item() == pytest.approx(expected, abs=1e-5)
    assert model.weight[0, 0].item() == 7.0
    assert ema.weights["weight"][0, 0].item() == pytest.approx(expected, abs=1e-5)
