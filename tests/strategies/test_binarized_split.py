"""Binarized split learning: one bit a value, ±1 weights, leakage measured and held down."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_run, cut_network, rounds, simulate, small
from safetensors.numpy import load_file

from app import experiment
from app.jobs import Jobs
from fleet.seeds import derive_seed
from privacy.attacks import reconstruct
from privacy.leakage import channel_leakage
from privacy.settings import PrivacySettings
from quant.binary import binary_layers
from strategies import binarized_split
from strategies.contract import Streams

ARM = ("strategy=binarized_split", "split.cut=stage2")


def prepared(*overrides):
    config = small(*overrides)
    strategy = experiment.strategy(config)
    experiment.prepare(config, strategy)
    return strategy


def test_one_bit_a_value_crosses(tmp_path: Path) -> None:
    for arm in ("client", "none"):
        simulate(tmp_path / arm, *ARM, f"strategy.binarize={arm}", "rounds=1", "model.norm=batch")
    sent = {}
    for arm in ("client", "none"):
        strategy = prepared(*ARM, f"strategy.binarize={arm}", "model.norm=batch")
        model, _ = strategy.method.wire.num_bytes(cut_network(strategy), 0)
        row = json.loads((tmp_path / arm / "clients.jsonl").read_text().splitlines()[0])
        sent[arm] = row["bytes_up"] - model - row["num_examples"]  # a byte a label
        assert cut_network(strategy).describe(strategy.rounds.train)["weight_bits"] == (
            1 if arm == "client" else 32
        )
    shape = cut_network(prepared(*ARM)).device_costs()[0].output_shape
    assert sent["none"] == 40 * int(np.prod(shape)) * 4
    assert sent["client"] * 32 == sent["none"]


def test_weights_are_clipped_and_layers_binary(tmp_path: Path) -> None:
    simulate(tmp_path, *ARM, "train.lr=50")
    strategy = prepared(*ARM)
    parts = cut_network(strategy).only().parts
    names = [name for name, _ in binary_layers(parts.device[0])]
    assert names == ["stage1.conv", "stage2.conv"]
    assert not list(binary_layers(parts.server))
    arrays = load_file(tmp_path / "model.safetensors")
    for name in names:
        weight = arrays[f"{name}.weight"]
        assert 0.99 < np.abs(weight).max() <= 1  # of 50 times the gradient
    both = prepared(*ARM, "strategy.binarize=both")
    parts = cut_network(both).only().parts
    assert list(binary_layers(parts.server))


def observed(*overrides):
    """The network of an evaluation of the first weights, the device's part, and what was found."""
    strategy = prepared(*ARM, *overrides)
    parts = cut_network(strategy).only().parts
    seen = []

    def test(network):
        data = experiment.dataset(small(*ARM))
        with torch.no_grad():
            for x in data.test_x.split(100):
                network.eval()(x)
        seen.append(network)
        return 0.0, 0.0

    network = cut_network(strategy)
    found = network.evaluate(network.model.state_dict(), test)
    return seen[0], parts.device[0].eval(), found


def test_what_is_recorded_is_the_leakage(tmp_path: Path) -> None:
    simulate(tmp_path, *ARM)
    record = rounds(tmp_path)[-1]
    assert 0 < record["dcor_mean"] <= record["dcor_max"] <= 1
    assert (
        0 < record["attack_mse"] < record["attack_mean_mse"]
    )  # bits of digits give something away
    assert 0 < record["attack_ssim"] < 1
    network, first, found = observed()
    with torch.no_grad():
        assert torch.equal(first(network.x), network.z)
    assert set(network.z.unique().tolist()) == {-1.0, 1.0}
    half = len(network.x) // 2
    leaks = channel_leakage(network.x[:half], network.z[:half])
    assert found["dcor_max"] == float(leaks.max())
    assert found["dcor_mean"] == float(leaks.mean())
    drawn = reconstruct(
        (network.z[half:], network.x[half:]),
        (network.z[:half], network.x[:half]),
        binarized_split.ATTACK_EPOCHS,
        derive_seed(0, "privacy attack"),
    )
    assert found["attack_mse"] == drawn.mse


def test_leakage_is_measured_on_a_random_draw_of_the_test_set(monkeypatch) -> None:
    monkeypatch.setattr(binarized_split, "PROBES", 20)
    monkeypatch.setattr(binarized_split, "PAIRS", 30)
    network, _, _ = observed()
    test_x = experiment.dataset(small(*ARM)).test_x
    rows = [int((test_x == x).flatten(1).all(1).nonzero()[0]) for x in network.x]
    assert len(set(rows)) == 50 and rows != sorted(rows)
    assert min(rows) < len(test_x) / 4 and max(rows) > 3 * len(test_x) / 4


@pytest.mark.parametrize("count", [1, 3, 4])
def test_leakage_of_few_samples(count) -> None:
    x, z = torch.randn(count, 1, 8), torch.randn(count, 2, 4).sign()
    assert bool(binarized_split.leakage(x, z, 0)) == (count == 4)


def test_the_leak_loss_lowers_the_leakage(tmp_path: Path) -> None:
    """The device's own loss, on real activations, where gradients are exact."""
    chosen = (*ARM, "strategy.binarize=none", "rounds=6", "clients.total=1", "model.norm=batch")
    lowest = []
    for weight in (0, 20):
        simulate(tmp_path / str(weight), *chosen, f"privacy.dcor_weight={weight}")
        lowest.append(rounds(tmp_path / str(weight))[-1]["dcor_mean"])
    assert lowest[1] < 0.9 * lowest[0]


def test_noise_flips_bits_in_training_and_at_test(tmp_path: Path) -> None:
    simulate(tmp_path / "none", *ARM, "rounds=1")
    simulate(tmp_path / "noise", *ARM, "rounds=1", "privacy.epsilon=1")
    simulate(tmp_path / "again", *ARM, "rounds=1", "privacy.epsilon=1")
    assert_same_run(tmp_path / "noise", tmp_path / "again")
    losses = [rounds(tmp_path / run)[0]["train_loss"] for run in ("none", "noise")]
    assert losses[0] != losses[1]
    network, first, _ = observed("privacy.epsilon=1")
    with torch.no_grad():
        bits = first(network.x)
    varies = bits.mean(0).abs() < 0.5  # and so in each batch; a bit that does not has no noise
    assert varies.sum() > 20
    flipped = (bits != network.z)[:, varies].float().mean()
    assert flipped == pytest.approx(math.exp(-0.5) / 2, rel=0.1)
    again, _, _ = observed("privacy.epsilon=1")
    assert torch.equal(network.z, again.z)


def test_noise_at_test_has_the_range_of_a_batch_of_training() -> None:
    z = torch.cat([torch.zeros(4, 3), torch.rand(4, 3)])

    def draw(batch):
        generator = torch.Generator().manual_seed(0)
        return binarized_split.noisy(z, 1.0, batch, generator)

    assert torch.equal(draw(4)[:4], z[:4])  # a batch that does not vary has none
    assert not torch.equal(draw(8)[:4], z[:4])


def test_real_valued_without_measures_is_the_base(tmp_path: Path) -> None:
    for base in ("split", "splitfed_v1", "splitfed_v2"):
        chosen = ("split.cut=stage2", "rounds=1")
        simulate(tmp_path / base, f"strategy={base}", *chosen)
        own = ("strategy=binarized_split", "strategy.binarize=none", f"strategy.base={base}")
        simulate(tmp_path / f"{base} here", *own, *chosen)
        one, other = (load_file(tmp_path / n / "model.safetensors") for n in (base, f"{base} here"))
        assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy.binarize=half"], r"strategy\.binarize=half: takes client, both, none"),
        (["split.cut=head.pool"], r"split\.cut=head\.pool strategy\.binarize=client: .* is not ±1"),
        (["strategy.base=fedavg"], r"strategy\.base=fedavg: takes split, splitfed_v1, splitfed_v2"),
        (["privacy.epsilon=0"], r"privacy\.epsilon=0\.0: takes a positive number"),
        (["privacy.dcor_weight=-1"], r"privacy\.dcor_weight=-1\.0: takes 0 or more"),
        (["split.cut={default:stage1}"], r"split\.cut: a mapping"),
    ],
)
def test_what_cannot_be(overrides, message) -> None:
    with pytest.raises(ValueError, match=message):
        Jobs().check(["strategy=binarized_split", *overrides], is_sweep=False)


def test_streams_of_noise_differ_by_client_and_round() -> None:
    draws = [
        torch.rand(3, generator=Streams(0, r, p).generator("privacy")).tolist()
        for r in (1, 2)
        for p in (0, 1)
    ]
    assert len({tuple(draw) for draw in draws}) == 4


def test_the_leak_loss_is_of_the_mean_and_of_the_worst_channel() -> None:
    x = torch.randn(9, 1, 8)
    z = torch.cat([x, torch.randn(9, 2, 8)], 1)
    shield = binarized_split.Shield(PrivacySettings(dcor_weight=3.0), torch.Generator())
    channels = channel_leakage(x, z)
    assert channels.argmax() == 0 and channels[0] == pytest.approx(1.0, rel=1e-5)
    expected = 3 * (channels.sum() / 3 + channels[0]) / 2
    assert float(shield.extra_loss(x, z)) == pytest.approx(float(expected), rel=1e-6)
    assert shield.extra_loss(x[:1], z[:1]) is None
    no_weight = binarized_split.Shield(PrivacySettings(), torch.Generator())
    assert no_weight.extra_loss(x, z) is None


def test_a_rest_of_one_joins_the_batch_before_it_and_has_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(9, 3)
    moved = (binarized_split.noisy(z, 1.0, 4, generator) != z).any(1)
    assert moved.all()
    assert torch.equal(binarized_split.noisy(z[:1], 1.0, 4, generator), z[:1])  # none to compare


def test_measures_that_would_do_nothing_are_refused() -> None:
    for key in ("privacy.epsilon=2", "privacy.dcor_weight=1"):
        with pytest.raises(ValueError, match=r"train\.batch_size=1: privacy\.dcor_weight and"):
            prepared(*ARM, "train.batch_size=1", key)
    with pytest.raises(ValueError, match=r"privacy\.epsilon=1e-300: takes a number from 1e-06"):
        prepared(*ARM, "privacy.epsilon=1e-300")


def test_of_a_wide_cut_fewer_samples_are_kept(monkeypatch) -> None:
    monkeypatch.setattr(binarized_split, "KEPT_VALUES", 100)
    monkeypatch.setattr(binarized_split, "FEWEST", 60)
    network, first, found = observed()
    assert len(network.x) == 60
    with torch.no_grad():
        assert torch.equal(first(network.x), network.z)
    assert 0 < found["dcor_mean"] < 1
