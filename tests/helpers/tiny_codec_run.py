"""A codec small enough to train in seconds: its sizes, and a recipe over a few tones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import yaml

from common.schema import PLAN

SIZES = {"num_filters": 2, "hidden_size": 8, "codebook_size": 16}
DISCRIMINATOR = {"filters": 2, "windows": [512, 128]}


def write_codec_recipe(root: Path, **settings: Any) -> Path:
    """Write `recipe.yaml` and its audio: 4 tones of 1 s and an empty file, 4 held-out tones.

    Args:
        settings: of `codec_training`, in place of those below.
    """
    rng = np.random.default_rng(0)
    for folder in ("train", "held_out"):
        (root / folder).mkdir()
        for index in range(4):
            t = np.arange(16_000) / 16_000
            wave = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 800) * t)
            soundfile.write(root / folder / f"{index}.wav", wave, 16_000)
    (root / "train" / "broken.wav").touch()
    section = {
        "out": f"{root}/codec",
        "audio": [f"{root}/train"],
        "validation": [f"{root}/held_out"],
        "architecture": SIZES,
        "discriminator": DISCRIMINATOR | {"start_step": 2},
        "reading": "memory",
        "segment_s": 0.25,
        "batch_size": 4,
        "steps": 12,
        "learning_rate": 0.003,
        "quantize_from_step": 4,
        "log_every": 1,
        "checkpoint_every": 4,
    }
    recipe = {"name": "test", "run_dir": str(root), "data_dir": f"{root}/data"}
    recipe |= {"sample_rate": 16_000, "text_encoder": {"path": "unused"}}
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | {"codec_training": section | settings}))
    return path


def write_plan(path: Path, *rows: tuple[Path, str] | tuple[Path, str, float, float]) -> str:
    """Write a plan of clips: file, split, and where a piece of a file starts and ends (s)."""
    names = ("audio_uri", "split", "start_s", "end_s")
    filled = [
        dict.fromkeys(PLAN.names) | dict(zip(names, (str(uri), *rest), strict=False))
        for uri, *rest in rows
    ]
    pq.write_table(pa.Table.from_pylist(filled, PLAN), path)
    return str(path)
