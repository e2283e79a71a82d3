"""Codes of what training changed: quant.wire=updates."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import simulate, small
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from app import experiment
from models.cnn import CNN
from quant.layers import QuantSpec, quantize, weight_quantizers
from quant.packing import packed_bytes
from quant.quantizer import Quantizer
from strategies.codes import (
    STEP,
    coded_bytes,
    decode_updates,
    decode_weights,
    encode_updates,
    encode_weights,
    update_step_bytes,
)

WEIGHT = "stage2.conv.weight"


def network(bits: int = 4, seed: int = 0, **spec: bool) -> torch.nn.Module:
    torch.manual_seed(seed)
    quantized = QuantSpec(weight_bits=bits, act_bits=bits, **spec)
    return quantize(CNN(input_shape=(1, 8, 8), width=4), quantized)


def trained(model: torch.nn.Module, by: float) -> dict[str, torch.Tensor]:
    """Change the model's parameters, and return its state from before."""
    began = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn_like(parameter).abs()
    return began


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=30)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    seed=st.integers(0, 100),
    by=st.sampled_from([1e-6, 0.01, 10.0]),
    per_channel=st.booleans(),
)
def test_a_step_away_at_most_in_as_many_bytes(
    bits: int, seed: int, by: float, per_channel: bool
) -> None:
    model = network(bits, seed, per_channel=per_channel)
    began = trained(model, by)
    encoded = encode_updates(model, began, generator(seed))
    decoded = decode_updates(encoded, began, model)
    state = model.state_dict()
    assert list(decoded) == list(state)
    for name, quantizer in weight_quantizers(model).items():
        assert isinstance(quantizer, Quantizer)
        assert encoded[name].shape == (packed_bytes(state[name].numel(), quantizer.bits),)
        step = encoded[f"{name}{STEP}"]
        largest = (state[name] - began[name]).abs()
        largest = (
            largest.amax((1, 2, 3) if largest.ndim == 4 else 1) if per_channel else largest.max()
        )
        torch.testing.assert_close(step.reshape(-1), largest.reshape(-1) / quantizer.qp)
        ulp = state[name].abs() * 2e-7
        assert bool(((decoded[name] - state[name]).abs() <= step * (1 + 1e-5) + ulp).all())
    for name in state.keys() - weight_quantizers(model).keys():
        assert torch.equal(decoded[name], state[name])
    sent = sum(tensor.numel() * tensor.element_size() for tensor in encoded.values())
    assert sent == coded_bytes(model) + update_step_bytes(model)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_step_of_another_shape_is_refused(per_channel: bool) -> None:
    """A stranger's could make millions of values of a few codes."""
    model = network(4, per_channel=per_channel)
    began = trained(model, 0.01)
    large = torch.ones(10**6, 1, 1, 1, 1)
    encoded = encode_updates(model, began, generator())
    with pytest.raises(ValueError, match=f"the step of {WEIGHT} has shape"):
        decode_updates({**encoded, f"{WEIGHT}{STEP}": large}, began, model)
    encoded = encode_weights(model, generator())
    with pytest.raises(ValueError, match=f"the step of {WEIGHT} has shape"):
        decode_weights({**encoded, "stage2.conv.weight_quantizer.step": large}, model)


@pytest.mark.parametrize("bits", [2, 4])
def test_rounding_is_without_bias(bits: int) -> None:
    model = network(bits)
    began = trained(model, 0.01)
    count = 400
    total = torch.zeros_like(began[WEIGHT], dtype=torch.float64)
    for seed in range(count):
        encoded = encode_updates(model, began, generator(seed))
        total += decode_updates(encoded, began, model)[WEIGHT].double()
    step = float(encode_updates(model, began, generator())[f"{WEIGHT}{STEP}"])
    error = (total / count - model.get_parameter(WEIGHT).detach()).abs().max()
    assert float(error) < 6 * step / 2 / count**0.5


def test_what_did_not_change_is_what_it_was() -> None:
    model = network()
    began = trained(model, 0.0)
    decoded = decode_updates(encode_updates(model, began, generator()), began, model)
    assert all(torch.equal(decoded[name], tensor) for name, tensor in began.items())


def test_nearer_to_the_clients_than_codes_of_weights() -> None:
    """After a change of a hundredth of the weights, by the mean square."""
    model = network()
    began = trained(model, 0.002)
    weight = model.get_parameter(WEIGHT).detach()
    of_updates = decode_updates(encode_updates(model, began, generator()), began, model)[WEIGHT]
    of_weights = decode_weights(encode_weights(model, generator()), model)[WEIGHT]
    assert ((of_updates - weight) ** 2).mean() < ((of_weights - weight) ** 2).mean() / 100


@pytest.mark.parametrize("strategy", ["oqfl", "heterofl"])
def test_where_nothing_is_trained_nothing_moves(strategy: str, tmp_path: Path) -> None:
    """With codes of weights the global model moves all the same."""
    moved = {}
    for wire in ("codes", "updates"):
        overrides = (f"strategy={strategy}", "quant.bits=3", f"quant.wire={wire}", "train.lr=0")
        config = small(*overrides)
        began = experiment.prepare(config, experiment.strategy(config)).state_dict()[WEIGHT]
        simulate(tmp_path / wire, *overrides, "rounds=2")
        ended = load_file(tmp_path / wire / "model.safetensors")[WEIGHT]
        moved[wire] = not np.allclose(ended, began.numpy(), 1e-5, 1e-7)
    assert moved == {"codes": True, "updates": False}
