"""Sweeps: presets, what is not run again, what is killed and continued, the report at the end."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import FAULTS, ROOT

from app.config import compose
from app.session import expand, finished, preset

SMALL = (
    "engine=serial", "clients.total=2", "data.max_train=40", "train.epochs=1", "rounds=2",
    "tracker.wandb.mode=disabled",
)  # fmt: skip
JOBS = ("strategy=fedavg,oqfl", "quant.bits=2,4,8", "seed=0,1")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "main.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def summaries(sweep: Path) -> dict[str, dict[str, object]]:
    return {p.parent.name: json.loads(p.read_text()) for p in sweep.glob("*/summary.json")}


def page_data(sweep: Path) -> dict[str, list[dict[str, object]]]:
    """What report.html shows, read as a browser would."""
    page = (sweep / "report.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def test_killed_in_its_fifth_job_and_started_again(tmp_path: Path) -> None:
    """Also: what has finished beside it is taken over by another sweep that says so."""
    sweep = tmp_path / "first"
    jobs = ("-m", "strategy=oqfl,fedavg", *JOBS[1:], *SMALL, "sweep.skip_finished=true")
    process = subprocess.Popen(
        [sys.executable, "main.py", *jobs, f"hydra.sweep.dir={sweep}"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (sweep / "4" / "rounds.jsonl").exists():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = summaries(sweep)
    assert len(before) in (4, 5)
    assert not (sweep / "report.html").exists()
    stamps = {job: (sweep / job / "summary.json").stat().st_mtime_ns for job in before}

    again = run(*jobs, "resume=true", f"hydra.sweep.dir={sweep}")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished already") == len(before)
    assert {job: (sweep / job / "summary.json").stat().st_mtime_ns for job in before} == stamps
    rows = page_data(sweep)["runs"]
    assert [row["job"] for row in rows] == [str(i) for i in range(12)]
    assert all(row["summary"] for row in rows)
    assert [row["status"] for row in rows[6:]] == [
        "finished", "finished", "same as 6", "same as 7", "same as 6", "same as 7",
    ]  # fmt: skip

    other = run(
        "-m", "strategy=oqfl,fedavg", "quant.bits=2,3", "seed=1", "target_accuracy=0.01", *SMALL,
        "sweep.skip_finished=true", f"hydra.sweep.dir={tmp_path / 'second'}",
    )  # fmt: skip
    assert other.returncode == 0, other.stderr
    found = summaries(tmp_path / "second")
    assert [found[str(i)].get("same_as") for i in range(4)] == [
        "../first/1", None, "../first/9", "2"
    ]  # fmt: skip
    assert all(summary["rounds_to_target"] == 1 for summary in found.values())


def test_without_being_asked_nothing_is_taken_over(tmp_path: Path) -> None:
    assert finished(tmp_path) == {}
    assert not compose([]).sweep.skip_finished


def test_one_job_fails_and_even_calls_exit(tmp_path: Path) -> None:
    FAULTS.write_text("0 exit")
    target = "strategy._target_=tests.app.faulty.Faulty,strategies.fedavg.FedAvg"
    try:
        result = run("-m", "strategy=fedavg", target, *SMALL, f"hydra.sweep.dir={tmp_path}")
    finally:
        FAULTS.write_text("")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("failed: job 1/2 strategy._target_=")
    assert str(tmp_path / "0" / "error.txt") in result.stderr
    failed, fine = page_data(tmp_path)["runs"]
    assert (failed["status"], fine["status"]) == ("failed", "finished")
    assert failed["error"] == "SystemExit: this phone is leaving"
    assert failed["summary"] == {}


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "conf" / "sweep").glob("*.yaml")))
def test_every_preset_is_a_sweep_of_valid_jobs(name: str) -> None:
    added = preset([f"sweep={name}"], is_sweep=True)
    jobs = expand([f"sweep={name}", *added], is_sweep=True)
    assert len(jobs) > 1
    for job in jobs:
        config = compose(job)
        assert (
            config.sweep.over
            == yaml.safe_load((ROOT / f"conf/sweep/{name}.yaml").read_text())["over"]
        )


def test_a_key_on_the_command_line_takes_the_place_of_the_presets() -> None:
    given = ["sweep=bits", "quant.bits=2", "strategy=oqfl"]
    assert preset(given, is_sweep=True) == ["seed=0,1,2"]
    assert preset(["seed=1"], is_sweep=True) == []


@pytest.mark.parametrize(
    ("overrides", "is_sweep", "message"),
    [
        (["sweep=bits"], False, "sweep=bits: runs several jobs; takes -m"),
        (["sweep=bits,methods"], True, "sweep: takes one preset"),
        (["sweep=nothing"], True, "sweep=nothing: takes bits, methods"),
        (["sweep.skip_finished=maybe"], False, "sweep.skip_finished=maybe: takes true or false"),
    ],
)
def test_what_cannot_be_swept(overrides: list[str], is_sweep: bool, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        preset(overrides, is_sweep)
        compose(overrides)
