"""One cell of the ablation: train a row with a seed, generate clips, measure them.

The result is written to `cells/NAME.json` in the recipe's folder, next to the training log.  A cell
with a result for the same settings does not run again.  An interrupted cell resumes from its
checkpoint and its clips.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.console import Console

from common.config import load_recipe
from common.errors import AttuneError
from common.shards import ShardDataset
from training.config import LMConfig
from training.evaluation.agreement.clips import fit_judge, labelled_clips, read_curve
from training.evaluation.agreement.judge import SoundJudge
from training.evaluation.clip_sets import ClipSet, SetClip, pair, read_folder, read_shards, shuffled
from training.evaluation.generated_set import generate_set
from training.evaluation.metrics.backbones.backbone import file_hash
from training.evaluation.metrics.cache import EmbeddingCache, default_cache
from training.evaluation.metrics.frechet import Gaussian, frechet_distance
from training.evaluation.metrics.measure import METHOD, Backbones, Measured, Measurer
from training.evaluation.metrics.weights import SOURCES
from training.run.files import write_atomically
from training.sampling.config import DRAWS, SamplingConfig
from training.sampling.sampler import Sampler

Hashes = tuple[tuple[str, str], ...]
"""(name, hash) of each file of weights."""

FRAMING = "google"
"""How audio is cut into VGGish windows: as in the figures that the paper quotes."""
SEEDS_APART = 1_000_000
"""Distance between the seeds of a prompt's clips; further prompts of a clip use the next seeds."""


@dataclass(frozen=True)
class Cell:
    """What is trained and how it is measured; pickled for the process or node that runs it."""

    recipe: str
    overrides: tuple[str, ...]
    row: str
    seed: int
    split: str
    datasets: tuple[str, ...]
    clips_per_prompt: int
    weights: str
    """Folder of the backbones' weights."""
    device: str = "cpu"
    processes: int = 1
    """Number of training processes."""

    @property
    def name(self) -> str:
        """Name of the cell and of its training run."""
        return f"{self.row}-seed{self.seed}"

    @property
    def all_overrides(self) -> list[str]:
        return [*self.overrides, f"lm.run={self.name}", f"seed={self.seed}"]

    def key(self) -> str:
        """Hash of everything that decides the metrics."""
        recipe = load_recipe(self.recipe, self.all_overrides)
        decides = {
            "lm": recipe.section("lm", LMConfig).model_dump(mode="json"),
            "sampling": recipe.values("sampling", SamplingConfig),
            "draws": DRAWS,
            "seed": recipe.seed,
            "plan": ShardDataset.open(recipe.data_dir).summary.get("plan_hash"),
            "split": self.split,
            "datasets": self.datasets,
            "clips_per_prompt": self.clips_per_prompt,
            "backbones": _backbone_hashes(self.weights),
            "framing": FRAMING,
            "method": METHOD,
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def read_cell(cell: Cell) -> dict[str, Any] | None:
    """The result of a cell, if it was made with these settings."""
    run_dir = load_recipe(cell.recipe, cell.all_overrides).run_dir
    try:
        found = json.loads(Path(run_dir, "cells", f"{cell.name}.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("key") == cell.key() else None


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train, generate and measure; resumes if it was interrupted.

    Returns:
        The content of `cells/NAME.json`: `metrics` by name, and how they were measured.

    Raises:
        AttuneError: training failed (the message names the log), or too few clips to measure.
    """
    if (found := read_cell(cell)) is not None:
        return found
    recipe = load_recipe(cell.recipe, cell.all_overrides)
    folder = Path(recipe.run_dir) / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    key = cell.key()  # before training: weights that are downloaded meanwhile are not in this key
    began = time.monotonic()
    _train(cell, folder / f"{cell.name}.log")
    trained = time.monotonic()
    run = Path(recipe.run_dir) / cell.name
    reference = _reference(recipe.data_dir, cell.split, cell.datasets)
    measurer, gaussians, missing = _measurer(
        cell.weights, _backbone_hashes(cell.weights),
        recipe.codec.path, recipe.data_dir, cell.split, cell.datasets, cell.device,
    )  # fmt: skip
    quiet = Console(file=io.StringIO())
    prompts = [clip for clip in shuffled(reference.clips) if clip.prompts]
    sampler = Sampler.load(recipe, run, cell.device)
    sampling = recipe.section("sampling", SamplingConfig)
    clips: list[SetClip] = []
    for i in range(cell.clips_per_prompt):
        made = generate_set(
            sampler, sampling, prompts, run.parent / "evaluated" / cell.name, quiet,
            seed=i * SEEDS_APART,
        )  # fmt: skip
        # The clips of a prompt have the same file name in every folder.
        clips += [replace(c, name=f"{i}/{c.name}") for c in read_folder(made).clips]
    measured = measurer.generated(clips, pair(clips, reference.clips), gaussians)
    metrics: dict[str, float] = {
        metric: frechet_distance(groups.total(), gaussians[metric])
        for metric, groups in measured.moments.items()
    }
    means = {score: float(np.mean(list(v.values()))) for score, v in measured.scores.items()}
    metrics = metrics | means | metrics  # fd_mel is in both: the distance of the set counts
    agreement = None
    try:
        agreement = _agreement(cell.split, measured, recipe.data_dir, recipe.sample_rate)
        metrics["agreement"] = agreement["rate"]
    except (AttuneError, ValueError) as error:
        missing = missing | {"agreement": str(error)}
    document = {
        "key": key,
        "row": cell.row,
        "seed": cell.seed,
        "metrics": metrics,
        "missing": missing,
        "cards": measurer.backbones.cards(),
        "clips": len(measured.clips),
        "reference": reference.source,
        "reference_clips": len(reference.clips),
        "agreement": agreement,
        "training": _training(run),
        "train_s": round(trained - began, 1),
        "measure_s": round(time.monotonic() - trained, 1),
    }
    write_atomically(folder / f"{cell.name}.json", json.dumps(document, indent=2) + "\n")
    return document


def _train(cell: Cell, log: Path) -> None:
    launcher = [sys.executable]
    if cell.processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += [f"--nproc-per-node={cell.processes}"]
    command = [*launcher, "-m", "training", "lm", "--config", cell.recipe, *cell.all_overrides]
    with log.open("a") as file:
        status = subprocess.run(
            command, stdout=file, stderr=file, check=False, env=_seeing(cell.device)
        ).returncode
    if status:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1] if lines else "no output"
        raise AttuneError(f"{cell.name}: training ended with status {status}: {last} (log: {log})")


def _seeing(device: str) -> dict[str, str]:
    """Environment variables that show only this device to a training process."""
    if device == "cuda":
        return dict(os.environ)
    chosen = device.partition(":")[2]  # empty for the CPU
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if chosen and seen[0] and int(chosen) < len(seen):
        chosen = seen[int(chosen)]
    return os.environ | {"CUDA_VISIBLE_DEVICES": chosen}


def _backbone_hashes(weights: str) -> Hashes:
    files = []
    for source in SOURCES:
        path = Path(weights) / source.file
        files += sorted(p for p in path.glob("*") if p.is_file()) if path.is_dir() else [path]
    there = [path for path in files if path.is_file()]
    return tuple((path.name, _hash_of(path, path.stat().st_mtime_ns)) for path in there)


@lru_cache
def _hash_of(path: Path, modified: int) -> str:
    return file_hash(path)


@lru_cache(maxsize=2)
def _reference(data_dir: str, split: str, datasets: tuple[str, ...]) -> ClipSet:
    return read_shards(data_dir, split, datasets)


@lru_cache(maxsize=2)
def _measurer(
    weights: str, hashes: Hashes, codec: str, data_dir: str, split: str,
    datasets: tuple[str, ...], device: str,
) -> tuple[Measurer, dict[str, Gaussian], dict[str, str]]:  # fmt: skip
    del hashes  # only part of the cache's key: other weights need another measurer
    backbones = Backbones.load(Path(weights), codec, FRAMING, device)
    measurer = Measurer(backbones, EmbeddingCache(default_cache()))
    reference = _reference(data_dir, split, datasets)
    real = measurer.reference(reference.clips)
    real.check(reference.source)
    return measurer, real.gaussians(), backbones.missing


@lru_cache(maxsize=2)
def _judge(data_dir: str, sample_rate: int) -> SoundJudge:
    train = labelled_clips(ShardDataset.open(data_dir), sample_rate)
    return fit_judge(train, sample_rate)


def _agreement(split: str, measured: Measured, data_dir: str, sample_rate: int) -> dict[str, Any]:
    """Prompt agreement of the clips whose prompt is a single tag.

    Raises:
        AttuneError: the shards have too few clips for a judge, or none of these clips has a class.
    """
    judge = _judge(data_dir, sample_rate)
    manifest = ShardDataset.open(data_dir).manifest.select(["sample_id", "tags", "captions"])
    labels = {
        row["sample_id"]: row["tags"][0]
        for row in manifest.to_pylist()
        if len(row["tags"] or ()) == 1 and not row["captions"]
    }
    waves, wanted = [], []
    for clip in measured.clips:
        label = labels.get(str(clip.facts.get("reference")))
        if label in judge.classes:
            waves.append(soundfile.read(clip.uri, dtype="float32")[0])
            wanted.append(label)
    if not waves:
        raise AttuneError(f"no prompt of split {split} is one of the judge's classes")
    found = judge.agreement(waves, wanted)
    counts = {"n": found.n, "hits": found.hits, "rate": found.rate, "chance": found.chance}
    return counts | {"judge_accuracy": judge.accuracy, "classes": len(judge.classes)}


def _training(run: Path) -> dict[str, float | None]:
    """Means of the last 20 logged values; the loss only of steps with text."""
    rows, found = read_curve(run), {}
    for key in ("loss", "rr", "rr_correlation"):
        values = [r[key] for r in rows if key in r and (key != "loss" or r["dropped"] == 0)][-20:]
        found[key] = float(np.mean(values)) if values else None
    return found
