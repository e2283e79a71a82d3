"""Slices of a network on each client: HeteroFL and FjORD."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_run, rounds, settings_of, simulate, small
from safetensors.numpy import load_file

from app import experiment
from strategies.contract import Update
from strategies.fjord import FjORDClient
from strategies.server.method import Result, ServerState
from strategies.server.varied import VariedNetwork

SHARES = "submodel.share={0:0.25,1:0.5,default:1.0}"


def prepared(*overrides: str):
    chosen = small(*overrides)
    method = experiment.strategy(chosen)
    experiment.prepare(chosen, method)
    return method, method.prepared().in_round(1)


@pytest.mark.parametrize("strategy", ["heterofl", "fjord"])
def test_a_share_of_one_for_all_is_fedavg_and_oqfl(strategy: str, tmp_path: Path) -> None:
    mapping = "submodel.share={ideal:1,default:1.0}"
    simulate(tmp_path / "fedavg", "strategy=fedavg", "model.norm=batch")
    simulate(tmp_path / "own", f"strategy={strategy}", mapping, "model.norm=batch")
    assert_same_run(tmp_path / "fedavg", tmp_path / "own")
    codes = ("quant.bits=4", "quant.wire=codes")
    simulate(tmp_path / "oqfl", "strategy=oqfl", *codes)
    simulate(tmp_path / "bits", f"strategy={strategy}", *codes)
    assert_same_run(tmp_path / "oqfl", tmp_path / "bits")


@pytest.mark.parametrize("strategy", ["heterofl", pytest.param("fjord", marks=pytest.mark.long)])
def test_whole_is_resumed(strategy: str, tmp_path: Path) -> None:
    chosen = (f"strategy={strategy}", SHARES, "quant.bits={0:2,default:32}", "quant.wire=codes")
    simulate(tmp_path / "whole", *chosen)
    simulate(tmp_path / "parts", *chosen, "rounds=1")
    simulate(tmp_path / "parts", *chosen, "resume=true")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_bytes_of_slices_by_hand(tmp_path: Path) -> None:
    summary = simulate(tmp_path, "strategy=heterofl", SHARES, "rounds=1")

    def size(share: float) -> int:
        a, b, c = (int(share * width) for width in (16, 32, 64))
        return 4 * (9 * (a + a * b + b * c) + 2 * (a + b + c) + 10 * c + 10)

    rows = [json.loads(line) for line in (tmp_path / "clients.jsonl").open()]
    for row in rows:
        expected = size({0: 0.25, 1: 0.5}.get(row["partition"], 1.0))
        assert row["bytes_up"] == row["bytes_down"] == expected
    assert summary["clients/ideal/width25"] == 1
    assert summary["client_model_bytes_width50"] == size(0.5)


def test_each_entry_is_averaged_over_those_who_hold_it() -> None:
    """Three clients of different shares and bits, each entry checked."""
    bits = "quant.bits={0:2,1:8,default:32}"
    method, network = prepared("strategy=heterofl", SHARES, bits, "quant.per_channel=true")
    state = {name: tensor.numpy() for name, tensor in network.model.state_dict().items()}
    results = []
    for partition, count in ((0, 10), (1, 30), (2, 60)):
        own = {n: torch.from_numpy(a).clone() for n, a in network.view(partition).of(state).items()}
        for name, tensor in own.items():
            tensor.fill_(True if name.endswith("initialised") else partition + 1.0)
        arrays, masks = method.method.wire.decode(network, own, partition, {})
        update = Update({}, count, 1.0)
        results.append(Result(partition, count, update=update, arrays=arrays, masks=masks))
    after = method.method.aggregate(ServerState(arrays=state), results, None).arrays

    def blocks(channels: int, share: float) -> np.ndarray:
        """Which of a layer's channels a share holds: of each of four groups the first ones."""
        size = channels // 4
        return np.arange(channels) % size < np.ceil(share * size)

    def expected(rows: list[np.ndarray], columns: list[np.ndarray]) -> np.ndarray:
        held = np.stack([np.outer(r, c) for r, c in zip(rows, columns, strict=True)])
        weights = held * np.array([10, 30, 60])[:, None, None]
        return (weights * np.array([1, 2, 3])[:, None, None]).sum(0) / weights.sum(0)

    shares = (0.25, 0.5, 1.0)
    into, out = [[blocks(width, share) for share in shares] for width in (16, 32)]
    wanted = expected(out, into)
    found = after["stage2.conv.weight"]
    assert np.allclose(found, wanted[:, :, None, None])
    assert np.allclose(after["stage1.norm.bias"], expected(into, [np.ones(1)] * 3)[:, 0])
    head = expected([np.ones(10)] * 3, [blocks(64, share) for share in shares])
    assert np.allclose(after["head.linear.weight"], head)
    step = after["at_2bit.stage2.conv.weight_quantizer.step"].ravel()
    before = state["at_2bit.stage2.conv.weight_quantizer.step"].ravel()
    held = blocks(32, 0.25)
    assert np.allclose(step[held], 1)
    assert np.array_equal(step[~held], before[~held])


def test_what_nobody_holds_stays_as_it_was(tmp_path: Path) -> None:
    simulate(tmp_path, "strategy=heterofl", "submodel.share=0.5", "rounds=1")
    _, network = prepared("strategy=heterofl", "submodel.share=0.5")
    before = network.model.state_dict()
    after = load_file(tmp_path / "model.safetensors")
    held = network.view(0).masks
    for name, mask in held.items():
        changed = after[name] != before[name].numpy()
        assert not changed[~mask].any()
        assert changed.any()


def test_statistics_of_their_own_stay_apart(tmp_path: Path) -> None:
    chosen = ("strategy=heterofl", SHARES, "model.norm=batch", "submodel.statistics=own")
    simulate(tmp_path, *chosen)
    arrays = load_file(tmp_path / "model.safetensors")
    sizes = {len(arrays[f"at_{k}.stage1.norm.running_var"]) for k in ("width25", "width50")}
    assert sizes == {4, 8}
    assert not arrays["stage1.norm.running_mean"].any()  # of nobody
    assert arrays["at_width100.begun"]


def test_the_scaler_divides_in_training_alone() -> None:
    config = small("strategy=heterofl", "submodel.share=0.5")
    client = experiment.method_class(config).client
    method = experiment.strategy(config)
    experiment.prepare(config, method)
    scaled = client.prepare(experiment.network(config), settings_of(method))
    plain = client.prepare(
        experiment.network(config), {**settings_of(method), "heterofl.scaler": False}
    )
    x = torch.randn(2, 1, 8, 8)
    conv, other = scaled.stage1.conv, plain.stage1.conv
    assert torch.equal(conv(x), other(x) / 0.5)
    assert torch.equal(scaled.eval()(x), plain.eval()(x))
    head, other = scaled.head.linear, plain.head.linear
    z = torch.randn(2, head.in_features)
    assert torch.equal(head.train()(z), other.train()(z))


def test_auto_is_the_largest_share_that_ends_in_time() -> None:
    chosen = ("strategy=heterofl", "submodel.share=auto", "fleet=mobile", "clients.total=30")
    method, free = prepared(*chosen)
    assert isinstance(free, VariedNetwork)
    assert set(free.chosen.values()) == {"width100"}
    one = free.all_of("width50")
    works = one.works(method.rounds.train, partial(method.method.wire.num_bytes, one))
    phases = method.rounds.fleet.phases(works)
    rule = method.method.schedule.rule
    seconds = {p: rule([own], 1e9)[0].end_s for p, own in phases.items()}
    deadline = sorted(seconds.values())[15]
    _, network = prepared(*chosen, f"fleet.deadline_s={deadline}")
    for partition, name in network.chosen.items():
        assert (name in ("width50", "width100")) == (seconds[partition] <= deadline)


# FjORD --------------------------------------------------------------------------------------------


def nested(*overrides: str):
    config = small("strategy=fjord", "strategy.shares=[0.5,1.0]", *overrides)
    method = experiment.strategy(config)
    experiment.prepare(config, method)
    client = FjORDClient()
    return client.prepare(experiment.network(config), settings_of(method))


@pytest.mark.parametrize("quant", [(), ("quant.bits=4", "quant.per_channel=true")])
def test_a_smaller_slice_trains_its_entries_alone(quant: tuple[str, ...]) -> None:
    found = nested("model.norm=batch", *quant)
    (half,) = found.smaller
    x = torch.randn(8, 1, 8, 8)
    half.run(found.model, x).sum().backward()
    for name, parameter in found.model.named_parameters():
        held = np.zeros(tuple(parameter.shape), bool)
        axes = half.kept.get(name, (None,) * parameter.dim())
        held[np.ix_(*(np.arange(n) if a is None else a
                      for n, a in zip(parameter.shape, axes, strict=True)))] = True  # fmt: skip
        if parameter.grad is not None:
            assert not parameter.grad.numpy()[~held].any(), name
            if name.endswith("conv.weight"):
                assert parameter.grad.numpy()[held].any(), name
    mean = found.model.stage1.norm.running_mean
    assert int((mean != 0).sum()) == 8  # of sixteen channels
    assert int(found.model.stage1.norm.num_batches_tracked) == 1


def test_distillation_learns_from_the_largest(tmp_path: Path) -> None:
    chosen = ("strategy=fjord", SHARES, "model.norm=batch")
    simulate(tmp_path / "plain", *chosen)
    simulate(tmp_path / "taught", *chosen, "strategy.distillation=0.5")
    assert rounds(tmp_path / "plain")[-1]["loss"] != rounds(tmp_path / "taught")[-1]["loss"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("strategy=heterofl", "submodel.share=0"), "submodel.share=0: takes a share in (0, 1]"),
        (("strategy=heterofl", "submodel.share={0:2,default:1}"), "submodel.share.0=2: takes a"),
        (("strategy=heterofl", "submodel.share={0:auto,default:1}"), "submodel.share.0=auto: auto"),
        (("strategy=heterofl", "submodel.share={0:0.5}"), "submodel.share: says nothing of client"),
        (("strategy=heterofl", "submodel.statistics=mine"), "submodel.statistics=mine: takes"),
        (("strategy=fjord", "strategy.shares=[2]"), "strategy.shares=[2]: takes a list"),
        (("strategy=fjord", "strategy.distillation=2"), "strategy.distillation=2: takes a weight"),
        (("strategy=fjord", "strategy.proximal_mu=1"), "strategy.proximal_mu=1: fjord takes 0"),
    ],
)
def test_what_cannot_be_is_one_line(overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValueError, match=r"^(submodel|strategy)\.") as error:
        prepared(*overrides)
    assert str(error.value).startswith(says)
