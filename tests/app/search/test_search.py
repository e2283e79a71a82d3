"""Searches from the command line: two objectives, killed and continued, side by side, failures."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import Running, run

from tracking.search import Found, find_search

SMALL = (
    "strategy=oqfl", "quant.wire=codes", "engine=serial", "clients.total=2", "data.max_train=400",
    "model=mlp", "data.validation=0.25", "train.epochs=1", "train.batch_size=10", "rounds=2",
    "tracker.wandb.mode=disabled",
)  # fmt: skip
RANGES = ("train.lr=tag(log, interval(0.001, 0.3))", "quant.bits=2,4,8")
TWO = ("sweep.search.minimize=[total_bytes_up]", "sweep.search.trials=6")


def search(sweep: Path, *more: str) -> tuple[str, ...]:
    return "-m", "sweep=search", *RANGES, *SMALL, *more, f"hydra.sweep.dir={sweep}"


def found_in(sweep: Path, with_importances: bool = False) -> Found:
    found = find_search(sweep, with_importances)
    assert found is not None
    return found


def summary(sweep: Path, job: str) -> Any:
    return json.loads((sweep / job / "summary.json").read_text())


def told(sweep: Path) -> list[tuple[Any, ...]]:
    """What was drawn, and what came of it."""
    trials = found_in(sweep).trials
    return [(one.job, one.state, tuple(one.params.items()), tuple(one.values)) for one in trials]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six trials with two objectives."""
    sweep = tmp_path_factory.mktemp("search") / "whole"
    result = run(*search(sweep, *TWO))
    assert result.returncode == 0, result.stderr
    assert "search by gp: 6 trials: 6 finished" in result.stdout
    return sweep


def test_objectives_are_those_of_the_jobs_and_the_front_is_theirs(whole: Path) -> None:
    found = found_in(whole, with_importances=True)
    for trial in found.trials:
        own = summary(whole, trial.job)
        assert trial.values == (own["best_validation_accuracy"], own["total_bytes_up"])
        config = json.loads((whole / trial.job / "config.json").read_text())
        assert config["train.lr"] == pytest.approx(trial.params["train.lr"], rel=1e-5)
        assert config["quant.bits"] == int(trial.params["quant.bits"])
        assert 0.001 <= config["train.lr"] <= 0.3
    better = {
        one.job: [
            other.job
            for other in found.trials
            if other.values != one.values
            and other.values[0] >= one.values[0]
            and other.values[1] <= one.values[1]
        ]
        for one in found.trials
    }
    assert [one.job for one in found.front] == sorted(
        (job for job, those in better.items() if not those),
        key=lambda job: -found.trials[int(job)].values[0],
    )
    shares = found.importances["total_bytes_up"]  # on which the bits decide
    assert shares["quant.bits"] > 2 * shares["train.lr"]
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)


def test_the_report_says_what_was_found(whole: Path) -> None:
    stored = json.loads((whole / "search.json").read_text())
    assert [one["direction"] for one in stored["objectives"]] == ["maximize", "minimize"]
    assert stored["front"] == [one.job for one in found_in(whole).front]
    text = (whole / "summary.md").read_text()
    assert "Search by gp for high best_validation_accuracy, low total_bytes_up. 6 trials" in text
    assert '"search":{"objectives":' in (whole / "report.html").read_text()


def test_the_page_shows_front_importances_and_slices(whole: Path, chromium: Any) -> None:
    page = chromium.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"file://{whole / 'report.html'}")
    page.locator("#search").scroll_into_view_if_needed()
    page.locator("#search-slices .main-svg").first.wait_for()
    rows = page.locator("#search-best tbody tr").all()
    assert [row.inner_text().split("\t")[0] for row in rows] == [
        one.job for one in found_in(whole).front
    ]
    titles = "[...document.querySelectorAll('#search-slices .chart')].map(c => c.layout.title.text)"
    assert page.evaluate(titles) == ["train.lr", "quant.bits"]
    drawn = page.evaluate("document.getElementById('search-chart').data.at(-1).y")
    assert sorted(drawn) == sorted(one.values[0] for one in found_in(whole).trials)
    page.locator("#search-y").select_option("1")
    drawn = page.evaluate("document.getElementById('search-chart').data.at(-1).y")
    assert sorted(drawn) == sorted(one.values[1] for one in found_in(whole).trials)
    assert said == []
    page.close()


def test_killed_and_continued_it_draws_what_it_would_have(whole: Path, tmp_path: Path) -> None:
    """Killed in the third trial; the line that was being written is cut, the lock remains."""
    sweep = tmp_path / "killed"
    process = Running(*search(sweep, *TWO))
    deadline = time.monotonic() + 120
    while not (sweep / "2" / "rounds.jsonl").exists():
        assert process.is_running(), "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send(signal.SIGKILL)
    process.wait()
    with (sweep / "search.jsonl").open("ab") as file:
        file.write(b'{"op_code":4,"work')
    (sweep / "search.jsonl.lock").touch()
    assert len(found_in(sweep).trials) in (3, 4)
    stamp = (sweep / "0" / "summary.json").stat().st_mtime_ns

    again = run(*search(sweep, *TWO))
    assert again.returncode == 1
    assert "holds a search already; resume=true continues it" in again.stderr
    again = run(*search(sweep, *TWO, "resume=true"))
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished already") >= 2
    assert (sweep / "0" / "summary.json").stat().st_mtime_ns == stamp
    assert told(sweep) == told(whole)

    other = run(*search(sweep, *TWO, "resume=true", "clients.total=3"))
    assert "holds another search: clients.total (was 2, is 3)" in other.stderr


@pytest.mark.long
def test_side_by_side_and_with_more_trials(whole: Path, tmp_path: Path) -> None:
    """Two at a time: what is random at first is the same, and every run ends in order."""
    sweep = tmp_path / "beside"
    result = run(*search(sweep, *TWO, "sweep.search.trials=4", "sweep.jobs=2"))
    assert result.returncode == 0, result.stderr
    assert told(sweep) == told(whole)[:4]
    result = run(*search(sweep, *TWO, "resume=true"))
    assert result.returncode == 0, result.stderr
    assert told(sweep) == told(whole)


def test_a_trial_that_cannot_be_or_fails_does_not_end_the_search(tmp_path: Path) -> None:
    sweep = tmp_path / "failing"
    target = "model._target_=tests/app/search/fails.py:Fails"
    result = run(
        "-m", "sweep=search", "++model.kind=fine,impossible,breaks", "strategy=fedavg", target,
        *SMALL[2:], "sweep.search.sampler=random", "sweep.search.trials=6",
        f"hydra.sweep.dir={sweep}",
    )  # fmt: skip
    assert result.returncode == 1
    found = found_in(sweep)
    states = {one.params["model.kind"]: set[str]() for one in found.trials}
    for one in found.trials:
        states[one.params["model.kind"]].add(one.state)
    assert states == {"fine": {"finished"}, "impossible": {"failed"}, "breaks": {"failed"}}
    for one in found.trials:
        if one.state == "failed":
            assert (sweep / one.job / "error.txt").exists()
            assert f"{one.params['model.kind']} as it is" in one.reason
            assert one.reason in result.stderr
    assert found.front[0].params == {"model.kind": "fine"}


def test_what_is_below_the_median_ends_early(tmp_path: Path) -> None:
    sweep = tmp_path / "pruned"
    more = ("rounds=3", "sweep.search.prune=true", "sweep.search.trials=9", "quant.bits=4")
    arguments = tuple(text for text in search(sweep, *more) if text != RANGES[1])
    result = run(*arguments, "sweep.search.sampler=random")
    assert result.returncode == 0, result.stderr
    found = found_in(sweep)
    pruned = [one for one in found.trials if one.state == "pruned"]
    assert pruned
    for one in found.trials:
        rounds = [json.loads(row) for row in (sweep / one.job / "rounds.jsonl").open()]
        ended = summary(sweep, one.job)
        config = json.loads((sweep / one.job / "config.json").read_text())
        floors = config.get("sweep.search.prune", [])
        best = [max(row["accuracy"] for row in rounds[:n]) for n in range(1, len(rounds) + 1)]
        below = [floor is not None and b < floor for b, floor in zip(best, floors, strict=False)]
        assert (ended["ended_by"] == "sweep.search.prune") == (one.state == "pruned")
        assert any(below) == (one.state == "pruned")
        assert (len(rounds) < 3) == (one.state == "pruned")
    assert found.trials[0].state == "finished"
    again = run(*arguments, "sweep.search.sampler=random", "resume=true")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished already") == 9
