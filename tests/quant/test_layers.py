"""The rewrite of a model: which layers, which signs, which bits, and what stays as it was."""

import copy
import logging
import math
import pickle
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.cnn import CNN
from models.lenet5 import LeNet5
from quant.attention import QuantMultiheadAttention
from quant.functional import MIN_STEP, fake_quantize, lsq
from quant.layers import (
    BIT_WIDTHS,
    QuantSpec,
    calibrate_minmax,
    quantize,
    quantized_layers,
    weight_quantizers,
)
from quant.quantizer import Quantizer, initialised_flag, is_step

# Networks; at module level, so that they pickle ---------------------------------------------------


class FunctionalNet(nn.Module):
    """Functional ReLU, pooling and flattening; a layer after no ReLU; one ReLU6."""

    shape = (1, 8, 8)
    unsigned: ClassVar = {"conv1": False, "conv2": True, "fc1": False, "fc2": True}

    def __init__(self):
        super().__init__()
        self.fc2 = nn.Linear(12, 5)  # registered first, runs last
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.fc1 = nn.Linear(6, 12)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.adaptive_avg_pool2d(self.conv2(x), 1)
        return self.fc2(F.relu6(self.fc1(torch.flatten(x, 1))))


class CatNet(nn.Module):
    """Dropout, flattening and concatenation pass the sign on; one signed part spoils a cat."""

    shape = (2, 6, 6)
    unsigned: ClassVar = {"left": False, "right": False, "both": True, "mixed": False, "head": True}

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(2, 4, 3, padding=1)
        self.right = nn.Conv2d(2, 4, 3, padding=1)
        self.both = nn.Conv2d(8, 4, 3, padding=1)
        self.mixed = nn.Conv2d(8, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.3)
        self.flat = nn.Flatten()
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(36, 3)

    def forward(self, x):
        left, right = self.left(x), self.right(x)
        both = self.both(torch.cat([F.dropout(F.relu(left), 0.1, self.training), F.relu(right)], 1))
        mixed = self.mixed(torch.cat([torch.relu(both), right], 1))
        return self.head(self.drop(self.flat(self.pool(self.relu(mixed)))))


class Conv1dNet(nn.Module):
    shape = (2, 32)
    unsigned: ClassVar = {"stem": False, "body": True, "head": True}

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(2, 4, 5, padding=2, padding_mode="circular")
        self.norm = nn.BatchNorm1d(4)
        self.act = nn.ReLU()
        self.pool = nn.MaxPool1d(2)
        self.body = nn.Conv1d(4, 8, 3, stride=2, groups=2, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.pool(self.act(self.norm(self.stem(x))))
        return self.head(self.body(x).relu().mean(2))


class Untraceable(nn.Module):
    shape = (1, 8, 8)
    unsigned: ClassVar = {"conv": False, "fc": False, "last": False}

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4 * 36, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.conv(x))
        if x.sum() < 0:  # control flow on values
            raise AssertionError
        return self.last(F.relu(self.fc(x.flatten(1))))


class SmallCNN(CNN):
    shape = (1, 8, 8)
    unsigned: ClassVar = {
        "stage1.conv": False,
        "stage2.conv": True,
        "stage3.conv": True,
        "head.linear": True,
    }

    def __init__(self):
        super().__init__(input_shape=self.shape, width=4)


class SmallLeNet(LeNet5):
    shape = (1, 12, 12)
    unsigned: ClassVar = {
        "stage1.conv": False,
        "stage2.conv": True,
        "stage3.linear": True,
        "stage4.linear": True,
        "head": True,
    }

    def __init__(self):
        super().__init__(input_shape=self.shape)


class Twice(nn.Module):
    """One layer that runs twice, the second time after a ReLU where ``relu`` is given first."""

    def __init__(self, relu_before_first):
        super().__init__()
        self.relu_before_first = relu_before_first
        self.stem, self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        if self.relu_before_first:
            x = F.relu(x)
        return self.head(F.relu(self.shared(F.relu(self.shared(x)))))


class ViewNet(nn.Module):
    """The flattening of PyTorch's own tutorials."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.fc(x.view(x.size(0), -1))


class Remembering(ViewNet):
    """Keeps what it saw, and counts."""

    def __init__(self):
        super().__init__()
        self.register_buffer("num_batches", torch.tensor(0.0))

    def forward(self, x):
        self.num_batches += 1
        self.last_features = F.relu(self.conv(x))
        return self.fc(torch.flatten(self.last_features, 1))


NETS = [SmallCNN, SmallLeNet, FunctionalNet, CatNet, Conv1dNet, Untraceable]
every_net = pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)


def make(net, seed=0):
    torch.manual_seed(seed)
    return net()


def batch(net, size=6, seed=1):
    return torch.randn(size, *net.shape, generator=torch.Generator().manual_seed(seed))


def quantizers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, Quantizer)}


def input_quantizers(model):
    """By layer, in the order of the layers' table in the network's class."""
    return {name: layer.input_quantizer for name, layer in quantized_layers(model)}


def assert_same_state(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def run(model, x, seed=0):
    torch.manual_seed(seed)  # dropout
    return model(x)


# What is rewritten --------------------------------------------------------------------------------


@every_net
def test_at_32_bits_the_model_is_itself(net):
    model = make(net)
    x = batch(net)
    twin = quantize(model, QuantSpec(weight_bits=32, act_bits=32, edge_bits=8))
    assert twin is not model
    assert_same_state(model, twin)
    assert [type(m) for m in model.modules()] == [type(m) for m in twin.modules()]
    for mode in (True, False):
        assert torch.equal(run(model.train(mode), x), run(twin.train(mode), x))


@every_net
def test_signs_bits_and_kind_of_every_quantizer(net, caplog):
    with caplog.at_level(logging.WARNING):
        model = quantize(make(net), QuantSpec(weight_bits=3, act_bits=5, edge_bits=8))
    layers = dict(quantized_layers(model))
    assert set(layers) == set(net.unsigned)
    first, *_, last = net.unsigned
    for name, layer in layers.items():
        is_edge = name in (first, last)
        weight, act = layer.weight_quantizer, layer.input_quantizer
        assert weight.signed
        assert act.signed is not net.unsigned[name], name
        assert weight.bits == (8 if is_edge else 3)
        assert act.bits == (8 if is_edge else 5)
        assert bool(weight.initialised)
        assert not bool(act.initialised)
        assert weight.step.shape == act.step.shape == torch.Size([])
        # Steps are parameters, the first input's is a buffer.
        assert isinstance(weight.step, nn.Parameter)
        assert isinstance(act.step, nn.Parameter) is (name != first)
        assert dict(act.named_buffers()).keys() == (
            {"initialised", "step"} if name == first else {"initialised"}
        )
    warned = [r for r in caplog.records if r.name == "quant.survey"]
    assert len(warned) == (net is Untraceable)
    assert all("torch.fx cannot trace" in r.getMessage() for r in warned)


@every_net
def test_names_values_and_the_original_stay(net):
    model = make(net)
    before = copy.deepcopy(model)
    types = [type(module) for module in model.modules()]
    rewritten = quantize(model, QuantSpec(per_channel=True))
    assert_same_state(model, before)
    assert [type(module) for module in model.modules()] == types
    assert not quantizers(model)
    old, new = model.state_dict(), rewritten.state_dict()
    own = {name for name in new if "_quantizer." in name}
    assert [name for name in new if name not in own] == list(old)
    assert own == {f"{q}.{leaf}" for q in quantizers(rewritten) for leaf in ("step", "initialised")}
    for name, tensor in old.items():
        assert torch.equal(new[name], tensor)
        assert new[name].data_ptr() != tensor.data_ptr()
        assert new[name].stride() == tensor.stride()
    steps = [name for name in new if is_step(name)]
    assert len(steps) == 2 * len(net.unsigned)
    assert all(initialised_flag(name) in new for name in steps)
    assert not any(is_step(name) for name in old)
    assert set(weight_quantizers(rewritten)) == {f"{name}.weight" for name in net.unsigned}
    assert isinstance(rewritten, net)


@pytest.mark.parametrize(("weight_bits", "act_bits"), [(4, 32), (32, 4)])
@every_net
def test_one_kind_alone(net, weight_bits, act_bits):
    model = make(net)
    half = quantize(model, QuantSpec(weight_bits=weight_bits, act_bits=act_bits, edge_bits=8))
    kinds = {name.rpartition(".")[2] for name in quantizers(half)}
    assert kinds == ({"weight_quantizer"} if act_bits == 32 else {"input_quantizer"})
    assert len(quantizers(half)) == len(net.unsigned)
    for _, layer in quantized_layers(half):
        assert (layer.weight_quantizer is None) == (weight_bits == 32)
        assert (layer.input_quantizer is None) == (act_bits == 32)
    assert bool(weight_quantizers(half)) == (weight_bits == 4)
    if weight_bits == 32:  # nothing is set yet: the network computes in full precision
        assert torch.equal(run(half.eval(), batch(net)), run(model.eval(), batch(net)))
    run(half.train(), batch(net)).sum().backward()


def test_edge_bits_of_32_leave_the_edges_alone():
    model = quantize(make(SmallLeNet), QuantSpec(4, 4, edge_bits=32))
    inner = ("stage2.conv", "stage3.linear", "stage4.linear")
    kinds = ("weight_quantizer", "input_quantizer")
    assert set(quantizers(model)) == {f"{name}.{kind}" for name in inner for kind in kinds}


def test_a_layer_that_runs_twice_is_unsigned_only_if_so_both_times():
    for relu_before_first in (True, False):
        model = quantize(Twice(relu_before_first), QuantSpec())
        inputs = input_quantizers(model)
        assert list(inputs) == ["stem", "shared", "head"]
        assert inputs["shared"].signed is not relu_before_first
        assert inputs["shared"].bits == 4
        assert inputs["head"].bits == 8
        assert not inputs["head"].signed


def test_a_class_derived_from_torchs_is_one_of_torchs_where_it_keeps_the_forward():
    class Same(nn.Linear):
        pass

    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * input

    model = nn.Sequential(nn.Linear(4, 4), Same(4, 4), Doubled(4, 4), nn.ConvTranspose1d(4, 4, 1))
    rewritten = quantize(model, QuantSpec())
    assert [name for name, _ in quantized_layers(rewritten)] == ["0", "1", "3"]
    assert isinstance(rewritten[1], Same)
    assert type(rewritten[2]) is Doubled


def test_the_quantized_network_by_hand():
    """LeNet-5 layer by layer, each input and weight on its grid."""
    model = quantize(make(SmallLeNet), QuantSpec(4, 3, edge_bits=8))
    x = batch(SmallLeNet)
    model.train()(x)
    layers = dict(quantized_layers(model))

    def operands(name, x):
        layer, pair = layers[name], []
        for value, q in ((x, layer.input_quantizer), (layer.weight, layer.weight_quantizer)):
            pair.append(fake_quantize(value, q.step, q.qn, q.qp))
            assert len(pair[-1].unique()) <= 2**q.bits
        return *pair, layer.bias

    z = F.max_pool2d(F.relu(F.conv2d(*operands("stage1.conv", x), padding=2)), 2)
    z = F.max_pool2d(F.relu(F.conv2d(*operands("stage2.conv", z))), 2).flatten(1)
    for name in ("stage3.linear", "stage4.linear"):
        z = F.relu(F.linear(*operands(name, z)))
    expected = F.linear(*operands("head", z))
    assert torch.equal(model.eval()(x), expected)
    assert torch.equal(model.train()(x), expected)


@every_net
def test_bits_change_the_output_less_and_less(net):
    model = make(net).eval()
    x = batch(net, 32)
    errors = []
    for bits in (2, 4, 8):
        low = quantize(model, QuantSpec(bits, bits, edge_bits=bits))
        calibrate_minmax(low, [x])
        errors.append((low(x) - model(x)).square().mean().item())
    assert errors[0] > 5 * errors[1] > 25 * errors[2] > 0


# When a step is set -------------------------------------------------------------------------------


@every_net
def test_the_first_training_batch_sets_input_steps_and_the_second_does_not(net):
    model = quantize(make(net), QuantSpec(4, 3))
    seen = {}
    for name, layer in quantized_layers(model):
        layer.input_quantizer.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.setdefault(name, inputs[0].detach().clone())
        )
    run(model.train(), batch(net))
    steps = {}
    for name, quantizer in input_quantizers(model).items():
        expected = 2 * seen[name].double().abs().mean().item() / math.sqrt(quantizer.qp)
        assert quantizer.step.item() == pytest.approx(expected, rel=1e-5)
        assert bool(quantizer.initialised)
        assert (seen[name] >= 0).all() or quantizer.signed
        steps[name] = quantizer.step.clone()
    run(model, 3 * batch(net, seed=2))
    assert all(torch.equal(q.step, steps[n]) for n, q in input_quantizers(model).items())


@pytest.mark.parametrize("per_channel", [False, True])
@every_net
def test_weight_steps_are_set_from_the_weights(net, per_channel):
    model = quantize(make(net), QuantSpec(weight_bits=3, act_bits=32, per_channel=per_channel))
    for name, quantizer in weight_quantizers(model).items():
        weight = model.get_parameter(name).detach().double()
        size = weight.shape[0] if per_channel else 1
        expected = 2 * weight.abs().reshape(size, -1).mean(1) / math.sqrt(quantizer.qp)
        torch.testing.assert_close(
            quantizer.step.detach().double().flatten(), expected, rtol=1e-5, atol=0
        )
        wanted = (weight.shape[0], *[1] * (weight.dim() - 1)) if per_channel else ()
        assert tuple(quantizer.step.shape) == wanted


@every_net
def test_eval_before_initialisation_passes_inputs_through(net):
    model = make(net).eval()
    half = quantize(model, QuantSpec(weight_bits=32, act_bits=4))
    half.eval()
    assert torch.equal(half(batch(net)), model(batch(net)))
    assert not any(bool(q.initialised) for q in quantizers(half).values())
    assert all(q.step.item() == 1 for q in quantizers(half).values())


@pytest.mark.parametrize("learned", [True, False])
def test_zeros_leave_a_step_unset_and_the_next_batch_sets_it(learned):
    quantizer = Quantizer(4, signed=False, learned=learned, per_sample=True).train()
    zeros = torch.zeros(3, 5)
    assert torch.equal(quantizer(zeros), zeros)
    assert not bool(quantizer.initialised)
    assert quantizer.step.item() == 1
    assert not quantizer.initialise(torch.tensor(0.0))
    x = torch.full((3, 5), 2.0)
    quantizer(x)
    assert bool(quantizer.initialised)
    assert quantizer.step.item() == pytest.approx(4 / math.sqrt(15))


def test_a_model_of_zeros_on_zeros_trains():
    model = make(SmallCNN)
    for parameter in model.parameters():
        parameter.data.zero_()
    model = quantize(model, QuantSpec(per_channel=True))
    out = model.train()(torch.zeros(4, 1, 8, 8))
    assert torch.equal(out, torch.zeros(4, 10))
    found = quantizers(model)
    assert not any(bool(q.initialised) for name, q in found.items() if "input" in name)
    assert all(bool(q.initialised) for name, q in found.items() if "weight" in name)
    F.cross_entropy(out, torch.arange(4)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", [lambda: nn.Linear(300, 200), lambda: nn.Conv2d(40, 60, 3)])
def test_a_weight_of_zeros_has_the_step_of_one_that_torch_has_drawn(kind, per_channel):
    """Weights that outgrow a step that was set while they were small are clipped for good."""
    torch.manual_seed(0)
    spec = QuantSpec(4, 4, edge_bits=4, per_channel=per_channel)
    drawn, zeros = kind(), kind()
    nn.init.zeros_(zeros.weight)
    expected, got = (quantize(m, spec).weight_quantizer.step for m in (drawn, zeros))
    torch.testing.assert_close(got.mean(), expected.mean(), rtol=0.03, atol=0)


def test_a_nan_batch_does_not_set_a_step():
    quantizer = Quantizer(4, signed=True).train()
    quantizer(torch.tensor([1.0, float("nan")]))
    assert not bool(quantizer.initialised)


def test_of_bfloat16_a_quantizer_makes_float32_as_of_the_same_in_float32():
    x, back = torch.randn(5, 7, dtype=torch.bfloat16), torch.randn(5, 7)
    found = []
    for one in (x, x.float()):
        quantizer = Quantizer(8, signed=True, per_sample=True).train()
        one.requires_grad_()
        quantized = quantizer(one)
        quantized.backward(back)
        found.append((quantized, quantizer.step, quantizer.step.grad, one.grad.float()))
    assert found[0][0].dtype == torch.float32
    mixed, whole = found
    for mine, its in zip(mixed[:3], whole[:3], strict=True):
        assert torch.equal(mine, its)
    assert torch.equal(mixed[3], whole[3].bfloat16().float())


def test_a_channel_of_zeros_takes_the_mean_of_the_others():
    quantizer = Quantizer(4, signed=True, num_channels=4, num_dims=2)
    quantizer.initialise(torch.tensor([[0.0], [2.0], [4.0], [0.0]]))
    assert quantizer.step.flatten().tolist() == [3, 2, 4, 3]


def test_a_channel_of_zeros_gets_a_positive_step():
    quantizer = Quantizer(4, signed=True, num_channels=3, num_dims=2)
    assert quantizer.initialise(torch.tensor([[0.0], [2.0], [4.0]]))
    assert quantizer.step[0] > 0
    assert quantizer.step.flatten().tolist()[1:] == [2, 4]


def test_training_keeps_a_step_positive():
    quantizer = Quantizer(4, signed=True).train()
    quantizer(torch.ones(3))
    quantizer.step.data.fill_(-0.3)
    out = quantizer(torch.ones(3))
    assert quantizer.step.item() == pytest.approx(MIN_STEP)
    assert out.isfinite().all()


# Gradients of steps -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    bits=st.sampled_from(BIT_WIDTHS[:-1]),
    signed=st.booleans(),
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple),
    times=st.integers(2, 4),
    seed=st.integers(0, 1000),
)
def test_the_scale_of_an_activation_counts_features_not_samples(bits, signed, shape, times, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[(0,) * len(shape)] = 1.0  # not all zeros
    quantizer = Quantizer(bits, signed, per_sample=True).double().train()
    quantizer(x)

    def gradient(x):
        quantizer.step.grad = None
        quantizer(x).sum().backward()
        return quantizer.step.grad.item()

    step = quantizer.step.detach().clone().requires_grad_()
    lsq(x, step, quantizer.qn, quantizer.qp, 1.0).sum().backward()
    features = math.prod(shape[1:])
    one = gradient(x)
    assert one == pytest.approx(step.grad.item() / math.sqrt(features * quantizer.qp), rel=1e-9)
    # The same samples again and again: the sum grows by that factor, the constant does not change.
    repeated = gradient(x.repeat(times, *[1] * (x.dim() - 1)))
    assert repeated == pytest.approx(times * one, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("per_channel", [False, True])
@every_net
def test_the_scale_of_a_weight_counts_the_values_that_share_the_step(net, per_channel):
    model = quantize(make(net), QuantSpec(weight_bits=4, act_bits=32, per_channel=per_channel))
    for name, quantizer in weight_quantizers(model).items():
        weight = model.get_parameter(name).detach()
        upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(7))
        step = quantizer.step.detach().clone().requires_grad_()
        lsq(weight, step, quantizer.qn, quantizer.qp, 1.0).backward(upstream)
        quantizer.train()(weight).backward(upstream)
        shared = weight[0].numel() if per_channel else weight.numel()
        expected = step.grad / math.sqrt(shared * quantizer.qp)
        torch.testing.assert_close(quantizer.step.grad, expected, rtol=1e-5, atol=1e-7)


@every_net
def test_every_step_but_the_first_inputs_gets_a_gradient(net):
    model = quantize(make(net), QuantSpec(3, 3, edge_bits=3)).train()
    run(model, batch(net)).square().sum().backward()
    parameters = dict(model.named_parameters())
    first = next(iter(net.unsigned))
    assert f"{first}.input_quantizer.step" not in parameters
    steps = {name: p for name, p in parameters.items() if is_step(name)}
    assert len(steps) == 2 * len(net.unsigned) - 1
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(step.grad.abs() > 0 for step in steps.values())


@pytest.mark.parametrize("per_channel", [False, True])
@every_net
def test_fixed_steps_are_buffers_and_weights_still_train(net, per_channel):
    fixed = quantize(make(net), QuantSpec(learn_step=False, per_channel=per_channel)).train()
    free = quantize(make(net), QuantSpec(learn_step=True, per_channel=per_channel)).train()
    assert fixed.state_dict().keys() == free.state_dict().keys()
    assert [n for n, _ in fixed.named_parameters()] == [n for n, _ in make(net).named_parameters()]
    x = batch(net)
    out_fixed, out_free = run(fixed, x), run(free, x)
    assert torch.equal(out_fixed, out_free)
    for out in (out_fixed, out_free):
        out.square().sum().backward()
    free_gradients = {n: p.grad for n, p in free.named_parameters()}
    for name, parameter in fixed.named_parameters():
        assert torch.equal(parameter.grad, free_gradients[name]), name
    steps = {n: s.clone() for n, s in fixed.state_dict().items() if is_step(n)}
    with torch.no_grad():
        for parameter in fixed.parameters():
            parameter -= 0.01 * parameter.grad
    run(fixed, x)
    assert all(torch.equal(fixed.state_dict()[n], s) for n, s in steps.items())


def test_a_frozen_step_still_lets_gradients_through():
    quantizer = Quantizer(4, signed=True).train()
    quantizer(torch.ones(3))
    quantizer.step.requires_grad_(False)
    x = torch.tensor([0.3, 1e6, -0.2], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [1, 0, 1]
    assert quantizer.step.grad is None


# Copies and states --------------------------------------------------------------------------------


@pytest.mark.parametrize("per_channel", [False, True])
@every_net
def test_state_dict_round_trip(net, per_channel):
    spec = QuantSpec(4, 4, per_channel=per_channel)
    trained, fresh = quantize(make(net), spec), quantize(make(net, seed=9), spec)
    run(trained.train(), batch(net))
    fresh.load_state_dict(trained.state_dict())
    assert_same_state(trained, fresh)
    assert torch.equal(run(trained.eval(), batch(net)), run(fresh.eval(), batch(net)))
    # A loaded flag counts: another batch does not set the steps again.
    run(fresh.train(), 5 * batch(net, seed=3))
    for name, tensor in trained.state_dict().items():
        if is_step(name):
            assert torch.equal(fresh.state_dict()[name], tensor)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@every_net
def test_deep_copies_and_pickles(net, copier):
    model = quantize(make(net), QuantSpec(4, 4, per_channel=True)).train()
    run(model, batch(net)).sum().backward()
    twin = copier(model)
    assert_same_state(model, twin)
    assert torch.equal(run(model, batch(net)), run(twin, batch(net)))
    for parameter in twin.parameters():
        parameter.data.add_(1)
    assert not any(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )


# Post-training calibration ------------------------------------------------------------------------


def peaks(model, batches, names):
    """Largest |input| of each layer of the unquantized model, in eval."""
    seen = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen[name].append(inputs[0].abs().max().item())
        )
    for x in batches:
        model.eval()(x)
    return {name: max(values) for name, values in seen.items()}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("training", [False, True])
@every_net
def test_calibration_sets_each_step_to_its_peak(net, training, per_channel):
    batches = [batch(net, seed=seed) * size for seed, size in ((1, 1), (2, 3), (3, 2))]
    model = quantize(make(net), QuantSpec(4, 3, per_channel=per_channel)).train(training)
    before = quantizers(model)
    weights = {n: p.clone() for n, p in model.state_dict().items() if "_quantizer" not in n}
    state = torch.random.get_rng_state()
    calibrate_minmax(model, iter(batches))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training is training
    assert quantizers(model) == before  # the same objects in the same places
    assert not any(m._forward_pre_hooks for m in model.modules())
    for name, tensor in weights.items():
        assert torch.equal(model.state_dict()[name], tensor), name
    expected = peaks(make(net), batches, net.unsigned)
    for name, layer in quantized_layers(model):
        act, weight = layer.input_quantizer, layer.weight_quantizer
        assert act.step.item() == pytest.approx(expected[name] / act.qp, rel=1e-6)
        by_channel = layer.weight.detach().abs().flatten(1).amax(1) / weight.qp
        wanted = by_channel if per_channel else by_channel.max().reshape(1)
        torch.testing.assert_close(weight.step.detach().flatten(), wanted, rtol=1e-6, atol=0)
        assert bool(act.initialised)
        assert bool(weight.initialised)
    # Steps stay: neither evaluation nor training sets them again.
    steps = {n: t.clone() for n, t in model.state_dict().items() if is_step(n)}
    run(model.train(), batches[0])
    assert all(torch.equal(model.state_dict()[n], t) for n, t in steps.items())


def test_calibration_replaces_steps_and_needs_only_what_there_is():
    model = quantize(make(SmallCNN), QuantSpec(4, 32)).train()
    with torch.no_grad():
        model.stage2.conv.weight.mul_(10)
    calibrate_minmax(model, [batch(SmallCNN)])
    assert set(quantizers(model)) == {f"{n}.weight_quantizer" for n in SmallCNN.unsigned}
    step = model.stage2.conv.weight_quantizer.step.item()
    assert step == pytest.approx(model.stage2.conv.weight.abs().max().item() / 7, rel=1e-6)


def test_calibration_that_fails_leaves_the_model_as_it_was():
    model = quantize(make(SmallCNN), QuantSpec()).train()
    before = quantizers(model)
    with pytest.raises(RuntimeError):
        calibrate_minmax(model, [torch.zeros(2, 7, 8, 8)])
    assert quantizers(model) == before
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_calibration_restores_the_mode_of_each_module():
    model = quantize(make(Conv1dNet), QuantSpec()).train()
    model.norm.eval()
    calibrate_minmax(model, [batch(Conv1dNet)])
    assert model.training
    assert not model.norm.training


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [-4, 0, 1, 9, 16, 31, 33, None])
@pytest.mark.parametrize("key", ["weight_bits", "act_bits", "edge_bits"])
def test_bad_bits_name_their_key(key, bits):
    with pytest.raises(ValueError, match=f"quant.{key}={bits}: takes 2 to 8, or 32"):
        QuantSpec(**{key: bits})


@pytest.mark.parametrize("bits", [4, 32])
def test_quantizing_twice_is_refused(bits):
    model = quantize(make(SmallCNN), QuantSpec())
    with pytest.raises(ValueError, match="quantized already"):
        quantize(model, QuantSpec(bits, bits))


def test_a_model_without_layers_is_refused_unless_at_32_bits():
    model = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.LayerNorm(4))
    with pytest.raises(ValueError, match="no layer that multiplies"):
        quantize(model, QuantSpec())
    assert quantize(model, QuantSpec(32, 32)) is not model


# Models that are hard to read --------------------------------------------------------------------


def test_a_view_by_size_passes_the_sign_on():
    assert not quantize(make(ViewNet), QuantSpec()).fc.input_quantizer.signed


def test_a_model_that_keeps_its_features_still_pickles():
    model = quantize(make(Remembering), QuantSpec())
    assert not hasattr(model, "last_features")
    pickle.dumps(model)


def test_tracing_does_not_run_a_models_counters():
    model = make(Remembering)
    assert quantize(model, QuantSpec()).num_batches == model.num_batches == 0


def test_a_model_that_is_one_layer():
    model = quantize(nn.Linear(3, 2), QuantSpec())
    assert set(weight_quantizers(model)) == {"weight"}
    assert sorted(name for name in model.state_dict() if is_step(name)) == [
        "input_quantizer.step",
        "weight_quantizer.step",
    ]
    assert model.weight_quantizer.bits == model.input_quantizer.bits == 8  # first and last


def test_layers_inside_torchs_own_composites():
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = quantize(nn.Sequential(nn.Linear(8, 8), block), QuantSpec())
    names = ["0", "1.self_attn.out_proj", "1.linear1", "1.linear2"]
    assert [name for name, _ in quantized_layers(model)] == names
    assert isinstance(model[1].self_attn, QuantMultiheadAttention)


def test_an_empty_batch_passes_a_set_quantizer():
    quantizer = Quantizer(4, signed=True, per_sample=True).train()
    assert quantizer(torch.empty(0, 4)).shape == (0, 4)
    assert not bool(quantizer.initialised)
    quantizer(torch.ones(2, 4))
    step = quantizer.step.item()
    quantizer(torch.empty(0, 4)).sum().backward()
    assert quantizer.step.item() == step
    assert quantizer.step.grad.item() == 0


def test_tracing_draws_nothing():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    for net in NETS:
        with torch.random.fork_rng():
            model = net()
        quantize(model, QuantSpec())
        assert torch.equal(torch.random.get_rng_state(), state)
