"""Updates of weights, optimizer and average that leave out steps that are not finite.

Loss and gradient norm of the global batch are checked before every update.  On a CPU they are known
at once.  A GPU would have to be waited for, so there the update itself obeys a flag on the device
(fused AdamW's `found_inf`, the average's share), and the values are read one step later, when they
have arrived.  Steps that are logged or saved wait anyway, so there they are read at once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from common.errors import AttuneError
from training.distributed import World, full, gather_objects, sum_on_host, sum_over_processes
from training.ema import ExponentialMovingAverage
from training.run.log import Progress, read_log

_NAMED = 8
"""Samples named in an error; the log has them all."""


class FiniteUpdates:
    """Updates of weights, optimizer and average; all processes must make the same calls.

    Args:
        limit: number of steps in a row that may be skipped (`lm.skip_non_finite`).
        run: the run's folder.
        progress: log of skipped steps; None on all processes but the first.
        done: finished steps; the log says how many of them were skipped.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        ema: ExponentialMovingAverage,
        limit: int,
        world: World,
        run: Path,
        progress: Progress | None,
        done: int,
    ) -> None:
        self._optimizer, self._ema, self._limit = optimizer, ema, limit
        self._world, self._run, self._progress = world, run, progress
        self._later = world.device.type == "cuda"
        self._pending: Callable[[], bool] | None = None
        before = _skipped_before(run, done) if progress else [0, 0]
        self._total, self._in_a_row = sum_on_host(before, world)

    def apply(
        self, step: int, norm: Tensor, loss: Tensor, sample_ids: tuple[str, ...], now: bool
    ) -> bool:
        """Update weights, optimizer and average, unless loss or norm is not finite.

        Args:
            step: number of the step, from 1.
            norm: norm of the global batch's gradient before clipping, `[]`, perhaps sharded.
            loss: this process's part of the global batch's loss, `[]`.
            sample_ids: samples of this process's part of the global batch.
            now: whether the caller needs the result for this step.

        Returns:
            False if the step is known to be skipped.

        Raises:
            AttuneError: more than `limit` steps in a row are not finite; names step and samples.
        """
        values = torch.stack([full(norm).float(), sum_over_processes(loss.float(), self._world)])
        if not self._later:
            if not self._count(step, values.tolist(), sample_ids):
                return False
            self._optimizer.step()
            self._ema.update()
            return True
        self._look()
        bad = 1.0 - values.isfinite().all().float()
        self._optimizer.found_inf = bad  # type: ignore[attr-defined]
        self._optimizer.step()
        self._ema.update(1.0 - bad)
        copied = torch.empty(2, pin_memory=values.is_cuda)
        copied.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event() if values.is_cuda else None
        if arrived:
            arrived.record()

        def count() -> bool:
            if arrived:
                arrived.synchronize()
            return self._count(step, copied.tolist(), sample_ids)

        self._pending = count
        return self._look() if now else True

    def _look(self) -> bool:
        """Count the pending step, if there is one; whether its update was made."""
        pending, self._pending = self._pending, None
        taken = pending is None or pending()
        if not taken:
            self._ema.forget()
        return taken

    def _count(self, step: int, values: list[float], sample_ids: tuple[str, ...]) -> bool:
        """Whether both values are finite; if not, count and log the step, and perhaps stop."""
        norm, loss = values
        if math.isfinite(norm) and math.isfinite(loss):
            self._in_a_row = 0
            return True
        self._total += 1
        self._in_a_row += 1
        what = f"loss is {loss}" if math.isfinite(norm) else f"gradient norm is {norm}"
        ids = [one for part in gather_objects(sample_ids, self._world) for one in part]
        if self._progress:
            row = {"step": step, "non_finite": what, "skipped": self._total, "sample_ids": ids}
            self._progress.log(row, say=False)
        if self._in_a_row > self._limit:
            more = f" and {len(ids) - _NAMED} more (log.jsonl)" if len(ids) > _NAMED else ""
            raise AttuneError(
                f"step {step}: {what}, {self._in_a_row} such in a row (lm.skip_non_finite is "
                f"{self._limit}), samples {', '.join(ids[:_NAMED])}{more}; lower lm.optim.lr; "
                f"{self._run / 'latest'} names the last good checkpoint, if one was saved"
            )
        if self._progress:
            print(
                f"warning: step {step}: {what}; skipped, {self._in_a_row} in a row, {self._total} "
                f"in all; its samples are in {self._run / 'log.jsonl'}",
                file=sys.stderr,
                flush=True,
            )
        return False


def _skipped_before(run: Path, done: int) -> list[int]:
    """Number of skipped steps up to step `done`: in all, and in a row at the end."""
    skipped = [row["step"] for row in read_log(run) if "non_finite" in row and row["step"] <= done]
    in_a_row = 0
    while in_a_row < len(skipped) and skipped[-1 - in_a_row] == done - in_a_row:
        in_a_row += 1
    return [len(skipped), in_a_row]
