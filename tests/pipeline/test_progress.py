"""Progress: one live line on a terminal, a line now and then in a log, and an ETA of late speed."""

from __future__ import annotations

import io
import os
import pty
import termios

import pytest

from pipeline.progress import (
    EmbedProgress,
    EncodeProgress,
    Progress,
    Speed,
    format_duration,
    format_rate,
)


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(clock: Clock) -> None:
    out = io.StringIO()
    progress = EmbedProgress(20000, out, clock)
    for done in range(512, 20000, 512):  # a chunk a second
        clock.now += 1
        progress.update(done, 20000)
    lines = out.getvalue().splitlines()
    assert lines == [
        "embed  5120/20000 prompts  512/s  ETA 0:29",
        "embed  10240/20000 prompts  512/s  ETA 0:19",
        "embed  15360/20000 prompts  512/s  ETA 0:09",
    ]
    clock.now += 1
    progress.update(20000, 20000)
    progress.show(force=True)
    progress.close()
    assert out.getvalue().splitlines()[3:] == ["embed  20000/20000 prompts  500/s  took 0:40"]


def test_embed_takes_the_total_that_it_hears(clock: Clock) -> None:
    """A run that goes on embeds fewer prompts than there are."""
    out = io.StringIO()
    progress = EmbedProgress(20000, out, clock)
    clock.now += 10
    progress.update(100, 300)
    clock.now += 20
    progress.update(300, 300)
    assert out.getvalue().splitlines() == [
        "embed  100/300 prompts  10/s  ETA 0:20",
        "embed  300/300 prompts  10/s  took 0:30",
    ]


def test_a_terminal_gets_one_line_that_is_drawn_anew(clock: Clock) -> None:
    out = Terminal()
    with EncodeProgress(8, 2, 0, 0, out, clock) as progress:
        progress.show()
        assert out.getvalue() == ""  # not at once
        clock.now += 0.3
        progress.show()
        progress.show()
        clock.now += 9.7
        progress.add(4, 1, 36.0)
        clock.now += 10
        progress.add(4, 0, 36.0)
    assert out.getvalue().split("\r\x1b[2K") == [
        "",
        "encode  0/8 clips  0/2 shards  0.00 h  0 refused  ?x real time  ETA ?",
        "encode  4/8 clips  1/2 shards  0.01 h  1 refused  3.6x real time  ETA 0:10",
        "encode  8/8 clips  2/2 shards  0.02 h  1 refused  3.6x real time  took 0:20\n",
    ]


@pytest.mark.parametrize("out", [io.StringIO(), Terminal()], ids=["log", "terminal"])
def test_a_stage_that_ends_early_ends_its_line(clock: Clock, out: io.StringIO) -> None:
    with pytest.raises(RuntimeError), EncodeProgress(8, 2, 0, 0, out, clock) as progress:
        clock.now += 1
        progress.add(4, 0, 1.0)
        raise RuntimeError
    assert out.getvalue().endswith(
        "encode  4/8 clips  1/2 shards  0.00 h  0 refused  1x real time  ETA 0:01\n"
    )


def test_what_an_earlier_run_did_counts_as_done_but_for_no_speed(clock: Clock) -> None:
    progress = EncodeProgress(1000, 100, 900, 90, io.StringIO(), clock)
    for _ in range(5):
        clock.now += 10
        progress.add(10, 0, 100.0)
    assert progress.line() == (
        "encode  950/1000 clips  95/100 shards  0.14 h  0 refused  10x real time  ETA 0:50"
    )


def test_a_slow_start_wears_off(clock: Clock) -> None:
    progress = Progress("encode", 100_000, "clips", out=io.StringIO(), clock=clock)
    clock.now += 600  # a node that starts, a codec that loads
    for done in range(100, 30_100, 100):
        clock.now += 1
        progress.update(done)
    assert progress.line() == "encode  30000/100000 clips  100/s  ETA 11:40"


def test_large_shards_reach_back_further_than_the_window() -> None:
    """Two workers, a shard in 400 s each, one after the other by 10 s."""
    speed = Speed(0, 0)
    for i in range(1, 9):
        speed.mark(2 * i - 1, 400 * i)
        speed.mark(2 * i, 400 * i + 10)
    # However the pairs fall, the speed is near 2 shards in 400 s.
    assert speed.per_s(3210) == pytest.approx(2 / 400, rel=0.15)
    assert speed.average(3210) == pytest.approx(2 / 400, rel=0.01)


def test_waiting_for_the_next_lump_costs_no_speed_but_a_standstill_does() -> None:
    speed = Speed(0, 0)
    for i in range(1, 5):
        speed.mark(10 * i, 60 * i)
    assert speed.per_s(240) == speed.per_s(299) == pytest.approx(1 / 6)
    assert speed.per_s(540) == pytest.approx(40 / 480)
    assert speed.per_s(100_000) == pytest.approx(0, abs=1e-3)


def test_many_small_steps_are_held_as_few_marks() -> None:
    speed = Speed(0, 0)
    for i in range(1, 100_001):
        speed.mark(i, i / 100)
    assert len(speed._marks) < 200
    assert speed.per_s(1000) == pytest.approx(100, rel=0.02)


def test_a_narrow_terminal_gets_a_line_that_does_not_wrap(clock: Clock) -> None:
    leader, follower = pty.openpty()
    try:
        termios.tcsetwinsize(follower, (24, 60))
        with open(follower, "w", closefd=False) as out:
            progress = EncodeProgress(110_000, 440, 31_000, 120, out, clock)
            clock.now += 10
            progress.add(250, 3, 2500.0)
        drawn = os.read(leader, 1000).decode().removeprefix("\r\x1b[2K")
    finally:
        os.close(leader)
        os.close(follower)
    assert drawn == "encode  31250/110000 clips  250x real time  ETA 52:30"


def test_durations_and_rates() -> None:
    durations = [format_duration(seconds) for seconds in (0, 37.4, 59.6, 3723)]
    assert durations == ["0:00", "0:37", "1:00", "1:02:03"]
    assert format_duration(1270, hours=True) == "0:21:10"
    rates = (None, 0.04712, 1, 31.24, 99.97, 1234.5)
    assert [format_rate(rate) for rate in rates] == ["?", "0.0471", "1", "31.2", "100", "1234"]
