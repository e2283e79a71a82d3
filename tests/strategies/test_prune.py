"""Deprune and prune: identities, bytes, schedules, which channels go, resume, sources, errors."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_run, cut_network, rounds, settings_of, simulate, small
from safetensors.numpy import load_file
from torch import nn

from app import experiment
from app.config.composition import compose
from app.jobs import Jobs
from app.run_folder import claim
from models.bottleneck import DECODER_WEIGHT, ENCODER_WEIGHT, Bottleneck
from strategies import deprune
from strategies.prune import load_source
from strategies.server import bottleneck
from strategies.server.aggregation import AveragingSettings
from strategies.server.bottleneck import PruneSettings, between, stage

BASES = ("split", "splitfed_v1", "splitfed_v2")


def prepared(*overrides):
    config = small(*overrides)
    strategy = experiment.strategy(config)
    return strategy, experiment.prepare(config, strategy)


# Identities ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES)
def test_all_channels_of_a_frozen_bottleneck_are_the_base(
    base, tmp_path: Path, monkeypatch
) -> None:
    """Weights, accuracies and losses, bit for bit; bytes differ by the encoder's."""

    @dataclass(frozen=True)
    class Frozen(Bottleneck):
        frozen: bool = True

    monkeypatch.setattr(bottleneck, "Bottleneck", Frozen)
    fair = (
        "clients.total=4", "data.partition=dirichlet", "data.max_train=100", "model.norm=batch",
        "split.cut=stage2", "checkpoint.every=0",
    )  # fmt: skip
    simulate(tmp_path / "base", f"strategy={base}", *fair)
    chosen = (f"strategy.base={base}", "prune.ratio=0", *fair)
    plain = load_file(tmp_path / "base" / "model.safetensors")
    for method in ("deprune", "prune"):
        simulate(tmp_path / method, f"strategy={method}", "prune.schedule=fixed", *chosen)
        wide = load_file(tmp_path / method / "model.safetensors")
        assert all(np.array_equal(plain[name], wide[name]) for name in plain)
        assert np.array_equal(wide[ENCODER_WEIGHT][:, :, 0, 0], np.eye(32))
        for one, other in zip(rounds(tmp_path / "base"), rounds(tmp_path / method), strict=True):
            for key in ("accuracy", "loss", "train_loss"):
                assert one[key] == other[key]
            for key in ("bytes_up", "bytes_down"):
                assert other[key] - one[key] == 4 * (32 * 32 * 4)  # four clients


def test_the_first_forward_of_one_that_trains_is_too(tmp_path: Path) -> None:
    first = ("clients.total=1", "train.max_batches=1", "rounds=1", "link.up=int4")
    simulate(tmp_path / "base", "strategy=splitfed_v1", *first)
    wide = ("prune.ratio=0", "prune.schedule=fixed")
    simulate(tmp_path / "wide", "strategy=deprune", *wide, *first)
    one, other = (rounds(tmp_path / run)[0] for run in ("base", "wide"))
    assert one["train_loss"] == other["train_loss"]
    encoder = load_file(tmp_path / "wide" / "model.safetensors")[ENCODER_WEIGHT]
    assert not np.array_equal(encoder[:, :, 0, 0], np.eye(16))  # it did train


@pytest.mark.parametrize("base", BASES)
def test_who_hands_on_what_is_the_bases(base) -> None:
    strategy, _ = prepared("strategy=deprune", f"strategy.base={base}")
    names, schedule = cut_network(strategy).on_device(0), strategy.method.schedule
    assert {ENCODER_WEIGHT, "stage1.conv.weight"} <= names
    assert DECODER_WEIGHT not in names
    if base == "splitfed_v2":
        assert not schedule.relays_device
        assert schedule.order(list(range(9)), 0, 1) != list(range(9))
    if base == "split":
        assert schedule.relays_device


# Bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "active"), [pytest.param(0, 16, marks=pytest.mark.long), (0.75, 4), (0.95, 1)]
)
@pytest.mark.parametrize(
    "method", [("deprune", "prune.schedule=fixed"), ("prune", "prune.stages=1")], ids=lambda m: m[0]
)
@pytest.mark.parametrize("base", BASES)
def test_bytes_follow_the_active_channels_exactly(
    base, method, ratio, active, tmp_path: Path
) -> None:
    settings = (f"strategy.base={base}", f"prune.ratio={ratio}", "rounds=1", "clients.total=1")
    summary = simulate(tmp_path, f"strategy={method[0]}", method[1], *settings)
    (record,) = rounds(tmp_path)
    assert record["active_channels"] == summary["active_channels"] == active
    samples, device = 240, 4 * (16 * 9 + 16 + 16 + active * 16)  # stage1 and the encoder
    whole = samples * 4 * 16 * 4 * 4  # 16 channels of 4×4 in fp32
    assert (record["bytes_down"] - device) * 16 == whole * active
    assert (record["bytes_up"] - device - samples) * 16 == whole * active  # a byte a label
    assert summary["cut_bytes_up_per_sample"] == active * 16 * 4 + 1


def test_bytes_of_a_codec_and_of_each_round(tmp_path: Path) -> None:
    simulate(
        tmp_path, "strategy=deprune", "link.up=int8", "rounds=4", "evaluate.every=3",
        "clients.total=1", "train.batch_size=240", "prune.ratio=0.5",
    )  # fmt: skip
    records = rounds(tmp_path)
    assert [record["accuracy"] is None for record in records] == [True, True, False, False]
    active = [record["active_channels"] for record in records]
    assert active == [2, 3, 5, 8]
    for k, record in zip(active, records, strict=True):
        device = 4 * (16 * 9 + 16 + 16 + k * 16)
        assert record["bytes_up"] == device + 240 * (k * 16 + 1) + 8  # a range of 8 bytes
        assert record["bytes_down"] == device + 240 * k * 16 * 4


# Schedules ----------------------------------------------------------------------------------------


def test_target() -> None:
    targets = [PruneSettings(ratio=ratio).target(16) for ratio in (0, 0.5, 0.75, 0.9375, 0.99)]
    assert targets == [16, 8, 4, 1, 1]


def test_stages_are_even_and_the_last_one_stays() -> None:
    assert [stage(r, 8, 4)[0] for r in range(1, 11)] == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert [stage(r, 5, 2)[0] for r in range(1, 6)] == [1, 1, 2, 2, 2]
    assert [stage(r, 2, 4) for r in (1, 2, 3)] == [(1, 2), (2, 2), (2, 2)]
    assert stage(1, 1, 4) == (1, 1)


def test_between_ends_at_the_ends() -> None:
    for start, end in ((1, 16), (64, 4), (6, 6), (512, 1)):
        assert between(start, end, 0) == start
        assert between(start, end, 1) == end
    assert [between(64, 4, share / 4) for share in range(5)] == [64, 32, 16, 8, 4]


SCHEDULES = [
    (("strategy=deprune", "prune.schedule=fixed"), [4] * 8),
    (("strategy=deprune", "prune.schedule=grow"), [1, 1, 2, 2, 3, 3, 4, 4]),
    (("strategy=deprune", "prune.schedule=shrink"), [16, 16, 10, 10, 6, 6, 4, 4]),
    (("strategy=deprune", "prune.schedule=shrink", "prune.stages=1"), [4] * 8),
    (("strategy=deprune", "prune.schedule=shrink", "prune.rounds=2"), [16] + [4] * 7),
    (("strategy=deprune", "prune.schedule=grow", "prune.ratio=0"), [2, 2, 4, 4, 8, 8, 16, 16]),
    (("strategy=deprune", "prune.rounds=0.45", "prune.stages=2"), [2, 2, 4, 4, 4, 4, 4, 4]),
    (("strategy=deprune", "prune.rounds=1"), [4] * 8),
    (("strategy=deprune", "prune.rounds=1.0"), [1, 1, 2, 2, 3, 3, 4, 4]),
    (("strategy=prune",), [16] * 4 + [11, 8, 6, 4]),
    (("strategy=prune", "prune.pretrain_rounds=0", "prune.stages=2"), [8] * 4 + [4] * 4),
    (("strategy=prune", "prune.pretrain_rounds=3", "prune.rounds=4"), [16] * 3 + [4] * 5),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "expected"), SCHEDULES)
def test_widths_over_rounds(overrides, expected) -> None:
    strategy, model = prepared(*overrides, "rounds=8")
    assert [strategy.prepared().active(server_round) for server_round in range(1, 9)] == expected
    assert model.state_dict()[ENCODER_WEIGHT].shape[0] == expected[0]


# Which channels -----------------------------------------------------------------------------------


def arrays_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("importance", "array"), [("l1", "stage1.conv.weight"), ("bn", "stage1.norm.weight")]
)
def test_the_smallest_go_and_the_largest_come(importance, array) -> None:
    strategy, model = prepared(
        "strategy=prune", f"prune.importance={importance}", "prune.pretrain_rounds=1"
    )
    state = arrays_of(model)
    sizes = torch.tensor([3.0, 9, 1, 8, 2, 7, 4, 6, 5, 16, 10, 15, 11, 14, 12, 13])
    state[array] = sizes.reshape(-1, *[1] * (state[array].dim() - 1)).expand(state[array].shape)
    network = strategy.prepared()
    state, channels = network.resized(state, range(16), 5)
    assert channels == [9, 11, 13, 14, 15]
    assert state[ENCODER_WEIGHT].argmax(1).flatten().tolist() == [9, 11, 13, 14, 15]
    state, channels = network.resized(state, channels, 7)
    assert channels == [9, 11, 13, 14, 15, 10, 12]
    assert state[ENCODER_WEIGHT].argmax(1).flatten().tolist() == channels
    state, channels = network.resized(state, channels, 16)
    assert sorted(channels) == list(range(16))
    encoder, decoder = state[ENCODER_WEIGHT].flatten(1), state[DECODER_WEIGHT].flatten(1)
    assert torch.equal(decoder @ encoder, torch.eye(16))


def test_taylor_ranks_by_what_clients_measured_and_begins_anew() -> None:
    strategy, model = prepared("strategy=prune", "prune.importance=taylor")
    state = arrays_of(model)
    state["cut_taylor"] = torch.arange(16.0).flip(0)
    state, channels = strategy.prepared().resized(state, range(16), 3)
    assert channels == [0, 1, 2]
    assert state["cut_taylor"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("base", BASES)
def test_taylor_is_added_up_until_the_width_changes(base, tmp_path: Path) -> None:
    chosen = (f"strategy.base={base}", "prune.importance=taylor", "prune.pretrain_rounds=2")
    few = ("clients.total=2", "data.max_train=32", "checkpoint.keep=9")
    simulate(tmp_path, "strategy=prune", *chosen, "rounds=3", *few)
    one, two, three = (
        load_file(tmp_path / "checkpoint" / f"{r:06d}" / "model.safetensors")["cut_taylor"]
        for r in (1, 2, 3)
    )
    assert (two > one).all()
    assert (one > 0).all()
    state = load_file(tmp_path / "checkpoint" / "000003" / "strategy.safetensors")
    assert state["channels"].tolist() == sorted(np.argsort(-two, kind="stable")[:4].tolist())
    assert three.shape == (4,)


def test_new_channels_are_the_networks_own() -> None:
    """What was trained stays, and what is new has not been trained."""
    strategy, model = prepared("strategy=deprune", "prune.ratio=0")
    state = arrays_of(model)
    state[ENCODER_WEIGHT] = torch.randn(state[ENCODER_WEIGHT].shape)
    network = strategy.prepared()
    grown, _ = network.resized(state, network.first[1], 8)
    before = len(state[ENCODER_WEIGHT])
    assert torch.equal(grown[ENCODER_WEIGHT][:before], state[ENCODER_WEIGHT])
    assert torch.equal(grown[DECODER_WEIGHT][:, :before], state[DECODER_WEIGHT])
    assert (grown[ENCODER_WEIGHT][before:].flatten(1).sum(1) == 1).all()
    assert grown["stage1.conv.weight"] is state["stage1.conv.weight"]


# Continuing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chosen",
    [
        ("strategy=deprune", "prune.ratio=0.5"),
        ("strategy=prune", "prune.importance=taylor", "strategy.base=splitfed_v2"),
    ],
)
def test_continued_after_any_round_equals_uninterrupted(chosen, tmp_path: Path) -> None:
    chosen = (*chosen, "rounds=4", "clients.total=2", "data.max_train=40", "checkpoint.keep=9")
    simulate(tmp_path / "whole", *chosen)
    for last in (1, 3):
        part = tmp_path / str(last)
        shutil.copytree(tmp_path / "whole", part)
        for later in range(last + 1, 5):  # as if killed after round `last`
            shutil.rmtree(part / "checkpoint" / f"{later:06d}")
        (part / "summary.json").unlink()
        simulate(part, *chosen, "resume=true")
        assert_same_run(tmp_path / "whole", part)
    # Killed between the last checkpoint and the summary: no round is left to say the width.
    before = json.loads((tmp_path / "whole" / "summary.json").read_text())
    after = simulate(tmp_path / "whole", *chosen, "resume=true")
    keys = ("active_channels", "client_params", "cut_bytes_up_per_sample")
    assert [after[key] for key in keys] == [before[key] for key in keys]


def test_more_rounds_do_not_change_what_was_done(tmp_path: Path) -> None:
    """Where null stands for the number of rounds, that number belongs to the experiment."""
    simulate(tmp_path, "strategy=deprune", "clients.total=1")
    longer = ("strategy=deprune", "clients.total=1", "rounds=3", "resume=true")
    with pytest.raises(ValueError, match=r"prune\.rounds \(was 2, is 3\)"):
        claim(tmp_path, small(*longer))
    claim(tmp_path, small(*longer, "prune.rounds=2"))


# A source -----------------------------------------------------------------------------------------


def test_prune_begins_with_a_finished_run(tmp_path: Path) -> None:
    simulate(tmp_path / "source", "strategy=fedavg", "clients.total=1", "rounds=1")
    weights = load_file(tmp_path / "source" / "model.safetensors")
    source = f"prune.source={tmp_path / 'source'}"
    for bits in ("32", "4"):
        _, model = prepared("strategy=prune", source, f"quant.bits={bits}")
        state = model.state_dict()
        assert all(np.array_equal(state[name], weights[name]) for name in weights)
        assert state[ENCODER_WEIGHT].shape[0] == 8  # it drops at once
    strategy, _ = prepared("strategy=prune", source, "prune.importance=taylor", "rounds=3")
    assert [strategy.prepared().active(r) for r in (1, 2, 3)] == [
        16,
        8,
        4,
    ]  # but for one round to measure


def test_a_source_identifies_a_run_by_its_content(tmp_path: Path) -> None:
    chosen = ("strategy=fedavg", "clients.total=1", "rounds=1")
    for name in ("one", "copy"):
        simulate(tmp_path / name, *chosen)
    simulate(tmp_path / "other", *chosen, "seed=1")

    def known(name: str) -> dict[str, object]:
        return small("strategy=prune", f"prune.source={tmp_path / name}").identity

    one = known("one")
    assert one == known("copy") != known("other")
    assert str(tmp_path) not in json.dumps(one)
    config = small("strategy=prune", f"prune.source={tmp_path / 'one'}")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "one")
    assert known("one") == known("other") != one
    with pytest.raises(ValueError, match=r"prune\.source=.*one: has changed since the run began"):
        experiment.check(config)
    assert config.identity == one
    # Who does not read it does not care.
    sources = [small("strategy=deprune", f"prune.source={tmp_path / n}") for n in ("one", "copy")]
    assert sources[0].identity == sources[1].identity


def test_sources_that_are_none(tmp_path: Path) -> None:
    chosen = ["strategy=prune", "clients.total=3"]
    with pytest.raises(ValueError, match=r"prune\.source=/nowhere: no finished run there, model"):
        Jobs().check([*chosen, "prune.source=/nowhere"], is_sweep=False)
    simulate(tmp_path / "wide", "strategy=fedavg", "model.width=32", "rounds=1", "clients.total=1")
    simulate(tmp_path / "few", "strategy=oqfl", "rounds=1", "clients.total=1")
    for run, message in (
        (
            "wide",
            r"another network: array head\.linear\.weight is \(10, 128\), expected \(10, 64\)",
        ),
        ("few", r"few: its network is quantized; takes a run at 32 bits"),
    ):
        with pytest.raises(ValueError, match=message):
            Jobs().check([*chosen, f"prune.source={tmp_path / run}"], is_sweep=False)
    for name, message in (
        ("model.safetensors", "model.safetensors is damaged: "),
        ("summary.json", "summary.json is damaged: "),
    ):
        (tmp_path / "wide" / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match=rf"prune\.source=.*wide: {message}") as caught:
            load_source(experiment.network(small()), tmp_path / "wide")
        assert "\n" not in str(caught.value)
        (tmp_path / "wide" / name).unlink()
        with pytest.raises(ValueError, match=f"no finished run there, {name} is missing"):
            load_source(experiment.network(small()), tmp_path / "wide")
        shutil.copy(tmp_path / "few" / name, tmp_path / "wide")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("fedavg", None),
        ("oqfl quant.bits=32", None),
        ("split", None),
        ("splitfed_v1", None),
        ("splitfed_v2", None),
        ("ushaped", None),
        ("hierarchical", None),
        ("hierarchical strategy.server_half=replicated strategy.exit_width=4", None),
        ("binarized_split strategy.binarize=none", None),
        ("binarized_split", "its network is quantized; takes a run at 32 bits"),
        (
            "splitfed_v1 quant.bits=4 quant.side=client",
            "its network is quantized; takes a run at 32 bits",
        ),
        (
            "oqfl quant.weight_bits=32 quant.act_bits=8",
            "its network is quantized; takes a run at 32 bits",
        ),
        ("splitfed_v3", "is one of strategy=splitfed_v3, whose clients have halves of their own"),
        ("deprune", "its network has a bottleneck already; takes a run without one"),
        ("prune prune.ratio=0", "its network has a bottleneck already; takes a run without one"),
    ],
)
def test_which_methods_serve_as_a_source(method: str, message: str | None, tmp_path: Path) -> None:
    few = ("clients.total=2", "data.max_train=32", "data.max_test=20", "rounds=1")
    quick = ("checkpoint.every=0", "train.max_batches=1")
    simulate(tmp_path, *f"strategy={method}".split(), *few, *quick)
    model = experiment.network(small("seed=5"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if message is not None:
        with pytest.raises(ValueError, match=rf"^prune\.source=.*{message}"):
            load_source(model, tmp_path)
        assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
        return
    load_source(model, tmp_path)
    trained = load_file(tmp_path / "model.safetensors")
    assert all(np.array_equal(trained[n], t) for n, t in model.state_dict().items())


# Settings -----------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Cut points of one value a sample, and of three dimensions."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Unflatten(1, (2, 2, 2, 2)))
        self.stage2 = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0))
        self.stage3 = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 8))
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.stage3(self.stage2(self.stage1(x))).relu())


ODD = "model._target_=tests.strategies.test_prune.Odd"
ERRORS = [
    (["prune.ratio=1.0"], r"prune\.ratio=1\.0: takes 0 or more, below 1"),
    (["prune.ratio=-0.1"], r"prune\.ratio=-0\.1: takes 0 or more, below 1"),
    (["prune.ratio=nan"], r"prune\.ratio=nan: takes 0 or more, below 1"),
    (["prune.schedule=up"], r"prune\.schedule=up: takes fixed, grow, shrink"),
    (["prune.importance=l2"], r"prune\.importance=l2: takes l1, taylor, bn"),
    (["prune.stages=0"], r"prune\.stages=0: takes 1 or more"),
    (["prune.rounds=0"], r"prune\.rounds=0: takes 1 to rounds=20, a share of them in \(0, 1\], or"),
    (["prune.rounds=30"], r"prune\.rounds=30: takes 1 to rounds=20, a share"),
    (["prune.rounds=1.5"], r"prune\.rounds=1\.5: takes 1 to rounds=20, a share"),
    (["prune.rounds=true"], r"prune\.rounds=True: takes 1 to rounds=20, a share"),
    (["prune.rounds=soon"], r"prune\.rounds=soon: takes 1 to rounds=20, a share"),
    (["strategy.base=fedavg"], r"strategy\.base=fedavg: takes split, splitfed_v1, splitfed_v2"),
    (["split.cut={default:stage1}"], r"split\.cut: takes one cut for all clients"),
    (["split.cut=stage3.conv", "prune.importance=bn"], r"prune\.importance=bn: no normalisation"),
    ([ODD, "split.cut=stage1"], r"split\.cut=stage1: an activation of \(2, 2, 2, 2\) per sample"),
    ([ODD, "split.cut=stage2"], r"split\.cut=stage2: an activation of \(\) per sample has no"),
    (["strategy=prune", "prune.pretrain_rounds=20"], r"prune\.pretrain_rounds=20: takes fewer"),
    (["strategy=prune", "prune.pretrain_rounds=-1"], r"prune\.pretrain_rounds=-1: takes 0 or"),
    (
        ["strategy=prune", "prune.pretrain_rounds=0", "prune.importance=taylor"],
        r"prune\.importance=taylor: needs prune\.pretrain_rounds of 1 or more",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), ERRORS)
def test_what_cannot_be(overrides, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Jobs().check(["strategy=deprune", "clients.total=3", *overrides], is_sweep=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("total", "last"), [(1, 1), (3, 2), (20, 10)])
def test_the_preset_grows_in_the_first_half_of_any_number_of_rounds(total, last) -> None:
    config = compose(["experiment=deprune", f"rounds={total}"])
    assert config.prune.resolved(total).rounds == last
    assert experiment.resolve(config).prune.stages == 2


def test_flat_activations(tmp_path: Path) -> None:
    simulate(tmp_path, "strategy=deprune", ODD, "split.cut=stage3", "prune.ratio=0.5", "rounds=1")
    arrays = load_file(tmp_path / "model.safetensors")
    assert arrays[ENCODER_WEIGHT].shape == (4, 8)
    assert rounds(tmp_path)[0]["active_channels"] == 4


def test_keys_that_a_method_does_not_read() -> None:
    def keys(*overrides):
        return {
            key
            for key in experiment.resolve(compose(list(overrides))).identity
            if key.startswith("prune.")
        }

    assert not keys("strategy=splitfed_v1")
    common = {"prune.ratio", "prune.importance", "prune.rounds", "prune.stages", "prune.frozen"}
    assert keys("strategy=deprune") == {*common, "prune.schedule"}
    assert keys("strategy=prune") == {*common, "prune.source", "prune.pretrain_rounds"}


def test_the_width_is_in_the_settings_that_clients_get() -> None:
    """So that a worker's model of another width is another one."""
    strategy, _ = prepared("strategy=deprune", "prune.ratio=0", "quant.bits=4", "quant.side=client")
    config = small("strategy=deprune")
    for server_round, active in ((1, 4), (2, 16)):
        settings = settings_of(strategy, server_round)
        parts = deprune.Deprune.client.prepare(experiment.network(config), settings)
        assert parts.device[0].state_dict()[ENCODER_WEIGHT].shape == (active, 16, 1, 1)
        assert parts.device_names() == cut_network(strategy, server_round).on_device(0)


# The fleet ----------------------------------------------------------------------------------------


def test_a_round_lasts_as_long_as_its_width_takes(tmp_path: Path) -> None:
    """Simulated seconds follow the width, there and back; the same width takes the same."""
    chosen = ("rounds=6", "clients.total=2", "data.max_train=64", "prune.ratio=0")
    simulate(tmp_path, "strategy=deprune", *chosen, "prune.stages=3", "fleet=iot")
    records = rounds(tmp_path)
    seconds = [record["sim_s"] for record in records]
    assert [record["active_channels"] for record in records] == [3, 3, 6, 6, 16, 16]
    assert seconds[0] == seconds[1] < seconds[2] == seconds[3] < seconds[4] == seconds[5]


def test_a_server_optimizer_is_refused() -> None:
    averaging = AveragingSettings(server_optimizer="fedadam")
    with pytest.raises(ValueError, match=r"strategy\.server_optimizer, .* take neither"):
        deprune.Deprune(averaging=averaging)
