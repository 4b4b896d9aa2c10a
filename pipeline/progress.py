"""Progress of a run: one live line on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_LOG_EVERY_S = 10.0
_REDRAW_EVERY_S = 0.2


class EncodeProgress:
    """Counts clips, hours, shards and refusals of the encode stage, and guesses its end."""

    def __init__(
        self, clips: int, shards: int, clips_done: int, shards_done: int, out: TextIO | None = None
    ) -> None:
        self.clips, self.shards = clips, shards
        self.clips_done, self.shards_done = clips_done, shards_done
        self.refused = 0
        self.seconds = 0.0
        self._out = out or sys.stderr
        self._clips_at_start = clips_done
        self._start = time.monotonic()
        self._last_line = 0.0

    def add(self, clips: int, refused: int, seconds: float) -> None:
        """One more shard is committed: its clips, refusals, and seconds of audio."""
        self.clips_done += clips
        self.shards_done += 1
        self.refused += refused
        self.seconds += seconds
        self.show(force=self.shards_done == self.shards)

    def line(self) -> str:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        fresh = self.clips_done - self._clips_at_start
        left = (self.clips - self.clips_done) * elapsed / fresh if fresh else None
        return (
            f"encode  {self.clips_done}/{self.clips} clips  {self.shards_done}/{self.shards} shards"
            f"  {self.seconds / 3600:.2f} h  {self.refused} refused"
            f"  {self.seconds / elapsed:.1f}x real time"
            f"  ETA {'?' if left is None else format_duration(left)}"
        )

    def show(self, force: bool = False) -> None:
        now = time.monotonic()
        live = self._out.isatty()
        if not force and now - self._last_line < (_REDRAW_EVERY_S if live else _LOG_EVERY_S):
            return
        self._last_line = now
        if live:
            end = "\n" if self.shards_done == self.shards else ""
            self._out.write(f"\r\x1b[2K{self.line()}{end}")
        else:
            self._out.write(self.line() + "\n")
        self._out.flush()


def format_duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
