"""A training step of the paper's 300M model on a GPU: tokens per second, MFU, memory.

    python -m benchmarks.lm_gpu [--size 300M] [--frames 500] [--clips N] [--seconds 10]

bf16 mixed precision; embeddings, text projection, decoder, heads, cross-entropy of 4 streams of
2048 codes, backward, clipping, fused AdamW, on clips of 10 s.  For each attention backend, with and
without `torch.compile`: the largest micro-batch that fits, or `--clips`.  Against it Hugging Face's
decoder, trained the same way with the micro-batch that fits it.  The matmul peak is measured
between them, in the same run.  Last, the fastest of ours trains from shards through the loader,
which tells the share of the time that it waits for data.

`--device cpu` runs the same on a CPU, with sizes of its own: that shows that it runs, no more.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.lm import CLIPS, TEXT_DIM, TOKENS, Step, batch, our_step, their_step
from benchmarks.lm_io import write_shards
from benchmarks.musicgen import Musicgen
from common.errors import AttuneError, one_line
from common.shards import ShardDataset
from training.config import SIZES
from training.data import Batch, ClipOrder, Loader
from training.distributed import World, parallelize
from training.lm.attention import Backend
from training.lm.model import Architecture, LanguageModel
from training.preflight import flops_per_clip, matmul_rate
from training.run.log import Meter

FRAMES = 500
WARM_UP = 3
SECONDS = 10.0
_SMALLEST = {"d_model": 64, "n_layers": 2, "n_heads": 2}
MOST = 1024
"""Clips in the largest micro-batch that is tried."""

Make = Callable[[int], Step]
"""A step for micro-batches of so many clips, with a model and an optimizer of its own."""


def run(
    size: str = "300M",
    frames: int = FRAMES,
    clips: int = 0,
    seconds: float = SECONDS,
    device: str = "cuda",
) -> dict[str, Any]:
    """All variants of one size.

    Args:
        clips: of every micro-batch; 0 finds the largest that fits.
        seconds: that each variant is measured for.

    Returns:
        device, the matmul peak in FLOP/s, one entry per variant (clips, tokens_per_s, mfu,
        memory_gib, seconds), the ratio of ours to Hugging Face's tokens/s, and loader_wait.

    Raises:
        AttuneError: there is no such device.
    """
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise AttuneError("no GPU here; --device cpu runs the benchmark on the CPU")
    shape = SIZES.get(size, _SMALLEST)
    arch = Architecture(**shape, n_codebooks=4, codebook_size=2048, text_dim=TEXT_DIM)
    peak = matmul_rate(where, "bf16")
    found: dict[str, Any] = {}
    makes: dict[str, Make] = {}
    for backend in _backends(where):
        try:
            fits = clips or _largest(_ours(arch, where, backend, False), arch, frames, where)
        except Exception as error:
            found[f"ours, {backend}"] = {
                "clips": clips,
                "error": one_line(f"{type(error).__name__}: {error}", 120),
            }
            continue
        for compiled in (False, True):
            title = f"ours, {backend}" + (", compiled" if compiled else "")
            makes[title] = _ours(arch, where, backend, compiled)
            found[title] = _measure(makes[title], arch, fits, frames, seconds, where)
            peak = max(peak, matmul_rate(where, "bf16"))
    theirs = _theirs(arch, where)
    fits = clips or _largest(theirs, arch, frames, where)
    found["Hugging Face"] = _measure(theirs, arch, fits, frames, seconds, where)
    peak = max(peak, matmul_rate(where, "bf16"))
    work = flops_per_clip(arch, frames + arch.n_codebooks - 1, TOKENS)
    for one in found.values():
        if "tokens_per_s" in one:
            rate = one["clips"] * work / one["seconds"]
            one["mfu"] = round(rate / peak, 4)
    measured = {k: v for k, v in found.items() if k.startswith("ours") and "tokens_per_s" in v}
    best = max(measured, key=lambda k: float(measured[k]["tokens_per_s"]))
    make, most = makes[best], measured[best]["clips"]
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "size": size,
        "frames": frames,
        "matmul_peak_tflops": round(peak / 1e12, 2),
        "variants": found,
        "best": best,
        "loader_wait": _loader_wait(make, most, frames, seconds, where),
    }
    if "tokens_per_s" in found["Hugging Face"]:
        rates = measured[best]["tokens_per_s"], found["Hugging Face"]["tokens_per_s"]
        result["tokens_per_s_to_hugging_face"] = round(rates[0] / rates[1], 3)
    return result


def table(found: dict[str, Any]) -> list[str]:
    """`run`'s result for a person."""
    lines = [
        f"{found['device']}, torch {found['torch']}: {found['size']}, {found['frames']} frames, "
        f"bf16, matmul peak {found['matmul_peak_tflops']} TFLOP/s",
        f"{'':<24}{'clips':>7}{'tokens/s':>12}{'MFU':>8}{'GiB':>8}{'s/step':>10}",
    ]
    for name, one in found["variants"].items():
        if "error" in one:
            lines.append(f"{name:<24}  {one['error']}")
            continue
        lines.append(
            f"{name:<24}{one['clips']:>7}{one['tokens_per_s']:>12.0f}{one['mfu']:>8.1%}"
            f"{one['memory_gib']:>8.1f}{one['seconds']:>10.4f}"
        )
    if ratio := found.get("tokens_per_s_to_hugging_face"):
        lines.append(f"tokens/s of {found['best']} to Hugging Face's: {ratio:.2f}")
    lines.append(
        f"waiting for data with {found['best']}: {found['loader_wait']:.2%} (aim: below 2%)"
    )
    return lines


def _ours(arch: Architecture, device: torch.device, backend: Backend, compiled: bool) -> Make:
    def make(clips: int) -> Step:
        # On the device at once, as PyTorch initializes it: speed does not depend on the weights.
        with torch.device(device):
            model = LanguageModel(arch, backend)
        parallelize(model, World(0, 1, device), "bf16", compile=compiled)
        return our_step(model, "bf16", device, clips)

    return make


def _theirs(arch: Architecture, device: torch.device) -> Make:
    def make(clips: int) -> Step:
        with torch.device(device):
            model = Musicgen(arch)
        return their_step(model.to(device), arch, "bf16")

    return make


def _largest(make: Make, arch: Architecture, frames: int, device: torch.device) -> int:
    """The largest micro-batch that a step fits with, to an eighth."""
    if device.type == "cpu":
        return CLIPS
    good, bad = 0, 1
    while bad <= MOST and _fits(make, arch, bad, frames, device):
        good, bad = bad, 2 * bad
    if not good:
        raise AttuneError("not even one clip fits into this GPU's memory")
    if bad > MOST:
        return good
    while bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        if _fits(make, arch, middle, frames, device):
            good = middle
        else:
            bad = middle
    return good


def _backends(device: torch.device) -> tuple[Backend, ...]:
    """Those that can train on a device."""
    if device.type == "cpu":
        return ("matmul", "sdpa")
    return ("sdpa", *(("xformers",) if find_spec("xformers") else ()))


def _fits(make: Make, arch: Architecture, clips: int, frames: int, device: torch.device) -> bool:
    try:
        step, one = make(clips), batch(arch, 0, clips, frames).to(device)
        for _ in range(2):  # the second has optimizer states from the start
            step(one)
        torch.cuda.synchronize(device)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        step = one = None  # type: ignore[assignment]
        _tidy(device)


def _measure(
    make: Make, arch: Architecture, clips: int, frames: int, seconds: float, device: torch.device
) -> dict[str, Any]:
    """Median seconds of a step, tokens/s, most memory; or why there are none."""
    try:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        step = make(clips)
        batches = [batch(arch, seed, clips, frames).to(device) for seed in range(2)]
        times = []
        until = float("inf")
        for turn in range(10_000):
            if turn == WARM_UP:
                until = time.perf_counter() + seconds
            began = time.perf_counter()
            loss = float(step(batches[turn % 2]))  # waits for the device
            _wait(device)
            if turn >= WARM_UP:
                times.append(time.perf_counter() - began)
            if time.perf_counter() > until:
                break
        middle = statistics.median(times)
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        return {
            "clips": clips,
            "steps": len(times),
            "seconds": round(middle, 5),
            "tokens_per_s": round(clips * frames * arch.n_codebooks / middle, 1),
            "memory_gib": round(memory / 2**30, 2),
            "loss": round(loss, 4),
        }
    except torch.OutOfMemoryError:
        return {"clips": clips, "error": f"{clips} clips do not fit"}
    except Exception as error:  # a kernel that cannot be had costs only its variant
        return {"clips": clips, "error": one_line(f"{type(error).__name__}: {error}", 120)}
    finally:
        step = batches = None  # type: ignore[assignment]
        _tidy(device)


def _loader_wait(
    make: Make, clips: int, frames: int, seconds: float, device: torch.device
) -> float:
    """Share of the time that steps wait for batches out of real shards."""
    with tempfile.TemporaryDirectory() as scratch:
        write_shards(Path(scratch), samples=max(200, 4 * clips), frames=frames)
        dataset = ShardDataset.open(scratch)
        loader = Loader(
            dataset,
            ClipOrder(dataset, "train", seed=0),
            segment_s=frames / 50,
            seed=0,
            batch_size=clips,
            pin=device.type == "cuda",
        )
        meter, step = Meter(1.0, device), make(clips)
        until = float("inf")
        batches: Iterator[Batch] = loader.batches(0, 100_000)
        for turn, one in enumerate(meter.waiting(batches)):
            if turn == WARM_UP:
                _wait(device)
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
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", choices=[*SIZES, "smallest"], default="300M")
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--clips", type=int, default=0, help="0: the most that fit")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="per variant")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        found = run(options.size, options.frames, options.clips, options.seconds, options.device)
    except AttuneError as error:
        raise SystemExit(f"error: {error}") from error
    print(json.dumps(found, indent=2) if options.json else "\n".join(table(found)))


if __name__ == "__main__":
    main()
