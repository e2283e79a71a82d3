"""Methods that must be another method where they degenerate, bit for bit."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same_arrays, assert_same_run, rounds, simulate, small
from safetensors.numpy import load_file
from torch import nn

from app import experiment
from app.engine import Simulator
from models.split import cut_points


@pytest.mark.parametrize("model", ["model=cnn", "model=lenet5"])
def test_oqfl_at_32_bits_is_fedavg(model: str, tmp_path: Path) -> None:
    data = (
        [] if model == "model=cnn" else ["data.source=benchmarks.random_data", "data.name=random"]
    )
    data += ["data.shape=[1,28,28]", "data.path=60000"] if data else []
    simulate(tmp_path / "fedavg", "strategy=fedavg", model, *data)
    simulate(tmp_path / "oqfl", "strategy=oqfl", "quant.bits=32", model, *data)
    simulate(tmp_path / "codes", "strategy=oqfl", "quant.bits=32", "quant.wire=codes", model, *data)
    assert_same_run(tmp_path / "fedavg", tmp_path / "oqfl", tmp_path / "codes")


# With momentum, dropout, batch norm and unequal clients, none of which may make a difference.
FAIR = ("rounds=3", "data.partition=dirichlet", "train.epochs=2")
NETWORKS = [
    pytest.param(("model=cnn", "model.norm=batch"), id="batch norm"),
    pytest.param(("model._target_=tests.test_identities.Residual",), id="dropout, residual"),
]


class Residual(nn.Module):
    """A user's network: convolutions, a residual connection, dropout, batch norm."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.stage2 = nn.Conv2d(8, 8, 3, padding=1)
        self.stage3 = nn.Conv2d(8, 8, 3, padding=1)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage1(x).relu()
        x = x + F.dropout(self.stage2(x).relu(), 0.1, self.training)
        x = self.drop(self.stage3(x)).relu()
        return self.head(x.mean((2, 3)))


OF_BYTES = ("bytes_", "sim_s", "energy_j")


def assert_same_but_for_bytes(one: Path, other: Path) -> None:
    """Weights, accuracies and losses; bytes and what follows from them are another method's."""
    assert_same_arrays(load_file(one / "model.safetensors"), load_file(other / "model.safetensors"))
    without = [
        [{k: v for k, v in row.items() if not k.startswith(OF_BYTES)} for row in rounds(run)]
        for run in (one, other)
    ]
    assert without[0] == without[1]


@pytest.mark.parametrize("network", NETWORKS)
def test_with_one_client_all_are_fedavg(network: tuple[str, ...], tmp_path: Path) -> None:
    chosen = (*FAIR, *network, "clients.total=1", "data.partition=iid")
    simulate(tmp_path / "fedavg", "strategy=fedavg", *chosen)
    for strategy in ("split", "splitfed_v1", "splitfed_v2", "splitfed_v3", "ushaped"):
        simulate(tmp_path / strategy, f"strategy={strategy}", *chosen)
        assert_same_but_for_bytes(tmp_path / "fedavg", tmp_path / strategy)


@pytest.mark.parametrize("network", NETWORKS)
def test_splitfed_v1_is_fedavg(network: tuple[str, ...], tmp_path: Path) -> None:
    """For any number of clients, also when they are cut at four different places."""
    chosen = (*FAIR, *network, "clients.total=10", "clients.per_round=8")
    simulate(tmp_path / "fedavg", "strategy=fedavg", *chosen)
    names = [point.name for point in cut_points(experiment.network(small(*network)), (1, 8, 8))]
    mapping = ",".join(f"{client}:{names[client % 4]}" for client in range(9))
    for name, cut in (("one", names[1]), ("four", f"{{{mapping},default:0.5}}")):
        simulate(tmp_path / name, "strategy=splitfed_v1", f"split.cut={cut}", *chosen)
        assert_same_but_for_bytes(tmp_path / "fedavg", tmp_path / name)
    simulate(tmp_path / "u", "strategy=ushaped", f"split.cut={names[1]}", *chosen)
    assert_same_but_for_bytes(tmp_path / "fedavg", tmp_path / "u")


@pytest.mark.parametrize(
    "strategy",
    [
        "fedavg",
        "splitfed_v3",
        *(pytest.param(s, marks=pytest.mark.long) for s in ("oqfl", "splitfed_v2")),
    ],
)
def test_any_number_of_workers(strategy: str, tmp_path: Path, ray_simulator: Simulator) -> None:
    chosen = (f"strategy={strategy}", "clients.total=25", "clients.per_round=0.8")
    simulate(tmp_path / "serial", *chosen)
    two = ("engine=ray", "engine.workers=2")
    simulate(tmp_path / "two", *chosen, *two, simulator=ray_simulator)
    pool = ray_simulator._workers
    assert pool is not None
    assert pool.actors is not None
    both, pool.actors.actors = pool.actors.actors, pool.actors.actors[:1]
    simulate(tmp_path / "one", *chosen, *two, simulator=ray_simulator)
    pool.actors.actors = both
    assert_same_run(tmp_path / "serial", tmp_path / "one", tmp_path / "two")


def test_seeds_differ_and_methods_share_them(tmp_path: Path) -> None:
    simulate(tmp_path / "a", "strategy=fedavg", "clients.per_round=3")
    simulate(tmp_path / "b", "strategy=fedavg", "clients.per_round=3", "seed=1")
    simulate(tmp_path / "c", "strategy=oqfl", "clients.per_round=3")

    def chosen(run: str) -> list[tuple[int, int]]:
        import json

        lines = (tmp_path / run / "clients.jsonl").read_text().splitlines()
        return [(row["round"], row["partition"]) for row in map(json.loads, lines)]

    assert chosen("a") != chosen("b")
    assert chosen("a") == chosen("c")
