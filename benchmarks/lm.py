"""A training step of the language model against Hugging Face's MusicGen decoder.

Both sides do the same work: embeddings, text projection, decoder, heads, cross-entropy of 4 streams
of 2048 codes, backward, clipping, fused AdamW; 4 clips of 250 frames with 20 text states each. They
have the same weights, batches and optimizer in one process and take turns in every precision; the
best round counts. Before that each side trains from the same weights, and the losses are compared.
Our step is what `training.train` runs for a batch, without the average of the weights (Hugging
Face's step has none either).

Seconds are wall-clock time. With `OMP_NUM_THREADS=1` they are processor time, which is reliable
even on a machine that is busy with other work. The machine's matmul peak is measured in the same
turns. `lm_io.py` reports the loader's rate and the cost of a checkpoint in units of these steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any, TypeVar

import torch

from benchmarks.lm_io import checkpoint_seconds, loader_rate
from benchmarks.lm_step import (
    CLIPS,
    FRAMES,
    TOKENS,
    Step,
    architecture,
    batch,
    our_step,
    their_step,
)
from benchmarks.measure import Result, Row, in_turns
from benchmarks.musicgen import Musicgen
from common.allocator import keep_freed_memory
from training.config import LMConfig
from training.interop.musicgen import to_musicgen
from training.lm.model import LanguageModel
from training.preflight import flops_per_clip

T = TypeVar("T")
PRECISIONS = ("fp32", "medium", "bf16")
ROUNDS = 8
COMPARED = 10
"""Steps over which the losses are compared."""
_PRODUCT = 2048
"""Rows and columns of the matrices whose product gives the matmul peak."""


def bench() -> Result:
    """Training steps of the language model, and the loader and checkpoint around them."""
    found: dict[str, Any] = {}
    rows: list[Row] = []
    for size, aim in (("tiny", "at most 0.80"), ("60M", "at most 0.85")):
        one = found[size] = run_size(size)
        ratios, shares, loss = one["ratios"], one["share_of_peak"], one["loss"]
        rows += [
            (f"training step, {size}, fp32 / Hugging Face's", ratios["fp32"], aim),
            ("  both with fp32 matmul precision medium", ratios["medium"], aim),
            ("  both in bf16", ratios["bf16"], aim),
            ("  ours in bf16 / theirs in fp32", ratios["bf16 to their fp32"], "at most 0.33"),
        ]
        for side in ("ours", "theirs"):
            text = ", ".join(f"{shares[f'{side} {p}']:.2f}" for p in PRECISIONS)
            rows.append((f"  share of the matmul peak, {side}: fp32, medium, bf16", text, "-"))
        text = f"{loss['first']:.2f} -> {loss['last']:.2f}"
        rows.append((f"  loss over {COMPARED} steps", text, "-"))
        for key, bound in (("fp32", "1e-4"), ("medium", "1e-4"), ("bf16 to their fp32", "2e-2")):
            apart = f"{loss[f'apart {key}']:.1e}"
            rows.append((f"    largest difference, {key}", apart, f"at most {bound}"))
    consumed = CLIPS * FRAMES * 4 / found["tiny"]["seconds"]["ours bf16"]
    loader, saving = loader_rate(), checkpoint_seconds()
    stall = saving["mean_s"] / (LMConfig().checkpoint_every * found["60M"]["seconds"]["ours bf16"])
    found["loader_tokens_per_s"] = round(loader)
    found["checkpoint"] = saving | {"stall": round(stall, 5)}
    return found, [
        *rows,
        ("loader / tokens that tiny in bf16 takes", f"{loader / consumed:.1f}", "at least 20"),
        ("checkpoint of 60M, share of training time", f"{stall:.2%}", "below 5%"),
    ]


def under(precision: str, action: Callable[[], T]) -> Callable[[], T]:
    """`action` with PyTorch's switch for fp32 products set for a precision."""

    def run() -> T:
        torch.set_float32_matmul_precision("medium" if precision == "medium" else "highest")
        return action()

    return run


def run_size(size: str) -> dict[str, Any]:
    """One size.

    Returns:
        Seconds of the best round by side and precision, ratios, shares of the matmul peak, and the
        largest difference between the losses of `COMPARED` steps.
    """
    keep_freed_memory()
    arch = architecture(size)
    ours, theirs = LanguageModel(arch), Musicgen(arch)
    ours.initialize(0)
    weights = {name: weight.clone() for name, weight in ours.state_dict().items()}
    order = [(side, precision) for precision in PRECISIONS for side in ("ours", "theirs")]

    def make(side: str, precision: str) -> Step:
        """A step with a new optimizer, whose model is back at the first weights."""
        if side == "ours":
            ours.load_state_dict(weights)
            return our_step(ours, precision)
        theirs.load_state_dict(to_musicgen(weights, arch))
        return their_step(theirs, arch, precision)

    batches = [batch(arch, seed) for seed in range(COMPARED)]
    losses: dict[tuple[str, str], list[float]] = {}
    for run in order:
        step = make(*run)
        losses[run] = [float(under(run[1], partial(step, one))()) for one in batches]

    runs: dict[tuple[str, str], Callable[[], object]] = {}
    for run in order:
        following = map(make(*run), cycle(batches))
        runs[run] = under(run[1], partial(next, following))
    for precision in PRECISIONS:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = torch.randn(2, _PRODUCT, _PRODUCT).to(dtype).unbind(0)
        runs["matmul", precision] = under(precision, partial(torch.matmul, a, b))
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = in_turns(runs, ROUNDS, warm_up=1, clock=clock)
    torch.set_float32_matmul_precision("highest")
    peaks = {p: 2.0 * _PRODUCT**3 / best["matmul", p] for p in PRECISIONS}
    work = CLIPS * flops_per_clip(arch, FRAMES + arch.n_codebooks - 1, TOKENS)

    def apart(one: tuple[str, str], other: tuple[str, str]) -> float:
        pairs = zip(losses[one], losses[other], strict=True)
        return max(abs(a - b) for a, b in pairs)

    return {
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
