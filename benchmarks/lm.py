"""A training step of the language model against Hugging Face's MusicGen decoder.

    python -m benchmarks.lm [--sizes tiny 60M] [--rounds 8] [--compared 10] [--threads 2]

The same work on both sides: embeddings, text projection, decoder, heads, cross-entropy of 4
streams of 2048 codes, backward, clipping, fused AdamW; 4 clips of 250 frames with 20 text states
each.  The same weights, batches and optimizer in one process, with one allocator, taking turns in
every precision; the best round counts.  Before that each side trains on its own from the same
weights, and the losses are compared.  Ours is what `training.train` runs for a batch (without the
average of the weights, which theirs has not either).

Seconds are those of the wall, or with one thread those of the processor, which hold on a machine
that is busy with other work.  The machine's matmul peak is measured between the turns.  What the
loader gives and what a checkpoint costs is reported in units of these steps (`lm_io.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.musicgen import Musicgen, musicgen_optimizer
from common.allocator import keep_freed_memory
from training.config import LMConfig, ModelConfig, OptimConfig, RegularizationConfig
from training.data import Batch
from training.distributed import World
from training.interop.musicgen import to_musicgen
from training.lm.model import Architecture, LanguageModel
from training.lm.patterns import delay
from training.optim import build_optimizer, fill_missing_gradients
from training.preflight import flops_per_clip
from training.step import TrainingStep

SIZES = {"tiny": (256, 4, 4), "60M": (512, 16, 8)}
"""Width, layers, heads."""
PRECISIONS = ("fp32", "medium", "bf16")
CLIPS, FRAMES, TOKENS, TEXT_DIM = 4, 250, 20, 768
ROUNDS = 8
COMPARED = 10
"""Steps over which the losses are compared."""
OPTIM = OptimConfig(lr=3e-4, warmup=0)
_CPU = torch.device("cpu")

Step = Callable[[Batch], Tensor]
"""Trains on a batch and returns the loss."""


def architecture(size: str) -> Architecture:
    width, layers, heads = SIZES[size]
    return Architecture(width, layers, heads, 4, 2048, TEXT_DIM)


def batch(arch: Architecture, seed: int, clips: int = CLIPS, frames: int = FRAMES) -> Batch:
    """Codes that can be learnt (each stream repeats a melody of its clip), and text."""
    generator = torch.Generator().manual_seed(seed)
    shape = (clips, arch.n_codebooks, 1)
    start = torch.randint(0, arch.codebook_size, shape, generator=generator)
    codes = (start + 7 * torch.arange(frames)) % arch.codebook_size
    text = torch.randn(clips, TOKENS, TEXT_DIM, generator=generator)
    return Batch(
        codes,
        torch.full((clips,), frames),
        text,
        torch.ones(clips, TOKENS, dtype=torch.bool),
        tuple(str(i) for i in range(clips)),
    )


@contextmanager
def switched(precision: str) -> Iterator[None]:
    """PyTorch's switch for fp32 products set as the precision has it."""
    torch.set_float32_matmul_precision("medium" if precision == "medium" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def our_step(
    model: LanguageModel, precision: str, device: torch.device = _CPU, clips: int = CLIPS
) -> Step:
    """What `training.train.train` does for a batch."""
    world = World(0, 1, device)
    config = LMConfig.model_validate(
        {
            "model": ModelConfig(),
            "batch_size": clips,
            "precision": precision,
            "optim": OPTIM,
            "cfg": {"dropout": 0.0},
            "rr": RegularizationConfig(weight=0.0),
        }
    )
    objective = TrainingStep(model, config, world, seed=0)
    optimizer = build_optimizer(model, OPTIM)

    def step(batch: Batch) -> Tensor:
        outcome = objective(batch, 0)
        fill_missing_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return outcome.loss

    return step


def their_step(model: Musicgen, arch: Architecture, precision: str) -> Step:
    """The same with their decoder and their loss."""
    optimizer = musicgen_optimizer(model, OPTIM)

    def step(batch: Batch) -> Tensor:
        inputs, targets = delay(batch.codes, batch.lengths, arch.special)
        half = precision == "bf16"
        kind = batch.codes.device.type
        with torch.autocast(kind, dtype=torch.bfloat16) if half else nullcontext():
            loss = model(inputs, targets, batch.text, batch.text_mask).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def run_size(
    size: str, threads: int, rounds: int = ROUNDS, compared: int = COMPARED
) -> dict[str, Any]:
    """One size.

    Returns:
        seconds of the best round by side and precision, ratios, shares of the matmul peak, and the
        largest difference between the losses of `compared` steps.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    clock = time.process_time if threads == 1 else time.perf_counter
    arch = architecture(size)
    ours, theirs = LanguageModel(arch), Musicgen(arch)
    ours.initialize(0)
    weights = {name: weight.clone() for name, weight in ours.state_dict().items()}
    runs = {(side, precision) for side in ("ours", "theirs") for precision in PRECISIONS}
    order = sorted(runs, key=lambda run: (PRECISIONS.index(run[1]), run[0]))

    def make(side: str, precision: str) -> Step:
        """A step whose optimizer is new and whose model stands at the first weights."""
        if side == "ours":
            _restore(ours, weights)
            return our_step(ours, precision)
        _restore(theirs, to_musicgen(weights, arch))
        return their_step(theirs, arch, precision)

    batches = [batch(arch, seed) for seed in range(compared)]
    losses: dict[tuple[str, str], list[float]] = {}
    for side, precision in order:
        step = make(side, precision)
        with switched(precision):
            losses[side, precision] = [float(step(one)) for one in batches]

    steps = {run: make(*run) for run in order}
    times: dict[tuple[str, str], list[float]] = {run: [] for run in order}
    peaks = dict.fromkeys(PRECISIONS, 0.0)
    for turn in range(rounds + 1):
        for run in order if turn % 2 else order[::-1]:
            with switched(run[1]):
                began = clock()
                steps[run](batches[turn % compared])
                seconds = clock() - began
            if turn:  # the first makes optimizer states and warms caches
                times[run].append(seconds)
        for precision in PRECISIONS:
            with switched(precision):
                peaks[precision] = max(peaks[precision], matmul_rate(precision, clock))
    best = {run: min(values) for run, values in times.items()}
    work = CLIPS * flops_per_clip(arch, FRAMES + arch.n_codebooks - 1, TOKENS)

    def apart(one: tuple[str, str], other: tuple[str, str]) -> float:
        pairs = zip(losses[one], losses[other], strict=True)
        return max(abs(a - b) for a, b in pairs)

    return {
        "size": size,
        "threads": threads,
        "rounds": rounds,
        "compared": compared,
        "seconds": {" ".join(run): round(best[run], 4) for run in order},
        "ratios": {
            **{p: round(best["ours", p] / best["theirs", p], 3) for p in PRECISIONS},
            "bf16 to their fp32": round(best["ours", "bf16"] / best["theirs", "fp32"], 3),
        },
        "matmul_gflops": {p: round(rate / 1e9, 1) for p, rate in peaks.items()},
        "share_of_peak": {
            " ".join(run): round(work / best[run] / peaks[run[1]], 3) for run in order
        },
        "loss": {
            "first": round(losses["ours", "fp32"][0], 4),
            "last": round(losses["ours", "fp32"][-1], 4),
            **{f"apart {p}": apart(("ours", p), ("theirs", p)) for p in PRECISIONS},
            "apart bf16 to their fp32": apart(("ours", "bf16"), ("theirs", "fp32")),
        },
    }


def matmul_rate(precision: str, clock: Callable[[], float]) -> float:
    """FLOP/s of the best of a few large square products."""
    size = 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, size, size).to(dtype).unbind(0)
    best = float("inf")
    for _ in range(3):
        began = clock()
        a @ b
        best = min(best, clock() - began)
    return 2.0 * size**3 / best


@torch.no_grad()
def _restore(model: nn.Module, weights: dict[str, Tensor]) -> None:
    model.load_state_dict(weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--compared", type=int, default=COMPARED, help="steps of the losses")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    for size in options.sizes:
        print(
            json.dumps(run_size(size, options.threads, options.rounds, options.compared), indent=2),
            flush=True,
        )


if __name__ == "__main__":
    main()
