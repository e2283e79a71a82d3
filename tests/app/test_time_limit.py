"""A limit on a client interrupts it, whatever it catches, and leaves the process as it was."""

import faulthandler
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

from app.time_limit import SHORT_S, TimeLimit, TimeLimitError, series


def test_what_takes_too_long_is_interrupted_and_what_does_not_is_not() -> None:
    handler, timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    started = time.monotonic()
    with pytest.raises(TimeLimitError, match=r"no answer in 0.2 s"), TimeLimit(0.2).watch():
        try:
            time.sleep(60)
        except Exception:
            pytest.fail("it is no Exception")
    assert time.monotonic() - started < 30
    with TimeLimit(60).watch():
        pass
    with TimeLimit().watch():
        pass
    assert signal.getsignal(signal.SIGALRM) is handler
    left = signal.getitimer(signal.ITIMER_REAL)  # pytest's own limit goes on
    assert (left[0] > 0) == (timer[0] > 0) and left[0] <= timer[0]


def test_who_catches_everything_once_is_interrupted_again() -> None:
    with pytest.raises(TimeLimitError), TimeLimit(0.1).watch():
        try:
            time.sleep(60)
        except BaseException:
            time.sleep(60)


def test_beside_the_main_thread_there_is_no_limit() -> None:
    found: list[bool] = []

    def work() -> None:
        with TimeLimit(0.01).watch():
            time.sleep(0.05)
        found.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]


def alone(text: str) -> subprocess.CompletedProcess[str]:
    """Run a text in a process of its own."""
    command = [sys.executable, "-c", text]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("ends", "code"), [(True, 1), (False, 0)])
def test_what_cannot_be_interrupted_is_ended_or_shown(ends: bool, code: int) -> None:
    text = f"""
import time
from app.time_limit import TimeLimit
until = time.monotonic() + 3
try:
    with TimeLimit(0.2, ends_process={ends}).watch():
        while time.monotonic() < until:
            try:
                time.sleep(0.1)
            except BaseException:
                pass
except BaseException:
    pass
"""
    done = alone(text)
    assert done.returncode == code
    assert "Timeout" in done.stderr and 'File "<string>"' in done.stderr  # where it hangs


def test_a_series_sets_the_last_resort_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: calls.append("set"))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: calls.append("end"))
    with series():
        for _ in range(20):
            with TimeLimit(SHORT_S).watch():
                pass
    assert calls == ["set", "end"]
    calls.clear()
    with series():  # short limits are kept to the moment
        for _ in range(2):
            with TimeLimit(SHORT_S / 2).watch():
                pass
    assert calls == ["set", "end"] * 2
    calls.clear()
    with TimeLimit(SHORT_S).watch():
        pass
    assert calls == ["set", "end"]


def test_in_a_series_too_what_cannot_be_interrupted_is_ended() -> None:
    text = """
import time
from app import time_limit
time_limit.SHORT_S, time_limit.SLACK_S = 0.1, 0.5
limit = time_limit.TimeLimit(0.2, ends_process=True)
with time_limit.series():
    for _ in range(3):
        with limit.watch():
            time.sleep(0.01)
    try:
        with limit.watch():
            while True:
                try:
                    time.sleep(0.1)
                except BaseException:
                    pass
    except BaseException:
        pass
"""
    done = alone(text)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
