"""Runs that end before their last round: where, what they say, and what resume=true makes of it."""

from pathlib import Path

import pytest
from command_line import run
from conftest import SMALL, assert_same_run, rounds, simulate, small

from app.config.composition import compose
from app.one_job import carry_out
from app.run_folder import FolderTakenError, claim, is_finished

# Accuracies that rise from round to round, and reach 0.5 in the second of these.
RUN = ("strategy=fedavg", "train.lr=0.1", "rounds=5", "checkpoint.every=2")


@pytest.fixture(scope="module")
def accuracies(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("long")
    simulate(folder, *RUN)
    return [row["accuracy"] for row in rounds(folder)]


def stopping(accuracies: list[float], number: int) -> tuple[str, ...]:
    """A run that ends with the round of that number, the first to be as accurate."""
    target = accuracies[number - 1]
    assert all(accuracy < target for accuracy in accuracies[: number - 1])
    return (*RUN, "stop_at_target=true", f"target_accuracy={target}")


def test_the_round_that_reaches_the_target_is_the_last(
    accuracies: list[float], tmp_path: Path
) -> None:
    summary = simulate(tmp_path, *stopping(accuracies, 3))
    assert [row["accuracy"] for row in rounds(tmp_path)] == accuracies[:3]
    assert (summary["rounds"], summary["rounds_to_target"]) == (3, 3)
    assert summary["ended_by"] == "target_accuracy"
    assert summary["final_accuracy"] == summary["best_accuracy"] == accuracies[2]
    assert (tmp_path / "checkpoint" / "000003").is_dir()  # the last round has one


def test_a_target_that_is_not_reached_ends_nothing(tmp_path: Path) -> None:
    summary = simulate(tmp_path, *RUN, "rounds=2", "stop_at_target=true", "target_accuracy=1.0")
    assert (summary["rounds"], summary["ended_by"]) == (2, "rounds")


def test_a_run_that_ended_is_finished_whatever_rounds_says(
    accuracies: list[float], tmp_path: Path
) -> None:
    chosen = stopping(accuracies, 3)
    simulate(tmp_path, *chosen)
    for more in (3, 5, 9):
        assert is_finished(tmp_path, small(*chosen, f"rounds={more}"))
    assert not is_finished(tmp_path, small(*RUN))  # without an end it goes on


def test_a_higher_target_or_none_continues_it(accuracies: list[float], tmp_path: Path) -> None:
    for folder, more in (("none", RUN), ("higher", stopping(accuracies, 4))):
        simulate(tmp_path / folder, *stopping(accuracies, 2))
        simulate(tmp_path / folder, *more, "resume=true")
        simulate(tmp_path / f"{folder}-at-once", *more)
        assert_same_run(tmp_path / folder, tmp_path / f"{folder}-at-once")


def test_a_target_that_was_passed_is_refused(accuracies: list[float], tmp_path: Path) -> None:
    simulate(tmp_path, *RUN)
    chosen = stopping(accuracies, 2)
    with pytest.raises(FolderTakenError, match=r"target_accuracy=0\.\d+: .* is at round 5 already"):
        claim(tmp_path, small(*chosen, "resume=true"))


def test_only_a_run_that_ends_at_its_target_is_another_experiment() -> None:
    plain = small()
    assert small("target_accuracy=0.5").hash == plain.hash
    assert "stop_at_target" not in plain.identity
    hashes = {small("stop_at_target=true", f"target_accuracy={t}").hash for t in (0.5, 0.6)}
    assert len(hashes | {plain.hash}) == 3


def test_the_command_line_says_it(accuracies: list[float], tmp_path: Path) -> None:
    chosen = stopping(accuracies, 2)
    ran = run(*SMALL, *chosen, f"hydra.run.dir={tmp_path}")
    assert ran.returncode == 0, ran.stderr
    assert "round 2/5" in ran.stderr and "ended by target_accuracy" in ran.stderr
    again = small(*chosen, "resume=true", "rounds=8")
    assert carry_out(again, tmp_path, "", lambda: None, pytest.fail) == "finished already"


def test_it_takes_a_target() -> None:
    with pytest.raises(ValueError, match="stop_at_target=true: takes target_accuracy beside it"):
        compose(["stop_at_target=true"])
