"""Slices of layers: who holds what, what crosses, and that FedAvg is a case of it."""

import json

import numpy as np
import pytest
import torch
from conftest import assert_same_run, rounds, simulate, small, works_of
from torch import nn

from app import experiment
from app.engine import SerialGrid
from strategies import messages
from tests.methods.slices import Slices, SlicesSettings, narrow
from tests.plain_clients import client_app

TARGET = "strategy._target_=tests.methods.slices.Slices"


def mlp():
    """Four inputs, four hidden channels, two classes."""
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def own_app(sizes, returned=lambda arrays: arrays):
    """Clients that set every entry that they hold to 1 + their partition."""

    def train(partition, server_round, sent):
        return returned({name: torch.full_like(t, 1.0 + partition) for name, t in sent.items()})

    return client_app(sizes, train)


def start(shares, sizes, app=None):
    """A round of `own_app` on `mlp`: its arrays before and after."""
    strategy = Slices(settings=SlicesSettings(shares))
    model = strategy.prepare(mlp(), (4,))
    before = messages.to_record(model.state_dict())
    done = strategy.start(SerialGrid(len(sizes), {}, app or own_app(sizes)), before, 1)
    return messages.to_arrays(before), messages.to_arrays(done.arrays)


def test_the_narrow_network_is_the_first_channels():
    whole = mlp()
    small_one, x = narrow(whole, 0.5), torch.randn(3, 4)
    assert [tuple(p.shape) for p in small_one.parameters()] == [(2, 4), (2,), (2, 2), (2,)]
    with torch.no_grad():
        whole[2].weight[:, 2:] = 0  # what the narrow one lacks
    torch.testing.assert_close(small_one(x), whole(x))


def test_worked_by_hand():
    """Client 0, of 10 samples, holds all; client 1, of 30, the first half of the channels."""
    _, after = start((1.0, 0.5), (10, 30))
    both = (10 * 1 + 30 * 2) / 40
    expected = {
        "0.weight": [[both] * 4, [both] * 4, [1.0] * 4, [1.0] * 4],
        "0.bias": [both, both, 1.0, 1.0],
        "2.weight": [[both, both, 1.0, 1.0]] * 2,
        "2.bias": [both, both],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(after[name], np.array(values, np.float32), err_msg=name)


def test_what_nobody_holds_stays():
    before, after = start((0.5, 0.25), (10, 30))
    np.testing.assert_array_equal(after["0.weight"][2:], before["0.weight"][2:])
    np.testing.assert_array_equal(after["0.weight"][1], np.ones(4))  # of client 0 alone
    np.testing.assert_array_equal(after["2.weight"][:, 2:], before["2.weight"][:, 2:])
    np.testing.assert_array_equal(after["0.weight"][0], np.full(4, 1.75))


def test_a_slice_of_another_width_is_refused(caplog):
    def wrong(arrays):
        return {name: tensor[:1] for name, tensor in arrays.items()}

    with pytest.raises(RuntimeError, match=r"array 0\.bias is \(1,\), expected \(2,\)"):
        start((0.5,), (10, 30), own_app((10, 30), wrong))


@pytest.mark.parametrize("overrides", [("rounds=3",), ("model.norm=batch", "clients.per_round=4")])
def test_all_of_it_is_fedavg(tmp_path, overrides):
    simulate(tmp_path / "fedavg", "strategy=fedavg", *overrides)
    simulate(tmp_path / "slices", TARGET, "strategy.shares=[1]", *overrides)
    assert_same_run(tmp_path / "fedavg", tmp_path / "slices")


def test_bytes_are_those_of_the_slices(tmp_path):
    """In the records, in the messages, and on the simulated clock."""
    simulate(tmp_path, TARGET, "strategy.shares=[1,0.5,0.25]", "model.norm=batch", "fleet=mobile")
    network = experiment.network(small("model.norm=batch"))
    sizes = [
        sum(tensor.nbytes for tensor in narrow(network, share).state_dict().values())
        for share in (1, 0.5, 0.25)
    ]
    rows = [json.loads(line) for line in (tmp_path / "clients.jsonl").read_text().splitlines()]
    assert sizes[0] > 3 * sizes[1] > 9 * sizes[2]
    for row in rows:
        assert row["bytes_up"] == row["bytes_down"] == sizes[row["partition"] % 3]
    assert len({row["sim_s"] for row in rows}) > 3
    assert all(row["num_failed"] == 0 for row in rounds(tmp_path))


def test_the_clock_sees_the_slices():
    chosen = small(TARGET, "strategy.shares=[1,0.5]")
    works = works_of(experiment.check(chosen).strategy)
    assert works[0].bytes_up == works[0].bytes_down > 3 * works[1].bytes_up
    assert works[0].local.flops["fp32"] > 2.5 * works[1].local.flops["fp32"]
    assert works[0].peak_bytes > 1.5 * works[1].peak_bytes


def test_it_learns_in_slices(tmp_path):
    own = ("strategy.shares=[1,0.5,0.25]", "rounds=8", "data.max_train=1000", "train.epochs=3")
    assert simulate(tmp_path, TARGET, *own)["final_accuracy"] > 0.8


@pytest.mark.parametrize("shares", ["0.5", "[]", "[1.5]", "[a]"])
def test_wrong_shares_name_the_key(shares):
    with pytest.raises(ValueError, match=r"strategy\.shares="):
        small(TARGET, f"strategy.shares={shares}")


def test_a_width_without_groups_names_the_key():
    with pytest.raises(ValueError, match=r"strategy\.shares: 0\.1 leaves 2 channels for 4 groups"):
        experiment.check(small(TARGET, "strategy.shares=[0.1]"))
