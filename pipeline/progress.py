"""Progress of a stage: one live line on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Self, TextIO

from rich import progress as rich_progress
from rich.console import Console
from rich.table import Column

_LOG_EVERY_S = 10.0
_WINDOW_S = 600.0
"""Speeds are those of the last ten minutes: a slow start wears off, and large shards fit in."""


class Progress:
    """Progress of one stage: `STAGE  DONE/TOTAL UNIT  512/s  ETA 0:37`, at the end `took 0:41`."""

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
            unit: what is counted, in the plural.
            done: by an earlier run: not part of any speed.
            out: standard error if None.
            clock: seconds from anywhere.
        """
        self._stage, self._unit, self._clock = stage, unit, clock
        self._out = out or sys.stderr
        self._closed, self._last_line = False, clock()
        console = Console(file=self._out)
        is_terminal = self._out.isatty() and console.is_terminal  # FORCE_COLOR makes it say so too
        self._is_live = is_terminal and not console.is_dumb_terminal
        self._bars = rich_progress.Progress(
            rich_progress.TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True)
            ),
            console=console,
            get_time=clock,
            speed_estimate_period=_WINDOW_S,
            redirect_stdout=False,  # else a command's own output would go to standard error
            redirect_stderr=False,
        )
        self._work = self._count(total, done)
        if self._is_live:
            self._bars.start()

    def _count(self, total: float, done: float = 0, visible: bool = True) -> rich_progress.Task:
        number = self._bars.add_task("", total=total, completed=int(done), visible=visible)
        return self._bars.tasks[number]

    def update(self, done: int) -> None:
        """So much is done by now."""
        self._bars.update(self._work.id, completed=done)
        self.show()

    def show(self) -> None:
        """Write a line if it is time for it; call it also while nothing gets done."""
        for task in self._bars.tasks:
            self._bars.advance(task.id, 0)  # without it a standstill would keep its speed
        self._bars.update(self._work.id, description=self.line())
        if self._work.finished:
            self.close()
        elif not self._is_live and self._clock() - self._last_line >= _LOG_EVERY_S:
            self._last_line = self._clock()
            print(self.line(), file=self._out, flush=True)

    def line(self) -> str:
        return "  ".join([self._stage, *self._parts()])

    def _parts(self) -> list[str]:
        return [self._done(), f"{format_rate(self._work.speed)}/s", self._end()]

    def _done(self) -> str:
        return f"{self._work.completed:.0f}/{self._work.total:.0f} {self._unit}"

    def _end(self) -> str:
        if self._work.finished:
            return f"took {format_duration(self._work.finished_time or 0)}"
        left = self._work.time_remaining
        return f"ETA {'?' if left is None else format_duration(left)}"

    def close(self) -> None:
        """End the line; the stage is done, or ended early."""
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
    """Clips, refusals, hours, speed and shards of the encode stage."""

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
        """One more shard is committed: its clips (refused ones too), refusals, and seconds of
        audio."""
        self._shards_done += 1
        self._refused += refused
        self._bars.advance(self._seconds.id, seconds)
        self.update(round(self._work.completed) + clips)

    def _parts(self) -> list[str]:
        return [
            self._done(),
            f"{self._refused} refused",
            f"{self._seconds.completed / 3600:.2f} h",
            f"{format_rate(self._seconds.speed)}x real time",
            self._end(),
            f"{self._shards_done}/{self._shards} shards",  # what a narrow terminal cuts off
        ]


def format_duration(seconds: float, hours: bool = False) -> str:
    """`1:02:03` or `2:03`; with `hours` also `0:02:03`, which nobody takes for a time of day."""
    minutes, rest = divmod(round(seconds), 60)
    whole, minutes = divmod(minutes, 60)
    return f"{whole}:{minutes:02d}:{rest:02d}" if whole or hours else f"{minutes}:{rest:02d}"


def format_rate(rate: float | None) -> str:
    """`512`, `31.2`, `0.0471`, or `?` before there is any."""
    if not rate:
        return "?"
    return f"{rate:.0f}" if rate >= 99.95 else f"{rate:.3g}"
