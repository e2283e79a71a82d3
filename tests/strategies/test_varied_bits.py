"""Clients of different bit widths on one global model."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run as run_main
from conftest import assert_same_run, rounds, simulate, small
from safetensors.numpy import load_file

from app import experiment
from app.commands.widths import accuracies, main
from quant.functional import initial_step
from quant.quantizer import is_step
from strategies.contract import Task, Update
from strategies.server.method import Result, ServerState
from strategies.server.varied import VariedNetwork
from tracking.report import device_rows

THREE = "quant.bits={0:2,1:2,2:8,3:8,default:32}"


def prepared(*overrides: str):
    chosen = small("strategy=oqfl", *overrides)
    method = experiment.strategy(chosen)
    experiment.prepare(chosen, method)
    return method, method.prepared().in_round(1)


@pytest.mark.parametrize("wire", ["latent", pytest.param("codes", marks=pytest.mark.long)])
def test_a_mapping_of_one_width_is_that_width(wire: str, tmp_path: Path) -> None:
    chosen = ("strategy=oqfl", f"quant.wire={wire}")
    simulate(tmp_path / "one", *chosen, "quant.bits=3")
    simulate(tmp_path / "mapping", *chosen, "quant.bits={0:3,ideal:3,default:3}")
    assert_same_run(tmp_path / "one", tmp_path / "mapping")


def test_clients_of_one_width_train_as_if_there_were_no_other(tmp_path: Path) -> None:
    """A width that nobody has changes nothing for the others: weights and steps, bit for bit."""
    simulate(tmp_path / "one", "strategy=oqfl", "quant.bits=4")
    simulate(tmp_path / "two", "strategy=oqfl", "quant.bits={ideal:4,default:2}")
    one, two = (load_file(tmp_path / run / "model.safetensors") for run in ("one", "two"))
    for name, array in one.items():
        own = f"at_4bit.{name}" if "_quantizer." in name else name
        assert np.array_equal(array, two[own]), name
    pairs = zip(rounds(tmp_path / "one"), rounds(tmp_path / "two"), strict=True)
    for row, other in pairs:
        assert other["accuracy_4bit"] == other["accuracy"] == row["accuracy"]
        assert "accuracy_2bit" not in other
        assert row == {name: value for name, value in other.items() if "4bit" not in name}


def test_serial_is_again_is_resumed(tmp_path: Path) -> None:
    chosen = ("strategy=oqfl", THREE, "quant.wire=codes", "fleet=mobile")
    simulate(tmp_path / "whole", *chosen)
    simulate(tmp_path / "parts", *chosen, "rounds=1")
    simulate(tmp_path / "parts", *chosen, "resume=true")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_bytes_of_each_message_by_hand(tmp_path: Path) -> None:
    summary = simulate(tmp_path, "strategy=oqfl", THREE, "quant.wire=codes", "rounds=1")
    # cnn: three convolutions and the head's weight; norms' scales and shifts and a bias of 10.
    weights, rest = [16 * 9, 16 * 32 * 9, 32 * 64 * 9, 64 * 10], 2 * (16 + 32 + 64) + 10
    steps = 8 * 4 + 8  # of weight and input in each of four layers, and a flag beside each
    latent = 4 * (sum(weights) + rest)

    def codes(bits: int) -> int:
        edges = weights[0] + weights[3]  # 8 bits
        return edges + (weights[1] + weights[2]) * bits // 8 + 4 * rest + steps

    up = {0: codes(2), 1: codes(2), 2: codes(8), 3: codes(8), 4: latent, 5: latent}
    rows = [json.loads(line) for line in (tmp_path / "clients.jsonl").open()]
    assert {row["partition"]: row["bytes_up"] for row in rows} == up
    for row in rows:
        assert row["bytes_down"] == latent + (steps if row["partition"] < 4 else 0)
    assert summary["clients/ideal/2bit"] == summary["clients/ideal/32bit"] == 2
    assert summary["quantized_share_2bit"] == 1
    assert summary["quantized_share_32bit"] == 0


def test_each_entry_is_averaged_over_those_who_hold_it() -> None:
    method, network = prepared("quant.bits={0:2,1:8,2:32,3:2,default:2}")
    state = {name: tensor.numpy() for name, tensor in network.model.state_dict().items()}
    samples = {0: 10, 1: 30, 2: 60, 3: 30}
    results = []
    for partition, count in samples.items():
        view = network.view(partition)
        own = {name: torch.from_numpy(array).clone() for name, array in view.of(state).items()}
        for name, tensor in own.items():
            if name.endswith("initialised"):  # the last client has met no input yet
                tensor.fill_(partition != 3 or "weight" in name)
            elif is_step(name):
                tensor.fill_(0.1 * (partition + 1))
            else:
                tensor.fill_(partition + 1.0)
        arrays, masks = method.method.wire.decode(network, own, partition, {})
        update = Update({}, count, 1.0)
        results.append(Result(partition, count, update=update, arrays=arrays, masks=masks))
    after = method.method.aggregate(ServerState(arrays=state), results, None).arrays
    assert after["stage2.conv.weight"] == pytest.approx((10 + 60 + 180 + 120) / 130)
    step = "stage2.conv.weight_quantizer.step"
    both = np.exp((10 * np.log(0.1) + 30 * np.log(0.4)) / 40)  # steps by their logarithms
    assert after[f"at_2bit.{step}"] == pytest.approx(both)
    assert after[f"at_8bit.{step}"] == pytest.approx(0.2)
    step = "stage2.conv.input_quantizer.step"
    assert after[f"at_2bit.{step}"] == pytest.approx(0.1)
    assert bool(after["at_2bit.begun"])
    assert "at_32bit.begun" not in after


@pytest.mark.parametrize("method", ["oqfl", "splitfed_v1"])
@pytest.mark.parametrize("weighting", ["samples", "bits"])
def test_clients_count_by_what_is_chosen(
    weighting: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each client returns its number as every weight: the mean of these, weighted by hand."""
    half = type(experiment.strategy(small(f"strategy={method}")).client)
    train = half.train

    def trained(self: Any, model: Any, arrays: Any, data: Any, task: Task, server: Any) -> Update:
        update = train(self, model, arrays, data, task, server)
        number = task.streams.partition + 1.0
        weights = {n: torch.full_like(t, number) for n, t in arrays.items() if n.endswith("weight")}
        return replace(update, arrays={**update.arrays, **weights})

    monkeypatch.setattr(half, "train", trained)
    bits = {0: 2, 1: 8, 2: 32, 3: 3, 4: 3, 5: 3}
    stated = "quant.bits={0:2,1:8,2:32,default:3}"
    chosen = (f"strategy={method}", stated, f"submodel.weighting={weighting}", "rounds=1")
    simulate(tmp_path, *chosen, "data.partition=dirichlet")
    rows = [json.loads(line) for line in (tmp_path / "clients.jsonl").open()]
    counts = {row["partition"]: row["num_examples"] for row in rows}
    assert len(set(counts.values())) > 1
    if weighting == "bits":
        counts = {partition: count * bits[partition] for partition, count in counts.items()}
    wanted = sum((p + 1) * count for p, count in counts.items()) / sum(counts.values())
    weights = load_file(tmp_path / "model.safetensors")
    assert weights["stage1.conv.weight"] == pytest.approx(wanted)  # on the device, over a cut


def test_widths_that_are_all_the_same_count_the_same(tmp_path: Path) -> None:
    chosen = ("strategy=heterofl", "submodel.share={0:0.5,default:1}", "quant.bits=3")
    simulate(tmp_path / "samples", *chosen)
    simulate(tmp_path / "bits", *chosen, "submodel.weighting=bits")
    assert_same_run(tmp_path / "samples", tmp_path / "bits")


def test_a_new_width_begins_from_the_weights() -> None:
    _, network = prepared("quant.bits={0:2,default:8}")
    assert isinstance(network, VariedNetwork)
    state = {name: tensor.numpy().copy() for name, tensor in network.model.state_dict().items()}
    state["stage2.conv.weight"] *= 7
    state["at_8bit.begun"] = np.array(True)
    entered = network.enter(ServerState(3, state), 4).arrays
    step = "stage2.conv.weight_quantizer.step"
    weight = torch.from_numpy(state["stage2.conv.weight"])
    expected = pytest.approx(float(initial_step(weight, 1)), rel=1e-6)
    assert float(entered[f"at_2bit.{step}"]) == expected
    assert entered[f"at_8bit.{step}"] == state[f"at_8bit.{step}"]


def test_auto_is_the_widest_that_ends_in_time() -> None:
    chosen = ("quant.bits=auto", "quant.wire=codes", "fleet=mobile", "clients.total=40")
    method, free = prepared(*chosen)
    assert isinstance(free, VariedNetwork)
    assert set(free.chosen.values()) == {"8bit"}  # without a deadline
    fleet, rule = method.rounds.fleet, method.method.schedule.rule
    seconds = {}
    for name in free.kinds:
        one = free.all_of(name)
        works = one.works(method.rounds.train, partial(method.method.wire.num_bytes, one))
        phases = fleet.phases(works)
        seconds[name] = {p: rule([own], math.inf)[0].end_s for p, own in phases.items()}
    middle = sorted(seconds["4bit"], key=seconds["4bit"].__getitem__)[20]
    deadline = (seconds["4bit"][middle] + seconds["8bit"][middle]) / 2
    _, network = prepared(*chosen, f"fleet.deadline_s={deadline}")
    assert network.chosen[middle] == "4bit"
    for partition, name in network.chosen.items():
        in_time = [kind for kind in seconds if seconds[kind][partition] <= deadline]
        assert name == (in_time[-1] if in_time else "2bit")


def test_clients_are_tested_at_their_own_width(tmp_path: Path) -> None:
    chosen = ("strategy=oqfl", THREE, "evaluate.on=clients", "rounds=1")
    summary = simulate(tmp_path, *chosen)
    (row,) = rounds(tmp_path)
    assert row["clients_tested"] == 6
    assert "accuracy_2bit" not in row
    assert summary["final_accuracy"] == row["accuracy"]
    (told,) = device_rows({"job": "0", **summary})
    assert told[:3] == ["0", "ideal", "2 2bit, 2 32bit, 2 8bit"]
    assert told[3]


@pytest.mark.parametrize("side", ["both", "client"])
def test_bits_over_a_cut(side: str, tmp_path: Path) -> None:
    """One width in a mapping is that width; several each have accuracy, bytes and steps."""
    chosen = ("strategy=splitfed_v1", f"quant.side={side}", "link.up=int8")
    simulate(tmp_path / "one", *chosen, "quant.bits=4")
    simulate(tmp_path / "mapping", *chosen, "quant.bits={0:4,default:4}")
    assert_same_run(tmp_path / "one", tmp_path / "mapping")
    summary = simulate(tmp_path / "many", *chosen, "quant.bits={0:4,1:2,default:32}")
    for row in rounds(tmp_path / "many"):
        assert {"accuracy_2bit", "accuracy_4bit", "accuracy_32bit"} <= row.keys()
    assert summary["clients/ideal/stage1_2bit"] == summary["clients/ideal/stage1_4bit"] == 1
    arrays = load_file(tmp_path / "many" / "model.safetensors")
    assert arrays["at_2bit.begun"]
    assert ("at_2bit.head.linear.weight_quantizer.step" in arrays) == (side == "both")


def test_a_plan_takes_least_with_the_capacity_it_must_have() -> None:
    chosen = ("strategy=splitfed_v1", "plan=auto", "fleet=mobile", "clients.total=20")
    open_ = ("submodel.share=1", "fleet.objective=joules")
    config = small(*chosen, "plan.floor={phone_low: 0, default: 1}", *open_)
    method = experiment.strategy(config)
    experiment.prepare(config, method)
    network = method.prepared().in_round(1)
    works = network.works(method.rounds.train, partial(method.method.wire.num_bytes, network))
    for partition in works:
        is_low = network.clients.device(partition) == "phone_low"
        bits = network.place(partition).kind.spec.weight_bits
        assert is_low or bits == 8
    with pytest.raises(ValueError, match=r"plan\.floor=2: takes a share"):
        small(*chosen, "plan.floor=2")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("quant.bits={0:4,default:9}",), "quant.bits.default=9: takes 2 to 8 or 32"),
        (("quant.bits={0:4}",), "quant.bits: says nothing of client 1, and has no default"),
        (("quant.bits={9:4,default:4}",), "quant.bits.9: there is no client 9 of 6"),
        (("quant.bits={phone:4,default:4}",), "quant.bits.phone: takes as keys partition ids"),
        (("quant.bits={0:auto,default:4}",), "quant.bits.0=auto: auto is for all clients"),
        (("quant.act_bits={0:auto}",), "quant.act_bits.0=auto: auto is for all clients"),
        (("quant.act_bits=auto",), "quant.act_bits=auto: takes 2 to 8, 32 or null"),
        (("quant.bits={}",), "quant.bits={}: takes a width"),
        (
            ("quant.bits={0:4,default:2}", "strategy=splitfed_v2"),
            "quant.bits={0: 4, 'default': 2}: takes one width for all clients",
        ),
    ],
)
def test_what_cannot_be_is_one_line(overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValueError, match=r"^quant") as error:
        prepared(*overrides) if len(overrides) == 1 else experiment.strategy(small(*overrides))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("strategy", ["oqfl", "splitfed_v1"])
def test_any_width_of_a_finished_run(
    strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run_main(
        f"strategy={strategy}", "quant.bits={0:4,1:4,default:32}", "engine=serial", "rounds=2",
        "clients.total=4", "tracker.wandb.mode=disabled", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    found = accuracies(tmp_path / "run", [2, 4, 32])
    assert [found[width].steps for width in (2, 4, 32)] == ["calibrated", "learned", "none"]
    assert found[4].accuracy == summary["final_accuracy_4bit"]
    assert found[32].accuracy == summary["final_accuracy_32bit"] == summary["final_accuracy"]
    assert main([str(tmp_path / "run"), "--bits", "4"]) == 0
    assert set(json.loads((tmp_path / "run" / "widths.json").read_text())) == {"4"}
    assert "learned" in capsys.readouterr().out
    assert main([str(tmp_path)]) == 1
