"""Estimate of what a run will take, before it starts: parameters, memory, epochs, days.

The estimates are computed from shapes.  Only the machine's matmul rate is measured, in a third of a
second, for the estimate of days.
"""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import torch

from common.bfloat16 import has_bfloat16
from common.errors import AttuneError
from training.config import LMConfig
from training.distributed import World, shard_group
from training.lm.attention import BLOCK
from training.lm.model import Architecture

EFFICIENCY = 0.4
"""Assumed speed of training as a share of the matmul rate, for the estimate of days."""


def preflight(
    arch: Architecture, config: LMConfig, world: World, clips: int, frames: int, text_tokens: int
) -> dict[str, Any]:
    """Estimate a run.

    Args:
        clips: clips per epoch.
        frames: frames of the longest clip.
        text_tokens: greatest number of tokens in a prompt.

    Returns:
        parameters; clips (per epoch); batch_size; steps; steps_per_epoch; processes; precision;
        tokens_per_step: predicted codes if all clips have the full length;
        flops_per_step: forward and backward pass, over all processes, without `forward_again`;
        forward_again: as the function returns;
        memory_bytes: as `memory` returns;
        available_bytes: as the function returns;
        matmul_flops: measured matmul rate of one process, FLOP/s;
        exact_flops: the same in fp32 if the precision is bf16 and the processor emulates it;
        days: at `EFFICIENCY` of the measured rate on every process.

    Raises:
        AttuneError: `lm.sharding` does not fit the number of processes.
    """
    steps = frames + arch.n_codebooks - 1
    emulated = config.precision == "bf16" and not has_bfloat16(world.device)
    flops = config.batch_size * flops_per_clip(arch, steps, text_tokens)
    again = forward_again(config, world)
    rate = matmul_rate(world.device, config.precision)
    work = config.steps * flops * (1 + again / 3)  # a backward pass takes two forward passes
    return {
        "parameters": count_parameters(arch),
        "clips": clips,
        "batch_size": config.batch_size,
        "steps": config.steps,
        "tokens_per_step": config.batch_size * frames * arch.n_codebooks,
        "flops_per_step": flops,
        "forward_again": again,
        "memory_bytes": memory(arch, config, world, config.batch_size // world.size, steps),
        "available_bytes": available_bytes(world),
        "matmul_flops": rate,
        "processes": world.size,
        "precision": config.precision,
        "exact_flops": matmul_rate(world.device, "fp32") if emulated else None,
        "steps_per_epoch": clips / config.batch_size,
        "days": work / (rate * world.size * EFFICIENCY) / 86400,
    }


def check_memory(needed: dict[str, int], available: int | None) -> None:
    """Refuse a run that does not fit into memory.

    Raises:
        AttuneError: names the largest part, and the keys to change.
    """
    if available is not None and sum(needed.values()) > available:
        largest = max(needed, key=needed.__getitem__)
        raise AttuneError(
            f"a process needs about {_gib(sum(needed.values()))} and can have {_gib(available)} "
            f"(largest: {largest}, {_gib(needed[largest])}); lower lm.micro_batch (or "
            "lm.batch_size, lm.segment_s), set lm.activation_checkpointing=true, or use a smaller "
            "model or more processes"
        )


def preflight_lines(estimate: dict[str, Any]) -> list[str]:
    """The estimate of `preflight` as text."""
    e, needed = SimpleNamespace(**estimate), estimate["memory_bytes"]
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in needed.items())
    have = "" if e.available_bytes is None else f" of {_gib(e.available_bytes)}"
    again = f", {e.forward_again:g} more forward passes" if e.forward_again else ""
    lines = [
        f"model     {e.parameters / 1e6:.1f}M parameters",
        f"memory    about {_gib(sum(needed.values()))}{have} per process ({parts})",
        f"step      {e.batch_size} clips, {e.tokens_per_step} tokens, "
        f"{e.flops_per_step / 1e12:.3g} TFLOP on {e.processes} processes{again}",
        f"epochs    {e.steps_per_epoch:.1f} steps each, {e.steps} steps = "
        f"{e.steps / e.steps_per_epoch:.1f} epochs of {e.clips} clips",
        f"time      about {_duration(e.days)} at {EFFICIENCY:.0%} of the measured "
        f"{e.matmul_flops / 1e12:.3g} TFLOP/s per process in {e.precision}",
    ]
    faster = (e.exact_flops or 0.0) / e.matmul_flops
    if faster >= 1:
        lines.append(
            f"slow      this processor emulates bf16, and fp32 products are {faster:.2g} times "
            "as fast: set lm.precision=fp32 and start a new run (a run keeps its precision)"
        )
    return lines


def count_parameters(arch: Architecture) -> int:
    """Number of parameters of `LanguageModel(arch)`, without making it."""
    d = arch.d_model
    tables = arch.n_codebooks * (arch.codebook_size + 1) * d
    head = arch.n_codebooks * arch.codebook_size * d
    shared = arch.contrastive
    contrastive = shared * (d + arch.text_dim + 2 * shared + 4) + 1 if shared else 0
    text = (arch.text_dim + 1) * d
    return tables + head + text + arch.n_layers * _block(arch) + 2 * d + contrastive


def _block(arch: Architecture) -> int:
    d = arch.d_model
    return (8 + 2 * arch.ff_mult) * d * d + 6 * d


def flops_per_clip(arch: Architecture, steps: int, text_tokens: int) -> float:
    """Multiplications and additions of one clip, forward and backward, text included.

    Causal self-attention counts half of all pairs of steps.
    """
    d, layers = arch.d_model, arch.n_layers
    per_step = layers * (6 + 2 * arch.ff_mult) * d * d  # self 4, cross q and out 2, feed-forward
    per_step += d * arch.n_codebooks * arch.codebook_size
    per_step += layers * (steps // 2 + text_tokens) * 2 * d
    text = text_tokens * (layers * 2 * d * d + arch.text_dim * d)
    return 3.0 * 2.0 * (steps * per_step + text)


def forward_again(config: LMConfig, world: World) -> float:
    """Average number of extra forward passes per step."""
    again = 1.0 if config.activation_checkpointing else 0.0
    if config.rr.weight > 0 and 0 < config.micro_batch < config.batch_size // world.size:
        if config.rr.apply == "always":
            again += 1
        elif config.cfg.granularity == "batch":
            again += config.cfg.dropout
        else:  # at least one clip of the batch without text
            again += 1 - (1 - config.cfg.dropout) ** config.batch_size
    return again


def memory(
    arch: Architecture, config: LMConfig, world: World, clips: int, steps: int
) -> dict[str, int]:
    """Memory of one process by purpose, in bytes; `clips` is its share of a batch."""
    parameters, d = count_parameters(arch), arch.d_model
    share, clips = clips, min(clips, config.micro_batch or clips)
    half = config.precision == "bf16"
    # fp32 weights, gradients, two moments, average; sharded over a group of processes.
    group = shard_group(config.sharding, world.size)
    states = 20 * parameters // group
    if config.async_checkpoint and world.device.type == "cpu":
        states += 16 * parameters // group  # all but gradients, copied
    copies = 0
    if world.size > 1:
        # FSDP gathers two blocks at a time, and the root's weights always; with gradients.
        outside = parameters - arch.n_layers * _block(arch)
        copies = (2 if half else 4) * 2 * (outside + 2 * _block(arch))
        if clips < share:
            copies += 4 * parameters  # gradients, not sharded before the last micro-batch
    elif half:
        copies = 2 * parameters  # autocast keeps its bf16 copies for the backward pass
    # Per step and block the backward pass needs: three residuals, three norms' outputs, q, k, v,
    # two attention outputs, the cross q, and the two wide tensors of the feed-forward.
    width = (3 * 4 + 2 * (3 + 3 + 2 + 1)) if half else 4 * (3 + 3 + 3 + 2 + 1)
    width += (2 if half else 4) * 2 * arch.ff_mult
    per_block = clips * steps * d * width
    if world.device.type == "cpu":  # explicit attention weights, of blocks up to the diagonal
        pairs = steps * (steps + BLOCK) // 2
        per_block += clips * arch.n_heads * pairs * (2 if half else 4)
    if config.activation_checkpointing:
        # The inputs of all blocks, and everything of one block.
        activations = arch.n_layers * clips * steps * d * 4 + per_block
    else:
        activations = arch.n_layers * per_block
    # Logits, their exponentials, the loss's gradient and copies of it: bytes per logit at the peak,
    # measured on a CPU.
    logits = clips * steps * arch.n_codebooks * arch.codebook_size * (16 if half else 24)
    return {
        "weights and optimizer": states,
        "working copies": copies,
        "activations": activations,
        "logits": logits,
    }


def available_bytes(world: World) -> int | None:
    """Memory that this process can use: on its GPU, or its share of the machine's free memory."""
    if world.device.type == "cuda":
        # Free memory, and memory that this process has reserved.
        free = torch.cuda.mem_get_info(world.device)[0]
        return int(free) + torch.cuda.memory_reserved(world.device)
    try:
        with open("/proc/meminfo") as file:
            found = dict(line.split(":", 1) for line in file)
        free = int(found["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large square product in the training's precision; the best of several."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    best, until = float("inf"), time.perf_counter() + 0.3
    while best == float("inf") or time.perf_counter() < until:  # at least once
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size < 100 * 2**30 else f"{size / 2**30:.0f} GiB"


def _duration(days: float) -> str:
    if days >= 1:
        return f"{days:.1f} days"
    return f"{days * 24:.1f} hours" if days * 24 >= 1 else f"{days * 1440:.0f} minutes"
