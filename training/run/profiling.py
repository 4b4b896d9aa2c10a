"""A trace of a few training steps (Perfetto, chrome://tracing) and a table of their operators."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from common.errors import AttuneError

AFTER, STEPS = 3, 4
"""Steps before the trace (caches fill, kernels are chosen), and steps in the trace."""


class StepProfiler:
    """Records `STEPS` steps of a run after the first `AFTER`, into a `.json` or `.json.gz` file.

    Raises:
        AttuneError: the file has another ending, or cannot be written.
    """

    def __init__(self, out: Path | None, device: torch.device) -> None:
        self._out, self._cuda = out, device.type == "cuda"
        self._seen = 0
        self._profile: Any = None
        if out is None:
            return
        if not out.name.endswith((".json", ".json.gz")):
            raise AttuneError(f"--profile {out}: name a .json or .json.gz file")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("ab"):
                pass
        except OSError as error:
            raise AttuneError(f"--profile {out}: cannot be written: {error.strerror}") from error

    def step(self) -> None:
        """Call at the start of every step."""
        if self._out is None or self._seen > AFTER + STEPS:
            return
        if self._seen == AFTER:
            kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._cuda
            self._profile = profile(
                activities=kinds, record_shapes=True, profile_memory=True, acc_events=True
            )
            self._profile.start()
        elif self._seen == AFTER + STEPS:
            self._finish(STEPS)
        self._seen += 1

    def close(self) -> None:
        """Write the steps recorded so far, if the run ends early."""
        if self._profile is not None:
            self._finish(self._seen - AFTER)
        elif self._out is not None and self._seen <= AFTER:
            if not self._out.stat().st_size:
                self._out.unlink()
            print(
                f"warning: --profile {self._out}: the run ended within its first {AFTER} steps, "
                "before anything was recorded",
                file=sys.stderr,
                flush=True,
            )

    def _finish(self, steps: int) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        self._profile.stop()
        try:
            self._profile.export_chrome_trace(str(self._out))
        except (OSError, RuntimeError) as error:  # training continues without the trace
            print(f"warning: --profile {self._out}: not written: {error}", file=sys.stderr)
        order = "self_device_time_total" if self._cuda else "self_cpu_time_total"
        table = self._profile.key_averages().table(
            sort_by=order, row_limit=12, max_name_column_width=44
        )
        print(f"{table}trace of {steps} steps: {self._out}", flush=True)
        self._profile = None
