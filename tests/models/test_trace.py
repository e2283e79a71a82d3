"""What the tracer follows, and what it keeps whole instead of getting it wrong."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.split import cut, cut_points, kept_whole
from models.trace import trace

SHAPE = (6, 8)


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.a, self.inner, self.b = nn.Linear(8, 8), inner, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.inner(self.a(x))).mean(1)


class Loop(nn.Module):
    """Over a size, with numbers of all kinds."""

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, width = x.shape
        outputs = [x[:, t] * float(t + 1) / math.sqrt(width) for t in range(steps)]
        x = torch.stack(outputs, 1).view(batch, *x.shape[1:])
        if x.dim() == 3 and x.size(-1) % 2 == 0 and x.dtype == torch.float32:
            x = x.reshape(batch, steps, int(width / 2), 2).flip(-1).flatten(2)
        assert len(x.shape) == 3
        return x


class Made(nn.Module):
    """Tensors made in the forward, of sizes that are known there, and overwritten."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((x.size(1), x.size(1)), -1.0)
        mask[0] = 2.0
        mask += torch.eye(x.size(1))
        rest = torch.zeros(x.size(0), 1, 8)
        rest[:, :, ::2] = 1
        return mask @ x + rest * torch.finfo(x.dtype).eps


class Aliased(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        view = x[:, 0]
        view += 1
        view *= 3
        return x


class BatchSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 4 else x


class BatchLoop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([sample.sin() for sample in x])


class Count(nn.Module):
    """A size that depends on values, though two examples may have the same."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if (x > -1e9).nonzero().shape[1] == 3 else x


class Masked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x[x > -1e9].dim() == 1 else x


class Value(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x


class Assigned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        x.data = x.data * 2
        return x


class Device(nn.Module):
    """A part may move to another device than it was traced on."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.device.type == "cpu" else x


class NumpyRoot(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / np.sqrt(x.size(-1))


def same(model: nn.Module) -> None:
    for point in cut_points(model, SHAPE):
        client, server = cut(model, point.name, SHAPE)
        for batch in (2, 3, 7):
            x = torch.randn(batch, *SHAPE)
            assert torch.equal(server(client(x)), model(x))


@pytest.mark.parametrize("inner", [Loop, Made, Aliased], ids=lambda inner: inner.__name__)
def test_followed(inner: type[nn.Module]) -> None:
    model = Wrapped(inner())
    assert kept_whole(model, SHAPE) == {}
    same(model)


@pytest.mark.parametrize(
    ("inner", "why"),
    [
        (BatchSize, "control flow on the size of the batch"),
        (BatchLoop, "a loop over the batch"),
        (Count, "control flow on the values of a tensor"),
        (Masked, "control flow on the values of a tensor"),
        (Value, "control flow on the values of a tensor"),
        (Device, "control flow on the device of a tensor"),
        (Assigned, "assigns .data of a tensor"),
        (NumpyRoot, ""),
    ],
)
def test_kept_whole(inner: type[nn.Module], why: str) -> None:
    model = Wrapped(inner())
    assert kept_whole(model, SHAPE)["inner"].startswith(why)
    same(model)


def test_without_an_example_sizes_are_not_followed() -> None:
    traced = trace(Wrapped(Loop()), training=True)
    assert traced.kept_whole["inner"].startswith("control flow on what comes in")
    x = torch.randn(2, *SHAPE)
    assert trace(Wrapped(Loop()), training=True, example=x).kept_whole == {}


def test_no_cut_points_says_what_crosses_everywhere() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) * x

    with pytest.raises(ValueError, match="has no cut points; after 'a': 2 values would cross: inp"):
        kept_whole(Twice(), SHAPE)
