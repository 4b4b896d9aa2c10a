"""Progress of a stage: one live line on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Self, TextIO

from rich import progress as rich_progress
from rich.console import Console
from rich.table import Column

_LOG_EVERY_S = 10.0
_WINDOW_S = 600.0
"""Time over which speed is measured: long enough for large shards, and forgets a slow start."""


class Progress:
    """Progress of a stage: `STAGE  DONE/TOTAL UNIT  512/s  ETA 0:00:37`."""

    def __init__(
        self,
        stage: str,
        total: int,
        unit: str,
        done: int = 0,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            unit: name of the counted things, in the plural.
            done: number of things that an earlier run did; not part of any speed.
            out: standard error if None.
            clock: time in seconds from any start.
        """
        self._stage, self._unit, self._clock = stage, unit, clock
        self._out = out or sys.stderr
        self._closed, self._last_line = False, clock()
        console = Console(file=self._out)
        is_terminal = self._out.isatty() and console.is_terminal  # FORCE_COLOR sets the second too
        self._is_live = is_terminal and not console.is_dumb_terminal
        self._bars = rich_progress.Progress(
            rich_progress.TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True)
            ),
            console=console,
            get_time=clock,
            speed_estimate_period=_WINDOW_S,
            redirect_stdout=False,  # else the command's own output would go to standard error
            redirect_stderr=False,
        )
        self._work = self._count(total, done)
        if self._is_live:
            self._bars.start()

    def _count(self, total: float, done: float = 0, visible: bool = True) -> rich_progress.Task:
        number = self._bars.add_task("", total=total, completed=int(done), visible=visible)
        return self._bars.tasks[number]

    def update(self, done: int) -> None:
        """Set the number of finished things."""
        self._bars.update(self._work.id, completed=done)
        self.show()

    def show(self) -> None:
        """Write a line if it is time for one; call it also during a standstill."""
        for task in self._bars.tasks:
            self._bars.advance(task.id, 0)  # else the speed would not fall during a standstill
        self._bars.update(self._work.id, description=self.line())
        if self._work.finished:
            self.close()
        elif not self._is_live and self._clock() - self._last_line >= _LOG_EVERY_S:
            self._last_line = self._clock()
            print(self.line(), file=self._out, flush=True)

    def line(self) -> str:
        return "  ".join([self._stage, *self._parts(self._work)])

    def _parts(self, work: rich_progress.Task) -> list[str]:
        """Parts of the line after the stage's name."""
        done = f"{work.completed:.0f}/{work.total:.0f} {self._unit}"
        if work.finished:
            end = f"took {format_duration(work.finished_time or 0)}"
        else:
            left = work.time_remaining
            end = f"ETA {'?' if left is None else format_duration(left)}"
        return [done, f"{format_rate(work.speed)}/s", end]

    def close(self) -> None:
        """End the line; the stage is finished or ended early."""
        if not self._closed and self._is_live:
            self._bars.stop()
        elif not self._closed:
            print(self.line(), file=self._out, flush=True)
        self._closed = True

    def __enter__(self) -> Self:
        self.show()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class EncodeProgress(Progress):
    """Progress of the encode stage: clips, refusals, hours, speed and shards."""

    def __init__(
        self,
        clips: int,
        shards: int,
        clips_done: int,
        shards_done: int,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__("encode", clips, "clips", clips_done, out, clock)
        self._shards, self._shards_done, self._refused = shards, shards_done, 0
        self._seconds = self._count(float("inf"), visible=False)

    def add(self, clips: int, refused: int, seconds: float) -> None:
        """Count a committed shard: clips (refused ones too), refusals, seconds of audio."""
        self._shards_done += 1
        self._refused += refused
        self._bars.advance(self._seconds.id, seconds)
        self.update(round(self._work.completed) + clips)

    def _parts(self, work: rich_progress.Task) -> list[str]:
        done, _, end = super()._parts(work)
        return [
            done,
            f"{self._refused} refused",
            f"{self._seconds.completed / 3600:.2f} h",
            f"{format_rate(self._seconds.speed)}x real time",
            end,
            f"{self._shards_done}/{self._shards} shards",  # last: a narrow terminal cuts it off
        ]


def format_duration(seconds: float) -> str:
    """`0:02:03`; from a day on `2 days, 1:02:03`."""
    return str(timedelta(seconds=round(seconds)))


def format_rate(rate: float | None) -> str:
    """`512`, `31.2`, `0.0471`; `?` if there is no rate yet."""
    if not rate:
        return "?"
    return f"{rate:.0f}" if rate >= 99.95 else f"{rate:.3g}"
