"""SIGTERM and SIGUSR1 end a run after the current step, with a checkpoint.

A batch system announces the end of a job this way (Slurm's `--signal=USR1@120`, a spot instance's
SIGTERM), and torchrun passes the signal on.  The handler only notes it; the loop checks once per
step, and all processes agree on the step (`sum_on_host`), whichever of them got the signal.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

RESUMABLE = 75
"""Exit status of a run stopped by a signal: the same command resumes it. `EX_TEMPFAIL` of
sysexits.h; no other error has it."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(SystemExit):
    """Ends the process with status `RESUMABLE`."""

    def __init__(self) -> None:
        super().__init__(RESUMABLE)


class StopSignals:
    """Notes SIGTERM and SIGUSR1 from `watch` to the end of its `with` block.

    Before `watch` the signals kill the process as usual: there is nothing to save before the first
    step, and a process that waits for a lost one during set-up should end at once.
    """

    def __init__(self) -> None:
        self._noted: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether this process got a signal to stop."""
        return self._noted is not None

    def watch(self) -> None:
        """Note signals from here on (in the main thread, where Python handles them)."""
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._note)

    def stopped(self, step: int, checkpoint: Path, say: bool) -> Stopped:
        """The exception to raise after everything is saved; prints one line if `say`."""
        if say:
            by = self._noted.name if self._noted else "a signal to another process"
            print(
                f"stopped by {by} after step {step}, saved in {checkpoint}; rerun the same command "
                f"to resume (status {RESUMABLE})",
                file=sys.stderr,
                flush=True,
            )
        return Stopped()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = self._noted or signal.Signals(number)

    def __enter__(self) -> StopSignals:
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
