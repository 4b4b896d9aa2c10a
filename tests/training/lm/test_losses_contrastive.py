"""The contrastive loss in place of rr: values, gradients, and what a run keeps of its head."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_lm import make_world

from common.config import load_recipe
from common.errors import AttuneError
from training.checkpoint.load import load_for_inference
from training.lm.losses import contrastive_loss
from training.lm.model import Architecture, ContrastiveHead, LanguageModel
from training.preflight import count_parameters
from training.run.folder import latest_checkpoint
from training.train import CONTRASTIVE_WIDTH, train

ARCH = Architecture(32, 2, 4, 3, 11, 20, contrastive=16)


def test_it_is_the_cross_entropy_of_telling_clips_and_prompts_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    audio, text = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    scale = 5.0
    terms = []
    for one, other in ((audio, text), (text, audio)):
        for b in range(4):
            cosines = [float(F.cosine_similarity(one[b], other[c], dim=0)) for c in range(4)]
            weights = [math.exp(scale * cosine) for cosine in cosines]
            terms.append(-math.log(weights[b] / sum(weights)))
    found = contrastive_loss(audio, text, torch.tensor([scale]))
    assert float(found) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_extremes() -> None:
    eye = torch.eye(5)
    assert float(contrastive_loss(eye, eye, torch.tensor([100.0]))) == pytest.approx(0, abs=1e-6)
    same = torch.ones(5, 3)
    assert float(contrastive_loss(same, same, torch.tensor([9.0]))) == pytest.approx(math.log(5))
    zeros = torch.zeros(5, 3, requires_grad=True)
    contrastive_loss(zeros, same, torch.tensor([9.0])).backward()
    assert zeros.grad is not None and bool(zeros.grad.isfinite().all())
    assert float(contrastive_loss(same[:1], same[:1], torch.tensor([9.0]))) == 0


def test_the_head_begins_as_claps_and_leaves_the_rest_as_it_is() -> None:
    model, plain = LanguageModel(ARCH), LanguageModel(Architecture(32, 2, 4, 3, 11, 20))
    model.initialize(7)
    plain.initialize(7)
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert isinstance(model.contrastive, ContrastiveHead)
    _, _, scale = model.contrastive(torch.randn(2, 32), torch.randn(2, 20))
    assert scale.item() == pytest.approx(1 / 0.07, rel=1e-6)
    with torch.no_grad():
        model.contrastive.log_scale.fill_(9.0)
    model.keep_bounds()
    _, _, scale = model.contrastive(torch.randn(2, 32), torch.randn(2, 20))
    assert scale.item() == pytest.approx(100, rel=1e-6)
    scale.backward()
    assert model.contrastive.log_scale.grad is not None
    assert float(model.contrastive.log_scale.grad) > 99  # not stuck there
    assert count_parameters(ARCH) == sum(p.numel() for p in model.parameters())


OPTIONS = ["lm.rr.loss=contrastive", "lm.cfg.dropout=0.5"]


def test_a_run_with_it(tmp_path: Path) -> None:
    """Its log, its checkpoint, and runs that start from its weights."""
    make_world(tmp_path)
    path = tmp_path / "recipe.yaml"
    train(load_recipe(path, [*OPTIONS, "lm.run=whole"]))
    rows = [json.loads(r) for r in (tmp_path / "run/whole/log.jsonl").read_text().splitlines()]
    watched = [row for row in rows if "contrastive" in row]
    assert watched and all("rr" in row and row["rr_grad_norm"] > 0 for row in watched)
    assert any(row.get("dropped") == 0 and "contrastive" not in row for row in rows)
    board = EventAccumulator(str(tmp_path / "run/whole/tb")).Reload()
    shown = [event.step for event in board.Scalars("contrastive")]
    assert shown == [row["step"] for row in watched]
    checkpoint = latest_checkpoint(tmp_path / "run/whole")
    assert checkpoint is not None
    model, _ = load_for_inference(checkpoint)
    assert model.arch.contrastive == CONTRASTIVE_WIDTH

    begun = ["lm.run=plain", "lm.steps=1", "lm.optim.warmup=0"]
    train(load_recipe(path, [*begun, f"lm.init_from={tmp_path}/run/whole"]))
    back = ["lm.run=back", "lm.steps=1", "lm.optim.warmup=0", *OPTIONS]
    train(load_recipe(path, [*back, f"lm.init_from={tmp_path}/run/plain"]))


def test_projected_text_is_refused(tmp_path: Path) -> None:
    make_world(tmp_path)
    recipe = load_recipe(tmp_path / "recipe.yaml", [*OPTIONS, "lm.rr.text=projected"])
    with pytest.raises(AttuneError, match=r"rr\.loss=contrastive has its own map"):
        train(recipe)
