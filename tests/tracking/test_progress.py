"""What the terminal shows, with and without one."""

import io
import logging
import sys

import pytest
from rich.console import Console

from tracking import progress
from tracking.progress import ConsoleHandler, ProgressSink
from tracking.record import RoundRecord


def record(server_round, **changes):
    values = {
        "round": server_round, "accuracy": 0.5, "loss": 1.0, "train_loss": 0.25, "num_clients": 5,
        "num_failed": 0, "num_dropped": 0, "bytes_up": 1, "bytes_down": 1, "sim_s": None,
        "energy_j": None, "wall_s": 2.0,
    }  # fmt: skip
    return RoundRecord(**{**values, **changes})


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when the test says so."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def plain():
    return Console(file=io.StringIO(), width=40)


def lines(console):
    return console.file.getvalue().splitlines()


def test_plain_lines_where_there_is_no_terminal(clock):
    console = plain()
    sink = ProgressSink(
        3, label="job 1/2 strategy=oqfl quant.bits=4 and a label longer than the width",
        console=console,
    )  # fmt: skip
    for r in (1, 2, 3):
        clock.now += 6
        sink.round(record(r, num_failed=2 if r == 2 else 0), ())
    sink.finish({})
    label = "job 1/2 strategy=oqfl quant.bits=4 and a label longer than the width"
    assert lines(console) == [
        f"{label}: 3 rounds",
        f"{label}: round 1/3  accuracy 0.5000  train loss 0.2500  0:04 left",
        f"{label}: round 2/3  accuracy 0.5000  train loss 0.2500  2 failed  0:02 left",
        f"{label}: round 3/3  accuracy 0.5000  train loss 0.2500",
    ]
    assert "\x1b" not in console.file.getvalue()


def test_lines_are_throttled_and_the_last_round_always_shown(clock):
    console = plain()
    sink = ProgressSink(100, console=console)
    for r in range(1, 101):
        clock.now += 0.3  # 30 s in all: a line every 5.1 s
        sink.round(record(r), ())
    shown = [int(line.split("round ")[1].split("/")[0]) for line in lines(console)[1:]]
    assert shown == [17, 34, 51, 68, 85, 100]


def test_brackets_in_a_label_are_shown_as_they_are_in_plain_lines(clock):
    console = plain()
    sink = ProgressSink(1, label="split.cut=[stage1,stage2] [/x]", console=console)
    sink.round(record(1), ())
    assert all("split.cut=[stage1,stage2] [/x]" in line for line in lines(console))


def test_what_was_not_evaluated_is_not_shown(clock):
    console = plain()
    ProgressSink(1, console=console).round(record(1, accuracy=None, train_loss=None), ())
    assert lines(console)[-1] == "training: round 1/1  "


def test_a_continued_run_says_where_from(clock):
    console = plain()
    sink = ProgressSink(9, [record(r) for r in (1, 2, 3)], "x", console)
    assert lines(console) == ["x: 9 rounds, continued after round 3"]
    clock.now += 10
    sink.round(record(4), ())
    assert lines(console)[1].startswith("x: round 4/9")
    assert lines(console)[1].endswith("0:10 left")


@pytest.mark.parametrize(
    ("wall_s", "num_rounds", "left"),
    [(0.2, 3, "0:00"), (29.9, 3, "1:00"), (60.0, 61, "1:00:00"), (3661.0, 2, "1:01:01")],
)
def test_time_left(clock, wall_s, num_rounds, left):
    console = plain()
    sink = ProgressSink(num_rounds, console=console)
    clock.now += 6
    sink.round(record(1, wall_s=wall_s), ())
    assert lines(console)[-1].endswith(f"  {left} left")


def test_the_first_round_counts_no_more_once_there_is_another(clock):
    console = plain()
    sink = ProgressSink(12, console=console)
    for r, wall_s in ((1, 500.0), (2, 1.0)):
        clock.now += 6
        sink.round(record(r, wall_s=wall_s), ())
    assert lines(console)[-1].endswith("  0:10 left")


def test_time_left_is_the_mean_over_the_last_rounds(clock):
    console = plain()
    sink = ProgressSink(14, console=console)
    for r, wall_s in ((1, 500.0), (2, 1.0), (3, 1.0), (4, 10.0)):
        clock.now += 6
        sink.round(record(r, wall_s=wall_s), ())
    assert lines(console)[-1].endswith("  0:40 left")  # ten rounds of (1 + 1 + 10) / 3


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)


def test_a_bar_in_a_terminal():
    console = terminal()
    sink = ProgressSink(4, [record(1)], "job 1/2", console)
    try:
        assert "job 1/2" in console.file.getvalue()
        assert "1/4  starting" in console.file.getvalue()
        sink.round(record(2, num_failed=3), ())
        sink.round(record(3), ())
    finally:
        sink.finish(None)
    last = console.file.getvalue().split("job 1/2")[-1]
    assert "3/4  accuracy 0.5000  train loss 0.2500" in last
    assert "━" in last
    before = len(console.file.getvalue())
    assert console.file.getvalue()[before:] == ""  # nothing redraws it after finish
    assert "round 3/4" not in console.file.getvalue()  # no plain lines besides


def test_a_full_bar_at_the_end():
    console = terminal()
    sink = ProgressSink(1, console=console)
    sink.round(record(1), ())
    sink.finish({})
    assert "1/1  accuracy 0.5000" in console.file.getvalue()
    assert "left" not in console.file.getvalue().split("1/1")[-1]


def test_brackets_in_a_label_are_shown_as_they_are_in_the_bar():
    console = terminal()
    sink = ProgressSink(1, label="split.cut=[stage1,stage2]", console=console)
    sink.finish(None)
    assert "split.cut=[stage1,stage2]" in console.file.getvalue()


def test_the_log_goes_to_whatever_standard_error_is_now(monkeypatch):
    handler = ConsoleHandler()
    for text in ("first", "second"):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        handler.emit(logging.LogRecord("x", logging.INFO, "", 1, text, (), None))
        assert stream.getvalue() == f"{text}\n"
