"""What a run is said to take, against what it takes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
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


_STEP = """
import re, sys, torch
from training.lm.losses import stream_losses
from training.lm.model import Architecture, LanguageModel
from training.optim import build_optimizer
from training.config import OptimConfig
torch.set_num_threads(1)
arch = Architecture(d_model=256, n_layers=6, n_heads=4, n_codebooks=4, codebook_size=1024,
                    text_dim=64)
half = sys.argv[1] == "bf16"

def peak():
    # ru_maxrss would begin with the peak of the process that started this one.
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

def step(clips):
    codes = torch.randint(0, 1024, (clips, 4, 203))
    text, mask = torch.randn(clips, 8, 64), torch.ones(clips, 8, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits, hidden = model(codes, text, mask)
    sums, counts = stream_losses(logits, codes)
    (sums / counts).mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

model = LanguageModel(arch)
model.initialize(0)
optimizer = build_optimizer(model, OptimConfig())
step(1)  # imports, kernels, moments
before = peak()
step(24)
print(peak() - before)
"""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_of_a_step_is_about_that(precision: str) -> None:
    """Within a third, the growth of a process from a step of one clip to a step of 24."""
    found = subprocess.run(
        [sys.executable, "-c", _STEP, precision],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    arch = Architecture(
        d_model=256, n_layers=6, n_heads=4, n_codebooks=4, codebook_size=1024, text_dim=64
    )
    config = LMConfig(precision=precision, batch_size=24)
    one, many = (memory(arch, config, CPU, clips, 203) for clips in (1, 24))
    estimate = sum(many.values()) - sum(one.values())
    assert int(found.stdout) == pytest.approx(estimate, rel=1 / 3)


def test_fsdp_shares_the_states() -> None:
    config = LMConfig(batch_size=16)
    alone = memory(ARCH, config, CPU, 4, 50)["weights and optimizer"]
    shared = memory(ARCH, config, World(0, 4, torch.device("cpu")), 4, 50)
    assert shared["weights and optimizer"] == alone // 4


def test_what_cannot_fit_is_refused_before_anything_is_made(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_bytes", lambda world: 2**20)
    recipe = load_recipe(tiny_root / "recipe.yaml", [f"run_dir={tmp_path}"])
    with pytest.raises(AttuneError, match=r"needs about .* GiB and can have 0\.00 GiB"):
        train(recipe)
    assert not (tmp_path / "lm").exists()


def test_a_dry_run_tells_and_makes_nothing(tiny_root: Path, tmp_path: Path) -> None:
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
    """One product may take longer than all of them are meant to."""
    clock = itertools.count()
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    assert module.matmul_rate(torch.device("cpu"), "fp32") == 2 * 1024**3
