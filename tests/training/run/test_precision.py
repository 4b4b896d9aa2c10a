"""`precision: auto`: settled by what the processor has, then kept; and bf16 where there is none."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.bfloat16 import has_bfloat16
from common.config import load_recipe
from common.errors import AttuneError
from training import preflight as preflight_module
from training.distributed import World
from training.run import precision as module
from training.run.precision import settle
from training.train import train

CPU = torch.device("cpu")
ONE = World(0, 1, CPU)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Make it one with bf16, or one without."""

    def has(bfloat16: bool) -> None:
        for place in (module, preflight_module):
            monkeypatch.setattr(place, "has_bfloat16", lambda device: bfloat16)

    return has


@pytest.mark.skipif(
    platform.machine() != "x86_64"
    or not Path("/proc/cpuinfo").is_file()
    or "ONEDNN_MAX_CPU_ISA" in os.environ,
    reason="reads the flags of an x86 processor, and oneDNN must be free to use all of them",
)
def test_has_bfloat16_reads_the_processors_flags() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert has_bfloat16(CPU) == ("avx512_bf16" in flags or "amx_tile" in flags)


@pytest.mark.parametrize("asked", ["fp32", "medium", "bf16"])
def test_a_named_precision_is_taken(asked: str, processor: Callable[[bool], None]) -> None:
    for bfloat16 in (False, True):
        processor(bfloat16)
        assert settle(asked, "fp32", ONE) == asked


def test_a_run_keeps_its_precision_on_another_processor(
    tiny_root: Path, tmp_path: Path, processor: Callable[[bool], None]
) -> None:
    def run(*overrides: str, fresh: bool = False) -> str:
        # Small: a processor that emulates bf16 takes minutes for what others do in a second.
        small = ("lm.steps=2", "lm.optim.warmup=1", "lm.batch_size=2", "lm.segment_s=0.1")
        overrides = (f"run_dir={tmp_path}", "lm.model.n_layers=1", *small, *overrides)
        out = train(load_recipe(tiny_root / "recipe.yaml", overrides), fresh=fresh)
        return str(json.loads((out / "config.json").read_text())["lm"]["precision"])

    auto = "lm.precision=auto"
    processor(False)
    assert run(auto) == "fp32"
    processor(True)
    assert run(auto) == "fp32"
    with pytest.raises(AttuneError, match=r"with lm.precision = 'fp32', now it is 'bf16'"):
        run("lm.precision=bf16")
    assert run(auto, fresh=True) == "bf16"
    processor(False)
    assert run(auto) == "bf16"


def test_emulated_bf16_is_reported_before_the_start(
    tiny_root: Path, tmp_path: Path, processor: Callable[[bool], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def told(precision: str) -> tuple[dict[str, Any], list[str]]:
        overrides = [f"run_dir={tmp_path}", f"lm.precision={precision}"]
        said: list[tuple[dict[str, Any], list[str]]] = []
        recipe = load_recipe(tiny_root / "recipe.yaml", overrides)
        train(recipe, dry_run=lambda *estimate: said.append(estimate))
        return said[0]

    rates = {"bf16": 1e9, "fp32": 90e9}
    monkeypatch.setattr(preflight_module, "matmul_rate", lambda device, kind: rates[kind])
    processor(False)
    slow, lines = told("bf16")
    assert "90 times as fast: set lm.precision=fp32" in lines[-1]
    assert (slow["precision"], slow["exact_flops"]) == ("bf16", 90e9)
    assert told("auto")[0]["precision"] == "fp32"
    assert "slow" not in str(told("auto")[1])
    rates["fp32"] = 0.9e9
    assert "slow" not in str(told("bf16")[1])  # emulated, yet not slower
    processor(True)
    assert told("auto")[0]["precision"] == "bf16"
    assert told("bf16")[0]["exact_flops"] is None


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="a switch of x86")
def test_a_processor_that_may_not_use_bf16_has_none() -> None:
    """The layouts of bf16 weights end in an error there, so `auto` must not choose them."""
    code = "import torch; from common.bfloat16 import has_bfloat16 as has; "
    code += "print(has(torch.device('cpu')))"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
