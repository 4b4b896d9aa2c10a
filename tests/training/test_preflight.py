"""The estimated needs of a run, against what it takes (memory: `test_step_micro_batches.py`)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from common.config import load_recipe
from common.errors import AttuneError
from training import preflight as module
from training.config import SIZES, LMConfig, ModelConfig
from training.distributed import World
from training.lm.model import Architecture, LanguageModel
from training.preflight import count_parameters, flops_per_clip, memory
from training.train import train

ARCH = Architecture(d_model=64, n_layers=3, n_heads=4, n_codebooks=4, codebook_size=50, text_dim=48)
CPU = World(0, 1, torch.device("cpu"))


def test_parameters_are_those_of_the_model() -> None:
    model = LanguageModel(ARCH)
    assert count_parameters(ARCH) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("size", "millions"), [("60M", 76), ("300M", 420), ("3.3B", 3240)])
def test_named_sizes_are_musicgens(size: str, millions: int) -> None:
    """Self-attention and feed-forward of 300M are 24 x 12 x 1024^2 = 302M; cross-attention, tables
    and heads come on top."""
    config = ModelConfig(size=size)
    sizes = {key: getattr(config, key) for key in ("d_model", "n_layers", "n_heads")}
    assert sizes == SIZES[size]
    arch = Architecture(**sizes, n_codebooks=4, codebook_size=2048, text_dim=768)
    assert count_parameters(arch) / 1e6 == pytest.approx(millions, rel=0.03)
    assert ModelConfig(size=size, n_layers=2).n_layers == 2


def test_flops_are_those_that_are_counted() -> None:
    # In double precision, whose products the counter knows all.
    model = LanguageModel(ARCH, backend="matmul").double()
    steps, tokens = 40, 7
    codes = torch.randint(0, 50, (2, 4, steps))
    text, mask = torch.randn(2, tokens, 48).double(), torch.ones(2, tokens, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        logits, _ = model(codes, text, mask)
        logits.sum().backward()
    # Explicit attention multiplies the whole square; the estimate counts half of it.
    square = 3 * 2 * 2 * 64 * 3 * (steps - steps // 2) * steps
    assert counter.get_total_flops() / 2 == pytest.approx(
        flops_per_clip(ARCH, steps, tokens) + square, rel=0.02
    )


@pytest.mark.parametrize(("sharding", "processes", "group"), [("full", 4, 4), ("hybrid", 8, 2)])
def test_fsdp_shares_the_states(
    sharding: str, processes: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    config, world = LMConfig(batch_size=16, sharding=sharding), World(0, processes, CPU.device)
    one, shared = (memory(ARCH, config, w, 2, 50)["weights and optimizer"] for w in (CPU, world))
    assert shared == one // group


def test_a_run_that_cannot_fit_is_refused_before_anything_is_made(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_bytes", lambda world: 2**20)
    recipe = load_recipe(tiny_root / "recipe.yaml", [f"run_dir={tmp_path}"])
    with pytest.raises(AttuneError, match=r"needs about .* GiB and can have 0\.00 GiB"):
        train(recipe)
    assert not (tmp_path / "lm").exists()


def test_a_dry_run_reports_and_makes_nothing(tiny_root: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_root / "recipe.yaml", [f"run_dir={tmp_path}"])
    said: list[tuple[dict[str, Any], list[str]]] = []
    train(recipe, dry_run=lambda *estimate: said.append(estimate))
    assert not (tmp_path / "lm").exists()
    ((estimate, lines),) = said
    assert estimate["steps_per_epoch"] == 20 / 4
    assert estimate["tokens_per_step"] == 4 * 20 * 4
    assert json.loads(json.dumps(estimate))["days"] > 0
    assert any("20 clips" in line for line in lines)


def test_a_machine_that_is_busy_has_a_rate_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """One product may take longer than the time for all of them."""
    clock = itertools.count()
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    assert module.matmul_rate(torch.device("cpu"), "fp32") == 2 * 1024**3
