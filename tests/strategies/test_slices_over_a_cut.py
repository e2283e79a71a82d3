"""Slices of the device's part of a cut network: fewer channels before the cut, all after it."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_run, rounds, simulate, small
from safetensors.numpy import load_file
from torch import nn

from app import experiment
from fleet.cost import cost
from fleet.selection import num_selected
from strategies.contract import Update
from strategies.server.cuts import CutNetwork
from strategies.server.method import Result, ServerState

SHARES = "submodel.share={0:0.25,1:0.5,default:1.0}"


def prepared(*overrides: str):
    chosen = small("strategy=splitfed_v1", *overrides)
    method = experiment.strategy(chosen)
    experiment.prepare(chosen, method)
    network = method.prepared().in_round(1)
    assert isinstance(network, CutNetwork)
    return method, network


def test_a_share_of_one_for_all_is_splitfed_v1(tmp_path: Path) -> None:
    chosen = ("strategy=splitfed_v1", "model.norm=batch", "link.up=int8")
    simulate(tmp_path / "one", *chosen)
    simulate(tmp_path / "mapping", *chosen, "submodel.share={ideal:1,default:1.0}")
    assert_same_run(tmp_path / "one", tmp_path / "mapping")


@pytest.mark.parametrize(
    "model",
    [("model=cnn", "model.norm=batch"), pytest.param(("model=resnet8",), marks=pytest.mark.long)],
)
def test_behind_all_layers_that_can_be_narrow_it_is_heterofl(
    model: tuple[str, ...], tmp_path: Path
) -> None:
    """But for its scaler: who computes what is all that differs."""
    chosen = (*model, SHARES, "quant.bits={0:4,default:32}")
    simulate(tmp_path / "slices", "strategy=heterofl", "strategy.scaler=false", *chosen)
    simulate(tmp_path / "cut", "strategy=splitfed_v1", "split.cut=stage3", *chosen)
    slices, cut = (load_file(tmp_path / run / "model.safetensors") for run in ("slices", "cut"))
    assert slices.keys() == cut.keys()
    for name, array in slices.items():
        assert np.array_equal(array, cut[name]), name
    pairs = zip(rounds(tmp_path / "slices"), rounds(tmp_path / "cut"), strict=True)
    for row, other in pairs:
        assert row["accuracy_width25_4bit"] == other["accuracy_width25_4bit"]


def test_serial_is_resumed(tmp_path: Path) -> None:
    chosen = (
        "strategy=splitfed_v1", SHARES, "split.cut={0:stage1,default:stage2}", "link.up=int8",
        "quant.bits={1:2,default:8}", "fleet=mobile",
    )  # fmt: skip
    simulate(tmp_path / "whole", *chosen)
    simulate(tmp_path / "parts", *chosen, "rounds=1")
    simulate(tmp_path / "parts", *chosen, "resume=true")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_bytes_by_hand(tmp_path: Path) -> None:
    chosen = ("strategy=splitfed_v1", SHARES, "rounds=1", "train.batch_size=10000")
    summary = simulate(tmp_path, *chosen, "split.cut=stage1")
    for line in (tmp_path / "clients.jsonl").open():
        row = json.loads(line)
        kept = {0: 4, 1: 8}.get(row["partition"], 16)  # of the channels
        part = 4 * (9 * kept + 2 * kept)  # a convolution of one channel, and its norm
        activations = row["num_examples"] * 4 * kept * 4 * 4
        assert row["bytes_down"] == part + activations
        assert row["bytes_up"] == part + activations + row["num_examples"]  # and labels
    assert summary["clients/ideal/stage1_width25"] == 1
    assert summary["clients/ideal/stage1_width100"] == 4


def test_the_server_keeps_what_the_device_does_not_decide() -> None:
    _, network = prepared("model=resnet8", SHARES, "split.cut=stage1.relu")
    held = {name: mask for name, mask in network.view(0).masks.items() if mask is not False}
    whole = network.model.state_dict()
    # What follows adds to the device's 16 channels, up to the next stage, and takes them.
    assert held["stage1.conv.weight"].sum() == 4 * 9
    assert held["stage1.block.conv2.weight"].sum() == 4 * 16 * 9  # 16 of its own between
    assert "stage2.conv2.weight" not in held
    assert held["stage2.conv1.weight"].sum() == 32 * 4 * 9
    assert not any(name.startswith(("stage3", "head")) for name in held)
    assert network.view(2).masks == {}
    assert held.keys() < whole.keys()


def test_each_entry_is_averaged_over_those_who_hold_it() -> None:
    method, network = prepared(SHARES, "split.cut=stage1")
    state = {name: tensor.numpy() for name, tensor in network.model.state_dict().items()}
    results = []
    for partition, count in ((0, 10), (1, 30), (2, 60)):
        own = {n: torch.from_numpy(a).clone() for n, a in network.view(partition).of(state).items()}
        for tensor in own.values():
            tensor.fill_(partition + 1.0)
        arrays, masks = method.method.wire.decode(network, own, partition, {})
        update = Update({}, count, 1.0)
        results.append(Result(partition, count, update=update, arrays=arrays, masks=masks))
    after = method.method.aggregate(ServerState(arrays=state), results, None).arrays
    of_all, of_two, of_one = (10 + 60 + 180) / 100, (60 + 180) / 90, 3.0
    # Of each of four groups of the norm's 4 channels the first, the first two, all of them.
    channels = np.tile([of_all, of_two, of_one, of_one], 4)
    assert after["stage1.norm.weight"] == pytest.approx(channels)
    assert after["stage1.conv.weight"][:, 0, 1, 1] == pytest.approx(channels)
    assert after["stage2.conv.weight"][5, :, 1, 1] == pytest.approx(channels)
    assert after["stage3.conv.weight"] == pytest.approx(of_all)


class Mixed(nn.Module):
    """A network whose first layer makes channels that are mixed, and so stay whole."""

    def __init__(self, num_classes: int, is_deep: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(64, 32)
        self.second = nn.Sequential(nn.Linear(4, 12), nn.ReLU()) if is_deep else nn.Identity()
        self.head = nn.Linear(12 if is_deep else 4, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.first(x.flatten(1)).view(-1, 4, 8).mean(2)
        output: torch.Tensor = self.head(self.second(mixed))
        return output


MIXED = f"model._target_={__name__}.Mixed"


def test_what_is_left_open_is_all_where_nothing_can_be_narrower(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    chosen = ("plan=auto", "fleet=mobile", "plan.floor=0", MIXED, "+model.is_deep=false")
    _, network = prepared(*chosen)
    assert {share for _, _, share in network.places} == {1.0}
    assert "submodel.share=auto: all clients have all channels: " in caplog.text
    with pytest.raises(ValueError, match=r"submodel\.share: no layer of the network can have"):
        prepared("submodel.share=0.5", MIXED, "+model.is_deep=false")


@pytest.mark.parametrize("bits", ["8", "auto"])
def test_a_share_needs_a_layer_on_the_device_that_can_be_narrower(bits: str) -> None:
    chosen = ("fleet=mobile", "submodel.share=0.5", MIXED, f"quant.bits={bits}")
    says = r"^split\.cut=first: submodel\.share=0\.5: no layer on the device can have fewer"
    with pytest.raises(ValueError, match=says):
        prepared(*chosen, "split.cut=first")
    _, network = prepared(*chosen, "split.cut=second")
    assert {share for _, _, share in network.places} == {0.5}


PLAN = ("fleet=mobile", "clients.total=12", "quant.bits=4", "split.cut=stage2", "link.up=int8")


@pytest.mark.long
def test_the_share_of_a_plan_is_the_one_of_least_joules() -> None:
    """Each share is priced as a run of its own, whose server's part has its true size."""
    floor = 0.55
    method, network = prepared(
        *PLAN, "plan=auto", f"plan.floor={floor}", "fleet.objective=joules", "clients.per_round=4"
    )
    fleet, rule = method.rounds.fleet, method.method.schedule.rule
    participants = num_selected(4, 12)
    joules: dict[float, dict[int, float]] = {}
    bops: dict[float, int] = {}
    for share in (0.0625, 0.125, 0.25, 0.5, 1.0):
        own, one = prepared(*PLAN, f"submodel.share={share}")
        works = one.works(own.rounds.train, partial(own.method.wire.num_bytes, one))
        joules[share] = {
            p: cost(
                work, fleet.clients[p].device, fleet.clients[p].link, fleet.server, rule,
                participants,
            ).joules
            for p, work in works.items()
        }  # fmt: skip
        device, _ = one.place(0).costs
        _, server = prepared(*PLAN)[1].place(0).costs
        bops[share] = sum(part.bops for part in [*device, server])
    enough = [share for share in bops if bops[share] >= floor * bops[1.0]]
    assert 1 < len(enough) < 5
    for partition in network.clients.with_data():
        _, spec, share = network.choice_of(partition, network.clients.device(partition))
        assert spec.weight_bits == 4
        least = min(joules[one][partition] for one in enough)
        assert math.isclose(joules[share][partition], least, rel_tol=0.01)
        assert share in enough


def test_cut_bits_and_share_are_chosen_together() -> None:
    chosen = ("plan=auto", "plan.floor={phone_low: 0, default: 1}", "fleet.objective=joules")
    _, network = prepared(*chosen, "fleet=mobile", "clients.total=12", "link.up=int8")
    found = {network.clients.device(p): network.place(p) for p in network.clients.with_data()}
    assert {place.kind.share for name, place in found.items() if name != "phone_low"} == {1.0}
    assert found["phone_low"].kind.share < 0.5
    assert len(network.places) <= 12  # what nobody has is not made
    described = network.describe(small().train)
    assert sum(count for key, count in described.items() if key.startswith("clients/")) == 12


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("submodel.share={0:0.5}",), "submodel.share: says nothing of client 1"),
        (("submodel.share=2",), "submodel.share=2: takes a share in (0, 1], or auto"),
        (
            ("submodel.share=0.5", "quant.side=client", "split.cut={0:stage1,default:stage2}"),
            "quant.side=client: takes one stated cut for all clients",
        ),
    ],
)
def test_what_cannot_be_is_one_line(overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValueError, match=r"^(submodel|quant)") as error:
        prepared(*overrides)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
