"""Costs against examples worked by hand, against a real pass, and monotone in every input."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.cnn import CNN
from models.cost import cost, joined
from models.densenet import densenet121
from models.ecg1d import ecg1d
from models.inception_v3 import inception_v3
from models.mobilenetv2 import mobilenetv2
from models.resnet import resnet8, resnet18
from models.split import cut_many, cut_points
from models.vgg import vgg16

torch.set_num_threads(1)


class Step(nn.Module):
    """A quantizer: needs values to decide what it does."""

    def __init__(self, bits: int, learned: bool = True) -> None:
        super().__init__()
        self.bits = bits
        self.step = nn.Parameter(torch.ones(()), requires_grad=learned)
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        if not self.initialised:
            self.initialised.fill_(True)
        return x / self.step


class QuantizedLinear(nn.Linear):
    def __init__(
        self, in_features: int, out_features: int, weight: Step | None, inputs: Step | None
    ) -> None:
        super().__init__(in_features, out_features)
        self.weight_quantizer = weight
        self.input_quantizer = inputs

    def forward(self, x: Tensor) -> Tensor:
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        weight = (
            self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)
        )
        return nn.functional.linear(x, weight, self.bias)


class QuantizedConv2d(nn.Conv2d):
    def __init__(self, *sizes: int, bits: int) -> None:
        super().__init__(*sizes, bias=False)
        self.weight_quantizer = Step(bits)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight_quantizer(self.weight), None)


def test_a_convolution_by_hand():
    # 3×8×8 → 4×6×6: each of 144 outputs is a sum over 3·3·3 = 27 products.
    found = cost(nn.Conv2d(3, 4, 3), (3, 8, 8))
    macs = 144 * 27
    assert found.params == 4 * 27 + 4
    assert found.model_bytes == found.packed_bytes == found.gradient_bytes == 4 * found.params
    assert found.flops_forward == 2 * macs
    assert found.flops_backward == 2 * macs  # weight only
    assert found.bops == macs * 32 * 32
    assert found.activation_bytes == 4 * 3 * 8 * 8  # the input
    assert found.fixed_activation_bytes == 0
    assert found.output_shape == (4, 6, 6)
    assert [(layer.macs, layer.params, layer.output_shape) for layer in found.layers] == [
        (macs, 112, (4, 6, 6))
    ]
    assert cost(nn.Conv2d(3, 4, 3), (3, 8, 8), input_grad=True).flops_backward == 4 * macs


def test_a_linear_layer_by_hand():
    found = cost(nn.Linear(10, 7), (10,))
    assert found.params == 77
    assert found.flops_forward == found.flops_backward == 2 * 70
    assert found.activation_bytes == 40
    assert found.bops == 70 * 1024
    # On (tokens, features) every token counts.
    assert cost(nn.Linear(10, 7), (5, 10)).flops_forward == 5 * 140


def test_two_layers_by_hand():
    net = nn.Sequential(nn.Linear(10, 20, bias=False), nn.ReLU(), nn.Linear(20, 5, bias=False))
    found = cost(net, (10,))
    assert found.flops_forward == 2 * (200 + 100)
    # Weights 200 + 100; the gradient that enters the second layer's input another 100.
    assert found.flops_backward == 2 * (200 + 100 + 100)
    # The input (10) and the ReLU's output (20), which ReLU and the second layer share.
    assert found.activation_bytes == 4 * (10 + 20)
    assert [layer.name for layer in found.layers] == ["0", "2"]
    # Weights, gradients and momentum of 300 parameters, four samples of 120 bytes.
    assert found.peak_train_bytes(4, optimizer_slots=1) == 3 * 1200 + 4 * 120


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_backward_of_a_grouped_convolution_is_its_forward_for_each_gradient(groups):
    layer = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=groups)
    macs = 8 * 5 * 5 * (4 // groups) * 9
    found = cost(layer, (4, 9, 9), input_grad=True)
    assert found.flops_forward == 2 * macs
    assert found.flops_backward == 4 * macs


def test_a_transposed_convolution_by_hand():
    # Each of 4·5·5 input values spreads over 6·3·3 outputs.
    found = cost(nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5), input_grad=True)
    macs = 100 * 54
    assert found.flops_forward == 2 * macs
    assert found.flops_backward == 4 * macs
    assert found.layers[0].macs == macs


def test_bits_of_quantized_layers():
    first = QuantizedLinear(10, 20, weight=Step(8), inputs=Step(8, learned=False))
    second = QuantizedLinear(20, 5, weight=Step(3), inputs=None)
    found = cost(nn.Sequential(first, nn.ReLU(), second), (10,))
    assert [(layer.weight_bits, layer.input_bits) for layer in found.layers] == [(8, 8), (3, 32)]
    assert found.bops == 200 * 8 * 8 + 100 * 3 * 32
    assert found.flops_forward == 2 * (200 + 100)
    # Nothing learns before the first layer, so its input needs no gradient.
    assert found.flops_backward == 2 * (200 + 100 + 100)
    # 200 bytes and 100 · 3 bits (38 bytes) for the weights; biases, steps and flags as they are.
    assert found.model_bytes == 4 * (200 + 20 + 100 + 5 + 3) + 3
    assert found.packed_bytes == 200 + 38 + 4 * (20 + 5 + 3) + 3
    # The second weight's quantized copy is kept, whatever the batch, for the gradient of its input;
    # the first weight's is not needed again.
    assert found.fixed_activation_bytes == 4 * 100
    # The quantized copy of the input, and the ReLU's output.
    assert found.activation_bytes == 4 * (10 + 20)
    assert cost(QuantizedConv2d(2, 3, 1, bits=1), (2, 4, 4)).bops == 6 * 16 * 1 * 32


def test_a_learned_input_step_costs_a_gradient_and_a_copy():
    plain = QuantizedLinear(10, 20, weight=None, inputs=None)
    learned = QuantizedLinear(10, 20, weight=None, inputs=Step(4))
    assert cost(learned, (10,)).flops_backward == 2 * cost(plain, (10,)).flops_backward
    assert cost(learned, (10,)).activation_bytes == 2 * cost(plain, (10,)).activation_bytes


def test_frozen_parameters_need_no_gradient():
    net = nn.Sequential(nn.Linear(10, 20, bias=False), nn.Linear(20, 5, bias=False))
    net[0].requires_grad_(False)
    found = cost(net, (10,))
    assert found.gradient_bytes == 400
    assert found.flops_backward == 2 * 100
    assert found.activation_bytes == 4 * 20
    assert cost(nn.Flatten(), (2, 3)).flops_backward == 0


BACKBONES = [
    (resnet8, {}, (3, 32, 32)),
    (resnet18, {"width": 0.25}, (3, 64, 64)),
    (vgg16, {"width": 0.125}, (3, 28, 28)),
    (mobilenetv2, {"width": 0.25}, (3, 32, 32)),
    pytest.param(densenet121, {"width": 0.25}, (3, 32, 32), marks=pytest.mark.long),
    pytest.param(inception_v3, {}, (3, 75, 75), marks=pytest.mark.long),
    (ecg1d, {}, (1, 128)),
]


class NeedsValues(nn.Module):
    """A network that cannot run without values."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x if float(x.sum()) >= 0 else -x)


@pytest.mark.parametrize(
    ("builder", "options", "shape"), BACKBONES, ids=lambda v: getattr(v, "__name__", str(v))
)
def test_rows_add_up_and_shapes_alone_say_what_a_real_pass_says(builder, options, shape):
    model = builder(input_shape=shape, **options)
    found = cost(model, shape)
    assert 2 * sum(layer.macs for layer in found.layers) == found.flops_forward
    # Every layer but the first also costs the gradient of its input.
    first, *rest = found.layers
    assert found.flops_backward == 2 * first.macs + 4 * sum(layer.macs for layer in rest)
    real = cost(NeedsValues(model), shape)
    for name in ("params", "flops_forward", "flops_backward", "activation_bytes", "bops"):
        assert getattr(real, name) == getattr(found, name), name


def test_the_model_and_the_random_state_stay_as_they_were():
    model = nn.Sequential(resnet8(), nn.Dropout())
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    cost(model, (3, 16, 16))
    cost(NeedsValues(model), (3, 16, 16))
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert not model[0].stage1.conv._forward_hooks


def test_halves_add_up_to_the_whole():
    model = resnet8()
    whole = cost(model, (3, 32, 32))
    client = cost(model.stage1, (3, 32, 32))
    server = nn.Sequential(model.stage2, model.stage3, model.head)
    server_cost = cost(server, client.output_shape, input_grad=True)
    for name in ("params", "model_bytes", "flops_forward", "flops_backward", "bops"):
        assert getattr(client, name) + getattr(server_cost, name) == getattr(whole, name), name


def test_wrong_inputs_are_the_models_own_errors():
    with pytest.raises(RuntimeError):
        cost(nn.Linear(3, 2), (4,))
    with pytest.raises(ValueError, match="positive batch size"):
        cost(nn.Linear(3, 2), (3,)).peak_train_bytes(0)


sizes = st.integers(1, 6)


@settings(max_examples=25, deadline=None)
@given(channels=sizes, hidden=sizes, side=st.integers(3, 8), more=st.integers(1, 3), bits=sizes)
def test_cost_grows_with_every_input(channels, hidden, side, more, bits):
    def found(channels, hidden, side, bits=4):
        net = nn.Sequential(
            nn.Conv2d(channels, hidden, 3),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            QuantizedConv2d(hidden, 2, 1, bits=bits),
        )
        return cost(net, (channels, side, side))

    base = found(channels, hidden, side)
    larger = [
        found(channels + more, hidden, side),
        found(channels, hidden + more, side),
        found(channels, hidden, side + more),
    ]
    fields = (
        "params",
        "model_bytes",
        "flops_forward",
        "flops_backward",
        "bops",
        "activation_bytes",
    )
    for other in larger:
        assert all(getattr(other, name) >= getattr(base, name) for name in fields)
        assert other.flops_forward > base.flops_forward
        assert other.peak_train_bytes(2) > base.peak_train_bytes(2)
    few, many = found(channels, hidden, side, bits), found(channels, hidden, side, bits + more)
    assert few.bops < many.bops
    assert few.packed_bytes <= many.packed_bytes
    assert base.peak_train_bytes(1 + more) > base.peak_train_bytes(1)
    assert base.peak_train_bytes(1, 2) > base.peak_train_bytes(1, 0)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (CNN(1, 10), (1, 8, 8)),
        (resnet8(width=0.5), (3, 32, 32)),
        (vgg16(width=0.25), (3, 32, 32)),
        (ecg1d(), (1, 128)),
    ],
    ids=["cnn", "resnet8", "vgg16", "ecg1d"],
)
def test_pieces_joined_cost_what_the_halves_do(model, shape):
    """An activation that both pieces at a cut keep is kept once."""
    points = cut_points(model, shape)
    parts = cut_many(model, [point.name for point in points], shape, check=False)
    shapes = [shape, *(point.shape for point in points)]
    pieces = [
        cost(p, s, input_grad=i > 0) for i, (p, s) in enumerate(zip(parts, shapes, strict=True))
    ]
    whole, pieced = cost(model, shape), joined(pieces)
    assert sum(piece.activation_bytes for piece in pieces) >= whole.activation_bytes
    assert replace(pieced, layers=whole.layers) == whole
    at = len(points) // 2
    device, server = cut_many(model, [points[at].name], shape, check=False)
    for half, some in (
        (cost(device, shape), pieces[: at + 1]),
        (cost(server, points[at].shape, input_grad=True), pieces[at + 1 :]),
    ):
        assert replace(joined(some), layers=half.layers) == half
