"""Progress: one live line on a terminal, a line now and then in a log, and an ETA of late speed."""

from __future__ import annotations

import io
import re

import pytest

from pipeline.progress import EncodeProgress, Progress, format_duration, format_rate


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
    with Progress("embed", 20000, "prompts", out=out, clock=clock) as progress:
        for done in range(512, 20000, 512):  # a chunk a second
            clock.now += 1
            progress.update(done)
        clock.now += 1
        progress.update(20000)
        progress.show()
    assert out.getvalue().splitlines() == [
        "embed  5120/20000 prompts  512/s  ETA 0:00:30",
        "embed  10240/20000 prompts  512/s  ETA 0:00:20",
        "embed  15360/20000 prompts  512/s  ETA 0:00:10",
        "embed  20000/20000 prompts  500/s  took 0:00:40",
    ]


def test_a_log_gets_no_control_codes_even_where_colours_are_forced(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    with EncodeProgress(8, 2, 0, 0, out, clock) as progress:
        clock.now += 10
        progress.add(4, 1, 36.0)
        clock.now += 10
        progress.add(4, 0, 36.0)
    assert out.getvalue().splitlines() == [
        "encode  4/8 clips  1 refused  0.01 h  3.6x real time  ETA 0:00:10  1/2 shards",
        "encode  8/8 clips  1 refused  0.02 h  3.6x real time  took 0:00:20  2/2 shards",
    ]


def test_a_stage_that_ends_early_ends_its_line(clock: Clock) -> None:
    out = io.StringIO()
    with pytest.raises(RuntimeError), EncodeProgress(8, 2, 0, 0, out, clock) as progress:
        clock.now += 1
        progress.add(4, 0, 1.0)
        raise RuntimeError
    assert out.getvalue() == (
        "encode  4/8 clips  0 refused  0.00 h  1x real time  ETA 0:00:01  1/2 shards\n"
    )


def test_what_an_earlier_run_did_counts_as_done_but_for_no_speed(clock: Clock) -> None:
    progress = EncodeProgress(1000, 100, 900, 90, io.StringIO(), clock)
    assert "?x real time  ETA ?" in progress.line()
    for _ in range(5):
        clock.now += 10
        progress.add(10, 0, 100.0)
    assert progress.line() == (
        "encode  950/1000 clips  0 refused  0.14 h  10x real time  ETA 0:00:50  95/100 shards"
    )


def test_a_slow_start_wears_off_and_a_standstill_shows(clock: Clock) -> None:
    progress = Progress("encode", 100_000, "clips", out=io.StringIO(), clock=clock)
    clock.now += 600  # a node that starts, a codec that loads
    for done in range(100, 70_100, 100):
        clock.now += 1
        progress.update(done)
    assert progress.line() == "encode  70000/100000 clips  100/s  ETA 0:05:00"
    for _ in range(300):
        clock.now += 1
        progress.show()
    assert "  50/s  ETA 0:10:0" in progress.line()


@pytest.mark.parametrize("columns", [120, 60])
def test_a_terminal_gets_one_line_that_does_not_wrap(
    clock: Clock, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    out = Terminal()
    with EncodeProgress(110_000, 440, 31_000, 120, out, clock) as progress:
        clock.now += 10
        progress.add(250, 3, 2500.0)
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", out.getvalue())
    whole = "encode  31250/110000 clips  3 refused  0.69 h  250x real time  ETA 0:52:30  121/440"
    *_, last = drawn.split("\n")[:-1]
    assert drawn.count("\n") == 1
    if columns > len(whole):
        assert last.endswith(f"{whole} shards")
    else:
        assert last.endswith(f"{whole[: columns - 1]}…")


def test_durations_and_rates() -> None:
    durations = [format_duration(seconds) for seconds in (0, 37.4, 59.6, 3723, 180_000)]
    assert durations == ["0:00:00", "0:00:37", "0:01:00", "1:02:03", "2 days, 2:00:00"]
    rates = (None, 0.04712, 1, 31.24, 99.97, 1234.5)
    assert [format_rate(rate) for rate in rates] == ["?", "0.0471", "1", "31.2", "100", "1234"]
