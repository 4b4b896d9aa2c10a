"""Clips of two models that differ to the ear: tones, one of them higher."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console

from training.evaluation.preference.clips import LOUDNESS
from training.evaluation.preference.prepare import Order, prepare
from training.evaluation.preference.study import Study

RATE = 8000
LOW, HIGH = 300.0, 900.0
"""Hz."""


def a_is_higher(number: int) -> bool:
    """Model A's tone is the higher one for two prompts of three."""
    return number % 3 != 0


def prompt(number: int) -> str:
    return f"tone number {number}"


def write_models(root: Path, prompts: int, seconds: float = 0.4) -> tuple[Path, Path]:
    """Folders `lm-north` (A) and `lm-south` (B) with a clip and a sidecar per prompt, seed 0."""
    rng = np.random.default_rng(0)
    folders = root / "lm-north", root / "lm-south"
    time = np.arange(round(seconds * RATE)) / RATE
    for number in range(prompts):
        for folder, is_a in zip(folders, (True, False), strict=True):
            pitch = HIGH if a_is_higher(number) == is_a else LOW
            level = 0.05 if is_a else 0.4
            wave = level * np.sin(2 * np.pi * pitch * time) + 0.001 * rng.standard_normal(len(time))
            facts = {"prompt": prompt(number), "seed": 0, "step": 12, "cfg": 3.0 if is_a else 2.0}
            write(folder, f"{number:03d}", wave, facts)
    return folders


def write(
    folder: Path, name: str, wave: np.ndarray, facts: dict[str, object], rate: int = RATE
) -> None:
    """A clip with its sidecar."""
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / f"{name}.wav", wave, rate, subtype="FLOAT")
    (folder / f"{name}.json").write_text(json.dumps(facts))


def make_study(root: Path, prompts: int, raters: int, seed: int = 1) -> tuple[Path, Study]:
    """A prepared study of the two models in `root/study`."""
    a, b = write_models(root, prompts)
    order = Order(
        str(a), str(b), None, "test", prompts, raters, seed, clip_seed=0, loudness=LOUDNESS
    )  # fmt: skip
    study, _ = prepare(order, None, root / "study", Console(quiet=True))
    return root / "study", study
