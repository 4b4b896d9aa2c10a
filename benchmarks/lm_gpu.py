"""A training step of the paper's 300M model on a GPU: tokens per second, MFU, memory.

bf16 mixed precision; embeddings, text projection, decoder, heads, cross-entropy of 4 streams of
2048 codes, backward, clipping, fused AdamW, on clips of 10 s. For each attention backend, with and
without `torch.compile`, it measures the largest micro-batch that fits. Hugging Face's decoder is
trained the same way, with the largest micro-batch that fits it. The matmul peak is measured between
them, in the same run. Last, the fastest of our variants trains from shards through the loader,
which gives the share of the time that it waits for data.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.lm_io import open_loader
from benchmarks.lm_step import TEXT_DIM, TOKENS, Step, batch, our_step, their_step
from benchmarks.measure import Result, Row
from benchmarks.musicgen import Musicgen
from common.errors import AttuneError, one_line
from training.config import SIZES
from training.data import Batch
from training.distributed import World, parallelize
from training.lm.attention import Backend
from training.lm.model import Architecture, LanguageModel
from training.preflight import flops_per_clip, matmul_rate
from training.run.log import Meter

WARM_UP = 3
MOST = 1024
"""Clips in the largest micro-batch that is tried."""

Make = Callable[[int], Step]
"""A step for micro-batches of so many clips, with a model and an optimizer of its own."""


def bench() -> Result:
    """A training step of the 300M model on a GPU."""
    if not torch.cuda.is_available():
        return {"measured": False}, [("training step, 300M, GPU", "not measured", "no GPU here")]
    found = run(torch.device("cuda"), SIZES["300M"])
    return found, rows(found)


def rows(found: dict[str, Any]) -> list[Row]:
    """`run`'s result as rows of the table."""
    lines: list[Row] = [
        (f"training step, bf16, matmul peak of {found['device']}, TFLOP/s", found["peak"], "-")
    ]
    for name, one in found["variants"].items():
        lines.append((f"  {name}: MFU", one.get("error") or f"{one['mfu']:.1%}", "at least 50%"))
        if "error" not in one:
            text = f"{one['clips']}, {one['tokens_per_s']:.0f}, {one['memory_gib']:.1f}"
            lines.append(("    clips, tokens/s, GiB", text, "-"))
    return [
        *lines,
        ("  tokens/s of the best / Hugging Face's", found["ratio"], "-"),
        ("  waiting for data", f"{found['loader_wait']:.2%}", "below 2%"),
    ]


def run(
    device: torch.device,
    shape: dict[str, int],
    frames: int = 500,
    clips: int = 0,
    seconds: float = 10.0,
) -> dict[str, Any]:
    """All variants of one size. It also runs on a CPU, which only shows that it runs.

    Args:
        shape: d_model, n_layers, n_heads.
        clips: in every micro-batch; 0 finds the largest micro-batch that fits (GPU only).
        seconds: for each variant.

    Returns:
        device, the matmul peak in TFLOP/s, one entry per variant (clips, tokens_per_s, mfu,
        memory_gib, seconds), the ratio of our tokens/s to Hugging Face's, and loader_wait.
    """
    arch = Architecture(**shape, n_codebooks=4, codebook_size=2048, text_dim=TEXT_DIM)
    makes: dict[str, Make] = {}
    for backend in _backends(device):
        makes[f"ours, {backend}"] = partial(_ours, arch, device, backend, False)
        makes[f"ours, {backend}, compiled"] = partial(_ours, arch, device, backend, True)
    makes["Hugging Face"] = partial(_theirs, arch, device)

    def batch_of(count: int, seed: int) -> Batch:
        return batch(arch, seed, count, frames).to(device)

    found: dict[str, Any] = {}
    peak = matmul_rate(device, "bf16")
    for name, make in makes.items():
        # A compiled variant takes the micro-batch of the same backend without compilation.
        most = clips or found.get(name.removesuffix(", compiled"), {}).get("clips", 0)
        found[name] = _measure(make, batch_of, most, seconds, device)
        peak = max(peak, matmul_rate(device, "bf16"))
    work = flops_per_clip(arch, frames + arch.n_codebooks - 1, TOKENS)
    measured = {name: one for name, one in found.items() if "error" not in one}
    for one in measured.values():
        one["tokens_per_s"] = one["clips"] * frames * arch.n_codebooks / one["seconds"]
        one["mfu"] = one["clips"] * work / one["seconds"] / peak
    theirs = measured.pop("Hugging Face", None)
    if not measured:
        raise AttuneError(f"no variant of ours ran: {found}")
    best = max(measured, key=lambda name: float(measured[name]["tokens_per_s"]))
    rate = measured[best]["tokens_per_s"]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "peak": round(peak / 1e12, 2),
        "variants": found,
        "best": best,
        "ratio": round(rate / theirs["tokens_per_s"], 3) if theirs else None,
        "loader_wait": _loader_wait(makes[best], measured[best]["clips"], frames, seconds, device),
    }


def _backends(device: torch.device) -> tuple[Backend, ...]:
    """Attention backends that can train on a device."""
    if device.type == "cpu":
        return ("matmul", "sdpa")
    return ("sdpa", *(("xformers",) if find_spec("xformers") else ()))


def _ours(
    arch: Architecture, device: torch.device, backend: Backend, compiled: bool, clips: int
) -> Step:
    # On the device at once, as PyTorch initializes it: speed does not depend on the weights.
    with torch.device(device):
        model = LanguageModel(arch, backend)
    parallelize(model, World(0, 1, device), "bf16", compile=compiled)
    return our_step(model, "bf16", device, clips)


def _theirs(arch: Architecture, device: torch.device, clips: int) -> Step:
    with torch.device(device):
        model = Musicgen(arch)
    return their_step(model.to(device), arch, "bf16")


def largest(fits: Callable[[int], bool]) -> int:
    """The largest micro-batch that fits, to an eighth, and at most `MOST`.

    Raises:
        AttuneError: not even one clip fits.
    """
    good, bad = 0, 1
    while bad <= MOST and fits(bad):
        good, bad = bad, 2 * bad
    if not good:
        raise AttuneError("not even one clip fits into this GPU's memory")
    while bad <= MOST and bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def _fits(
    make: Make, batch_of: Callable[[int, int], Batch], device: torch.device, clips: int
) -> bool:
    try:
        step, one = make(clips), batch_of(clips, 0)
        for _ in range(2):  # the second has optimizer states from the start
            step(one)
        _wait(device)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        step = one = None  # type: ignore[assignment]
        _tidy(device)


def _measure(
    make: Make,
    batch_of: Callable[[int, int], Batch],
    clips: int,
    seconds: float,
    device: torch.device,
) -> dict[str, Any]:
    """Clips, median seconds of a step, most memory; or `error`, the reason why there are none."""
    try:
        clips = clips or largest(partial(_fits, make, batch_of, device))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        step, batches = make(clips), [batch_of(clips, seed) for seed in range(2)]
        times: list[float] = []
        while len(times) <= WARM_UP or sum(times[WARM_UP:]) < seconds:
            began = time.perf_counter()
            loss = float(step(batches[len(times) % 2]))
            _wait(device)
            times.append(time.perf_counter() - began)
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        return {
            "clips": clips,
            "steps": len(times) - WARM_UP,
            "seconds": statistics.median(times[WARM_UP:]),
            "memory_gib": round(memory / 2**30, 2),
            "loss": round(loss, 4),
        }
    except Exception as error:  # a missing kernel only costs its own variant
        return {"error": one_line(f"{type(error).__name__}: {error}", 120)}
    finally:
        step = batches = None  # type: ignore[assignment]
        _tidy(device)


def _loader_wait(
    make: Make, clips: int, frames: int, seconds: float, device: torch.device
) -> float:
    """Share of the time that steps wait for batches from shards on disk."""
    with tempfile.TemporaryDirectory() as scratch:
        pin = device.type == "cuda"
        loader = open_loader(scratch, max(200, 4 * clips), frames, clips, pin)
        meter, step = Meter(1.0, device), make(clips)
        until = float("inf")
        for turn, one in enumerate(meter.waiting(loader.batches(0, 100_000))):
            if turn == WARM_UP:
                meter.restart()
                until = time.perf_counter() + seconds
            step(one.to(device))
            _wait(device)
            if time.perf_counter() > until:
                break
        share = meter.row()["loader_wait"]
        del step
        _tidy(device)
        return share


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tidy(device: torch.device) -> None:
    """Free the memory of the last variant."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
