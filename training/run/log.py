"""The log of a run: `log.jsonl`, TensorBoard, and a line on the terminal."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.tensorboard import SummaryWriter

from common.errors import AttuneError
from training.run.files import write_atomically

T = TypeVar("T")

MEASURED = ("tokens_per_s", "elapsed_s", "mfu", "loader_wait", "memory_gib")
"""Keys of a row that depend on the machine; all other values are the same if a run is repeated."""
_SCALARS = (
    "loss", "rr", "rr_correlation", "contrastive", "rr_grad_norm", "ce_grad_norm", "grad_norm",
    "lr", "valid_loss", "valid_loss_uncond",
)  # fmt: skip


class Meter:
    """Speed of a run since the last line: tokens, FLOP, and the time spent waiting for data.

    Args:
        matmul_flops: the machine's measured matmul rate, FLOP/s per process.
        device: device whose memory use is reported.
    """

    def __init__(self, matmul_flops: float, device: torch.device) -> None:
        self._rate, self._device = matmul_flops, device
        self._began = time.monotonic()
        self.restart()

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield the batches, and count the time spent waiting for them."""
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - began
            if batch is None:
                return
            yield batch

    def add(self, tokens: int, flops: float) -> None:
        """Count one step: tokens over all processes, FLOP of this process."""
        self._tokens += tokens
        self._flops += flops

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the time of the block out of the speed: validation, checkpoints."""
        began = time.monotonic()
        yield
        self._aside += time.monotonic() - began

    def row(self) -> dict[str, float]:
        """`MEASURED`: tokens/s, seconds since the start, share of the measured matmul rate (MFU),
        share of the time spent waiting for data, and peak memory in GiB."""
        if self._device.type == "cuda":
            peak = int(torch.cuda.max_memory_allocated(self._device))
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        spent = max(time.monotonic() - self._last - self._aside, 1e-9)
        return {
            "tokens_per_s": round(self._tokens / spent, 1),
            "elapsed_s": round(time.monotonic() - self._began, 3),
            "mfu": round(self._flops / spent / self._rate, 4),
            "loader_wait": round(self._waited / spent, 4),
            "memory_gib": round(peak / 2**30, 3),
        }

    def restart(self) -> None:
        """Start counting for the next line."""
        self._last = time.monotonic()
        self._tokens, self._flops, self._waited, self._aside = 0, 0.0, 0.0, 0.0


class RunLog:
    """`log.jsonl`, TensorBoard and a line on the terminal; the first process writes them.

    Args:
        run: the run's folder.
        done: finished steps; rows of later steps are deleted, because these steps are run again.
        steps: total number of steps.
        wandb_project: project at Weights & Biases that also gets what TensorBoard gets.

    Attributes:
        kept: rows that the log already has.
        board: TensorBoard's writer.

    Raises:
        AttuneError: there is a `wandb_project`, but wandb is not installed.
    """

    def __init__(self, run: Path, done: int, steps: int, wandb_project: str = "") -> None:
        self._wandb = _start_wandb(run, wandb_project) if wandb_project else None
        self.kept = trim_log(run, done)
        self._file = (run / "log.jsonl").open("a")
        self.board = SummaryWriter(str(run / "tb"), purge_step=done + 1)
        self._started = time.monotonic()
        self._done, self._steps = done, steps

    def log(self, row: dict[str, Any], say: bool = True) -> None:
        """Record a row of step `row["step"]`, and print it."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for tag, value in self._scalars(row):
            self.board.add_scalar(tag, value, row["step"])
        if say:
            print(f"step {row['step']}/{self._steps}  {self._line(row)}".rstrip(), flush=True)

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        self.board.close()
        if self._wandb:
            self._wandb.finish()

    def _eta(self, step: int) -> str:
        passed = (time.monotonic() - self._started) / max(1, step - self._done)
        return f"eta {format_clock(passed * (self._steps - step))}"

    def _scalars(self, row: dict[str, Any]) -> Iterator[tuple[str, float]]:
        """Tags and values of a row for TensorBoard."""
        raise NotImplementedError

    def _line(self, row: dict[str, Any]) -> str:
        """A row as a line for the terminal."""
        raise NotImplementedError


class Progress(RunLog):
    """The language model's log.

    A row has `step`, `loss`, `loss_per_stream`, `grad_norm`, `lr`, `dropped` (share of the batch
    without text), `MEASURED`, and on steps with rr also `rr`, `rr_correlation`, `rr_grad_norm` and
    `ce_grad_norm`.
    """

    def __init__(self, run: Path, done: int, steps: int, wandb_project: str = "") -> None:
        super().__init__(run, done, steps, wandb_project)
        self._rr = next((row["rr"] for row in reversed(self.kept) if "rr" in row), None)

    def log(self, row: dict[str, Any], say: bool = True) -> None:
        self._rr = row.get("rr", self._rr)
        super().log(row, say)

    def _scalars(self, row: dict[str, Any]) -> Iterator[tuple[str, float]]:
        # Steps with and without text have different losses, so each kind has its own curve.
        kind = "unconditional" if row.get("dropped") == 1.0 else "conditional"
        for name in (*_SCALARS, *MEASURED):
            if name in row and name != "elapsed_s":
                tag = f"loss/{kind}" if name == "loss" else name
                yield f"machine/{name}" if name in MEASURED else tag, row[name]
        for k, loss in enumerate(row.get("loss_per_stream", [])):
            yield f"loss_per_stream/{kind}_{k}", loss

    def _line(self, row: dict[str, Any]) -> str:
        if "loss" not in row:
            return "  ".join(f"{k} {v:.4f}" for k, v in row.items() if k.startswith("valid"))
        streams = " ".join(f"{loss:.3f}" for loss in row["loss_per_stream"])
        kind = "without text" if row["dropped"] == 1.0 else ""
        rr = "-" if self._rr is None else f"{self._rr:.4f}"
        speed = row["tokens_per_s"] / 1000
        return (
            f"loss {row['loss']:.4f} ({streams})  rr {rr}  |g| {row['grad_norm']:.2f}  "
            f"lr {row['lr']:.2e}  {speed:.3g}k tokens/s  "
            f"{self._eta(row['step'])}  {kind}"
        )


def _start_wandb(run: Path, project: str) -> Any:
    try:
        import wandb
    except ImportError:
        raise AttuneError(
            "lm.wandb names a project, but wandb is not installed: pip install wandb, or leave "
            "lm.wandb empty"
        ) from None
    # A resumed run has the same id, so that it is resumed at Weights & Biases too.
    name = f"{run.parent.name}-{run.name}"
    return wandb.init(
        project=project, name=name, id=name, resume="allow", dir=str(run), sync_tensorboard=True
    )


def read_log(run: Path) -> list[dict[str, Any]]:
    """Rows of a run's `log.jsonl`; a last line cut short by a crash is left out."""
    rows = []
    for line in (run / "log.jsonl").read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def trim_log(run: Path, done: int) -> list[dict[str, Any]]:
    """Delete rows of steps after `done`, or cut short, from a run's log; returns the other rows."""
    path = run / "log.jsonl"
    if not path.is_file():
        return []
    kept = [row for row in read_log(run) if row["step"] <= done]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
    return kept


def format_clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
