"""Selections by the clients' losses, in whole runs."""

import json
from pathlib import Path

import pytest
from conftest import assert_same_run, rounds, simulate

from strategies.server.checkpoint import Checkpoints
from strategies.server.losses import known_losses

CHOSEN = ("strategy=fedavg", "fleet=mobile", "clients.total=12", "clients.per_round=4")


@pytest.mark.parametrize("kind", ["power_of_choice", "oort"])
@pytest.mark.parametrize("schedule", ["sync", "buffered"])
def test_losses_are_part_of_the_state(kind: str, schedule: str, tmp_path: Path) -> None:
    chosen = (*CHOSEN, f"fleet.selection={kind}", f"schedule={schedule}", "schedule.buffer=2")
    simulate(tmp_path / "whole", *chosen, "rounds=6")
    simulate(tmp_path / "parts", *chosen, "rounds=3")
    state = Checkpoints(tmp_path / "parts" / "checkpoint").latest()
    assert state is not None
    lines = (tmp_path / "parts" / "clients.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    trained = [row for row in rows if row["status"] == "ok"]
    losses, numbers = known_losses(state)
    assert losses == {row["partition"]: row["loss"] for row in trained}
    assert numbers == {row["partition"]: row["round"] for row in trained}
    simulate(tmp_path / "parts", *chosen, "rounds=6", "resume=true")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_fastest_take_less_time(tmp_path: Path) -> None:
    simulate(tmp_path / "uniform", *CHOSEN)
    simulate(tmp_path / "fastest", *CHOSEN, "fleet.selection=fastest")
    slow, fast = (rounds(tmp_path / name)[0]["sim_s"] for name in ("uniform", "fastest"))
    assert fast < slow


def test_in_a_step_the_fastest_take_the_places_too(tmp_path: Path) -> None:
    """Four at work, four arrivals a step: the same few fast clients, again and again."""
    chosen = ("strategy=fedavg", "fleet=mobile", "clients.total=40", "data.max_train=600")
    steps = ("schedule=buffered", "clients.per_round=4", "schedule.buffer=4", "rounds=4")
    simulate(tmp_path, *chosen, *steps, "fleet.selection=fastest")
    lines = (tmp_path / "clients.jsonl").read_text().splitlines()
    asked = [json.loads(line)["partition"] for line in lines]
    assert len(asked) == 16
    assert len(set(asked)) <= 8  # no more than are at work and begin in their places
