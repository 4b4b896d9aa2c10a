"""Processes, devices and parallelism, applied to the model from outside.

The same program runs under plain `python` (one process, no process group) and under `torchrun`
(gloo on CPUs, nccl on GPUs; FSDP2 shards each block and the root).
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from training.lm.model import LanguageModel

TIMEOUT = timedelta(minutes=5)
"""After which a process gives up waiting for another. A process that dies is noticed at once by its
launcher, and by the others through their connections; this is for a machine that is gone without a
word. Above what anybody may wait for: a store's retries (2 minutes), a large checkpoint's writing,
the compiler."""

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Where this process stands."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def start(threads: int = 0) -> World:
    """Join the process group if there is one; set device and CPU threads.

    Args:
        threads: per process; 0 shares the machine's cores between the processes on it.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if threads or "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(threads or max(1, cores // local_size))
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if size > 1 and not dist.is_initialized():
        # Flags and names travel between CPUs, past the GPUs' queues.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
        atexit.register(_leave)
    return World(int(os.environ.get("RANK", "0")), size, device)


def shard(model: LanguageModel, world: World, precision: str) -> None:
    """FSDP2: each block is a unit, the rest (embeddings, norm, head) the root's.

    bf16 trains with bf16 parameters and fp32 reduction; the optimizer's copies stay fp32.
    """
    if world.size == 1:
        return
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def sum_over_processes(tensor: Tensor, world: World) -> Tensor:
    """The sum over all processes, without gradient."""
    if world.size > 1:
        tensor = tensor.detach().clone()
        dist.all_reduce(tensor)
    return tensor


def sum_on_host(values: Sequence[int], world: World) -> list[int]:
    """Sums over all processes of numbers that the CPU holds.

    A GPU's queue is not waited for: it goes on with what it has to do meanwhile.
    """
    if world.size == 1:
        return [int(value) for value in values]
    numbers = torch.tensor([int(value) for value in values])
    dist.all_reduce(numbers)
    return [int(number) for number in numbers]


def gather_objects(thing: T, world: World) -> list[T]:
    """What each process has, by rank."""
    things = [thing] * world.size
    if world.size > 1:
        dist.all_gather_object(things, thing)
    return things


def from_first(thing: T, world: World) -> T:
    """What the first process has."""
    things = [thing]
    if world.size > 1:
        dist.broadcast_object_list(things, src=0)
    return things[0]


def gather_rows(rows: Tensor, world: World) -> Tensor:
    """Rows `[b, D]` of all processes as `[b x size, D]`, by rank; differentiable.

    Every process must go on to compute the same function of the result.
    """
    return rows if world.size == 1 else _GatherRows.apply(rows, world.rank, world.size)


class _GatherRows(torch.autograd.Function):
    """All-gather whose gradient needs no communication.

    Each process computes the same loss of the same rows, hence the same gradient of all of them: it
    keeps that of its own rows.  FSDP averages gradients over processes; the factor `size` undoes
    that, so that the mean over processes is the gradient of the one global loss.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, size: int) -> Tensor:
        ctx.place, ctx.size = slice(rank * len(rows), (rank + 1) * len(rows)), size
        parts = [torch.empty_like(rows) for _ in range(size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.place] * ctx.size, None, None


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded (all processes must call this)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
