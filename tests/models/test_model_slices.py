"""Slices of networks: every built-in one runs, and is the network built that narrow."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.build import build
from models.inputs import InputSpec, remembered
from models.slices import Channels, within

IMAGE = (3, 32, 32)
NETWORKS = {
    "cnn": ("models.cnn.CNN", {}, IMAGE),
    "cnn, batch norm": ("models.cnn.CNN", {"norm": "batch"}, IMAGE),
    "lenet5": ("models.lenet5.LeNet5", {}, (1, 28, 28)),
    "mlp": ("models.mlp.MLP", {}, (12,)),
    "ecg1d": ("models.ecg1d.ecg1d", {}, (1, 64)),
    "resnet8": ("models.resnet.resnet8", {}, IMAGE),
    "resnet18": ("models.resnet.resnet18", {"width": 0.25}, IMAGE),
    "vgg16": ("models.vgg.vgg16", {"width": 0.25}, IMAGE),
    "mobilenetv2": ("models.mobilenetv2.mobilenetv2", {"width": 0.5}, IMAGE),
    "transformer": (
        "models.transformer.Transformer", {}, InputSpec((8,), torch.int64, 20),
    ),
}  # fmt: skip
LONG = {
    "densenet121": ("models.densenet.densenet121", {"width": 0.25}, IMAGE),
    "vgg19": ("models.vgg.vgg19", {"width": 0.25}, IMAGE),
    "resnet50": ("models.resnet.resnet50", {"width": 0.25}, IMAGE),
    "densenet201": ("models.densenet.densenet201", {"width": 0.25}, IMAGE),
    "inception_v3": ("models.inception_v3.inception_v3", {}, (3, 107, 107)),
}


def network(target, options, inputs) -> nn.Module:
    return build(target, options, inputs, 5, 0)


@pytest.mark.parametrize(
    "name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.long) for name in LONG)]
)
def test_slices_of_every_network_train(name: str) -> None:
    model = network(*{**NETWORKS, **LONG}[name])
    channels, x = Channels.of(model), remembered(model).example()
    state, before = model.state_dict(), model.training
    sizes = []
    for share in (1.0, 0.5, 0.2):
        small, kept = channels.sliced(share)
        output = small(x)
        assert output.shape == model(x).shape
        output.sum().backward()
        for path, tensor in small.state_dict().items():
            index = [
                np.arange(size) if axis is None else axis
                for size, axis in zip(state[path].shape, kept.get(path, ()), strict=False)
            ]
            expected = state[path][np.ix_(*index)] if path in kept else state[path]
            if "running_" not in path and "num_batches" not in path:
                assert torch.equal(tensor, expected), path
        sizes.append(sum(p.numel() for p in small.parameters()))
    assert sizes[0] == sum(p.numel() for p in model.parameters())
    # All but what stays whole falls with the square of the share.
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] < (0.75 if name == "transformer" else 0.35) * sizes[0]
    assert model.training == before


@pytest.mark.parametrize(
    ("target", "whole", "half", "inputs"),
    [
        ("models.cnn.CNN", {"width": 16}, {"width": 8}, (1, 28, 28)),
        ("models.cnn.CNN", {"width": 16, "norm": "batch"}, {"width": 8, "norm": "batch"}, IMAGE),
        ("models.mlp.MLP", {"width": 64}, {"width": 32}, (12,)),
        ("models.resnet.resnet8", {}, {"width": 0.5}, IMAGE),
        ("models.vgg.vgg16", {"width": 0.5}, {"width": 0.25}, IMAGE),
    ],
)
def test_a_slice_is_the_network_built_that_narrow(target, whole, half, inputs) -> None:
    narrow = network(target, half, inputs)
    small, _ = Channels.of(network(target, whole, inputs)).sliced(0.5)
    shapes = {name: tensor.shape for name, tensor in narrow.state_dict().items()}
    assert {name: tensor.shape for name, tensor in small.state_dict().items()} == shapes
    narrow.load_state_dict(small.state_dict())
    x = remembered(narrow).example()
    for training in (True, False):
        assert torch.equal(narrow.train(training)(x), small.train(training)(x))
    assert str(small) == str(narrow)


class Odd(nn.Module):
    """Depthwise and grouped convolutions, a sum over a concatenation, weights used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(16, 12, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(2, 12)
        self.side = nn.Conv2d(1, 4, 1)
        self.both = nn.Conv2d(16, 16, 1)
        self.twice = nn.Conv2d(16, 16, 1)
        self.gate = nn.Linear(16, 16)
        self.slope = nn.PReLU(16)
        self.head = nn.Linear(16 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.grouped(self.depthwise(self.first(x)).relu()))
        y = torch.cat([y, self.side(x)], 1)
        y = self.both(y) + y
        y = self.twice(self.twice(y))
        y = y * self.gate(y.mean((2, 3)))[:, :, None, None].sigmoid()
        y = F.adaptive_avg_pool2d(self.slope(y), 2)
        return self.head(y.view(y.size(0), -1))


def test_groups_sums_and_concatenations_stay_consistent() -> None:
    model = Odd()
    channels = Channels.of(model, torch.randn(2, 1, 8, 8))
    for share in (0.5, 0.3):
        small, kept = channels.sliced(share)
        small(torch.randn(2, 1, 8, 8)).sum().backward()
        assert small.grouped.groups == 4
        assert small.depthwise.groups == small.first.out_channels == 4
        assert small.norm.num_channels == small.grouped.out_channels
        assert small.norm.num_groups == 2
        assert kept["head.weight"][0] is None
    assert channels.whole() == []


def test_a_channel_computes_the_same_from_the_same_channels() -> None:
    """With the channels that are left out at zero, the network computes what its slice does."""
    model = network("models.resnet.resnet8", {}, IMAGE).eval()
    small, _ = Channels.of(model).sliced(0.5)
    mask = {name: torch.zeros_like(t) for name, t in model.state_dict().items()}
    with torch.no_grad():
        _, kept = Channels.of(model).sliced(0.5)
        for name, tensor in model.state_dict().items():
            axes = kept.get(name)
            if axes is None:
                continue
            index = [
                np.arange(n) if a is None else a for n, a in zip(tensor.shape, axes, strict=True)
            ]
            mask[name][np.ix_(*index)] = 1
            if "running_var" not in name:
                tensor.mul_(mask[name])
    x = torch.randn(4, *IMAGE)
    torch.testing.assert_close(model(x), small.eval()(x), rtol=1e-4, atol=1e-5)


def test_smaller_slices_lie_within_larger_ones() -> None:
    channels = Channels.of(network("models.mobilenetv2.mobilenetv2", {"width": 0.5}, IMAGE))
    for small, large in itertools.pairwise((0.2, 0.5, 0.9)):
        narrow, kept = channels.sliced(small)
        wide, held = channels.sliced(large)
        for name, axes in within(held, kept).items():
            tensor = wide.state_dict()[name]
            for dim, axis in enumerate(axes):
                if axis is not None:
                    tensor = tensor.index_select(dim, torch.from_numpy(axis))
            assert torch.equal(tensor, narrow.state_dict()[name]), name


class Tied(nn.Module):
    """An embedding whose weight is also the head's."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 6)
        self.hidden, self.back = nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.back(self.hidden(self.tokens(x)).relu()))


def test_tied_weights_stay_whole() -> None:
    small, kept = Channels.of(Tied(), torch.zeros(2, 3, dtype=torch.int64)).sliced(0.5)
    assert small.head.weight is small.tokens.weight
    assert small.hidden.out_features == small.back.in_features == 4
    assert set(kept) == {"hidden.weight", "hidden.bias", "back.weight"}


def test_what_cannot_be_narrow_is_said() -> None:
    with pytest.raises(ValueError, match=r"submodel\.share: no layer of the network can have"):
        Channels.of(nn.Linear(4, 2), torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"submodel\.share: the network's input is not known"):
        Channels.of(nn.Linear(4, 2))
