"""What `make` runs: the commands of its targets, without running them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`make` that only prints; variables of a `make` that runs the tests stay outside."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        ["make", "-n", "READY=", *arguments],
        cwd=ROOT, env=kept, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def _lines(*arguments: str) -> list[str]:
    """The lines that `make` would run."""
    done = _make(*arguments)
    assert done.returncode == 0, done.stderr
    return [line.rstrip() for line in done.stdout.replace(".venv/bin/", "").splitlines()]


def _refused(*arguments: str) -> str:
    done = _make(*arguments)
    assert done.returncode != 0
    return done.stderr


def test_one_process_or_many() -> None:
    (one,) = _lines("train-sfx", "ARGS=lm.steps=3 --dry-run")
    assert one == "python -m training lm --config configs/sfx.yaml lm.steps=3 --dry-run"
    (many,) = _lines("train-music", "NPROC=8")
    assert many.startswith("torchrun ") and "--nproc-per-node 8" in many
    assert many.endswith("-m training lm --config configs/music.yaml")
    (nodes,) = _lines("train-codec-sfx", "NPROC=8", "NNODES=2", "RDZV=host:29500")
    assert "--nnodes 2 --nproc-per-node 8" in nodes and "--rdzv-endpoint host:29500" in nodes


def test_the_demo_is_everything_in_order() -> None:
    steps = [line.split(" --")[0] for line in _lines("demo")]
    assert steps == [
        "python -m pipeline corpus",
        "python -m pipeline run",
        "python -m training lm",
        "python -m training lm",
        "python -m training report",
    ]
    own = _lines("demo", "CODEC=train")
    assert own[1].startswith("python -m training codec ")
    assert all("codec.path=runs/demo-own-codec/codec" in line for line in own[1:])


def test_a_prompt_arrives_as_it_was_typed(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    prompt = """it's a $dog "bark" $(PY) `date` #1 \\ $$ 100%"""
    for given, env in (([f"PROMPT={prompt}"], {}), ([], {"PROMPT": prompt})):
        done = subprocess.run(
            ["make", "-s", "READY=", f"PY={stub}", "generate", *given],
            cwd=ROOT, env={"PATH": os.environ["PATH"]} | env, capture_output=True, text=True,
            timeout=60, check=True,
        )  # fmt: skip
        arguments = done.stdout.splitlines()
        assert arguments[arguments.index("--prompt") + 1] == prompt


def test_every_recipe_has_studies_of_its_own() -> None:
    """Because runs have the same names in all recipes."""
    names = ["preference", "A=lm", "B=lm-baseline/"]
    for config, study in (
        ([], "demo-lm-or-lm-baseline"),
        (["CONFIG=configs/own.yaml"], "own-lm-or-lm-baseline"),
    ):
        lines = _lines(*names, *config)
        assert f"--out runs/preference/{study} " in "\n".join(lines)
        assert lines[-1] == f"python -m training preference serve runs/preference/{study}"
    assert _lines(*names, "STUDY=mine")[-1].endswith(" serve mine")


def test_a_recipe_is_taken_or_refused() -> None:
    for target in ("preprocess", "train-sfx", "train-music", "generate", "play"):
        (line,) = _lines(target, "CONFIG=configs/own.yaml", "PROMPT=dog")
        assert "--config configs/own.yaml" in line
    (line,) = _lines("evaluate", "CONFIG=c.yaml", "TARGET=lm", "REFERENCE=real")
    assert "evaluate lm --reference real --config c.yaml" in line
    assert "add one for c.yaml there" in _refused("ablation", "CONFIG=c.yaml")
    assert "TARGET=lm-rr REFERENCE=" in _refused("evaluate")
    assert "A=lm-rr B=lm-baseline" in _refused("preference")
