"""Binarized split learning: one bit a value, ±1 weights, leakage measured and held down."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_run, rounds, simulate, small
from safetensors.numpy import load_file

from app import experiment
from app.session import Session
from models.privacy import channel_leakage
from quant.binary import binary_layers
from strategies.local import Streams

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
        model, _ = strategy.model_bytes(0)
        row = json.loads((tmp_path / arm / "clients.jsonl").read_text().splitlines()[0])
        sent[arm] = row["bytes_up"] - model - row["num_examples"]  # a byte a label
    shape = prepared(*ARM).device_costs()[0].output_shape
    assert sent["none"] == 40 * int(np.prod(shape)) * 4
    assert sent["client"] * 32 == sent["none"]


def test_weights_are_clipped_and_layers_binary(tmp_path: Path) -> None:
    simulate(tmp_path, *ARM, "train.lr=50")
    strategy = prepared(*ARM)
    (parts,) = strategy._halves.values()
    names = [name for name, _ in binary_layers(parts.device[0])]
    assert names == ["stage1.conv", "stage2.conv"]
    assert not list(binary_layers(parts.server))
    arrays = load_file(tmp_path / "model.safetensors")
    for name in names:
        weight = arrays[f"{name}.weight"]
        assert 0.99 < np.abs(weight).max() <= 1  # of 50 times the gradient
    both = prepared(*ARM, "strategy.binarize=both")
    (parts,) = both._halves.values()
    assert list(binary_layers(parts.server))


def test_what_is_recorded_is_the_leakage(tmp_path: Path) -> None:
    simulate(tmp_path, *ARM)
    record = rounds(tmp_path)[-1]
    assert 0 < record["dcor_mean"] <= record["dcor_max"] <= 1
    config = small(*ARM)
    strategy = prepared(*ARM)
    (parts,) = strategy._halves.values()
    arrays = {k: torch.from_numpy(v) for k, v in load_file(tmp_path / "model.safetensors").items()}
    first = parts.device[0]
    first.load_state_dict({name: arrays[name] for name in first.state_dict()})
    x = experiment.dataset(config).test_x[:500]
    with torch.no_grad():
        z = first.eval()(x)
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    assert record["dcor_max"] == pytest.approx(float(channel_leakage(x, z).max()), rel=1e-5)


def test_the_leak_loss_lowers_the_leakage(tmp_path: Path) -> None:
    """The device's own loss, on real activations, where gradients are exact."""
    chosen = (*ARM, "strategy.binarize=none", "rounds=6", "clients.total=1", "model.norm=batch")
    lowest = []
    for weight in (0, 20):
        simulate(tmp_path / str(weight), *chosen, f"privacy.dcor_weight={weight}")
        lowest.append(rounds(tmp_path / str(weight))[-1]["dcor_mean"])
    assert lowest[1] < 0.9 * lowest[0]


def test_noise_flips_bits_in_training_and_not_at_test(tmp_path: Path) -> None:
    simulate(tmp_path / "none", *ARM, "rounds=1")
    simulate(tmp_path / "noise", *ARM, "rounds=1", "privacy.epsilon=1")
    simulate(tmp_path / "again", *ARM, "rounds=1", "privacy.epsilon=1")
    assert_same_run(tmp_path / "noise", tmp_path / "again")
    losses = [rounds(tmp_path / run)[0]["train_loss"] for run in ("none", "noise")]
    assert losses[0] != losses[1]
    strategy = prepared(*ARM, "privacy.epsilon=1")
    arrays = {name: tensor.clone() for name, tensor in strategy.whole_model().state_dict().items()}
    x = experiment.dataset(small(*ARM)).test_x[:50]
    seen = []
    for _ in range(2):

        def test(network):
            seen.append(network.eval()(x))
            return 0.0, 0.0

        strategy.evaluate(arrays, test)
    assert torch.equal(*seen)


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
        (["strategy.estimator=x"], r"estimator=x: takes clip, approx, tanh"),
        (["strategy.base=fedavg"], r"strategy\.base=fedavg: takes split, splitfed_v1, splitfed_v2"),
        (["privacy.epsilon=0"], r"privacy\.epsilon=0\.0: takes a positive number"),
        (["privacy.dcor_weight=-1"], r"privacy\.dcor_weight=-1\.0: takes 0 or more"),
        (["split.cut={default:stage1}"], r"split\.cut: a mapping"),
    ],
)
def test_what_cannot_be(overrides, message) -> None:
    with pytest.raises(ValueError, match=message):
        Session().prepare(["strategy=binarized_split", *overrides], is_sweep=False)


def test_streams_of_noise_differ_by_client_and_round() -> None:
    draws = [
        torch.rand(3, generator=Streams(0, r, p).generator("privacy")).tolist()
        for r in (1, 2)
        for p in (0, 1)
    ]
    assert len({tuple(draw) for draw in draws}) == 4
