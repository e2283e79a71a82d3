"""schedule=buffered with one server part for all: replayed by hand, and what the state holds."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_arrays, rounds, settings_of, simulate, small
from safetensors.numpy import load_file

from app import experiment
from strategies.client.simulated import train_simulated
from strategies.contract import Streams, Task
from strategies.server.aggregation import combine
from strategies.server.buffered import PREFIX, TABLE, flights_of
from strategies.server.checkpoint import Checkpoints
from strategies.splitfed_v2 import SplitFedV2

CHOSEN = (
    "strategy=splitfed_v2", "strategy._target_=tests.strategies.faulty_split.FaultyV2",
    "schedule=buffered", "schedule.buffer=2", "schedule.concurrency=3", "clients.total=4",
    "fleet=mobile", "fleet.jitter=0.7", "rounds=4", "model.norm=batch", "train.momentum=0.9",
)  # fmt: skip


def by_hand(folder: Path) -> tuple[dict[str, np.ndarray], list[int]]:
    """Train one client after another as the records say they came; return the model, and how late.

    Who failed leaves the server's part as it was, and is not in the average.
    """
    config = small(*CHOSEN)
    strategy = experiment.strategy(config)
    now = {
        n: t.numpy().copy() for n, t in experiment.prepare(config, strategy).state_dict().items()
    }
    network = strategy.prepared().in_round(1)
    on_device = network.on_device(0) or frozenset()
    trained = {name for name, _ in network.model.named_parameters()}
    rows = [json.loads(row) for row in (folder / "clients.jsonl").read_text().splitlines()]
    ends = np.cumsum([row["sim_s"] for row in rounds(folder)])
    began_with, late = {1: now}, list[int]()
    for number in range(1, len(ends) + 1):
        arrived = [row for row in rows if row["round"] == number and row["status"] == "ok"]
        server = {name: array for name, array in now.items() if name not in on_device}
        changed, samples = {}, {}
        for row in sorted(arrived, key=lambda row: row["end_s"]):
            p = row["partition"]
            after = np.searchsorted(ends, row["begin_s"] + 1e-12, side="right") + 1
            step = min(int(after), number)
            late.append(number - step)
            begun = {n: a for n, a in began_with[step].items() if n in on_device}
            sent = {name: torch.from_numpy((begun | server)[name].copy()) for name in now}
            data, settings = experiment.client_data(config, p), settings_of(strategy, step)
            model = SplitFedV2.client.prepare(experiment.network(config), settings)
            task = Task(settings, Streams(config.seed, step, p), len(data))
            update = train_simulated(SplitFedV2.client, model, sent, data, task)
            came = {name: tensor.numpy().copy() for name, tensor in update.arrays.items()}
            server, samples[p] = {name: came[name] for name in server}, len(data)
            damping = (1 + number - step) ** -0.5
            changed[p] = {
                name: came[name]
                if step == number or name not in trained
                else now[name] + damping * (came[name] - begun[name])
                for name in begun
            }
        clients = sorted(changed)
        average = combine([changed[p] for p in clients], [samples[p] for p in clients])
        now = {**now, **server, **average}
        began_with[number + 1] = now
    return now, late


@pytest.mark.parametrize("fault", ["", "late"])
def test_a_run_replayed_by_hand(fault: str, faults: Callable[..., None], tmp_path: Path) -> None:
    """The server's part goes from client to client as they arrive; devices' parts are averaged."""
    if fault:
        faults(c1=fault)  # after it has trained
    simulate(tmp_path, *CHOSEN)
    expected, late = by_hand(tmp_path)
    assert_same_arrays(load_file(tmp_path / "model.safetensors"), expected)
    failed = [row["num_failed"] for row in rounds(tmp_path)]
    assert max(late) >= 1
    assert len(late) == 2 * 4 - sum(failed)
    assert bool(sum(failed)) == bool(fault)


def test_the_state_holds_devices_parts_alone(tmp_path: Path) -> None:
    """A client at work has the server's part from the one before it, not from when it began."""
    simulate(tmp_path, *CHOSEN, "strategy._target_=strategies.splitfed_v2.SplitFedV2")
    state = Checkpoints(tmp_path / "checkpoint").latest()
    assert state is not None
    strategy = experiment.strategy(small(*CHOSEN))
    experiment.prepare(small(*CHOSEN), strategy)
    on_device = strategy.prepared().in_round(1).on_device(0)
    kept = {name for name in state.kept(PREFIX) if name != TABLE}
    began = {flight.began for flight in flights_of(state)}
    assert kept == {f"{step}/{name}" for step in began for name in on_device or ()}
