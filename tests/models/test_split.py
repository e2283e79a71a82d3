"""At every cut point of every kind of network, split training is whole training, bit for bit."""

import copy
import math
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models import split, trace
from models import subnetwork as part
from models.split import CutPoint, at_fraction, cut, cut_many, cut_points

IMAGE = (1, 12, 12)


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(num_threads)


# ---------------------------------------------------------------- networks


class ResidualBlock(nn.Module):
    def __init__(self, width: int, layer: Callable[..., nn.Module] = nn.Conv2d) -> None:
        super().__init__()
        self.conv1 = layer(width, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.3)
        self.conv2 = layer(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(F.relu(self.bn1(self.conv1(x))))
        y = self.bn2(self.conv2(y))
        y = F.dropout(y, 0.2, training=self.training)
        y += self.shortcut(x)
        return F.relu(y)


class ResNet(nn.Module):
    """Both kinds of dropout, `+=`, an empty shortcut, blocks that end in a functional relu."""

    def __init__(self, layer: Callable[..., nn.Module] = nn.Conv2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(ResidualBlock(4, layer), ResidualBlock(4, layer))
        self.layer2 = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), ResidualBlock(6, layer))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class DenseLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        new = F.dropout(self.conv(F.relu(self.norm(x))), 0.2, training=self.training)
        return torch.cat([x, new], 1)


class DenseBlock(nn.Module):
    """Keeps a growing list of features alive."""

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(width + 2 * i, 2, 1) for i in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(F.relu(layer(torch.cat(features, 1))))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.dense1 = nn.Sequential(DenseLayer(4), DenseLayer(6))
        self.transition = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AvgPool2d(2))
        self.dense2 = DenseBlock(8, 2)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense2(self.transition(self.dense1(self.stem(x))))
        x = F.adaptive_avg_pool2d(F.relu(x, inplace=True), (1, 1))
        return self.fc(x.view(x.size(0), -1))


class VGG(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 4), (4, 6)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
            layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(54, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class InvertedResidual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU6(inplace=True),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU6(inplace=True),
            nn.Conv2d(2 * width, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU6(inplace=True))
        self.features = nn.Sequential(stem, InvertedResidual(4), InvertedResidual(4))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = nn.functional.adaptive_avg_pool2d(x, (1, 1))
        return self.classifier(torch.flatten(x, 1))


class Conv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 4, 5)
        self.conv2 = nn.Conv1d(4, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.fc = nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.leaky_relu(self.conv1(x)), 2)
        x = self.norm(self.conv2(x)).transpose(1, 2).flatten(1)
        return F.log_softmax(self.fc(x), dim=1)


class LeNet(nn.Module):
    """All but the weights are functions; two calls of one pooling module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(54, 16)
        self.fc2 = nn.Linear(16, 5)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        if scale is not None:
            x = x * scale
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = self.conv2(x).relu_()
        x = self.pool(F.pad(self.pool(x), (1, 2, 1, 2)))
        x = F.relu(self.fc1(x.reshape(x.shape[0], -1)))
        return self.fc2(F.dropout(x, training=self.training))


class LSQ(torch.autograd.Function):
    """Rounds to steps; its gradients are not those of what its forward computes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor) -> Tensor:
        ctx.save_for_backward(x, step)
        return (x / step).round().clamp(-7, 7) * step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, step = ctx.saved_tensors
        inside = (x / step).abs() < 7
        return grads[0] * inside, (grads[0] * (~inside)).sum()


class Quantizer(nn.Module):
    """Initialises its step from the first batch, with control flow on a buffer."""

    initialized: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        if not self.initialized:
            with torch.no_grad():
                self.step.fill_(2 * x.abs().mean() / 7**0.5)
                self.initialized.fill_(True)
        return LSQ.apply(x, self.step)


class QuantConv2d(nn.Conv2d):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_quantizer = Quantizer()
        self.act_quantizer = Quantizer()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_quantizer(self.weight)
        return self._conv_forward(self.act_quantizer(x), weight, self.bias)


class QuantLinear(nn.Module):
    """Not derived from a torch layer: followed, with its quantizer kept whole."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.quantizer = Quantizer()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.quantizer(self.weight))


class LSQResNet(ResNet):
    def __init__(self) -> None:
        super().__init__(QuantConv2d)
        self.fc = QuantLinear(6, 5)  # type: ignore[assignment]


class RootState(nn.Module):
    """Parameters, buffers and a plain tensor of the network itself; unused state."""

    mean: Tensor
    gain: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.shift = nn.Parameter(torch.randn(4, 1, 1))
        self.mask = nn.Parameter(torch.randn(8, 72))
        self.register_buffer("mean", torch.tensor(0.1), persistent=False)
        self.register_buffer("gain", torch.full((4, 1, 1), 2.0))
        self.constant = torch.tensor(0.5)
        self.conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.conv2 = nn.Conv2d(4, 2, 1)
        self.fc = nn.Linear(8, 5)
        self.unused = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.BatchNorm1d(3))

    def forward(self, x: Tensor) -> Tensor:
        width = self.shift.abs()  # computed early, used late
        offset = torch.arange(4.0).view(4, 1, 1) * self.constant
        x = (x - self.mean) * self.scale + self.constant
        x = self.conv(x).tanh() * torch.sqrt(self.gain + width)
        x = self.conv2(x + offset)
        x = x[:, :, ::2, ::2].flatten(1)
        x = F.linear(x, F.dropout(torch.cat([self.mask] * 1)[:, :50], 0.1, self.training))
        return self.fc(torch.sigmoid(x))


class Recurrent(nn.Module):
    """A layer with two results, one of them not used; a layer that is only there in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3)
        self.drop = DropPath()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.conv(x)).transpose(1, 2)
        x, _ = self.lstm(x)
        return self.fc(F.relu(x)[:, -1])


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.bernoulli(torch.full((4, 1), 0.5))


class LateSize(nn.Module):
    """The size of the input, taken first and used last, crosses everywhere between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.conv2 = nn.Conv2d(2, 2, 3)
        self.fc = nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.size(0)
        x = self.conv2(self.conv1(x).relu())
        return self.fc(x.view(batch, -1))


class EarlyNoise(nn.Module):
    """Draws random numbers at the start, uses them at the end, draws others between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.conv2 = nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(2, 1, 1)
        x = self.conv2(F.dropout(self.conv1(x), 0.5, self.training))
        return (x * noise).mean((2, 3)).square()


class Auxiliary(nn.Module):
    """Two outputs in training, one in evaluation; a dropout that exists in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3)
        self.body = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU())
        self.auxiliary = nn.Linear(3, 5)
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        if self.training:
            x = F.dropout(x, 0.2)
        x = self.body(x)
        pooled = x.mean((2, 3))
        if self.training:
            return {"logits": self.fc(pooled), "auxiliary": self.auxiliary(pooled)}
        return self.fc(pooled)


def shapes() -> dict[type[nn.Module], tuple[int, ...]]:
    image = [
        ResNet,
        DenseNet,
        VGG,
        MobileNet,
        LeNet,
        LSQResNet,
        RootState,
        LateSize,
        Auxiliary,
        EarlyNoise,
    ]
    return {**dict.fromkeys(image, IMAGE), Conv1d: (2, 26), Recurrent: (2, 26)}


def build(net: type[nn.Module], dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    model = net().to(dtype)
    return model, torch.randn(3, *shapes()[net], dtype=dtype)


NETWORKS = list(shapes())
every_network = pytest.mark.parametrize("net", NETWORKS, ids=lambda net: net.__name__)
# Every other one runs always; all are cut everywhere and trained in `every_network`'s tests.
some_networks = pytest.mark.parametrize(
    "net",
    [pytest.param(n, marks=pytest.mark.long if i % 2 else ()) for i, n in enumerate(NETWORKS)],
    ids=lambda net: net.__name__,
)


# ---------------------------------------------------------------- how halves train


def leaves(output: Any) -> list[Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


def loss_of(output: Any) -> Tensor:
    return sum(
        (o.square() * torch.arange(1.0, 1.0 + o.shape[1]).to(o)).sum() for o in leaves(output)
    )


def step_whole(model: nn.Module, x: Tensor) -> list[Tensor]:
    output = model(x)
    loss_of(output).backward()
    return [o.detach() for o in leaves(output)]


def step_split(parts: tuple[nn.Module, ...], x: Tensor, keep_strides: bool = False) -> list[Tensor]:
    """The split step; the parts share nothing but the activations and their gradients.

    ``keep_strides`` takes the gradient before autograd fits its strides to those of the activation.
    """
    sent = []
    for half in parts[:-1]:
        z = half(x)
        zc = z.detach().requires_grad_()
        gradients: list[Tensor] = []
        zc.register_hook(gradients.append)
        sent.append((z, zc, gradients))
        x = zc
    output = parts[-1](x)
    loss_of(output).backward()
    for z, zc, gradients in reversed(sent):
        z.backward(gradients[0] if keep_strides else zc.grad)
    return [o.detach() for o in leaves(output)]


def state(*modules: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            assert name not in found
            found[name] = parameter.detach().clone()
            found[f"{name}.grad"] = None if parameter.grad is None else parameter.grad.clone()
        for name, buffer in module.named_buffers():
            assert name not in found
            found[name] = buffer.clone()
    return found


def same(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return bool(a.dtype == b.dtype and torch.equal(a, b))


def assert_same_state(whole: nn.Module, *parts: nn.Module) -> None:
    expected, actual = state(whole), state(*parts)
    assert expected.keys() == actual.keys()
    assert [name for name in expected if not same(expected[name], actual[name])] == []


def assert_trains_alike(model: nn.Module, parts: tuple[nn.Module, ...], x: Tensor) -> None:
    """Two SGD steps with dropout, then evaluation, bit for bit."""
    whole = copy.deepcopy(model).train()
    optimizers = [
        torch.optim.SGD(m.parameters(), lr=0.05)
        for m in (whole, *parts)
        if any(True for _ in m.parameters())
    ]
    for half in parts:
        half.train()
    for seed in range(2):
        torch.manual_seed(seed)
        expected = step_whole(whole, x)
        torch.manual_seed(seed)
        actual = step_split(parts, x, keep_strides=isinstance(model, Recurrent))
        assert all(map(same, expected, actual))
        assert_same_state(whole, *parts)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    torch.manual_seed(7)
    expected = leaves(whole.eval()(x))
    torch.manual_seed(7)
    for half in parts:
        x = half.eval()(x)
    assert all(map(same, expected, leaves(x)))
    assert_same_state(whole, *parts)


# ---------------------------------------------------------------- split = whole


@every_network
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.long)], ids=str
)
def test_every_cut_trains_like_the_whole(net: type[nn.Module], dtype: torch.dtype) -> None:
    model, x = build(net, dtype)
    points = cut_points(model, x)
    assert points
    for point in points if dtype is torch.float32 else points[::4]:
        parts = cut(model, point.name, x, check=False)
        assert copy.deepcopy(parts[0])(x).shape[1:] == point.shape
        assert_trains_alike(model, parts, x)


@some_networks
def test_self_check_accepts_every_cut(net: type[nn.Module]) -> None:
    model, x = build(net)
    for point in cut_points(model, x)[1::2]:
        cut(model, point.name, x)


@some_networks
def test_two_cuts_train_like_the_whole(net: type[nn.Module]) -> None:
    model, x = build(net)
    names = [point.name for point in cut_points(model, x)]
    for first, last in [*list(pairwise(names))[::3], (names[0], names[-1])]:
        if first != last:
            assert_trains_alike(model, cut_many(model, [first, last], x, check=False), x)


def test_many_cuts_train_like_the_whole() -> None:
    model, x = build(ResNet)
    names = [point.name for point in cut_points(model, x)]
    parts = cut_many(model, names, x)
    assert len(parts) == len(names) + 1
    assert_trains_alike(model, parts, x)


def test_a_part_can_be_cut_again() -> None:
    model, x = build(VGG)
    client, server = cut(model, "features.4", x)
    middle, last = cut(server, "classifier.0", client(x).detach())
    assert [p.name for p in cut_points(client, x)] == ["features.0", "features.2", "features.3"]
    client, server = cut(model, "features.4", x)
    assert_trains_alike(model, (client, middle, last), x)


@some_networks
def test_cut_without_an_example_gives_the_same_parts(net: type[nn.Module]) -> None:
    model, x = build(net)
    for point in cut_points(model, x)[::3]:
        for blind, checked in zip(
            cut(model, point.name), cut(model, point.name, x, check=False), strict=True
        ):
            assert blind._part_code == checked._part_code
            assert repr(blind) == repr(checked)
            assert_same_state(blind, checked)


# ---------------------------------------------------------------- names


def names_of(net: type[nn.Module]) -> list[str]:
    model, x = build(net)
    return [point.name for point in cut_points(model, x)]


def test_names() -> None:
    add = "bn2+dropout+add"  # before the functional relu that ends the block
    assert names_of(ResNet) == [
        *("conv1", "relu", f"layer1.0.{add}", "layer1.0", f"layer1.1.{add}", "layer1"),
        *("layer2.0", f"layer2.1.{add}", "layer2", "avgpool", "avgpool+flatten"),
    ]
    assert names_of(LeNet) == [
        *("conv1", "conv1+relu", "conv1+relu+max_pool2d", "conv2+relu_", "conv2+relu_+pool"),
        *("conv2+relu_+pool+pad", "conv2+relu_+pool+pad+pool"),
        "conv2+relu_+pool+pad+pool+reshape",
        *("fc1", "fc1+relu", "fc1+relu+dropout"),
    ]
    assert names_of(VGG)[:7] == [f"features.{i}" for i in (0, 2, 3, 4, 6)] + [
        "features",
        "classifier.0",
    ]
    assert "features.1" in names_of(MobileNet)
    assert names_of(Recurrent) == [
        *("conv", "drop", "drop+transpose", "lstm+getitem", "lstm+getitem+getitem+relu"),
        "lstm+getitem+getitem+relu+getitem",
    ]
    assert names_of(Auxiliary) == ["stem", "body.0", "body", "body+mean"]


def test_aliases_and_shapes() -> None:
    model, x = build(ResNet)
    points = {point.name: point for point in cut_points(model, x)}
    assert points["layer2"].aliases == ("layer2.1",)
    assert points["layer2"].shape == (6, 5, 5)
    assert points["avgpool+flatten"].shape == (6,)
    assert [p.position for p in points.values()] == sorted(p.position for p in points.values())
    by_name, by_alias = cut(model, "layer2", x), cut(model, "layer2.1", x)
    assert [list(p.state_dict()) for p in by_name] == [list(p.state_dict()) for p in by_alias]
    assert cut_points(model, IMAGE) == list(points.values())


@some_networks
def test_names_are_unique(net: type[nn.Module]) -> None:
    model, x = build(net)
    names = [name for point in cut_points(model, x) for name in (point.name, *point.aliases)]
    assert len(names) == len(set(names))
    assert cut_points(model, x) == cut_points(copy.deepcopy(model), x)


# ---------------------------------------------------------------- what a part is


@some_networks
def test_state_names_are_those_of_the_whole(net: type[nn.Module]) -> None:
    model, x = build(net)
    for point in cut_points(model, x):
        client, server = cut(model, point.name)
        client_state, server_state = client.state_dict(), server.state_dict()
        assert not client_state.keys() & server_state.keys()
        joined = {**client_state, **server_state}
        assert joined.keys() == model.state_dict().keys()
        assert all(same(joined[name], value) for name, value in model.state_dict().items())
        copy.deepcopy(model).load_state_dict(joined)
        assert list(client.parameters())
        own = {p.data_ptr() for p in model.parameters()}
        assert not own & {p.data_ptr() for part in (client, server) for p in part.parameters()}


def test_parts_carry_only_what_they_run() -> None:
    model, x = build(VGG)
    client, server = cut(model, "features.4", x)
    assert [name for name, _ in client.named_modules()][1:] == ["features"] + [
        f"features.{i}" for i in range(5)
    ]
    assert "features.0" not in dict(server.named_modules())
    assert len(pickle.dumps(client)) < len(pickle.dumps(model))


def test_non_persistent_buffers_stay_so() -> None:
    model, x = build(RootState)
    client, server = cut(model, "conv", x)
    assert "mean" in dict(client.named_buffers())
    assert "mean" not in client.state_dict()
    assert "mean" not in dict(server.named_buffers())
    assert "gain" in server.state_dict()
    assert "unused.0.weight" in server.state_dict()
    assert "unused.0.weight" in cut_many(model, ["conv", "conv2"], x)[1].state_dict()


@some_networks
def test_pickle_and_deepcopy(net: type[nn.Module]) -> None:
    model, x = build(net)
    points = cut_points(model, x)
    for point in points[:: max(1, len(points) // 2)]:
        parts = cut(model, point.name)
        for clone in (
            lambda part: pickle.loads(pickle.dumps(part)),
            lambda part: cloudpickle.loads(cloudpickle.dumps(part)),
            copy.deepcopy,
        ):
            clones = tuple(map(clone, parts))
            assert_trains_alike(model, clones, x)
            assert_same_state(model, *parts)  # the originals have not been trained along


def test_pickle_to_a_fresh_process(tmp_path: Path) -> None:
    model, x = build(LSQResNet)
    parts = tuple(part.train() for part in cut(model, "layer1", x))
    torch.save((parts, x), tmp_path / "parts.pt")
    script = (
        "import sys, torch; torch.set_num_threads(1); torch.manual_seed(3)\n"
        "parts, x = torch.load(sys.argv[1], weights_only=False)\n"
        "train = parts[1](parts[0](x))\n"
        "out = [train, parts[1].eval()(parts[0].eval()(x)), parts[0].state_dict()]\n"
        "torch.save(out, sys.argv[2])"
    )
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(Path(__file__).parent)])
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "parts.pt"), str(tmp_path / "out.pt")],
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    train, evaluated, there = torch.load(tmp_path / "out.pt")
    torch.manual_seed(3)
    assert torch.equal(train, parts[1](parts[0](x)))
    assert torch.equal(evaluated, parts[1].eval()(parts[0].eval()(x)))
    assert all(torch.equal(there[name], value) for name, value in parts[0].state_dict().items())


def test_train_and_eval_take_effect() -> None:
    model, x = build(LeNet)
    _, server = cut(model, "fc1", x)
    z = torch.randn(3, 16)
    assert server.training
    assert not torch.equal(server(z), server(z))
    assert torch.equal(server.eval()(z), server(z))
    assert not torch.equal(server.train()(z), server(z))
    client, _ = cut(model.eval(), "fc1", x)
    assert not client.training
    statistics, _ = cut(build(ResNet)[0], "relu", x)
    before = statistics.bn1.running_mean.clone()  # type: ignore[union-attr, operator]
    statistics.eval()(x)
    assert torch.equal(before, statistics.bn1.running_mean)  # type: ignore[union-attr, arg-type]


def test_deterministic() -> None:
    model, x = build(ResNet)
    once, again = cut(model, "layer1.0", x), cut(model, "layer1.0", x)
    for a, b in zip(once, again, strict=True):
        assert a._part_code == b._part_code
        assert list(a.state_dict()) == list(b.state_dict())
        assert repr(a) == repr(b)


def test_parts_move_between_types_and_devices() -> None:
    model, x = build(RootState)
    parts = cut(model, "conv", x)
    model.double().constant = model.constant.double()  # type: ignore[operator, union-attr]
    for half in parts:
        half.double()
    x = x.double()
    model.eval()
    out = parts[1].eval()(parts[0].eval()(x))
    assert out.dtype == torch.float64
    assert torch.equal(out, model(x))
    assert all(p.is_meta for p in parts[0].to("meta").parameters())


def test_works_on_the_meta_device_without_memory() -> None:
    model, x = build(ResNet)
    assert cut_points(copy.deepcopy(model).to("meta"), x.to("meta")) == cut_points(model, x)
    assert cut(copy.deepcopy(model).to("meta"), "layer1", IMAGE)


def test_frozen_parameters_stay_frozen() -> None:
    model, x = build(VGG)
    model.features[0].requires_grad_(False)  # type: ignore[index, operator]
    client, _ = cut(model, "features.4", x)
    flags = {name: p.requires_grad for name, p in client.named_parameters()}
    assert [name for name, flag in flags.items() if not flag] == [
        "features.0.weight",
        "features.0.bias",
    ]
    model.requires_grad_(False)
    cut(model, "features.4", x)  # nothing trains: the check has nothing to send back


# ---------------------------------------------------------------- the model is left alone


def snapshot(module: nn.Module) -> dict[str, Any]:
    return {
        name: {
            key: (list(value.items()) if isinstance(value, dict) else copy.copy(value))
            for key, value in vars(m).items()
        }
        for name, m in module.named_modules()
    }


@some_networks
def test_model_is_left_untouched(net: type[nn.Module]) -> None:
    model, x = build(net)
    step_whole(model, x)
    before, values = snapshot(model), copy.deepcopy(state(model))
    patched = nn.Module.__setattr__, nn.Module.__call__, nn.Module.__getattr__
    guarded = torch.autocast.__enter__, torch._functorch.utils.unwrap_dead_wrappers
    given_x = x.clone()
    randomness = torch.get_rng_state(), random.getstate()
    num_threads = torch.get_num_threads()
    for point in (cut_points(model, x)[0], at_fraction(model, x, 0.5)):
        cut(model, point.name, x)
    with pytest.raises(ValueError, match="no cut point"):
        cut(model, "nowhere", x)
    assert torch.equal(randomness[0], torch.get_rng_state())
    assert randomness[1] == random.getstate()
    assert torch.equal(x, given_x)
    assert torch.get_num_threads() == num_threads
    assert torch.is_grad_enabled()
    after = snapshot(model)
    assert before.keys() == after.keys()
    for name, attributes in before.items():
        assert attributes.keys() == after[name].keys()
        for key, value in attributes.items():
            assert value is after[name][key] or repr(value) == repr(after[name][key])
    assert all(same(values[name], value) for name, value in state(model).items())
    assert (nn.Module.__setattr__, nn.Module.__call__, nn.Module.__getattr__) == patched
    assert (torch.autocast.__enter__, torch._functorch.utils.unwrap_dead_wrappers) == guarded


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_cutting_inside_no_grad(context: Any) -> None:
    model, x = build(LSQResNet)
    with context():
        points = cut_points(model, x.clone())
        parts = cut(model, "layer1", x)
    assert points == cut_points(model, x)
    assert_trains_alike(model, parts, x)


# ---------------------------------------------------------------- what fx silently gets wrong


class Wrapped(nn.Module):
    """conv → something hard to trace → fc."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.inner = inner
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(300, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.inner(self.conv(x))).flatten(1))


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 3 * grads[0]


class Reverse(torch.autograd.Function):
    """Its forward does nothing at all that a graph could show."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


reverse_bound_early = Reverse.apply


class SetupContext(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, slope: float) -> Tensor:
        return x.sign() * slope

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.slope = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * ctx.slope * 2, None


class SignLayer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Sign.apply(x)


class ReverseLayer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return reverse_bound_early(x)


class SetupContextLayer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return SetupContext.apply(x, 0.5)


class NoGradLayer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.abs().mean()
        return x / scale


class SetGradLayer(nn.Module):
    """Switches gradients off without a block."""

    def forward(self, x: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        scale = x.abs().mean()
        torch.set_grad_enabled(True)
        return x / scale


class DecoratedLayer(nn.Module):
    @torch.no_grad()
    def scale(self, x: Tensor) -> Tensor:
        return x.abs().mean()

    def forward(self, x: Tensor) -> Tensor:
        return x / self.scale(x)


class AutocastLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = self.conv(x)
        return x.float()


class NoiseLayer(nn.Module):
    """Would become a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(3, 1, 1) + torch.randn(10) if self.training else x


class PythonNoiseLayer(nn.Module):
    """Stochastic depth with Python's random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if random.random() < 0.5 else x


class CounterLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n = 0
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        return x * self.n


class ListLayer(CounterLayer):
    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(1)
        return x * len(self.seen)


class BufferCounterLayer(nn.Module):
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        self.scale.data.clamp_(0.5, 0.9)
        return x * self.scale / self.count


class BufferMathLayer(nn.Module):
    """Arithmetic on buffers alone would be done once."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean.copy_(0.9 * self.mean + 0.1 * x.mean())
        return x * torch.exp(self.mean + 1)


class HookedLayer(nn.Sequential):
    """A hook that changes the output; following the module would run it once, while tracing."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 3, 1))
        self.calls: list[int] = []
        self.register_forward_hook(double_and_count)


def double_and_count(module: Any, args: Any, output: Tensor) -> Tensor:
    module.calls.append(1)
    return output * 2


class ValueControlLayer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        return y if y.sum() > 0 else -y


class ItemAssignmentLayer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 1
        y[:, 0] = 0
        return y + torch.zeros(len(x), 1, 1, 1)


class InPlaceLayer(nn.Module):
    """`y = x; y += 1` changes x too; fx's own stand-ins would give y = x + 1."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        y = x
        y += 1
        return x + y


class ParentLayer(nn.Module):
    """Followed around a child that is kept whole, which draws Python's random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.child = PythonNoiseLayer()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return nn.ReLU()(self.child(self.conv(x * self.scale))) * self.scale


class BackedOutChild(nn.Module):
    """Touches a parameter before it turns out that it cannot be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return ValueControlLayer.forward(self, x * self.scale)  # type: ignore[arg-type]


class BackedOutLayer(nn.Module):
    """Uses a parameter of a child that is kept whole."""

    def __init__(self) -> None:
        super().__init__()
        self.child = BackedOutChild()

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x) * self.child.scale


HARD = [
    BackedOutLayer,
    *(SignLayer, ReverseLayer, SetupContextLayer, NoGradLayer, SetGradLayer, DecoratedLayer),
    *(AutocastLayer, NoiseLayer, PythonNoiseLayer, CounterLayer, ListLayer, BufferCounterLayer),
    *(BufferMathLayer, HookedLayer, ValueControlLayer, ItemAssignmentLayer, ParentLayer),
    InPlaceLayer,
]


@pytest.mark.parametrize("inner", HARD, ids=lambda inner: inner.__name__)
@pytest.mark.parametrize("at", ["conv", "inner"])
def test_hard_layers_train_like_the_whole(inner: type[nn.Module], at: str) -> None:
    model = Wrapped(inner())
    calls = vars(model.inner).get("calls", [])
    x = torch.randn(3, *IMAGE)
    whole = copy.deepcopy(model)
    parts = cut(model, at, x)
    assert "inner" in [point.name for point in cut_points(model, x)]
    for seed in range(3):
        for run, modules in ((step_whole, whole), (step_split, parts)):
            torch.manual_seed(seed)
            random.seed(seed)
            run(modules, x)  # type: ignore[operator]
        assert_same_state(whole, *parts)  # outputs are in the gradients
    if inner is HookedLayer:
        counted = [m.calls for half in parts for m in half.modules() if isinstance(m, HookedLayer)]
        assert counted == [whole.inner.calls] == [[1] * 3]
    assert calls == []
    assert getattr(model.inner, "n", 0) == 0


class SquareRoot(nn.Module):
    """Functions of Python on sizes; a number with two names, one of which moves on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(12, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).flatten(1, 2)
        width = number = x.size(-1)
        number += 1
        x = self.b(x / math.sqrt(width)) * number / width
        return self.fc(x * math.floor(width)).mean(1)


def test_functions_of_python_on_sizes() -> None:
    model, x = SquareRoot(), torch.randn(3, *IMAGE)
    for name in ("a", "a+flatten", "b+mul+truediv+mul"):
        client, server = (pickle.loads(pickle.dumps(part)) for part in cut(model, name, x))
        assert torch.equal(server(client(x)), model(x))


class LateFill(nn.Module):
    """Overwrites a tensor that it makes itself, and one that has another name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(12, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).flatten(1, 2))
        mask = torch.zeros(12, 6)
        mask[::2] = 1
        mask += torch.ones(6)
        kept = x
        x *= mask
        return self.fc(x + kept).mean(1)


def test_overwriting_is_cut_exactly_or_refused() -> None:
    model, x = LateFill(), torch.randn(3, *IMAGE)
    names = [point.name for point in cut_points(model, x)]
    assert names == ["a", "a+flatten", "b+zeros+setitem+add+mul+add", "fc"]
    for name in names:
        cut(model, name, x)
    assert "overwrites it in place" in refusal(lambda: cut(model, "b", x))


def test_layers_without_the_guards_would_be_wrong() -> None:
    """The reason for the guards: plain fx gives equal outputs and wrong gradients."""
    model = Wrapped(SignLayer())
    x = torch.randn(2, *IMAGE)
    plain = torch.fx.symbolic_trace(copy.deepcopy(model))
    assert torch.equal(plain(x), model(x))
    loss_of(plain(x)).backward()
    loss_of(model(x)).backward()
    assert not torch.equal(plain.conv.weight.grad, model.conv.weight.grad)  # type: ignore[union-attr, arg-type]


def test_kept_whole_says_why() -> None:
    traced = trace.trace(LSQResNet(), True)
    assert [path for path in traced.kept_whole if "conv" not in path] == ["fc.quantizer"]
    assert traced.kept_whole["layer1.0.conv1"] == "it is a layer of torch's"
    assert "control flow" in traced.kept_whole["fc.quantizer"]
    assert "test_split.py, line" in traced.kept_whole["fc.quantizer"]
    assert trace.trace(Wrapped(CounterLayer()), True).changing == {"inner"}
    assert list(trace.trace(Wrapped(ParentLayer()), True).kept_whole) == ["inner.child"]


class Twice(nn.Module):
    """One counter, called on both sides of `conv2`."""

    def __init__(self, counter: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)
        self.counter = counter

    def forward(self, x: Tensor) -> Tensor:
        return self.counter(self.conv2(self.counter(self.conv1(x)))).mean((1, 2, 3)).unsqueeze(1)


def test_state_used_on_both_sides_is_refused() -> None:
    x = torch.randn(2, *IMAGE)
    with pytest.raises(ValueError, match="cut at 'conv2': counter is used on both sides"):
        cut(Twice(CounterLayer()), "conv2", x)
    with pytest.raises(ValueError, match=r"cut at 'conv2': counter\.weight is used on both sides"):
        cut(Twice(nn.BatchNorm2d(1)), "conv2")
    model = Twice(SignLayer())  # without state it may be on both sides
    assert_trains_alike(model, cut(model, "conv2", x), x)
    tied = Wrapped(nn.Conv2d(3, 3, 1))
    tied.inner.bias = tied.conv.bias
    with pytest.raises(ValueError, match=r"cut at 'conv': conv\.bias is used on both sides"):
        cut(tied, "conv", x)


def test_state_with_two_names_stays_together() -> None:
    model = Wrapped(nn.Conv2d(3, 3, 1))
    model.again = model.inner
    model.norm.bias = model.inner.bias
    x = torch.randn(3, *IMAGE)
    client, server = cut(model, "norm", x)
    assert {"inner.weight", "again.weight", "norm.bias"} <= client.state_dict().keys()
    assert client.state_dict().keys() | server.state_dict().keys() == model.state_dict().keys()
    assert_trains_alike(model, (client, server), x)


# ---------------------------------------------------------------- errors


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unknown_cut_names_the_nearest() -> None:
    model, x = build(ResNet)
    message = refusal(lambda: cut(model, "layr1.0", x))
    assert message.startswith("ResNet has no cut point 'layr1.0'; the nearest names are layer1.0, ")
    assert len(message.split("are ")[1].split(", ")) == 3
    assert "no cut point ''" in refusal(lambda: cut(model, ""))


def test_refusal_says_what_crosses_and_what_to_take() -> None:
    model, x = build(ResNet)
    for example in (x, None):
        message = refusal(lambda example=example: cut(model, "layer1.0.conv1", example))
        assert message == (
            "ResNet cannot be cut at 'layer1.0.conv1': 2 values would cross: relu, layer1.0.conv1; "
            "nearest cut points: 'relu' before it and 'layer1.0.bn2+dropout+add' after it"
        )
        message = refusal(lambda example=example: cut(model, "bn1", example))
        assert "'bn1': relu overwrites it in place" in message
        assert "'conv1' before it and 'relu' after it" in message


def test_refusals() -> None:
    def message(net: type[nn.Module], at: str) -> str:
        model, x = build(net)
        assert at not in [p.name for p in cut_points(model, x)]
        return refusal(lambda: cut(model, at, x))

    assert "it is the network's output" in message(ResNet, "fc")
    assert "'avgpool+flatten' before it" in message(ResNet, "fc")
    assert "no cut point 'input'" in message(ResNet, "input")
    assert "2 values would cross: input.size, conv2" in message(LateSize, "conv2")
    assert (
        "'pool': it is called 2 times; cut points among its calls: conv2+relu_+pool, "
        in message(LeNet, "pool")
    )
    assert "'layer1.0.shortcut': it is not a step of the network's forward" in message(
        ResNet, "layer1.0.shortcut"
    )
    assert "2 values would cross: input+rand, conv1;" in message(EarlyNoise, "conv1")
    assert "relu_ overwrites it" in message(LeNet, "conv2")
    assert "it exists in training only" in message(Auxiliary, "stem+dropout")
    assert "no parameter before it" in message(RootState, "input+sub")
    assert "it is not a step of the network's forward" in message(RootState, "unused")
    assert "it is the network's output" in message(Conv1d, "fc+log_softmax")
    model = Wrapped(ValueControlLayer())
    model.inner.add_module("deep", nn.ReLU())
    inside = refusal(lambda: cut(model, "inner.deep"))
    assert "it lies inside 'inner', which is kept whole: " in inside
    assert "control flow" in inside
    assert "'conv' before it and 'norm' after it" in inside


class Views(nn.Module):
    """conv is overwritten through a view of it; mask is no float; time comes first for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.embed = nn.Embedding(2, 3)
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(1).clamp_(0.1)
        x = (x.abs() > 0.5).long()
        return self.fc(self.embed(x).transpose(0, 1).sin().mean(0))


def test_refusals_that_need_an_example() -> None:
    x = torch.randn(2, *IMAGE)
    assert "it is overwritten in place later" in refusal(lambda: cut(Views(), "conv", x))
    assert "clamp_ overwrites it" in refusal(lambda: cut(Views(), "conv+flatten"))
    assert "not of floating point" in refusal(lambda: cut(Views(), "conv+flatten+clamp_+abs+gt", x))
    assert "not the batch" in refusal(lambda: cut(Views(), "embed+transpose", x))
    names = [point.name for point in cut_points(Views(), x)]
    assert names == [
        "conv+flatten+clamp_",
        "conv+flatten+clamp_+abs",
        "embed",
        "embed+transpose+sin+mean",
    ]


class RootControl(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.fc(x)
        return x


class RootFunction(RootControl):
    def forward(self, x: Tensor) -> Tensor:
        return Sign.apply(self.fc(x))


class RootCounter(RootControl):
    def forward(self, x: Tensor) -> Tensor:
        self.calls = 1
        return self.fc(x)


class RootRandom(RootControl):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * random.random()


class RootNoGrad(RootControl):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.fc(x)


class TwoInputs(RootControl):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc(x) + y


OUTSIDE = torch.ones(3)


class RootConstant(RootControl):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * OUTSIDE


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (RootControl, "control flow on "),
        (RootFunction, "uses a custom autograd function (test_split.py, line "),
        (RootCounter, "forward assigns self.calls (test_split.py, line "),
        (RootRandom, "forward draws from Python's or NumPy's random numbers"),
        (RootNoGrad, "runs without gradients"),
        (RootConstant, "uses a tensor that is not a parameter, buffer or attribute of the model"),
        (TwoInputs, "forward takes a second input, y"),
    ],
)
def test_untraceable_networks_say_where_and_why(net: type[nn.Module], why: str) -> None:
    model = net()
    for call in (lambda: cut_points(model, (3,)), lambda: cut(model, "fc")):
        message = refusal(call)
        assert message.startswith(f"{net.__name__} cannot be traced: ")
        assert why in message
    assert torch.is_grad_enabled()


def test_hooks_on_submodules_run_in_the_part() -> None:
    model, x = build(VGG)
    seen: list[torch.Size] = []
    model.features.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    client, _ = cut(model, "features")
    assert seen == []
    client(x)
    assert seen == [torch.Size([3, 6, 3, 3])]
    assert "inside 'features', which is kept whole: it has hooks" in refusal(
        lambda: cut(model, "features.3")
    )


def test_root_hooks_are_refused() -> None:
    model, x = build(LeNet)
    model.register_forward_hook(double_and_count)
    assert "LeNet has hooks" in refusal(lambda: cut_points(model, x))


def test_models_that_cannot_be_copied() -> None:
    model, x = build(LeNet)
    model.extra = model.conv1.weight * 2  # type: ignore[operator, union-attr]
    assert "LeNet cannot be copied: " in refusal(lambda: cut_points(model, x))


def test_bad_arguments() -> None:
    model, x = build(ResNet)
    assert "at least 2 samples" in refusal(lambda: cut_points(model, x[:1]))
    assert "cannot take an example of (2, 3, 12, 12)" in refusal(
        lambda: cut_points(model, (3, 12, 12))
    )
    assert "takes a list of cut points" in refusal(lambda: cut_many(model, "layer1", x))
    assert "takes a list of cut points" in refusal(lambda: cut_many(model, [], x))
    order = refusal(lambda: cut_many(model, ["layer2", "layer1"], x))
    assert order == "cut 'layer2' comes after 'layer1': give cuts in execution order"
    assert "is the same place as" in refusal(lambda: cut_many(model, ["layer1", "layer1.1"], x))


def test_check_notices_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build(ResNet)
    client, server = cut(model, "layer1", x, check=False)
    part.check_parts(model, (client, server), x)
    for module, name, what in (
        (server, "fc.bias", "output 0"),
        (client, "bn1.running_mean", "buffer bn1.running_mean"),
    ):
        broken = copy.deepcopy(module)
        with torch.no_grad():
            broken.get_parameter(name).add_(1) if "bias" in name else broken.get_buffer(name).add_(
                1
            )
        parts = (client, broken) if module is server else (broken, server)
        message = refusal(lambda parts=parts: part.check_parts(model, parts, x))
        assert message == f"cut and uncut differ in training: the {what}"
    with monkeypatch.context() as patch:
        patch.setattr(split, "check_parts", lambda *_: (_ for _ in ()).throw(ValueError("no")))
        assert refusal(lambda: cut(model, "layer1", x)) == "ResNet cannot be cut at 'layer1': no"
        cut(model, "layer1", x, check=False)
        cut(model, "layer1")


# ---------------------------------------------------------------- a cut by its share of FLOPs


def flops_of(module: nn.Module, x: Tensor) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops()


@pytest.mark.parametrize("net", [ResNet, LSQResNet], ids=lambda net: net.__name__)
def test_at_fraction_takes_the_nearest(net: type[nn.Module]) -> None:
    model, x = build(net)
    model.eval()
    total = flops_of(model, x)
    shares = {p: flops_of(cut(model, p.name)[0], x) / total for p in cut_points(model, x)}
    assert list(shares.values()) == sorted(shares.values())

    @settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.floats(0.01, 0.99))
    def nearest(fraction: float) -> None:
        point = at_fraction(model, x, fraction)
        assert isinstance(point, CutPoint)
        assert abs(shares[point] - fraction) == min(
            abs(share - fraction) for share in shares.values()
        )

    nearest()


def test_at_fraction_refuses() -> None:
    model, x = build(ResNet)
    for fraction in (0.0, 1.0, -0.1, 2.0, float("nan")):
        assert "takes one in (0, 1)" in refusal(lambda f=fraction: at_fraction(model, x, f))
    assert "has no cut points" in refusal(lambda: at_fraction(nn.Linear(3, 3), (3,), 0.5))
    norms = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    assert "FLOPs" in refusal(lambda: at_fraction(norms, (3,), 0.5))


def test_at_fraction_takes_the_least_that_crosses_on_a_tie() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3))
    model = nn.Sequential(model, nn.Flatten(), nn.Linear(16, 2))
    assert at_fraction(model, (1, 10, 10), 0.2).name == "0.2"  # after pooling, not 0.0 or 0.1
