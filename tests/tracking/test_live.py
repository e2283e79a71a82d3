"""What the terminal shows of a sweep, with and without one."""

import io

import pytest
from rich.console import Console
from test_progress import record

from tracking import live, progress
from tracking.live import SweepView


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when the test says so."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(live, "time", clock)
    monkeypatch.setattr(progress, "time", clock)
    return clock


def run_job(job, clock, num_rounds=2, done=(), took_s=10.0):
    sink = job.progress(num_rounds, list(done))
    for r in range(len(done) + 1, num_rounds + 1):
        clock.now += took_s
        sink.round(record(r, wall_s=took_s), ())
    sink.finish({})
    job.end()


def test_plain_lines(clock):
    console = Console(file=io.StringIO(), width=40)
    view = SweepView(4, console)
    run_job(view.begin(1, "strategy=oqfl quant.bits=[2,4] [/x]"), clock)
    view.begin(2, "seed=2").end("the same experiment as job 0, not run again")
    job = view.begin(3, "seed=3")
    clock.now += 1
    job.end("error: too hot (0/error.txt)", failed=True)
    run_job(view.begin(4, ""), clock)
    view.close()
    one = "job 1/4 strategy=oqfl quant.bits=[2,4] [/x]"
    assert console.file.getvalue().splitlines() == [
        f"{one}: 2 rounds",
        f"{one}: round 1/2  accuracy 0.5000  train loss 0.2500  0:10 left  sweep 1:10 left",
        f"{one}: round 2/2  accuracy 0.5000  train loss 0.2500  sweep 1:00 left",
        "job 2/4 seed=2: the same experiment as job 0, not run again",
        "job 3/4 seed=3: error: too hot (0/error.txt)",
        "job 4/4: 2 rounds",
        "job 4/4: round 1/2  accuracy 0.5000  train loss 0.2500  0:10 left",
        "job 4/4: round 2/2  accuracy 0.5000  train loss 0.2500",
    ]


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)


def bars(console):
    """The two lines at the bottom."""
    return console.file.getvalue().split("\n")[-2:]


def test_two_bars_in_a_terminal(clock, terminal):
    view = SweepView(3, terminal)
    try:
        run_job(view.begin(1, "quant.bits=[2,4] [/x]"), clock)
        view.begin(2, "seed=1").end("error: too hot", failed=True)
        sink = view.begin(3, "seed=2").progress(4, [record(1)])
        clock.now += 5
        sink.round(record(2, wall_s=5.0), ())
        view._bars.refresh()
        job, sweep = bars(terminal)
    finally:
        view.close()
    drawn = terminal.file.getvalue()
    assert "✓ 1/3 quant.bits=[2,4] [/x]  accuracy 0.5000  train loss 0.2500  0:20" in drawn
    assert "✗ 2/3 seed=1  error: too hot" in drawn
    assert "3/3 seed=2" in job
    assert "2/4  accuracy 0.5000  train loss 0.2500  0:10 left" in job
    assert "2/3 jobs  1 failed  0:10 left" in sweep


def test_all_done_in_a_terminal(clock, terminal):
    view = SweepView(2, terminal)
    for number in (1, 2):
        view.begin(number, f"seed={number}").end("finished already")
    view.close()
    drawn = terminal.file.getvalue()
    assert "= 2/2 seed=2  finished already" in drawn
    assert "2/2 jobs" in drawn.rsplit("sweep", 1)[-1]
    after = len(drawn)
    assert terminal.file.getvalue()[after:] == ""


def test_a_long_job_keeps_its_figures(clock, terminal):
    """What does not fit is cut off its name, not off its round."""
    view = SweepView(1, terminal)
    try:
        sink = view.begin(1, "a.very.long.key=" + "x" * 200).progress(3, [])
        sink.round(record(1), ())
        view._bars.refresh()
        assert "1/3  accuracy 0.5000" in bars(terminal)[0]
    finally:
        view.close()


def test_several_bars_in_a_terminal(clock, terminal):
    """One of each running job, that of the sweep below them; a job that begins takes a free one."""
    view = SweepView(3, terminal)
    try:
        first, second = view.begin(1, "seed=0"), view.begin(2, "seed=1")
        one, two = first.progress(4, []), second.progress(2, [record(1)])
        clock.now += 10
        one.round(record(1, wall_s=10.0), ())
        second.say("WARNING: a client failed\n  Traceback")
        view._bars.refresh()
        *_, of_first, of_second, sweep = terminal.file.getvalue().split("\n")
        assert "1/3 seed=0" in of_first and "1/4" in of_first and "0:30 left" in of_first
        assert "2/3 seed=1" in of_second and "starting" in of_second
        # Two at a time: 30 s each of those that run, 40 s of the one that has not begun.
        assert "0/3 jobs  0:50 left" in sweep
        clock.now += 10
        two.round(record(2, wall_s=10.0), ())
        second.end()
        third = view.begin(3, "seed=2")
        third.progress(4, [])
        first.end("error: too hot", failed=True)
        view._bars.refresh()
        of_third, sweep = bars(terminal)  # nobody takes the bar of the first
        assert "3/3 seed=2" in of_third and "2/3 jobs  1 failed" in sweep
        third.leave()
    finally:
        view.close()
    drawn = terminal.file.getvalue()
    assert "job 2/3 seed=1: WARNING: a client failed\n  Traceback" in drawn
    assert "✓ 2/3 seed=1  accuracy 0.5000  train loss 0.2500  0:20" in drawn
    assert "✗ 1/3 seed=0  error: too hot" in drawn
    assert "3/3 seed=2  accuracy" not in drawn


def test_plain_lines_of_several(clock):
    console = Console(file=io.StringIO(), width=40)
    view = SweepView(2, console)
    jobs = [view.begin(1, "seed=0"), view.begin(2, "seed=1")]
    sinks = [job.progress(2, []) for job in jobs]
    for r in (1, 2):
        clock.now += 10
        for sink in sinks:
            sink.round(record(r, wall_s=10.0), ())
    jobs[1].end()
    jobs[0].end("error: too hot", failed=True)
    view.close()
    figures = "accuracy 0.5000  train loss 0.2500"
    assert console.file.getvalue().splitlines() == [
        "job 1/2 seed=0: 2 rounds",
        "job 2/2 seed=1: 2 rounds",
        f"job 1/2 seed=0: round 1/2  {figures}  0:10 left  sweep 0:10 left",
        f"job 2/2 seed=1: round 1/2  {figures}  0:10 left  sweep 0:10 left",
        f"job 1/2 seed=0: round 2/2  {figures}  sweep 0:10 left",
        f"job 2/2 seed=1: round 2/2  {figures}  sweep 0:00 left",
        "job 1/2 seed=0: error: too hot",
    ]
