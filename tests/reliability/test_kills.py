"""A run that is killed at any moment and resumed equals one that was not, bit for bit."""

import random
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest
from conftest import assert_same_run, rounds, strategies
from lives import CASES, die_at, first, kill_after, kill_process_after, tiny, whole

PER_CASE = 12  # kills, in the full size


def killed_often(chosen: Sequence[str], folder: Path, num_kills: int, seed: int) -> int:
    """Kill lives of a run at random moments until that many were, and compare every whole run."""
    draw, run = random.Random(seed), tiny(*chosen)
    took_s = first(run, folder / "whole")
    whole(run, folder / "whole")
    assert_same_run(folder / "whole", folder / "whole-again")
    kills = 0
    for number in count():
        if kills >= num_kills:
            return kills
        one = folder / f"run{number}"
        while kills < num_kills and kill_after(run, one, draw.uniform(0, took_s)):
            kills += 1
        whole(run, one)
        assert_same_run(folder / "whole", one)
    raise AssertionError("unreachable")


ASYNCHRONOUS = ("schedule=buffered", "schedule.buffer=1", "fleet=mobile", "fleet.dropout=0.2")


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(("strategy=fedavg",), marks=pytest.mark.long),
        ("strategy=splitfed_v3", "data.validation=0.3"),
        ("strategy=splitfed_v3", *ASYNCHRONOUS, "fleet.selection=oort"),
    ],
    ids=str,
)
def test_killed_at_random_a_few_times(chosen: tuple[str, ...], tmp_path: Path) -> None:
    assert killed_often(chosen, tmp_path, num_kills=3, seed=len(chosen[0])) == 3


def test_a_run_that_ends_at_its_target_is_killed(tmp_path: Path) -> None:
    target = ("rounds=9", "stop_at_target=true", "target_accuracy=0.2", "checkpoint.every=2")
    chosen = ("strategy=fedavg", "train.lr=0.1", *target)
    assert killed_often(chosen, tmp_path, num_kills=3, seed=1) == 3
    assert 1 < len(rounds(tmp_path / "whole")) < 9


@pytest.mark.long
@pytest.mark.parametrize("chosen", CASES)
def test_killed_at_random(chosen: tuple[str, ...], tmp_path: Path) -> None:
    kills = killed_often(chosen, tmp_path, PER_CASE, seed=len(str(chosen)))
    print(f"\nkills: {kills} serial {' '.join(chosen)}")


@pytest.mark.long
@pytest.mark.parametrize(
    "method",
    [
        ("strategy=fedavg", "strategy.server_optimizer=fedyogi"),
        ("strategy=oqfl", "quant.wire=codes_both"),
        ("strategy=splitfed_v1", "split.cut=auto", "link.up=int8"),
        ("strategy=splitfed_v2",),
        ("strategy=ushaped",),
        ("strategy=deprune",),
        ("strategy=hierarchical", "strategy.server_half=replicated"),
    ],
    ids=str,
)
def test_asynchronous_runs_are_killed_at_random(method: tuple[str, ...], tmp_path: Path) -> None:
    kills = killed_often((*method, *ASYNCHRONOUS), tmp_path, PER_CASE, seed=len(str(method)))
    print(f"\nkills: {kills} buffered {' '.join(method)}")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fork", [(), ("engine.fork=false",)], ids=["forked", "ray"])
@pytest.mark.parametrize("strategy", strategies())
def test_killed_at_random_on_ray(strategy: str, fork: tuple[str, ...], tmp_path: Path) -> None:
    """Of the process that drives the workers; it starts anew each time, as a user's does."""
    chosen = [
        f"strategy={strategy}", "rounds=12", "clients.total=6", "data.max_train=240", "seed=3",
        "train.epochs=1", "checkpoint.every=1", "resume=true", "tracker.wandb.mode=disabled",
    ]  # fmt: skip
    folder = tmp_path / "whole"
    serial = [*chosen, "engine=serial", f"hydra.run.dir={folder}"]
    assert kill_process_after(serial, 600) == 0
    on_ray = [
        *chosen,
        "engine=ray",
        "engine.workers=2",
        *fork,
        f"hydra.run.dir={tmp_path / 'killed'}",
    ]
    draw, kills = random.Random(strategy), 0
    while (
        kills < 3
        and kill_process_after(on_ray, draw.uniform(*((8, 30) if fork else (3, 15)))) is None
    ):
        kills += 1
    assert kill_process_after(on_ray, 600) == 0
    assert_same_run(folder, tmp_path / "killed")
    print(f"\nkills: {kills} on Ray strategy={strategy}")


def at_events(folder: Path, step: int) -> int:
    """Kill at each ``step``-th event of a run's file system; return how many there were."""
    run = tiny("strategy=fedavg", "rounds=2", "checkpoint.keep=1")
    first(run, folder / "whole")
    whole(run, folder / "whole")
    for number in count(0, step):
        one = folder / f"at{number}"
        if not die_at(run, one, number):
            return number
        whole(run, one)
        assert_same_run(folder / "whole", one)
    raise AssertionError("unreachable")


def test_killed_at_some_events_of_the_file_system(tmp_path: Path) -> None:
    assert at_events(tmp_path, step=13) > 40


@pytest.mark.long
def test_killed_at_each_event_of_the_file_system(tmp_path: Path) -> None:
    print(f"\nkills: {at_events(tmp_path, step=1)} at events")
