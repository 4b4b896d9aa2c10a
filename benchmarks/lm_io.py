"""What surrounds a training step: reading batches before it, and saving checkpoints after it.

    python -m benchmarks.lm_io

The loader reads real shards (random codes and text states) on the local disk, on its own thread, in
the order of training; the checkpoint is the one that training writes, of the 60M model with its
optimizer and average.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.lm import CLIPS, FRAMES, OPTIM, TEXT_DIM, TOKENS, architecture
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


def write_shards(folder: Path, samples: int = SAMPLES, frames: int = FRAMES) -> None:
    """Shards as the pipeline writes them: 4 x `frames` codes and `PROMPTS` prompts a clip."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    (folder / "shards").mkdir(parents=True)
    for shard in range(-(-samples // PER_SHARD)):
        numbers = range(shard * PER_SHARD, min(samples, (shard + 1) * PER_SHARD))
        key = f"shards/{shard:06d}-000000000000.tar"
        clips = []
        for number in numbers:
            record = {
                "sample_id": f"{number:032x}",
                "dataset": "random",
                "split": "train",
                "prompts": [f"sound {number} told in way {i}" for i in range(PROMPTS)],
                "prompt_tokens": [TOKENS] * PROMPTS,
            }
            clips.append(
                EncodedClip(
                    f"{number:032x}",
                    rng.integers(0, 2048, (4, frames)).astype(np.int16),
                    rng.standard_normal((PROMPTS * TOKENS, TEXT_DIM)).astype(np.float16),
                    record,
                )
            )
        spans = build_tar(folder / key, clips)
        for position, (clip, (_, offset, length)) in enumerate(zip(clips, spans, strict=True)):
            place = {"shard": shard, "position": position, "shard_key": key}
            span = {"offset": offset, "length": length, "frames": frames}
            rows.append(clip.record | place | span)
    table = pa.Table.from_pylist(
        [{name: row.get(name) for name in MANIFEST.names} for row in rows], schema=MANIFEST
    )
    pq.write_table(table, folder / "manifest.parquet")
    summary = {"n_samples": samples, "frame_rate": 50, "codebook_size": 2048}
    (folder / "summary.json").write_text(json.dumps(summary))


def loader_rate() -> float:
    """Tokens (codes) per second of the loader, best of `ROUNDS` epochs."""
    with tempfile.TemporaryDirectory() as scratch:
        write_shards(Path(scratch))
        dataset = ShardDataset.open(scratch)
        order = ClipOrder(dataset, "train", seed=0)
        loader = Loader(dataset, order, segment_s=10.0, seed=0, batch_size=CLIPS)
        steps = SAMPLES // CLIPS
        best = float("inf")
        for epoch in range(ROUNDS):
            began = time.perf_counter()
            tokens = 0
            for one in loader.batches(epoch * steps, (epoch + 1) * steps):
                tokens += one.codes.numel()
            best = min(best, (time.perf_counter() - began) / tokens)
    return 1 / best


def checkpoint_seconds(size: str = "60M") -> dict[str, float]:
    """Seconds for which a checkpoint stops training, mean and worst of `ROUNDS`; megabytes."""
    arch = architecture(size)
    model = LanguageModel(arch)
    model.initialize(0)
    optimizer = build_optimizer(model, OPTIM)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes the moments
    ema = ExponentialMovingAverage(model, 0.99)
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch)
        world = World(0, 1, torch.device("cpu"))
        checkpointer = Checkpointer(run, world, ModelState(model, optimizer, ema), keep=2)
        times = []
        for step in range(1, ROUNDS + 1):
            began = time.perf_counter()
            checkpointer.save(step, {})
            times.append(time.perf_counter() - began)
        written = sum(p.stat().st_size for p in run.glob(f"checkpoints/*{ROUNDS}/**/*"))
    return {
        "mean_s": round(sum(times) / len(times), 3),
        "worst_s": round(max(times), 3),
        "megabytes": round(written / 1e6, 1),
    }


def main() -> None:
    print(json.dumps({"tokens_per_s": round(loader_rate()), "checkpoint": checkpoint_seconds()}))


if __name__ == "__main__":
    main()
