"""What a run will take, worked out before it starts: parameters, memory, epochs, days.

The estimates are arithmetic on shapes; only the machine's matmul rate is measured (in a third of a
second), so that "days" means something on this device.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from common.bfloat16 import has_bfloat16
from common.errors import AttuneError
from training.config import LMConfig
from training.distributed import World, shard_group
from training.lm.attention import BLOCK
from training.lm.model import Architecture

EFFICIENCY = 0.4
"""Share of the matmul rate that a training step is taken to reach, for the estimate of days."""


@dataclass(frozen=True)
class Preflight:
    """Numbers of one run; memory is per process, in bytes."""

    parameters: int
    clips: int
    """Per epoch."""
    batch_size: int
    steps: int
    tokens_per_step: int
    """Codes predicted, at most: clips of the full segment."""
    flops_per_step: float
    """Forward and backward over all processes, nothing counted twice."""
    forward_again: float
    """Forward passes that a step repeats, on average: of checkpointed blocks, and for rr over
    micro-batches."""
    memory_bytes: dict[str, int]
    """By what it is for."""
    available_bytes: int | None
    """What the process can have; None where nobody knows."""
    matmul_flops: float
    """Measured matmul rate of one process, FLOP/s."""
    processes: int
    precision: str = "fp32"
    exact_flops: float | None = None
    """Measured in fp32, FLOP/s; where the precision is bf16 and the processor has none."""

    @property
    def total_bytes(self) -> int:
        return sum(self.memory_bytes.values())

    @property
    def steps_per_epoch(self) -> float:
        return self.clips / self.batch_size

    @property
    def days(self) -> float:
        """At `EFFICIENCY` of the measured rate on every process."""
        rate = self.matmul_flops * self.processes * EFFICIENCY
        work = self.flops_per_step * (1 + self.forward_again / 3)  # backward is two forward passes
        return self.steps * work / rate / 86400

    def check(self) -> None:
        """Refuse what cannot fit.

        Raises:
            AttuneError: saying what takes the room, and what to change.
        """
        if self.available_bytes is not None and self.total_bytes > self.available_bytes:
            largest, size = max(self.memory_bytes.items(), key=lambda item: item[1])
            raise AttuneError(
                f"a process needs about {_gib(self.total_bytes)} and can have "
                f"{_gib(self.available_bytes)} (largest: {largest}, {_gib(size)}); lower "
                "lm.micro_batch (or lm.batch_size, lm.segment_s), set lm.activation_checkpointing, "
                "take a smaller lm.model.size, or more processes"
            )

    def lines(self) -> list[str]:
        """For a person."""
        parts = ", ".join(f"{name} {_gib(size)}" for name, size in self.memory_bytes.items())
        have = "" if self.available_bytes is None else f" of {_gib(self.available_bytes)}"
        again = f", {self.forward_again:g} more forward passes" if self.forward_again else ""
        return [
            f"model     {self.parameters / 1e6:.1f}M parameters",
            f"memory    about {_gib(self.total_bytes)}{have} per process ({parts})",
            f"step      {self.batch_size} clips, {self.tokens_per_step} tokens, "
            f"{self.flops_per_step / 1e12:.3g} TFLOP on {self.processes} processes{again}",
            f"epochs    {self.steps_per_epoch:.1f} steps each, {self.steps} steps = "
            f"{self.steps / self.steps_per_epoch:.1f} epochs of {self.clips} clips",
            f"time      about {_duration(self.days)} at {EFFICIENCY:.0%} of the measured "
            f"{self.matmul_flops / 1e12:.3g} TFLOP/s per process in {self.precision}",
            *self._slow(),
        ]

    def _slow(self) -> list[str]:
        if self.exact_flops is None or self.exact_flops < self.matmul_flops:
            return []
        return [
            f"slow      this processor emulates bf16, and fp32 products are "
            f"{self.exact_flops / self.matmul_flops:.2g} times as fast: set lm.precision=fp32 "
            "(of a new run: one that has begun keeps its precision)"
        ]

    def as_dict(self) -> dict[str, Any]:
        """For a script."""
        return asdict(self) | {"steps_per_epoch": self.steps_per_epoch, "days": self.days}


def preflight(
    arch: Architecture, config: LMConfig, world: World, clips: int, frames: int, text_tokens: int
) -> Preflight:
    """Work out a run.

    Args:
        clips: per epoch.
        frames: of the longest clip that will come.
        text_tokens: of the longest prompt that can come.

    Raises:
        AttuneError: the processes do not divide as `lm.sharding` wants.
    """
    steps = frames + arch.n_codebooks - 1
    emulated = config.precision == "bf16" and not has_bfloat16(world.device)
    return Preflight(
        parameters=count_parameters(arch),
        clips=clips,
        batch_size=config.batch_size,
        steps=config.steps,
        tokens_per_step=config.batch_size * frames * arch.n_codebooks,
        flops_per_step=config.batch_size * flops_per_clip(arch, steps, text_tokens),
        forward_again=forward_again(config, world),
        memory_bytes=memory(arch, config, world, config.batch_size // world.size, steps),
        available_bytes=available_bytes(world),
        matmul_flops=matmul_rate(world.device, config.precision),
        processes=world.size,
        precision=config.precision,
        exact_flops=matmul_rate(world.device, "fp32") if emulated else None,
    )


def count_parameters(arch: Architecture) -> int:
    """Of `LanguageModel(arch)`, without making it."""
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

    Attention over the steps so far counts half of the square.
    """
    d, layers = arch.d_model, arch.n_layers
    per_step = layers * (6 + 2 * arch.ff_mult) * d * d  # self 4, cross q and out 2, feed-forward
    per_step += d * arch.n_codebooks * arch.codebook_size
    per_step += layers * (steps // 2 + text_tokens) * 2 * d
    text = text_tokens * (layers * 2 * d * d + arch.text_dim * d)
    return 3.0 * 2.0 * (steps * per_step + text)


def forward_again(config: LMConfig, world: World) -> float:
    """Forward passes that a step repeats, on average."""
    again = 1.0 if config.activation_checkpointing else 0.0
    share = config.batch_size // world.size
    if config.rr.weight > 0 and 0 < config.micro_batch < share:
        every, clips = config.rr.apply == "always", config.batch_size
        per_clip = config.cfg.granularity == "sample"
        dropout = config.cfg.dropout
        again += 1.0 if every else 1 - (1 - dropout) ** clips if per_clip else dropout
    return again


def memory(
    arch: Architecture, config: LMConfig, world: World, clips: int, steps: int
) -> dict[str, int]:
    """Bytes of one process by what they are for; `clips` is its share of a batch."""
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
        # Two blocks are whole at a time, and what lies outside of them always; with gradients.
        outside = parameters - arch.n_layers * _block(arch)
        copies = (2 if half else 4) * 2 * (outside + 2 * _block(arch))
        if clips < share:
            copies += 4 * parameters  # gradients, whole until the last micro-batch
    elif half:
        copies = 2 * parameters  # autocast keeps its bf16 copies for the backward pass
    # Per step and block, what the backward pass needs: three residuals, three norms' outputs, q, k,
    # v, two attention outputs, the cross q, and the feed-forward's two wide ones.
    width = (3 * 4 + 2 * (3 + 3 + 2 + 1)) if half else 4 * (3 + 3 + 3 + 2 + 1)
    width += (2 if half else 4) * 2 * arch.ff_mult
    per_block = clips * steps * d * width
    if world.device.type == "cpu":  # explicit attention weights, of blocks up to the diagonal
        pairs = steps * (steps + BLOCK) // 2
        per_block += clips * arch.n_heads * pairs * (2 if half else 4)
    if config.activation_checkpointing:
        # What goes into every block, and all of one.
        activations = arch.n_layers * clips * steps * d * 4 + per_block
    else:
        activations = arch.n_layers * per_block
    # Logits, their exponentials, the gradient that the loss leaves behind and what becomes of it:
    # bytes per logit at the peak, as measured on a CPU.
    logits = clips * steps * arch.n_codebooks * arch.codebook_size * (16 if half else 24)
    return {
        "weights and optimizer": states,
        "working copies": copies,
        "activations": activations,
        "logits": logits,
    }


def available_bytes(world: World) -> int | None:
    """Memory that this process can have: of its GPU, or its part of the machine's free memory."""
    if world.device.type == "cuda":
        # What others left free, and what this process holds in store.
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
    """FLOP/s of a large square product in the training's precision; the best of a few."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    best, until = float("inf"), time.perf_counter() + 0.3
    while best == float("inf") or time.perf_counter() < until:  # once at least, however slow
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
