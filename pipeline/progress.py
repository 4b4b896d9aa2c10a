"""Progress of a run: one live line on a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from types import TracebackType
from typing import Self, TextIO

_LOG_EVERY_S = 10.0
_REDRAW_EVERY_S = 0.2
_WINDOW_S = 180.0
_FEWEST_MARKS = 9
"""Of large shards few are done in a window: it then reaches back further."""
_MARK_EVERY_S = 1.0


class Speed:
    """Work per second, of late: a slow start, or what an earlier run did, misleads nobody."""

    def __init__(self, done: float, now: float) -> None:
        self._first = (now, done)
        self._marks = deque([self._first])

    def mark(self, done: float, now: float) -> None:
        """So much is done by now."""
        marks = self._marks
        if len(marks) > 1 and now - marks[-2][0] < _MARK_EVERY_S:
            marks.pop()
        marks.append((now, done))
        while len(marks) > _FEWEST_MARKS and marks[1][0] <= now - _WINDOW_S:
            marks.popleft()

    def per_s(self, now: float) -> float | None:
        """Over the last `_WINDOW_S` seconds; None before any work is done.

        Work comes in lumps (a shard, a chunk): waiting for the next one costs speed only once it
        takes longer than any did before.
        """
        (start, before), (end, done) = self._marks[0], self._marks[-1]
        if done <= before:
            return None
        longest = max(late - early for (early, _), (late, _) in pairwise(self._marks))
        return (done - before) / max(end - start, now - start - longest, 1e-9)

    def average(self, now: float) -> float | None:
        """Since the start."""
        (start, before), done = self._first, self._marks[-1][1]
        return (done - before) / max(now - start, 1e-9) if done > before else None


class Progress:
    """Progress of one stage: `STAGE  DONE/TOTAL UNIT  512/s  ETA 0:37`.

    The last line tells the average and the time taken.  Where the stage ends early, `close` (or
    leaving the `with`) ends the line.
    """

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
            done: before this run: it counts as done, and for no speed.
            out: standard error if None.
            clock: seconds from anywhere.
        """
        self.stage, self.total, self.unit, self.done = stage, total, unit, done
        self._out = out or sys.stderr
        self._clock = clock
        self._start = self._last_line = clock()
        self._speed = Speed(done, self._start)
        self._closed = False

    @property
    def finished(self) -> bool:
        return self.done >= self.total

    def update(self, done: int, total: int | None = None) -> None:
        """So much is done by now; of another total, if one is given."""
        self.done = done
        self.total = self.total if total is None else total
        self._speed.mark(done, self._clock())
        self.show()

    def line(self) -> str:
        return "  ".join([self.stage, *self._parts()])

    def show(self, force: bool = False) -> None:
        """Write the line if it is time for it, or if the stage has just finished."""
        if self.finished:
            self.close()
            return
        now = self._clock()
        every = _REDRAW_EVERY_S if self._out.isatty() else _LOG_EVERY_S
        if not self._closed and (force or now - self._last_line >= every):
            self._last_line = now
            self._write(last=False)

    def close(self) -> None:
        """Write the last line, once."""
        if not self._closed:
            self._closed = True
            self._write(last=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _parts(self) -> list[str]:
        return [self._count(), f"{self._rate(self._speed)}/s", self._end()]

    def _count(self) -> str:
        return f"{self.done}/{self.total} {self.unit}"

    def _rate(self, speed: Speed) -> str:
        now = self._clock()
        return format_rate(speed.average(now) if self.finished else speed.per_s(now))

    def _end(self) -> str:
        now = self._clock()
        if self.finished:
            return f"took {format_duration(now - self._start)}"
        per_s = self._speed.per_s(now)
        left = format_duration((self.total - self.done) / per_s) if per_s else "?"
        return f"ETA {left}"

    def _write(self, last: bool) -> None:
        if self._out.isatty():
            line = _fit([self.stage, *self._parts()], _columns(self._out))
            self._out.write(f"\r\x1b[2K{line}" + ("\n" if last else ""))
        else:
            self._out.write(self.line() + "\n")
        self._out.flush()


class EmbedProgress(Progress):
    """Prompts of the embed stage; `update` is what `embed_chunks` calls."""

    def __init__(
        self,
        total: int,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__("embed", total, "prompts", out=out, clock=clock)


class EncodeProgress(Progress):
    """Clips, hours, shards and refusals of the encode stage."""

    def __init__(
        self,
        clips: int,
        shards: int,
        clips_done: int,
        shards_done: int,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shards, self.shards_done = shards, shards_done
        self.refused = 0
        self.seconds = 0.0
        super().__init__("encode", clips, "clips", clips_done, out, clock)
        self._audio = Speed(0.0, self._start)

    @property
    def finished(self) -> bool:
        return self.shards_done >= self.shards

    def add(self, clips: int, refused: int, seconds: float) -> None:
        """One more shard is committed: its clips (refused ones too), refusals, and seconds of
        audio."""
        self.shards_done += 1
        self.refused += refused
        self.seconds += seconds
        self._audio.mark(self.seconds, self._clock())
        self.update(self.done + clips)

    def _parts(self) -> list[str]:
        return [
            self._count(),
            f"{self.shards_done}/{self.shards} shards",
            f"{self.seconds / 3600:.2f} h",
            f"{self.refused} refused",
            f"{self._rate(self._audio)}x real time",
            self._end(),
        ]


def format_duration(seconds: float, hours: bool = False) -> str:
    """`1:02:03` or `2:03`; with `hours` also `0:02:03`, which nobody takes for a time of day."""
    minutes, rest = divmod(round(seconds), 60)
    whole, minutes = divmod(minutes, 60)
    return f"{whole}:{minutes:02d}:{rest:02d}" if whole or hours else f"{minutes}:{rest:02d}"


def format_rate(rate: float | None) -> str:
    """`512`, `31.2`, `0.0471`, or `?`."""
    if rate is None:
        return "?"
    return f"{rate:.0f}" if rate >= 99.95 else f"{rate:.3g}"


def _fit(parts: list[str], columns: int) -> str:
    """The parts as one line; where it would wrap, without those in the middle."""
    parts = list(parts)
    while len(line := "  ".join(parts)) >= columns and len(parts) > 3:
        del parts[len(parts) // 2]
    return line[: columns - 1]


def _columns(out: TextIO) -> int:
    """Width of the terminal; very wide where it does not tell."""
    try:
        return os.get_terminal_size(out.fileno()).columns or 1000
    except (OSError, ValueError):
        return 1000
