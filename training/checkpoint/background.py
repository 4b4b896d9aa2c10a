"""Writing checkpoints while training continues."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from training.distributed import TIMEOUT, World


class BackgroundSave:
    """Writes one checkpoint at a time, from copies in main memory, in a thread.

    The threads of all processes exchange messages about the checkpoint while the main threads
    exchange gradients.  Within a group, every process must send its messages in the same order, but
    two threads have no common order.  So the threads have their own process group.
    """

    def __init__(self, world: World) -> None:
        self._alone, self._first = world.size == 1, world.is_first
        self._group = None if self._alone else dist.new_group(timeout=TIMEOUT, backend="gloo")
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        # DCP warns about running without a process group, which is intended here.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")

    def start(self, state: dict[str, Any], folder: Path, publish: Callable[[], None]) -> None:
        """Copy a state and begin to write it to a folder; then the first process `publish`es it."""
        # Nothing is copied ahead: the state is in main memory by then, and DCP's copying would open
        # a context on the first GPU for every process.
        writer = dcp.FileSystemWriter(folder, per_thread_copy_ahead=0)
        written = dcp.async_save(
            state, storage_writer=writer, process_group=self._group, no_dist=self._alone
        )
        assert isinstance(written, Future)

        def finish() -> None:
            written.result()
            if self._first:
                publish()

        self._pending = self._thread.submit(finish)

    def check(self) -> None:
        """Raise the error of the last save, if it has already failed."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last save has finished; raises its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
