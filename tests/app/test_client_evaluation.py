"""Clients that are tested on samples of their own: which, by what model, and what is said of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import assert_same_run, rounds, simulate, small, strategies
from safetensors.numpy import load_file

from app import experiment
from app.client_evaluation import spread
from app.commands import export_network
from app.config.composition import compose
from app.engine import Simulator
from app.experiment import Experiment
from data.dataset import hold_out
from tracking.record import RoundRecord
from tracking.report import write_report

RUN = ("strategy=fedavg", "train.lr=0.1")
CLIENTS, BOTH = "evaluate.on=clients", "evaluate.on=both"


def of_clients(chosen: Experiment, folder: Path, number: int) -> dict[int, float]:
    """Each client's accuracy after a round, from its checkpoint and its own half."""
    place, found = folder / f"checkpoint/{number:06d}", {}
    arrays, own = load_file(place / "model.safetensors"), load_file(place / "strategy.safetensors")
    data = experiment.dataset(chosen)
    assert isinstance(data.train_x, torch.Tensor)
    for partition, rows in enumerate(experiment.held_out(chosen)):
        if len(rows):
            mine = {
                name: own.get(f"{partition}/{name}", own.get(f"initial/{name}", array))
                if f"initial/{name}" in own and name.startswith("stage1") else array
                for name, array in arrays.items()
            }  # fmt: skip
            model = experiment.network(chosen).eval()
            model.load_state_dict({name: torch.from_numpy(a) for name, a in mine.items()})
            right = model(data.train_x[rows]).argmax(1) == data.train_y[rows]
            found[partition] = float(right.float().mean())
    return found


def clients_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]


# Which samples ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "share", "held"),
    [
        (0, 0.2, 0),
        (1, 0.9, 0),
        (2, 0.01, 1),
        (2, 0.99, 1),
        (10, 0.2, 2),
        (10, 0.99, 9),
        (7, 0.5, 4),
    ],
)
def test_one_stays_on_either_side(count: int, share: float, held: int) -> None:
    rows = torch.arange(100, 100 + count)
    kept, own = hold_out(rows, share, seed=3)
    assert len(own) == held
    assert torch.cat([kept, own]).sort().values.equal(rows)
    assert kept.equal(kept.sort().values) and own.equal(own.sort().values)
    assert hold_out(rows, share, seed=3)[1].equal(own)


def test_no_client_trains_on_what_it_holds_out() -> None:
    plain, chosen = small(), small(CLIENTS)
    for all_rows, kept, own in zip(
        experiment.division(plain),
        experiment.division(chosen),
        experiment.held_out(chosen),
        strict=True,
    ):
        assert len(own) == round(0.2 * len(all_rows))
        assert torch.cat([kept, own]).sort().values.equal(all_rows.sort().values)
    assert experiment.num_examples(chosen) == dict.fromkeys(range(6), 32)
    assert len(experiment.client_data(chosen, 0)) == 32
    assert not any(map(len, experiment.held_out(plain)))


def test_each_client_has_a_stream_of_its_own() -> None:
    """Which of its samples, counted from its first, differs from client to client and by seed."""
    chosen = small(CLIENTS), small(CLIENTS, "seed=1")
    places = [
        tuple(int((rows == row).nonzero()[0, 0]) for row in own)
        for one, plain in zip(chosen, (small(), small("seed=1")), strict=True)
        for rows, own in zip(experiment.division(plain), experiment.held_out(one), strict=True)
    ]
    assert len(set(places)) == 12


# What is said -----------------------------------------------------------------------------------


def test_the_spread_by_hand() -> None:
    accuracies = {number: number / 20 for number in range(20)}  # 0, 0.05, … 0.95
    devices = {number: "fast" if number >= 15 else "slow" for number in range(20)}
    found = spread(accuracies, devices, 3)
    assert found == pytest.approx(
        {
            "clients_accuracy": 0.475,
            "clients_accuracy_sd": np.std(list(accuracies.values())),
            "clients_accuracy_worst": 0.025,  # of the worst two
            "clients_accuracy_fast": 0.85,
            "clients_accuracy_slow": 0.35,
            "clients_tested": 20,
            "clients_untested": 3,
        }
    )
    assert spread({}, {}, 2) == {"clients_tested": 0, "clients_untested": 2}
    one = spread({4: 0.5}, {4: ""}, 0)
    assert one["clients_accuracy"] == one["clients_accuracy_worst"] == 0.5
    assert one["clients_accuracy_sd"] == 0
    assert "clients_accuracy_" not in one


@pytest.mark.parametrize("strategy", ["fedavg", "splitfed_v1", "splitfed_v3"])
def test_every_client_is_tested_on_its_own_samples(strategy: str, tmp_path: Path) -> None:
    """With splitfed_v3 by its own half; clients that were never drawn have the initial one."""
    chosen = [f"strategy={strategy}", "train.lr=0.1", "clients.per_round=4", "data.max_train=90"]
    summary = simulate(tmp_path, *chosen, BOTH)
    for number, row in enumerate(rounds(tmp_path), 1):
        own = of_clients(small(*chosen, BOTH), tmp_path, number)
        values = np.array(list(own.values()))
        assert len(values) == row["clients_tested"] == 6 and row["clients_untested"] == 0
        assert row["clients_accuracy"] == pytest.approx(values.mean(), abs=1e-6)
        assert row["clients_accuracy_sd"] == pytest.approx(values.std(), abs=1e-6)
        assert row["clients_accuracy_worst"] == pytest.approx(values.min(), abs=1e-6)
        mine = {r["partition"]: r["accuracy"] for r in clients_of(tmp_path) if r["round"] == number}
        assert len(mine) == 4
        assert mine == pytest.approx({client: own[client] for client in mine}, abs=1e-6)
    assert summary["final_clients_accuracy"] == rounds(tmp_path)[-1]["clients_accuracy"]
    assert len(set(values)) > 1  # else this would show nothing
    told = json.loads((tmp_path / "metrics.json").read_text())["final"]["clients"]
    assert {int(client): one["accuracy"] for client, one in told.items()} == pytest.approx(own)
    assert {one["held_out"] for one in told.values()} == {3}


def test_both_adds_to_what_the_server_says(tmp_path: Path) -> None:
    """The test set is as without; clients train on less, so the figures are others'."""
    simulate(tmp_path, *RUN, BOTH, "rounds=1")
    (row,) = rounds(tmp_path)
    data = experiment.dataset(small(*RUN))
    model = experiment.network(small(*RUN)).eval()
    arrays = load_file(tmp_path / "model.safetensors")
    model.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()})
    right = float((model(data.test_x).argmax(1) == data.test_y).float().mean())
    assert row["accuracy"] == pytest.approx(right, abs=1e-6)
    assert "evaluated_on" not in row


@pytest.mark.parametrize("strategy", ["fedavg", "splitfed_v3"])
def test_clients_alone_are_all_samples_together(strategy: str, tmp_path: Path) -> None:
    metrics = "evaluate.metrics=[macro_f1,per_class,confusion_matrix]"
    chosen = [f"strategy={strategy}", "train.lr=0.1", "data.partition=dirichlet"]
    summary = simulate(tmp_path, *chosen, CLIENTS, metrics)
    row = rounds(tmp_path)[-1]
    one = small(*chosen, CLIENTS, metrics)
    own, rows = of_clients(one, tmp_path, 2), experiment.held_out(one)
    total = sum(map(len, rows))
    right = sum(own[client] * len(rows[client]) for client in own)
    assert row["evaluated_on"] == summary["evaluated_on"] == "clients"
    assert row["accuracy"] == summary["final_accuracy"] == pytest.approx(right / total, abs=1e-6)
    told = json.loads((tmp_path / "metrics.json").read_text())
    matrix = np.array(told["final"]["confusion_matrix"])
    labels = experiment.dataset(one).train_y[torch.cat(rows)]
    assert told["evaluated_on"] == "clients"
    assert np.trace(matrix) == round(right)
    assert matrix.sum(1).tolist() == torch.bincount(labels, minlength=10).tolist()
    assert told["final"]["macro_f1"] == row["macro_f1"]


def test_by_device_class(tmp_path: Path) -> None:
    simulate(tmp_path, *RUN, BOTH, "fleet=mobile", "rounds=1", "clients.total=12")
    (row,) = rounds(tmp_path)
    told = json.loads((tmp_path / "metrics.json").read_text())["final"]["clients"].values()
    devices = {one["device"] for one in told}
    assert len(devices) > 1 and None not in devices
    for device in devices:
        mine = [one["accuracy"] for one in told if one["device"] == device]
        assert row[f"clients_accuracy_{device}"] == pytest.approx(np.mean(mine))


def test_a_client_of_one_sample_trains_and_is_counted(tmp_path: Path) -> None:
    """Eleven samples among six clients: five have two, one has one."""
    simulate(tmp_path, *RUN, BOTH, "data.max_train=11", "rounds=1")
    (row,) = rounds(tmp_path)
    assert (row["clients_tested"], row["clients_untested"]) == (5, 1)
    assert row["num_clients"] == 6
    (untested,) = [client for client in clients_of(tmp_path) if "accuracy" not in client]
    assert untested["num_examples"] == 1


@pytest.mark.parametrize("strategy", strategies())
def test_every_method_with_all_of_it(strategy: str, tmp_path: Path) -> None:
    few = ("rounds=2", "data.max_train=80", "data.max_test=40", "train.max_batches=1")
    on = (BOTH, "data.validation=0.25", "evaluate.metrics=[macro_f1,per_class]")
    summary = simulate(tmp_path, f"strategy={strategy}", *few, *on)
    for row in rounds(tmp_path):
        assert row["clients_tested"] == 6 and row["clients_accuracy_worst"] >= 0
        assert row["clients_accuracy_worst"] <= row["clients_accuracy"] <= 1
        assert row["evaluated_on"] == "validation" and 0 <= row["macro_f1"] <= 1
        assert not [name for name in row if "/" in name]
    assert 0 <= summary["best_accuracy"] <= 1 and len(summary["per_class"]["recall"]) == 10
    assert (tmp_path / "model_best.safetensors").is_file()


def test_clients_have_other_tasks_and_devices_without_network(tmp_path: Path) -> None:
    numbers = ("data=diabetes", "task=regression", "model=mlp", "strategy=fedavg", "rounds=1")
    alone = ("strategy=hierarchical", "strategy.outage=[2]", "data.max_train=60")
    for name, chosen in (("numbers", numbers), ("alone", alone)):
        simulate(tmp_path / name, *chosen, CLIENTS)
        for row in rounds(tmp_path / name):
            assert 0 <= row["clients_accuracy"] <= 1 and row["clients_tested"] == 6
            assert not [key for key in row if "/" in key]


SAME = ("strategy=splitfed_v3", BOTH, "data.max_train=60")


def test_continued_it_is_the_same(tmp_path: Path) -> None:
    simulate(tmp_path / "whole", *SAME)
    simulate(tmp_path / "two", *SAME, "rounds=1")
    simulate(tmp_path / "two", *SAME, "resume=true")
    assert_same_run(tmp_path / "whole", tmp_path / "two")


@pytest.mark.long
def test_on_ray_it_is_the_same(tmp_path: Path, ray_simulator: Simulator) -> None:
    on_ray = ("engine=ray", "engine.workers=2")
    simulate(tmp_path / "serial", *SAME)
    simulate(tmp_path / "ray", *SAME, *on_ray, simulator=ray_simulator)
    assert_same_run(tmp_path / "serial", tmp_path / "ray")


def test_with_validation_the_best_round_is_tested_on_clients_too(tmp_path: Path) -> None:
    chosen = (*RUN, BOTH, "data.validation=0.25", "train.lr=0.5", "rounds=5")
    summary = simulate(tmp_path, *chosen, "checkpoint.keep=9")
    best = summary["best_round"]
    assert rounds(tmp_path)[0]["evaluated_on"] == "validation"
    assert summary["best_clients_accuracy"] == rounds(tmp_path)[best - 1]["clients_accuracy"]


def test_reports_have_it(tmp_path: Path) -> None:
    simulate(tmp_path / "0", *RUN, BOTH)
    write_report([tmp_path], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert '"final_clients_accuracy_worst":' in page
    assert "final_clients_accuracy" in (tmp_path / "summary.csv").read_text()


def test_it_is_part_of_the_experiment_where_it_is_asked_for() -> None:
    plain = small()
    assert small("evaluate.held_out=0.3").hash == plain.hash
    assert not {"evaluate.on", "evaluate.held_out"} & plain.identity.keys()
    others = ([CLIENTS], [BOTH], [BOTH, "evaluate.held_out=0.3"])
    assert len({plain.hash, *(small(*other).hash for other in others)}) == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluate.on=all"], r"evaluate.on=all: takes server, clients, both"),
        (["evaluate.held_out=1.0"], r"evaluate.held_out=1.0: takes a share in \(0, 1\)"),
        (["evaluate.held_out=0"], r"evaluate.held_out=0.0: takes a share in \(0, 1\)"),
        ([CLIENTS, "data.validation=0.1"], r"evaluate.on=clients with data.validation=0.1: "),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose(overrides)


def test_clients_that_all_have_one_sample_are_refused() -> None:
    with pytest.raises(ValueError, match=r"evaluate.on=both: no client has two samples"):
        experiment.check(small(BOTH, "data.max_train=6"))


def test_a_record_without_it_is_as_it_was() -> None:
    values: dict[str, Any] = dict.fromkeys(
        ("round", "accuracy", "loss", "train_loss", "num_clients", "num_failed", "num_dropped",
         "bytes_up", "bytes_down", "sim_s", "energy_j", "wall_s"), 1
    )  # fmt: skip
    for on in ("test", "clients"):
        row = RoundRecord(**values, extra={"a": 2.0}, evaluated_on=on).to_dict()
        assert row == values | {"a": 2.0} | ({} if on == "test" else {"evaluated_on": on})
        assert RoundRecord.from_dict(row).to_dict() == row


def test_an_export_says_that_accuracy_is_not_of_the_test_set() -> None:
    assert export_network.tested_through(small(*RUN, CLIENTS)) == "evaluate.on=clients"
    assert export_network.tested_through(small(*RUN, BOTH)) == ""
