"""The asynchronous method: what arrives late, what it counts, and that FedAvg is a case of it."""

import random

import numpy as np
import pytest
import torch
from conftest import assert_same_arrays, assert_same_run, rounds, simulate, small
from flwr.app import ConfigRecord

from app import experiment
from app.engine import SerialGrid
from strategies import messages
from strategies.server.aggregation import AveragingSettings
from strategies.server.checkpoint import Checkpoints
from tests.methods.asynchronous import PREFIX, Asynchronous, AsynchronousSettings
from tests.plain_clients import Memory, add_to_each, client_app

TARGET = "strategy._target_=tests.methods.asynchronous.Asynchronous"
SLOW = (TARGET, "strategy.slow_every=2", "strategy.delay=2", "strategy.staleness=1")


class ShufflingGrid(SerialGrid):
    """Runs the clients, and hands out their replies, in a random order."""

    seed = 0

    def _execute(self, sent, timeout):
        order = list(sent)
        random.Random(self.seed).shuffle(order)
        replies = list(super()._execute(order, timeout))
        random.Random(self.seed + 1).shuffle(replies)
        return replies


def own_app(sizes):
    return client_app(sizes, add_to_each)


def partitions(memory):
    """Who took part in each round."""
    return [[client.partition for client in clients] for clients in memory.clients]


def initial():
    return messages.to_record({"w": torch.zeros(2), "n": torch.tensor(0)})


def weights(sizes, settings, num_rounds):
    """w after each round, and who started in it."""
    memory, found = Memory(), []
    for last in range(1, num_rounds + 1):
        strategy = Asynchronous(settings=settings)
        sinks = [memory] if last == num_rounds else []
        done = strategy.start(
            SerialGrid(len(sizes), {}, own_app(sizes)), initial(), last, sinks=sinks
        )
        found.append(float(messages.to_arrays(done.arrays)["w"][0]))
    return found, partitions(memory)


def test_worked_by_hand():
    """Client 1 has 30 samples and comes a step late, when it counts half of them: 15 beside 10."""
    settings = AsynchronousSettings(slow_every=2, delay=1, staleness=1.0)
    found, started = weights((10, 30), settings, 4)
    w1 = 0.1  # client 0 alone; Δ of client 1 is 1.1
    w2 = (10 * (w1 + 0.2) + 15 * (w1 + 1.1)) / 25
    w3 = w2 + 0.3  # client 0 alone; Δ of client 1 is 1.3
    w4 = (10 * (w3 + 0.4) + 15 * (w3 + 1.3)) / 25
    np.testing.assert_allclose(found, [w1, w2, w3, w4], rtol=1e-6)
    assert started == [[0, 1], [0], [0, 1], [0]]


def test_steps_in_which_nobody_starts_or_nobody_arrives():
    settings = AsynchronousSettings(slow_every=1, delay=2, staleness=1.0)
    found, started = weights((10, 30), settings, 4)
    first = (10 * 0.1 + 30 * 1.1) / 40
    np.testing.assert_allclose(found, [0, 0, first, first], rtol=1e-6)
    assert started == [[0, 1], [], [], [0, 1]]


def test_what_is_late_is_newer_than_the_model_in_its_counters_alone():
    """Integers take the maximum, as in every average; they are not moved."""
    strategy = Asynchronous(settings=AsynchronousSettings(slow_every=2, delay=1))
    done = strategy.start(SerialGrid(2, {}, own_app((10, 30))), initial(), 2)
    assert messages.to_arrays(done.arrays)["n"] == 3  # 1 + 2 of client 0; client 1 brought 1


def test_equally_fast_clients_are_fedavg(tmp_path):
    simulate(tmp_path / "fedavg", "strategy=fedavg", "rounds=3", "clients.per_round=4")
    for name, overrides in (
        ("none", ()),
        ("at_once", ("strategy.slow_every=2", "strategy.delay=0")),
    ):
        simulate(tmp_path / name, TARGET, "rounds=3", "clients.per_round=4", *overrides)
        assert_same_run(tmp_path / "fedavg", tmp_path / name)


@pytest.mark.parametrize("optimizer", ["none", "fedadam"])
def test_continued_from_a_checkpoint_is_uninterrupted(tmp_path, optimizer):
    overrides = (*SLOW, f"strategy.server_optimizer={optimizer}")
    simulate(tmp_path / "whole", *overrides, "rounds=6")
    simulate(tmp_path / "parts", *overrides, "rounds=4")
    state = Checkpoints(tmp_path / "parts" / "checkpoint").latest()
    assert len(state.kept(PREFIX)["index"]) == 3  # clients 1, 3, 5 began in step 4
    simulate(tmp_path / "parts", *overrides, "rounds=6", "resume=true")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert [row["num_clients"] for row in rounds(tmp_path / "whole")] == [6, 3, 3, 6, 3, 3]


@pytest.mark.parametrize("seed", range(3))
def test_replies_in_any_order(seed):
    chosen = small(*SLOW, "rounds=4")
    ends = []
    for kind in (SerialGrid, ShufflingGrid):
        prepared, memory = experiment.check(chosen), Memory()
        grid = kind(6, experiment.run_config(chosen))
        grid.seed = seed
        record = messages.to_record(prepared.model.state_dict())
        done = prepared.strategy.start(grid, record, 4, sinks=[memory])
        ends.append((messages.to_arrays(done.arrays), partitions(memory)))
    assert_same_arrays(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_it_learns_though_half_of_the_clients_are_late(tmp_path):
    summary = simulate(tmp_path, *SLOW, "rounds=9", "data.max_train=1000", "train.epochs=3")
    assert summary["final_accuracy"] > 0.8


def test_flowers_own_loop_keeps_what_is_on_its_way():
    """`configure_train` and `aggregate_train`, one after another, give what `start` does."""
    settings = AsynchronousSettings(slow_every=2, delay=1, staleness=1.0)
    strategy, grid = Asynchronous(settings=settings), SerialGrid(2, {}, own_app((10, 30)))
    arrays, found = initial(), []
    for number in range(1, 5):
        sent = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(sent))
        found.append(float(messages.to_arrays(arrays)["w"][0]))
    assert found == weights((10, 30), settings, 4)[0]


@pytest.mark.parametrize("override", ["slow_every=-1", "delay=1.5", "staleness=true"])
def test_wrong_settings_name_the_key(override):
    with pytest.raises(ValueError, match=f"strategy.{override.split('=')[0]}="):
        small(TARGET, f"strategy.{override}")


def test_a_server_optimizer_needs_prepare():
    averaging = AveragingSettings(server_optimizer="fedadam")
    with pytest.raises(RuntimeError, match="needs prepare"):
        Asynchronous(averaging=averaging).start(SerialGrid(2, {}, own_app((1, 2))), initial(), 1)
