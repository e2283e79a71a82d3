"""Whole command lines, in processes of their own: sweeps, failures, kill and resume."""

import csv
import json
import signal
import time
from pathlib import Path

import pytest
from command_line import Running, run
from conftest import FAULTS, ROOT, assert_same_run

SERIAL = (
    "engine=serial", "clients.total=6", "data.max_train=240", "train.epochs=1", "rounds=2",
)  # fmt: skip


def test_a_sweep_ends_in_a_table_and_runs_identical_jobs_once(tmp_path: Path) -> None:
    result = run(
        "-m", "strategy=fedavg,oqfl", "quant.bits=2,4", *SERIAL, f"hydra.sweep.dir={tmp_path}"
    )
    assert result.returncode == 0, result.stderr
    jobs = [json.loads((tmp_path / str(i) / "summary.json").read_text()) for i in range(4)]
    assert [job["strategy"] for job in jobs] == ["fedavg", "fedavg", "oqfl", "oqfl"]
    assert [job.get("same_as") for job in jobs] == [None, "0", None, None]
    assert "the same experiment as job 0, not run again" in result.stderr
    assert_same_run(tmp_path / "0", tmp_path / "1")
    assert [job.get("weight_bits") for job in jobs] == [None, None, 2, 4]
    lines = [line for line in result.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert len(lines) == 4
    for job, line in zip(jobs, lines, strict=True):
        assert f"{job['final_accuracy']:.4f}" in line
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["final_accuracy"]) for row in rows] == [j["final_accuracy"] for j in jobs]
    assert "| fedavg | – |" in (tmp_path / "summary.md").read_text()
    offline = list(tmp_path.glob("*/wandb/offline-run-*"))
    assert len(offline) == 4  # one per job, also of the one that was not run again
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1  # that of the sweep's report


def test_a_failing_job_does_not_stop_the_others(tmp_path: Path) -> None:
    FAULTS.write_text("\n".join(f"{i} raise" for i in range(6)))
    target = "strategy._target_=tests.app.faulty.Faulty,strategies.fedavg.FedAvg"
    try:
        result = run("-m", "strategy=fedavg", target, *SERIAL, f"hydra.sweep.dir={tmp_path}")
    finally:
        FAULTS.write_text("")
    assert result.returncode == 1
    assert "failed: job 1/2" in result.stderr
    assert "all 6 clients failed; ArithmeticError: this phone is broken" in result.stderr
    assert str(tmp_path / "0" / "error.txt") in result.stderr
    assert "Traceback" in (tmp_path / "0" / "error.txt").read_text()
    assert not (tmp_path / "0" / "summary.json").exists()
    assert (tmp_path / "1" / "summary.json").exists()
    lines = [line for line in result.stdout.splitlines() if line.strip()[:1].isdigit()]
    statuses = [[word for word in line.split() if word in ("failed", "finished")] for line in lines]
    assert statuses == [["failed"], ["finished"]]
    assert "this phone is broken" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_an_interpolation_is_shown_as_its_value(tmp_path: Path) -> None:
    sweep = ("train.lr=0.1,0.2", "train.server_lr=${train.lr},0.5", f"hydra.sweep.dir={tmp_path}")
    result = run("-m", "strategy=splitfed_v1", *sweep, *SERIAL)
    assert result.returncode == 0, result.stderr
    assert "job 3/4 train.lr=0.2 train.server_lr=0.2:" in result.stderr
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [line[1:3] for line in lines] == [
        ["0.1", "0.1"], ["0.1", "0.5"], ["0.2", "0.2"], ["0.2", "0.5"],
    ]  # fmt: skip


def test_a_run_that_fails_says_so_in_its_exit_code(tmp_path: Path) -> None:
    result = run(*SERIAL, "strategy=fedavg", "train.lr=1e30", f"hydra.run.dir={tmp_path}")
    assert result.returncode == 1
    assert "training diverged" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "strategy",
    [
        "oqfl",
        pytest.param("splitfed_v3", marks=pytest.mark.long),
        pytest.param("fedavg", marks=pytest.mark.long),
        pytest.param("fedavg strategy.server_optimizer=fedyogi", marks=pytest.mark.long),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(strategy: str, tmp_path: Path) -> None:
    chosen = (*f"strategy={strategy}".split(), *SERIAL, "rounds=6", "checkpoint.every=2", "seed=5")
    killed = tmp_path / "killed"
    process = Running(*chosen, f"hydra.run.dir={killed}")
    deadline = time.monotonic() + 120
    while _num_lines(killed / "rounds.jsonl") < 3:
        assert process.is_running(), "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send(signal.SIGKILL)
    process.wait()
    assert not (killed / "summary.json").exists()

    refused = run(*chosen, f"hydra.run.dir={killed}")
    assert refused.returncode == 1
    assert "holds a run already; resume=true continues it" in refused.stderr
    refused = run(*chosen, "train.lr=0.3", "resume=true", f"hydra.run.dir={killed}")
    assert refused.returncode == 1
    assert "holds another experiment: train.lr (was 0.1, is 0.3)" in refused.stderr

    resumed = run(*chosen, "resume=true", f"hydra.run.dir={killed}")
    assert resumed.returncode == 0, resumed.stderr
    assert "continued after round" in resumed.stderr
    whole = run(*chosen, f"hydra.run.dir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    assert_same_run(tmp_path / "whole", killed)
    assert len(list(killed.glob("wandb/offline-run-*"))) == 1


def test_another_experiment_is_neither_continued_nor_harmed(tmp_path: Path) -> None:
    """Not by resume, not by a sweep into an old folder, however the folder is written."""
    quiet = (*SERIAL, "tracker.wandb.mode=disabled")
    sweep = tmp_path / "a b"
    first = run("-m", "seed=0,1", *quiet, f"hydra.sweep.dir='{sweep}'")
    assert first.returncode == 0, first.stderr
    before = {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file()}
    for arguments in (
        ("-m", "seed=0,2", "resume=true", f"hydra.sweep.dir='{sweep}'"),
        ("-m", "seed=5,6", f"hydra.sweep.dir='{sweep}'"),
        ("seed=2", "resume=true", f"hydra.run.dir='{sweep / '1'}'"),
    ):
        refused = run(*arguments, *quiet)
        assert refused.returncode == 1
        assert "holds" in refused.stderr
        assert {p: p.read_bytes() for p in sweep.rglob("*") if p.is_file()} == before
    again = run("-m", "seed=0,1", "resume=true", *quiet, f"hydra.sweep.dir='{sweep}'")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished already") == 2


def test_a_finished_run_that_grows_is_unfinished_until_it_is_done(tmp_path: Path) -> None:
    quiet = (*SERIAL, "tracker.wandb.mode=disabled", f"hydra.run.dir={tmp_path}")
    assert run(*quiet).returncode == 0
    process = Running(*quiet, "rounds=500", "resume=true")
    deadline = time.monotonic() + 120
    while _num_lines(tmp_path / "rounds.jsonl") < 4:
        assert process.is_running()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send(signal.SIGINT)
    ended = process.wait(timeout=60)
    assert ended.returncode == 130
    assert "the same command with resume=true continues" in ended.stderr
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.long
def test_glob_and_range_sweeps(tmp_path: Path) -> None:
    quiet = (*SERIAL, "rounds=1", "tracker.wandb.mode=disabled", f"hydra.sweep.dir={tmp_path}")
    result = run("-m", "strategy=glob(splitfed*)", "seed=range(2)", *quiet)
    assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.glob("*/summary.json"))) == 6


def test_resume_finds_the_newest_run_of_the_same_experiment(tmp_path: Path) -> None:
    chosen = (*SERIAL, f"name=test_resume/{tmp_path.name}", "tracker.wandb.mode=disabled")
    first = run(*chosen)
    folder = Path(first.stdout.splitlines()[-1])
    try:
        grown = run(*chosen, "rounds=4", "resume=true")
        assert grown.returncode == 0, grown.stderr
        assert Path(grown.stdout.splitlines()[-1]) == folder
        assert _num_lines(folder / "rounds.jsonl") == 4
        again = run(*chosen, "rounds=4", "resume=true")
        assert "finished already" in again.stderr
        other = run(*chosen, "rounds=1", "train.lr=0.3", "resume=true")
        assert "resume=true: there is no run of this experiment under runs/test" in other.stderr
        assert Path(other.stdout.splitlines()[-1]) != folder
    finally:
        import shutil

        shutil.rmtree(ROOT / "runs" / "test_resume")


def _num_lines(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0
