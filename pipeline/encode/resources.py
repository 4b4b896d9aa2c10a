"""Number of workers, and the CPUs and GPUs of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.errors import AttuneError
from pipeline.config import Device


@dataclass(frozen=True)
class Resources:
    """Number of workers, and the CPUs and GPUs of each."""

    workers: int
    cpus: int
    gpus: float


def share_out(
    nodes: Sequence[Mapping[str, float]], workers: int, cpus_per_worker: int, device: Device
) -> Resources:
    """Divide the resources of Ray's nodes (`CPU` and `GPU` of each) between workers.

    A worker runs on one node.  Workers without room would wait forever, so they are not started.

    Args:
        workers: an upper bound; 0: as many as there is room for.

    Raises:
        AttuneError: no node has room for a worker.
    """
    use_gpu = device != "cpu" and any(node.get("GPU", 0) >= 1 for node in nodes)
    if device == "cuda" and not use_gpu:
        raise AttuneError("pipeline.device is cuda, but Ray has no GPU; use device=cpu or auto")
    usable = [node for node in nodes if not use_gpu or node.get("GPU", 0) >= 1]
    cpus = min(cpus_per_worker, max((int(node.get("CPU", 0)) for node in usable), default=0))
    if not cpus:
        raise AttuneError("Ray has no node with a CPU to work on; start it with at least one")
    room = 0
    for node in usable:
        fits = int(node.get("CPU", 0)) // cpus
        room += min(fits, int(node.get("GPU", 0))) if use_gpu else fits
    return Resources(min(workers or room, room), cpus, 1.0 if use_gpu else 0.0)
