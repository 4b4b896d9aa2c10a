"""The recipes that ship say what the paper says, and both programs can read them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.config import load_recipe
from training.config import LMConfig
from training.lm.model import Architecture, LanguageModel
from training.sampling.config import SamplingConfig

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(("name", "rate", "seconds"), [("sfx", 16000, 10), ("music", 32000, 30)])
def test_paper_recipes_hold_the_papers_numbers(name: str, rate: int, seconds: int) -> None:
    recipe = load_recipe(CONFIGS / f"{name}.yaml")
    lm = recipe.section("lm", LMConfig)
    assert (recipe.sample_rate, lm.segment_s, lm.batch_size, lm.steps) == (
        rate,
        seconds,
        192,
        100_000,
    )
    assert (lm.optim.weight_decay, lm.optim.warmup, lm.optim.clip) == (0.1, 4000, 1.0)
    assert (lm.cfg.dropout, lm.rr.weight, lm.rr.pool, lm.rr.scope) == (0.1, 3.0, "max", "global")
    assert (lm.ema_decay, lm.precision) == (0.99, "auto")
    sampling = recipe.section("sampling", SamplingConfig)
    assert (sampling.cfg, sampling.top_k, sampling.temperature) == (3.0, 250, 1.0)
    size = lm.model
    with torch.device("meta"):
        model = LanguageModel(Architecture(size.d_model, size.n_layers, size.n_heads, 4, 2048, 768))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # "300M" counts the layers' usual 12 d^2 each; cross-attention and tables come on top.
    assert 300e6 < parameters < 430e6


# ablation.yaml is rows over recipes, which its own test loads one by one.
RECIPES = sorted(set(CONFIGS.glob("*.yaml")) - {CONFIGS / "ablation.yaml"})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_sections_that_the_trainer_accepts(path: Path) -> None:
    recipe = load_recipe(path, ["root=/somewhere"])
    recipe.section("lm", LMConfig)
    recipe.section("sampling", SamplingConfig)
