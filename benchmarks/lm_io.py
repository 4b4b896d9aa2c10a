"""Around a training step: batches are read before it, checkpoints are saved after it (see `lm.py`).

The loader reads shards with random codes and text states from the local disk, on its own thread, in
the order of training. The checkpoint is what training writes for the 60M model, with its optimizer
and the average of its weights.
"""

from __future__ import annotations

import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.lm_step import CLIPS, FRAMES, OPTIM, TEXT_DIM, TOKENS, architecture
from benchmarks.measure import seconds
from common.schema import MANIFEST
from common.shards import ShardDataset
from pipeline.datadir.commit import EncodedClip, build_tar
from training.checkpoint.save import Checkpointer, ModelState
from training.data import ClipOrder, Loader
from training.distributed import World
from training.ema import ExponentialMovingAverage
from training.lm.model import LanguageModel
from training.optim import build_optimizer

SAMPLES, PER_SHARD, PROMPTS = 2000, 200, 3
ROUNDS = 3


def write_shards(folder: Path, samples: int, frames: int) -> None:
    """Shards as the pipeline writes them: 4 x `frames` codes and `PROMPTS` prompts per clip."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    (folder / "shards").mkdir(parents=True)
    for shard, first in enumerate(range(0, samples, PER_SHARD)):
        key = f"shards/{shard:06d}-000000000000.tar"
        clips = []
        for number in range(first, min(samples, first + PER_SHARD)):
            record = {
                "sample_id": f"{number:032x}",
                "dataset": "random",
                "split": "train",
                "prompts": [f"description {i} of sound {number}" for i in range(PROMPTS)],
                "prompt_tokens": [TOKENS] * PROMPTS,
            }
            codes = rng.integers(0, 2048, (4, frames)).astype(np.int16)
            text = rng.standard_normal((PROMPTS * TOKENS, TEXT_DIM)).astype(np.float16)
            clips.append(EncodedClip(f"{number:032x}", codes, text, record))
        spans = build_tar(folder / key, clips)
        for position, (clip, (_, offset, length)) in enumerate(zip(clips, spans, strict=True)):
            place = {"shard": shard, "position": position, "shard_key": key}
            span = {"offset": offset, "length": length, "frames": frames}
            rows.append(clip.record | place | span)
    pq.write_table(pa.Table.from_pylist(rows, MANIFEST), folder / "manifest.parquet")
    summary = {"n_samples": samples, "frame_rate": 50, "codebook_size": 2048}
    (folder / "summary.json").write_text(json.dumps(summary))


def open_loader(folder: str, samples: int, frames: int, clips: int, pin: bool = False) -> Loader:
    """Write shards and open them as training does, in batches of `clips` clips."""
    write_shards(Path(folder), samples, frames)
    dataset = ShardDataset.open(folder)
    order = ClipOrder(dataset, "train", seed=0)
    return Loader(dataset, order, segment_s=frames / 50, seed=0, batch_size=clips, pin=pin)


def loader_rate() -> float:
    """Tokens (codes) per second of the loader, best of `ROUNDS` epochs."""
    with tempfile.TemporaryDirectory() as scratch:
        loader = open_loader(scratch, SAMPLES, FRAMES, CLIPS)
        steps = SAMPLES // CLIPS
        best = float("inf")
        for epoch in range(ROUNDS):
            began = time.perf_counter()
            batches = loader.batches(epoch * steps, (epoch + 1) * steps)
            tokens = sum(one.codes.numel() for one in batches)
            best = min(best, (time.perf_counter() - began) / tokens)
    return 1 / best


def checkpoint_seconds() -> dict[str, float]:
    """Seconds for which a checkpoint of the 60M model stops training, mean and worst of `ROUNDS`;
    megabytes."""
    arch = architecture("60M")
    model = LanguageModel(arch)
    model.initialize(0)
    optimizer = build_optimizer(model, OPTIM)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes the moments
    ema = ExponentialMovingAverage(model, 0.99)
    with tempfile.TemporaryDirectory() as scratch:
        run, world = Path(scratch), World(0, 1, torch.device("cpu"))
        checkpointer = Checkpointer(run, world, ModelState(model, optimizer, ema), keep=2)
        times = [seconds(partial(checkpointer.save, n, {})) for n in range(1, ROUNDS + 1)]
        written = sum(p.stat().st_size for p in run.glob(f"checkpoints/*{ROUNDS}/**/*"))
    return {
        "mean_s": round(sum(times) / len(times), 3),
        "worst_s": round(max(times), 3),
        "megabytes": round(written / 1e6, 1),
    }
