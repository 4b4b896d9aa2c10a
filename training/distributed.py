"""Processes, devices and parallelism, applied to the model from outside.

The same program runs under plain `python` (one process, no process group) and under `torchrun`
(gloo on CPUs, nccl on GPUs; FSDP2 shards each block and the root).
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from common.cores import usable_cores
from common.errors import AttuneError, MetAlone
from training.lm.model import LanguageModel

TIMEOUT = timedelta(minutes=5)
"""Longest wait of a process for another. The launcher and the connections of other processes notice
a process that dies; the limit is for a machine that is lost without notice. It is longer than what
a process may need: retries of a store (2 minutes), writing a large checkpoint, the compiler."""

PATIENCE = timedelta(hours=6)
"""Longest wait for work that only the first process does."""

T = TypeVar("T")

_patient: dist.ProcessGroup | None = None


@dataclass(frozen=True)
class World:
    """This process's number among all, and its device."""

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
        threads: CPU threads per process; 0 shares the machine's cores between its processes.

    Raises:
        AttuneError: more processes than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # Ignore OMP_NUM_THREADS with several processes: torchrun sets it to 1 without being asked.
    if threads or local_size > 1 or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads or max(1, usable_cores() // local_size))
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if local_rank >= gpus:
            # One process per machine reports it.
            raise (MetAlone if local_rank == gpus else AttuneError)(
                f"{local_size} processes on this machine and {gpus} GPUs, but each process needs "
                "one: start fewer processes (--nproc-per-node, NPROC), or check "
                "CUDA_VISIBLE_DEVICES"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        # cuDNN's attention plans every new shape, and prompts differ in length.
        torch.backends.cuda.enable_cudnn_sdp(False)
    else:
        device = torch.device("cpu")
    if size > 1 and not dist.is_initialized():
        # Flags and names are exchanged between CPUs, without waiting for the GPUs' queues.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store, rank, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # torchrun keeps its store over restarts, with addresses of processes that are gone.
        store = dist.PrefixStore(_attempt(store, rank, size), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        global _patient
        _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        atexit.register(_leave)
    return World(int(os.environ.get("RANK", "0")), size, device)


def _attempt(store: dist.Store, rank: int, size: int) -> str:
    """A name for this start of all processes: the same in all of them, and new at every start.

    torchrun's restart count is no such name, because every node counts for itself.  So the first
    process chooses a name and confirms every process that answers under it.  A name that others
    read may be left from an earlier start; then nobody confirms it, and they read again.
    """
    mine = uuid4().hex
    if rank == 0:
        store.set("attempt", mine)
        answers = [store.get(f"{mine}/{other}").decode() for other in range(1, size)]
        for answer in answers:
            store.set(f"{mine}/{answer}", "in")
        return mine
    until = time.monotonic() + TIMEOUT.total_seconds()
    while time.monotonic() < until:
        name = store.get("attempt").decode()
        store.set(f"{name}/{rank}", mine)
        if store.check([f"{name}/{mine}"]):
            return name
        time.sleep(0.1)
    raise MetAlone(
        f"process {rank} of {size} waited {TIMEOUT.total_seconds() / 60:g} minutes for the first "
        "process, which did not start; see the first node's log"
    )


def be_deterministic_if_asked() -> None:
    """Use only deterministic algorithms from here on, if the environment asks for it.

    On GPUs cuBLAS repeats its results only if CUBLAS_WORKSPACE_CONFIG has one of these values at
    the start of the process, and nobody sets them for another purpose.
    """
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):
        return
    torch.use_deterministic_algorithms(True)
    # It would only cost time: filling what `torch.empty` returns serves to find reads of it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def parallelize(
    model: LanguageModel,
    world: World,
    precision: str = "fp32",
    group: int = 0,
    compile: bool = False,
    activation_checkpointing: bool = False,
) -> None:
    """Compile a model, checkpoint its activations and shard it: the order in which these nest.

    Only the blocks' `forward` is wrapped: parameters keep their names, also in checkpoints, and
    FSDP2 gathers and frees weights around it. Each block is a unit of FSDP2; embeddings, norm and
    head belong to the root.

    Args:
        precision: bf16 trains with bf16 parameters and fp32 reduction; the optimizer's copies stay
            fp32.
        group: number of neighbouring processes that share one copy of the weights; gradients are
            averaged over the groups. 0 for all processes.
        compile: compile the blocks.
        activation_checkpointing: run each block again in the backward pass instead of keeping its
            activations.

    Raises:
        AttuneError: there is no compiler.
    """
    if compile:
        on_all(partial(_check_compiler, world.device), world)
        # All blocks share their graphs. There is one for each of: with and without text, with and
        # without gradient, the first lengths and batch seen and any others.
        torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
    for block in model.blocks:
        if compile:
            block.forward = torch.compile(block.forward)
        if activation_checkpointing:
            again = partial(checkpoint, block.forward, use_reentrant=False)
            # There is no dropout, so the second forward pass needs no random state of the first.
            block.forward = partial(again, preserve_rng_state=False)
    if world.size == 1:
        return
    if group in (0, world.size):
        mesh = init_device_mesh(world.device.type, (world.size,))
    else:
        shape, names = (world.size // group, group), ("replicate", "shard")
        mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=names)
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)


def shard_group(sharding: str, processes: int) -> int:
    """Number of processes that share one copy of the weights: all, or with `hybrid` a node's.

    Raises:
        AttuneError: hybrid sharding does not work with these processes.
    """
    if sharding == "full" or processes == 1:
        return processes
    size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes % size:
        raise AttuneError(
            f"lm.sharding=hybrid: {processes} processes do not divide into nodes of {size}; start "
            "as many on every node, or set lm.sharding=full"
        )
    if size == processes:
        raise AttuneError(
            f"lm.sharding=hybrid keeps a copy of the weights per node, and one node holds all "
            f"{size} processes; set lm.sharding=full"
        )
    return size


def check_divisible(batch_size: int, processes: int, key: str) -> None:
    """Check that every process gets the same number of clips of a batch.

    Raises:
        AttuneError: the batch is not divisible; names the nearest sizes that are.
    """
    if batch_size % processes:
        below = batch_size - batch_size % processes
        sizes = f"{below} or {below + processes}" if below else f"{processes}"
        raise AttuneError(
            f"{key} ({batch_size}) must be divisible by the number of processes ({processes}); "
            f"try {sizes}"
        )


def sum_over_processes(tensor: Tensor, world: World) -> Tensor:
    """The sum over all processes, without gradient."""
    if world.size > 1:
        tensor = tensor.detach().clone()
        dist.all_reduce(tensor)
    return tensor


def sum_on_host(values: Sequence[int], world: World) -> list[int]:
    """Sums of integers over all processes, by the CPUs: nobody waits for a GPU's queue."""
    if world.size == 1:
        return [int(value) for value in values]
    numbers = torch.tensor([int(value) for value in values])
    dist.all_reduce(numbers)
    return [int(number) for number in numbers]


def gather_objects(thing: T, world: World) -> list[T]:
    """The objects of all processes, by rank."""
    things = [thing] * world.size
    if world.size > 1:
        dist.all_gather_object(things, thing)
    return things


def from_first(thing: T, world: World) -> T:
    """The first process's object, on all processes."""
    things = [thing]
    if world.size > 1:
        dist.broadcast_object_list(things, src=0)
    return things[0]


def on_first(action: Callable[[], T], world: World) -> T:
    """Run an action on the first process; returns its result on all processes.

    Raises:
        AttuneError: on all processes, if the action raises it.
    """
    made: T | None = None
    reason = ""
    if world.is_first:
        try:
            made = action()
        except AttuneError as error:
            if world.size == 1:
                raise
            reason = str(error)
    made, reason = from_first((made, reason), world)
    if reason:
        raise AttuneError(reason)
    return cast(T, made)


def on_all(action: Callable[[], None], world: World) -> None:
    """Run an action on every process; if it fails on one of them, all raise.

    Raises:
        AttuneError: on all processes, with the message of the first process that failed.
    """
    reason = ""
    try:
        action()
    except AttuneError as error:
        if world.size == 1:
            raise
        reason = str(error)
    for rank, found in enumerate(gather_objects(reason, world)):
        if found:
            raise AttuneError(f"{found} (process {rank})" if rank else found)


def wait_patiently(world: World) -> None:
    """Wait for all processes, with a limit of `PATIENCE` for the first process's work."""
    if world.size > 1:
        dist.barrier(group=_patient)


def gather_rows(rows: Tensor, world: World) -> Tensor:
    """Rows `[b, D]` of all processes as `[b x size, D]`, by rank; differentiable.

    Every process must compute the same function of the result.
    """
    return rows if world.size == 1 else _GatherRows.apply(rows, world.rank, world.size)


class _GatherRows(torch.autograd.Function):
    """All-gather whose gradient needs no communication.

    All processes compute the same loss of the same rows, so each has the gradient of all rows and
    keeps the part of its own.  The factor `size` undoes FSDP's average over processes, so that the
    result is the gradient of the one global loss.
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


def _check_compiler(device: torch.device) -> None:
    if not _has_compiler(device):
        gpu = "a C compiler (gcc or clang), which Triton calls"
        needed = gpu if device.type == "cuda" else "a C++ compiler (g++ or clang++) on CPUs"
        raise AttuneError(f"lm.compile needs {needed}; install one")


def _has_compiler(device: torch.device) -> bool:
    gpu, cpu = ("CC", "gcc", "clang", "cc"), ("CXX", "g++", "clang++", "c++")
    variable, *names = gpu if device.type == "cuda" else cpu
    return any(shutil.which(name) for name in (os.environ.get(variable, ""), *names) if name)


def leave(status: int) -> None:
    """End this process when all of several processes are done; does nothing in a single process.

    The process ends without the interpreter's clean-up: gloo's threads sometimes abort a process
    there, after all its work is done.
    """
    if dist.is_initialized():
        dist.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _leave() -> None:
    """Clean up at the end of a process that did not call `leave`, so it failed."""
    if not dist.is_initialized():
        return
    if "nccl" in str(dist.get_backend_config()):
        # A regular shutdown of NCCL would wait for the other processes, which still work.
        dist.distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()
