"""OQFL: codes on the wire, bytes by hand, and FedAvg at 32 bits."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from app import client, experiment
from app.config.composition import compose
from app.engine import SerialGrid
from models.cnn import CNN
from quant.layers import QuantSpec, quantize, weight_quantizers
from quant.packing import packed_bytes, unpack
from quant.quantizer import is_step
from quant.settings import WIRES, QuantSettings
from strategies import messages
from strategies.client.training import LocalTraining
from strategies.codes import WireSettings, decode_weights, encode_weights, wire_of
from strategies.oqfl import OQFL
from tests.plain_clients import Memory

ROUNDS, CLIENTS = 2, 5


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def network(bits=4, seed=0, **spec):
    torch.manual_seed(seed)
    return quantize(
        CNN(input_shape=(1, 8, 8), width=4),
        QuantSpec(weight_bits=bits, act_bits=bits, edge_bits=8, **spec),
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def put_on_grid(model):
    with torch.no_grad():
        for name, quantizer in weight_quantizers(model).items():
            weight = model.get_parameter(name)
            weight.copy_(quantizer.fake_quantize(weight))


# Codes --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    bits=st.sampled_from([2, 3, 4, 5, 6, 7, 8]),
    seed=st.integers(0, 100),
    per_channel=st.booleans(),
    learn_step=st.booleans(),
    noise=st.integers(0, 5),
)
def test_round_trip_of_weights_on_the_grid_is_exact(bits, seed, per_channel, learn_step, noise):
    model = network(bits, seed, per_channel=per_channel, learn_step=learn_step)
    put_on_grid(model)
    encoded = encode_weights(model, generator(noise))
    decoded = decode_weights(encoded, model)
    state = model.state_dict()
    assert list(decoded) == list(state)
    for name, tensor in state.items():
        if name in weight_quantizers(model):
            # x/s may miss an integer by an ulp, and the noise then rounds it away once in millions.
            torch.testing.assert_close(decoded[name], tensor, rtol=1e-6, atol=0)
        else:
            assert torch.equal(decoded[name], tensor), name
        assert decoded[name].shape == tensor.shape
        assert decoded[name].dtype == tensor.dtype


@settings(deadline=None, max_examples=30)
@given(bits=st.sampled_from([2, 3, 4, 8]), seed=st.integers(0, 100), per_channel=st.booleans())
def test_codes_are_packed_bytes_within_bits_and_a_step_away_at_most(bits, seed, per_channel):
    model = network(bits, seed, per_channel=per_channel)
    encoded = encode_weights(model, generator(seed))
    decoded = decode_weights(encoded, model)
    state = model.state_dict()
    edges = {"stage1.conv.weight", "head.linear.weight"}
    quantizers = weight_quantizers(model)
    assert set(quantizers) == {*edges, "stage2.conv.weight", "stage3.conv.weight"}
    for name, quantizer in quantizers.items():
        width = 8 if name in edges else bits
        weight, packed, step = state[name], encoded[name], quantizer.step.detach()
        assert packed.dtype == torch.uint8
        assert packed.shape == (packed_bytes(weight.numel(), width),)
        codes = unpack(packed, width, weight.numel())
        assert 0 <= int(codes.min()) <= int(codes.max()) < 2**width
        low, high = -(2 ** (width - 1)) * step, (2 ** (width - 1) - 1) * step
        clipped = weight.clamp(low.expand_as(weight), high.expand_as(weight))
        assert bool(((decoded[name] - clipped).abs() <= step * (1 + 1e-5)).all())
    for name in state.keys() - quantizers.keys():
        assert torch.equal(encoded[name], state[name])


def test_stochastic_rounding_is_unbiased_and_follows_its_generator():
    model = network(4)
    name = "stage2.conv.weight"
    quantizer = weight_quantizers(model)[name]

    def draw(seed):
        encoded = encode_weights(model, generator(seed))
        return decode_weights(encoded, model)[name]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    count = 400
    mean = sum(draw(seed).double() for seed in range(count)) / count
    step = float(quantizer.step.detach())
    weight = model.get_parameter(name).detach()
    inside = (weight / step > -8) & (weight / step < 7)
    assert inside.float().mean() > 0.8
    # Standard deviation of one draw is at most s/2; six of the mean's own.
    error = (mean - weight)[inside].abs().max()
    assert float(error) < 6 * step / 2 / count**0.5


def test_encoding_leaves_the_model_alone():
    model = network(3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    encode_weights(model, generator())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_each_client_is_decoded_with_its_own_step():
    strategy = OQFL(quant=QuantSettings(wire="codes"))
    model = strategy.prepare(CNN(input_shape=(1, 8, 8), width=4), (1, 8, 8))
    name = "stage2.conv.weight"
    step_name = "stage2.conv.weight_quantizer.step"
    encoded = encode_weights(model, generator())
    codes = unpack(encoded[name], 4, model.get_parameter(name).numel()) - 8
    for step in (0.5, 0.0625):
        network = strategy.prepared().in_round(1)
        arrays = {**encoded, step_name: torch.tensor(step)}
        decoded, _ = strategy.method.wire.decode(network, arrays, 0, {})
        np.testing.assert_array_equal(decoded[name].reshape(-1), codes.numpy() * np.float32(step))


def test_an_unknown_wire_names_the_key():
    with pytest.raises(ValueError, match=r"quant\.wire=fax: takes latent, codes, codes_both"):
        wire_of("fax")


class ZeroHead(nn.Module):
    """A last layer that starts at zero, as many residual networks have it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        nn.init.zeros_(self.last.weight)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


def test_codes_of_a_weight_whose_step_is_not_set_yet_keep_it():
    """As that of a weight that is computed, until the first batch."""
    model = quantize(ZeroHead(), QuantSpec())
    model.last.weight_quantizer.initialised.fill_(False)
    with torch.no_grad():
        model.last.weight.fill_(0.01)
    encoded = encode_weights(model, generator())
    decoded = decode_weights(encoded, model)
    torch.testing.assert_close(
        decoded["last.weight"], model.last.weight.detach(), atol=5e-3, rtol=0
    )


# Whole runs ---------------------------------------------------------------------------------------


def each(sink):
    """Every client of every round."""
    return [client for clients in sink.clients for client in clients]


def run(*overrides, prepare=True):
    config = compose(
        [
            "engine=serial", "data=digits", f"clients.total={CLIENTS}", "train.epochs=1",
            "train.max_batches=3", "train.lr=0.05", f"rounds={ROUNDS}", *overrides,
        ]
    )  # fmt: skip
    config = experiment.resolve(config)
    strategy, sink = experiment.strategy(config), Memory()
    if not prepare:  # which a fleet needs
        strategy.rounds = replace(strategy.rounds, fleet=None)
    network = experiment.network(config)
    shape = (1, 8, 8)
    model = strategy.prepare(network, shape) if prepare else quantize(network, config.quant.spec(4))
    nodes = SerialGrid(CLIENTS, experiment.run_config(config), client.app)
    result = strategy.start(nodes, messages.to_record(model.state_dict()), ROUNDS, sinks=[sink])
    return messages.to_arrays(result.arrays), sink, model


def bytes_by_hand(bits, coded):
    """Bytes of the digits CNN's quantized state, from its shapes."""
    norms = 2 * (16 + 32 + 64) * 4
    head_bias = 10 * 4
    steps = 8 * 4 + 8 * 1  # of 4 weights and 4 inputs; flags are a byte each
    sizes = {"stage1": 16 * 1 * 9, "stage2": 32 * 16 * 9, "stage3": 64 * 32 * 9, "head": 64 * 10}
    if not coded:
        return norms + head_bias + steps + 4 * sum(sizes.values())
    inner = sum(-(-sizes[name] * bits // 8) for name in ("stage2", "stage3"))
    return norms + head_bias + steps + inner + sizes["stage1"] + sizes["head"]  # 8-bit edges


@pytest.mark.parametrize(
    ("wire", "bits", "up_coded", "down_coded"),
    [
        ("latent", 4, False, False), ("codes", 4, True, False), ("codes", 3, True, False),
        ("codes_both", 4, True, True), ("codes_both", 2, True, True),
        ("updates", 4, True, False),
    ],
)  # fmt: skip
def test_bytes_on_the_wire(wire, bits, up_coded, down_coded):
    arrays, sink, model = run("strategy=oqfl", f"quant.bits={bits}", f"quant.wire={wire}")
    up, down = bytes_by_hand(bits, up_coded), bytes_by_hand(bits, down_coded)
    up += 4 * 4 * wire.startswith("updates")  # a step for the update of each weight
    clients = each(sink)
    assert [c.status for c in clients] == ["ok"] * (ROUNDS * CLIENTS)
    assert {(c.bytes_up, c.bytes_down) for c in clients} == {(up, down)}
    assert [(r.bytes_up, r.bytes_down) for r in sink.rounds] == [(5 * up, 5 * down)] * ROUNDS
    whole = bytes_by_hand(bits, False)
    assert (up < 0.2 * whole) == up_coded
    assert (down < 0.2 * whole) == down_coded
    # The server keeps the average in fp32, under the model's names.
    state = model.state_dict()
    assert list(arrays) == list(state)
    for name, tensor in state.items():
        assert arrays[name].shape == tuple(tensor.shape), name
        assert arrays[name].dtype == tensor.numpy().dtype
        assert np.isfinite(arrays[name].astype(np.float64)).all()
        if is_step(name):
            assert arrays[name] >= np.float32(1e-8)
        if name.endswith("initialised"):
            assert bool(arrays[name])
    name = "stage3.conv.weight"
    step = arrays["stage3.conv.weight_quantizer.step"]
    off_grid = np.abs(arrays[name] / step - np.round(arrays[name] / step))
    assert off_grid.max() > 0.05


@pytest.mark.parametrize("wire", ["latent", "codes", "codes_both", "updates"])
def test_a_run_repeats_bit_for_bit(wire):
    first, one, _ = run("strategy=oqfl", "quant.bits=3", f"quant.wire={wire}")
    second, two, _ = run("strategy=oqfl", "quant.bits=3", f"quant.wire={wire}")
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    assert [c.loss for c in each(one)] == [c.loss for c in each(two)]


def test_codes_cost_little():
    """Rounding up to one step per weight must not change where training goes."""
    latent = run("strategy=oqfl", "quant.bits=8")[1].rounds[-1].train_loss
    coded = run("strategy=oqfl", "quant.bits=8", "quant.wire=codes_both")[1].rounds[-1].train_loss
    assert coded == pytest.approx(latent, rel=0.05)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_32_bits_are_fedavg_bit_for_bit(wire, optimizer):
    common = (f"train.optimizer={optimizer}", "train.weight_decay=0.01", "train.lr=0.005")
    plain, one, _ = run("strategy=fedavg", *common)
    quantized, two, _ = run("strategy=oqfl", "quant.bits=32", f"quant.wire={wire}", *common)
    assert list(plain) == list(quantized)
    for name in plain:
        assert plain[name].tobytes() == quantized[name].tobytes(), name
    assert [asdict(c) for c in each(one)] == [asdict(c) for c in each(two)]


def test_four_bits_are_not_fedavg():
    plain, _, _ = run("strategy=fedavg")
    quantized, _, _ = run("strategy=oqfl", "quant.bits=4")
    assert any(not np.array_equal(plain[name], quantized[name]) for name in plain)


@pytest.mark.parametrize("wire", ["codes", "updates"])
def test_a_wire_of_codes_needs_prepare(wire):
    with pytest.raises(RuntimeError, match=r"OQFL needs prepare\(\) before start"):
        run("strategy=oqfl", f"quant.wire={wire}", prepare=False)


def test_latent_needs_no_prepare():
    with_it, _, _ = run("strategy=oqfl")
    without, _, _ = run("strategy=oqfl", prepare=False)
    assert all(with_it[name].tobytes() == without[name].tobytes() for name in with_it)


def test_settings_travel_to_the_client():
    spec = QuantSpec(weight_bits=3, act_bits=5, edge_bits=6, learn_step=False, per_channel=True)
    quant = QuantSettings(
        weight_bits=3, act_bits=5, edge_bits=6, learn_step=False, per_channel=True, wire="codes"
    )
    strategy = OQFL(quant=quant, train=LocalTraining(lr=0.5))
    strategy.prepare(CNN(input_shape=(1, 8, 8)), (1, 8, 8))
    config = strategy.client_settings()
    assert messages.unpack_settings(config, "quant", QuantSpec) == spec
    assert messages.unpack_settings(config, "wire", WireSettings) == WireSettings("codes")
    assert messages.unpack_settings(config, "train", LocalTraining).lr == 0.5
    described = strategy.prepared().in_round(1).describe(strategy.rounds.train)
    assert described == {"weight_bits": 3, "act_bits": 5}
    made = OQFL.client.prepare(CNN(input_shape=(1, 8, 8)), config)
    assert {q.bits for q in weight_quantizers(made).values()} == {3, 6}
    assert not any(is_step(name) for name, _ in made.named_parameters())
