"""Split learning: bytes by hand, failures in a chain, private halves, settings, errors."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    FAULTS,
    assert_same_run,
    cut_network,
    rounds,
    settings_of,
    simulate,
    small,
)
from safetensors.numpy import load_file
from torch import nn

from app import client, experiment
from app.config.composition import compose
from app.engine import SerialGrid
from app.jobs import Jobs
from quant.codec import LinkSettings
from quant.layers import quantized_layers
from strategies.client.split_loop import CutAt, Hooks, SplitClient
from strategies.client.training import LocalTraining
from strategies.hierarchical import Hierarchical
from strategies.messages import of_network, pack_settings, to_record, unpack_settings
from strategies.server.aggregation import AveragingSettings
from strategies.splitfed_v1 import SplitFedV1
from strategies.splitfed_v3 import SplitFedV3
from tests.strategies.one_client import OneClient

# cnn on digits: stage1 is a convolution 1→16 (3×3) with group norm: 16·9 + 16 + 16 + 16 numbers.
FAMILY = ("split", "splitfed_v1", "splitfed_v2", "splitfed_v3", "ushaped")


def prepared(*overrides):
    config = small(*overrides)
    strategy = experiment.strategy(config)
    experiment.prepare(config, strategy)
    return strategy


class TwoParts(nn.Module):
    """Sizes that one can multiply in the head: 64 → 8 → 10."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
        self.body = nn.Linear(8, 6)
        self.head = nn.Linear(6, num_classes)

    def forward(self, x):
        return self.head(self.body(self.stage1(x)).relu())


NETWORK = "model._target_=tests.strategies.test_split_methods.TwoParts"
DEVICE = (64 * 8 + 8) * 4  # bytes of stage1
TAIL = (6 * 10 + 10) * 4
# 6 clients of 40 samples: two batches of 16 and one of 8.
SAMPLES = 40
BYTES = [
    # strategy, link → bytes up and down of one client in one round
    ("splitfed_v1", "fp32", "fp32", DEVICE + SAMPLES * (8 * 4 + 1), DEVICE + SAMPLES * 8 * 4),
    ("splitfed_v1", "fp16", "fp32", DEVICE + SAMPLES * (8 * 2 + 1), DEVICE + SAMPLES * 8 * 4),
    # 8 bytes for each packet's range
    ("split", "int8", "int4", DEVICE + SAMPLES * 9 + 3 * 8, DEVICE + SAMPLES * 4 + 3 * 8),
    ("splitfed_v2", "sign", "fp32", DEVICE + SAMPLES * (1 + 1), DEVICE + SAMPLES * 8 * 4),
    # k = 2 of 8: two values, and two indices of 3 bits each, packed per batch
    ("splitfed_v2", "topk", "fp32", DEVICE + SAMPLES * (2 * 4 + 1) + 12 + 12 + 6,
     DEVICE + SAMPLES * 2 * 4),
    ("splitfed_v3", "fp32", "fp32", SAMPLES * (8 * 4 + 1), SAMPLES * 8 * 4),
    # labels stay; activations 8 and gradients 6 up, activations 6 and gradients 8 down
    ("ushaped", "fp32", "fp32", DEVICE + TAIL + SAMPLES * 14 * 4, DEVICE + TAIL + SAMPLES * 14 * 4),
    ("ushaped", "int8", "fp16", DEVICE + TAIL + SAMPLES * 14 + 2 * 3 * 8,
     DEVICE + TAIL + SAMPLES * 14 * 2),
]  # fmt: skip


@pytest.mark.parametrize(("strategy", "up", "down", "bytes_up", "bytes_down"), BYTES)
def test_bytes_by_hand(strategy, up, down, bytes_up, bytes_down, tmp_path: Path) -> None:
    simulate(
        tmp_path,
        f"strategy={strategy}",
        NETWORK,
        f"link.up={up}",
        f"link.down={down}",
        "link.k=.25",
    )
    for line in (tmp_path / "clients.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert (row["bytes_up"], row["bytes_down"]) == (bytes_up, bytes_down)
    assert rounds(tmp_path)[0]["bytes_up"] == 6 * bytes_up


def test_an_exact_quarter_of_the_cut(tmp_path: Path) -> None:
    """int8 sends a quarter of the activations' bytes, and 8 more a batch."""
    totals = {}
    for codec in ("fp32", "int8"):
        simulate(tmp_path / codec, "strategy=splitfed_v3", NETWORK, f"link.up={codec}")
        totals[codec] = rounds(tmp_path / codec)[0]["bytes_up"] - 6 * SAMPLES
    assert totals["int8"] == totals["fp32"] // 4 + 6 * 3 * 8


class Block(nn.Module):
    """As torchvision writes them: one ReLU for all, in place, and a residual connection."""

    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = nn.Sequential(
            nn.Conv2d(inplanes, planes, 1, stride), nn.BatchNorm2d(planes)
        )

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + self.downsample(x))


class Unknown(nn.Module):
    """A network that the project has never seen; it knows nothing of splitting either."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, 1, 1, bias=False)
        self.layer1 = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
        self.layer2 = nn.Sequential(Block(16, 16, 2))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x):
        x = self.layer2(self.layer1(self.conv1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


@pytest.mark.parametrize(
    "cut",
    [
        "conv1",
        "layer1.0",
        "0.5",
        *(pytest.param(c, marks=pytest.mark.long) for c in ("layer1", "layer2")),
    ],
)
def test_a_network_of_the_users_needs_no_change(cut, tmp_path: Path) -> None:
    chosen = (
        "model._target_=tests.strategies.test_split_methods.Unknown",
        "rounds=1",
        "clients.total=2",
    )
    simulate(tmp_path / "whole", "strategy=fedavg", *chosen)
    simulate(tmp_path / "cut", "strategy=splitfed_v1", f"split.cut={cut}", *chosen)
    simulate(tmp_path / "u", "strategy=ushaped", f"split.cut={cut}", "split.tail=fc", *chosen)
    one, *others = (load_file(tmp_path / r / "model.safetensors") for r in ("whole", "cut", "u"))
    for other in others:
        assert all(np.array_equal(one[name], other[name]) for name in one)


class FrozenStem(TwoParts):
    """The user's first part is not to be trained."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(num_classes)
        self.stage1.requires_grad_(False)


def test_a_frozen_first_part_leaves_the_last_to_train(tmp_path: Path) -> None:
    network = "model._target_=tests.strategies.test_split_methods.FrozenStem"
    for method in ("fedavg", "splitfed_v1", "ushaped"):
        simulate(tmp_path / method, f"strategy={method}", network, "rounds=1")
    initial = experiment.network(small(network)).state_dict()
    one, *others = (
        load_file(tmp_path / method / "model.safetensors")
        for method in ("fedavg", "splitfed_v1", "ushaped")
    )
    assert not np.array_equal(one["head.weight"], initial["head.weight"].numpy())
    for other in others:
        assert all(np.array_equal(one[name], other[name]) for name in one)


class Normed(TwoParts):
    """Batch norm on both sides of the cut."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(num_classes)
        self.stage1 = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8))
        self.body = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6))


def test_one_sample_leaves_both_parts_statistics(tmp_path: Path) -> None:
    network = "model._target_=tests.strategies.test_split_methods.Normed"
    chosen = (network, "clients.total=2", "data.max_train=2", "rounds=1")
    simulate(tmp_path, "strategy=splitfed_v1", *chosen)
    model = load_file(tmp_path / "model.safetensors")
    for name in ("stage1.2.running_mean", "body.1.running_mean"):
        assert not model[name].any(), name
    assert model["body.1.bias"].any()


# Failures ---------------------------------------------------------------------------------------


@pytest.fixture
def faults():
    def fail(**kinds: str) -> None:
        FAULTS.write_text("\n".join(f"{k.removeprefix('c')} {v}" for k, v in kinds.items()))

    yield fail
    FAULTS.write_text("")


@pytest.mark.parametrize("kind", ["FaultySplit", "FaultyV2", "FaultyV3"])
def test_a_client_that_fails_leaves_the_chain_as_it_was(kind, faults, tmp_path: Path) -> None:
    """The run equals one in which that client has no part."""
    name = {"FaultySplit": "split", "FaultyV2": "splitfed_v2", "FaultyV3": "splitfed_v3"}[kind]
    target = f"strategy._target_=tests.strategies.faulty_split.{kind}"
    faults(c1="late", c4="late")  # after they have trained
    simulate(tmp_path / "faulty", f"strategy={name}", target, "rounds=1")
    faults(c1="skip", c4="skip")
    simulate(tmp_path / "absent", f"strategy={name}", target, "rounds=1")
    got, wanted = (load_file(tmp_path / run / "model.safetensors") for run in ("faulty", "absent"))
    assert all(np.array_equal(got[key], wanted[key]) for key in wanted)
    assert rounds(tmp_path / "faulty")[0]["num_failed"] == 2
    rows = map(json.loads, (tmp_path / "faulty" / "clients.jsonl").read_text().splitlines())
    assert [row["partition"] for row in rows if row["status"] == "failed"] == [1, 4]


@pytest.mark.parametrize("kind", ["FaultySplit", "FaultyV2"])
def test_all_clients_failing_ends_the_run(kind, faults, tmp_path: Path) -> None:
    faults(**{f"c{i}": "raise" for i in range(6)})
    name = {"FaultySplit": "split", "FaultyV2": "splitfed_v2"}[kind]
    with pytest.raises(RuntimeError, match="all 6 clients failed; ArithmeticError"):
        simulate(
            tmp_path, f"strategy={name}", f"strategy._target_=tests.strategies.faulty_split.{kind}"
        )


# Private halves -----------------------------------------------------------------------------------


def test_private_halves_differ_and_survive(tmp_path: Path) -> None:
    simulate(tmp_path, "strategy=splitfed_v3", "evaluate.clients=3")
    state = load_file(tmp_path / "checkpoint" / "000002" / "strategy.safetensors")
    halves_of = [state[f"{p}/stage1.conv.weight"] for p in range(6)]
    assert all(not np.array_equal(halves_of[0], other) for other in halves_of[1:])
    assert "0/stage2.conv.weight" not in state
    model = load_file(tmp_path / "model.safetensors")
    np.testing.assert_allclose(model["stage1.conv.weight"], np.mean(halves_of, axis=0), atol=1e-6)


def test_private_halves_when_few_take_part(tmp_path: Path) -> None:
    """Who has not taken part yet is tested with the initial half; continuing keeps the rest."""
    chosen = ("strategy=splitfed_v3", "clients.per_round=2", "evaluate.clients=6")
    simulate(tmp_path / "whole", *chosen, "rounds=3")
    simulate(tmp_path / "grown", *chosen, "rounds=1")
    simulate(tmp_path / "grown", *chosen, "rounds=3", "resume=true")
    assert_same_run(tmp_path / "whole", tmp_path / "grown")


CUTS = ("strategy=splitfed_v3", "split.cut={0:stage2,default:stage1}", "clients.total=3")
MIDDLE = "stage2.conv.weight"  # on client 0's device, with the server of the others


def test_v3_with_cuts_of_their_own_averages_what_servers_share(faults, tmp_path: Path) -> None:
    """Without client 0 the others' servers are the same."""
    target = "strategy._target_=tests.strategies.faulty_split.FaultyV3"
    simulate(tmp_path / "all", *CUTS, target, "rounds=1")
    faults(c0="skip")
    simulate(tmp_path / "two", *CUTS, target, "rounds=1")
    state = load_file(tmp_path / "all" / "checkpoint" / "000001" / "strategy.safetensors")
    assert f"0/{MIDDLE}" in state
    assert f"1/{MIDDLE}" not in state
    every, two = (load_file(tmp_path / run / "model.safetensors") for run in ("all", "two"))
    assert np.array_equal(every[MIDDLE], two[MIDDLE])
    assert not np.array_equal(every["head.linear.weight"], two["head.linear.weight"])


def test_v3_never_makes_a_private_half_the_servers(faults, tmp_path: Path) -> None:
    """A round in which client 0 alone takes part leaves what its device has and servers share."""
    target = "strategy._target_=tests.strategies.faulty_split.FaultyV3"
    faults(c1="skip", c2="skip")
    simulate(tmp_path, *CUTS, target, "rounds=1")
    model = load_file(tmp_path / "model.safetensors")
    initial = experiment.network(small(*CUTS)).state_dict()
    assert np.array_equal(model[MIDDLE], initial[MIDDLE].numpy())
    assert not np.array_equal(model["head.linear.weight"], initial["head.linear.weight"].numpy())


# Settings -----------------------------------------------------------------------------------------


def test_the_server_may_have_its_own_learning_rate(tmp_path: Path) -> None:
    """With 0.0-like rates nothing of a half moves but where the rate is the device's."""
    simulate(
        tmp_path, "strategy=splitfed_v1", "train.server_lr=1e-12", "train.momentum=0", "rounds=1"
    )
    config = small("strategy=splitfed_v1")
    before, after = (
        experiment.network(config).state_dict(),
        load_file(tmp_path / "model.safetensors"),
    )
    for name, tensor in before.items():
        moved = np.abs(after[name] - tensor.numpy()).max()
        assert (moved > 1e-5) == name.startswith("stage1."), name


@pytest.mark.parametrize("method", ["fedavg", "split", "splitfed_v1", "hierarchical"])
def test_rates_that_fall_leave_later_rounds_nothing_to_move(tmp_path: Path, method) -> None:
    decay = ("train.server_lr=0.1", "train.lr_decay=1e-20")
    for count in (1, 2):
        simulate(tmp_path / str(count), f"strategy={method}", f"rounds={count}", *decay)
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("1", "2"))
    for name in one:
        assert np.allclose(one[name], two[name], rtol=1e-6, atol=1e-7), name


@pytest.mark.parametrize("side", ["both", "client"])
def test_quantizers_on_one_side(side) -> None:
    strategy = prepared(
        "strategy=splitfed_v1", "quant.bits=4", f"quant.side={side}", "split.cut=stage2"
    )
    layers = dict(quantized_layers(cut_network(strategy).model))
    device = {"stage1.conv", "stage2.conv"}
    assert set(layers) == (device if side == "client" else {*device, "stage3.conv", "head.linear"})
    assert layers["stage1.conv"].weight_quantizer.bits == 8  # the network's first layer
    assert layers["stage2.conv"].weight_quantizer.bits == 4


def test_quantized_splitfed_v1_is_oqfl(tmp_path: Path) -> None:
    simulate(tmp_path / "oqfl", "strategy=oqfl", "quant.bits=4")
    simulate(tmp_path / "split", "strategy=splitfed_v1", "quant.bits=4", "split.cut=stage2")
    one, other = (load_file(tmp_path / run / "model.safetensors") for run in ("oqfl", "split"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("model", "tail", "expected"),
    [
        ("cnn", "head", "stage3"),
        ("resnet8", "head", "stage3"),
        pytest.param(
            "mobilenetv2", "head", "classifier.0", marks=pytest.mark.long
        ),  # its last layer
        pytest.param("densenet121", "classifier", "avgpool+flatten", marks=pytest.mark.long),
    ],
)
def test_the_tail_begins_with_a_module(model, tail, expected) -> None:
    cut = {"cnn": "stage1", "resnet8": "stage1"}.get(model, "0.1")
    source = "data.source=tests.app.random_samples"
    data = [source, "data.root=/images", "data.name=images", "data.shape=[3,32,32]"]
    strategy = prepared(
        "strategy=ushaped", f"model={model}", f"split.tail={tail}", f"split.cut={cut}", *data
    )
    assert cut_network(strategy).place(0).split.tail.startswith(expected)


def test_summary_is_of_the_devices_part(tmp_path: Path) -> None:
    summary = simulate(tmp_path, "strategy=splitfed_v1", NETWORK)
    assert summary["client_params"] == 64 * 8 + 8
    assert summary["client_model_bytes"] == DEVICE
    assert summary["client_flops_per_sample"] == 2 * (2 * 64 * 8)  # forward, gradient of the weight
    summary = simulate(tmp_path / "u", "strategy=ushaped", NETWORK)
    assert summary["client_params"] == 64 * 8 + 8 + 6 * 10 + 10
    assert summary["client_flops_per_sample"] == 2 * (2 * 64 * 8) + 3 * (2 * 6 * 10)


@pytest.mark.parametrize("kind", [SplitFedV1, SplitFedV3, Hierarchical])
@pytest.mark.parametrize(
    "averaging",
    [AveragingSettings(server_optimizer="fedadam"), AveragingSettings(proximal_mu=1.0)],
    ids=["server", "mu"],
)
def test_what_a_cut_network_cannot_have_is_refused(kind, averaging) -> None:
    with pytest.raises(ValueError, match="methods over a cut take neither"):
        kind(averaging=averaging)


def test_devices_that_were_not_drawn_may_have_a_cut() -> None:
    cuts = "split.cut={phone_low:stage1,phone_mid:stage2,phone_high:stage2,default:stage3}"
    chosen = ("strategy=splitfed_v1", "fleet=mobile", "clients.total=2")
    method = prepared(*chosen, cuts)
    drawn = {client.device.name for client in method.rounds.fleet.clients.values()}
    assert len(drawn) < 3  # two clients have two devices at most
    with pytest.raises(ValueError, match=r"raspberry_pi_4: takes .* phone_high, phone_low, phone_"):
        prepared(*chosen, "split.cut={raspberry_pi_4:stage1,default:stage2}")


SECOND = {
    "splitfed_v3": [], "hierarchical": ["strategy.outage=[2]"], "deprune": ["prune.stages=2"],
}  # fmt: skip


@pytest.mark.parametrize("strategy", SECOND)
def test_a_second_start_begins_anew(strategy) -> None:
    chosen = (f"strategy={strategy}", "clients.total=2", "rounds=2", *SECOND[strategy])
    method = prepared(*chosen)
    config, initial = small(*chosen), method.prepared().in_round(1).model.state_dict()
    arrays = {name: tensor.clone() for name, tensor in initial.items()}
    grid = SerialGrid(2, experiment.run_config(config))
    first, again = (
        method.start(grid, to_record(arrays), num_rounds=2).arrays.to_numpy_ndarrays()
        for _ in range(2)
    )
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))


def test_simulated_time_begins_anew() -> None:
    method = prepared("strategy=splitfed_v1", "clients.total=2", "fleet=iot")
    config, sink, times = small("clients.total=2"), [], []
    grid = SerialGrid(2, experiment.run_config(config))

    class Now:
        def absence(self, partition, server_round, now_s, seed):
            times.append(now_s)

    fleet = replace(method.rounds.fleet, availability=Now())
    method.rounds = replace(method.rounds, fleet=fleet)
    for _ in range(2):
        method.start(
            grid, to_record(method.prepared().in_round(1).model.state_dict()), 2, sinks=sink
        )
    assert times[:4] == times[4:]
    assert times[0] == 0 < times[2]


def test_what_no_client_is_cut_at_counts_nowhere(tmp_path: Path) -> None:
    chosen = ("clients.total=2", "rounds=1", "link.up=int4")
    for strategy in ("splitfed_v1", "splitfed_v3"):
        run = tmp_path / strategy
        unused = "split.cut={0:stage1,1:stage1,default:stage3}"
        one = simulate(run / "one", f"strategy={strategy}", "split.cut=stage1", *chosen)
        other = simulate(run / "other", f"strategy={strategy}", unused, *chosen)
        for key in ("client_params", "cut_bytes_up_per_sample", "final_accuracy"):
            assert one[key] == other[key], key
        assert_same_run(run / "one", run / "other")


def test_a_worker_keeps_its_network_over_falling_rates(tmp_path: Path) -> None:
    client._prepared.cache_clear()
    simulate(tmp_path, "strategy=splitfed_v1", "rounds=3", "train.lr_decay=0.5")
    assert client._prepared.cache_info().misses == 1


ERRORS = [
    ("split.cut=stage9", r"split\.cut=stage9: .*no cut point 'stage9'; the nearest names are"),
    ("split.cut=head", r"split\.cut=head: .*output"),
    ("split.cut=1.5", r"split\.cut=1\.5: takes a cut point, or a share in \(0, 1\)"),
    ("split.cut=3", r"split\.cut=3: takes a cut point"),
    ("split.cut=true", r"split\.cut=True: takes a cut point"),
    ("split.cut=[stage1]", r"split\.cut=\['stage1'\]: takes"),
    ("split.cut={}", r"split\.cut=\{\}: takes"),
    ("split.cut={0:stage1}", r"split\.cut: says nothing of client 1, and has no default"),
    ("split.cut={99:stage1,default:stage2}", r"split\.cut\.99: there is no client 99"),
    ("split.cut={phone:stage1}", r"split\.cut\.phone: takes as keys partition ids, ideal, default"),
    ("link.up=int7", r"link\.up=int7: takes fp32, fp16, int8"),
    ("link.k=0", r"link\.k=0\.0: takes a share"),
    ("train.server_lr=-1", r"train\.server_lr=-1\.0: takes 0 or more"),
    ("quant.side=server", r"quant\.side=server: takes both, client"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "message"), ERRORS)
def test_what_cannot_be(override, message) -> None:
    with pytest.raises(ValueError, match=message):
        Jobs().check(["strategy=splitfed_v1", "clients.total=3", override], is_sweep=False)


@pytest.mark.parametrize("strategy", ["split", "splitfed_v2", "ushaped"])
def test_one_cut_where_there_is_one_server_half(strategy) -> None:
    with pytest.raises(ValueError, match=r"split\.cut: a mapping .* splitfed_v1 or splitfed_v3"):
        Jobs().check([f"strategy={strategy}", "split.cut={default:stage1}"], is_sweep=False)


def test_a_tail_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"split\.tail=fo: no such cut point; the nearest are"):
        chosen = ("fleet=mobile", "split.cut=auto", "split.tail=fo")
        Jobs().check(["strategy=ushaped", *chosen], is_sweep=False)
    for tail, message in (
        ("nowhere", r"split\.cut=stage1 split\.tail=nowhere: .* no cut point 'nowhere'"),
        ("stage1", r"split\.tail=stage1: CNN has no cut point before 'stage1'"),
        ("stage2", r"split\.cut=stage1 split\.tail=stage2: .*'stage1' is the same place"),
        ("", r"split\.tail=: takes a module"),
    ):
        with pytest.raises(ValueError, match=message):
            Jobs().check(["strategy=ushaped", f"split.tail={tail}"], is_sweep=False)


def test_keys_that_a_method_does_not_read() -> None:
    def identity(config):
        return experiment.resolve(config).identity

    fedavg = identity(compose(["strategy=fedavg", "split.cut=stage2", "link.up=int8"]))
    assert not [key for key in fedavg if key.startswith(("split", "link", "quant", "train.server"))]
    v1 = identity(compose(["strategy=splitfed_v1"]))
    assert {"split.cut", "link.up", "train.server_lr", "quant.bits", "quant.side"} <= v1.keys()
    assert not {"split.tail", "evaluate.clients", "quant.wire"} & v1.keys()


# What each side does -----------------------------------------------------------------------------


def test_hooks_of_the_device_are_not_called_on_the_servers_part() -> None:
    seen: list[nn.Module] = []

    class Watching(Hooks):
        def after_step(self, part: nn.Module) -> None:
            seen.append(part)

    run = OneClient("strategy=splitfed_v1")
    trained: list[nn.Module] = []
    run.client = SplitClient(make_hooks=lambda task: Watching(), after_server_step=trained.append)
    run.beside()
    assert seen == [run.model.device[0]] * 3
    assert trained == [run.model.server] * 3


def test_settings_travel() -> None:
    strategy = prepared("strategy=ushaped", "link.up=int8", "train.server_lr=0.5", "quant.bits=4")
    config = settings_of(strategy)
    split = unpack_settings(config, "split", CutAt)
    assert split == CutAt("stage1", "stage3")
    assert unpack_settings(config, "train", LocalTraining).server_lr == 0.5
    assert unpack_settings(config, "link", LinkSettings) == LinkSettings("int8")
    # What a worker keeps of a network is not made anew because a rate falls.
    falling = replace(strategy.rounds.train, lr_decay=0.5)
    first, second = (config | pack_settings(train=falling.in_round(n)) for n in (1, 2))
    assert first != second
    assert of_network(first) == of_network(second)
    assert {key.split(".")[0] for key in of_network(first)} == {"split", "quant", "side", "link"}
