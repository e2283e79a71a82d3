"""Which networks lie in channels_last."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torch import nn

from models.build import build
from models.memory_format import in_best_format, overflowing
from models.slices import Channels

RESNET = "models.resnet.resnet8"


def in_channels_last(model: nn.Module) -> bool:
    weights = [p for p in model.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
    assert weights
    found = {p.is_contiguous(memory_format=torch.channels_last) for p in weights}
    assert len(found) == 1
    return found.pop()


class Narrow(nn.Module):
    """A shortcut over few channels."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3)
        self.shortcut = nn.Conv2d(channels, 6, 1, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.shortcut(self.stem(x)).mean((2, 3)))
        return output


@pytest.mark.parametrize(("channels", "is_last"), [(4, False), (7, False), (8, True)])
def test_a_narrow_shortcut_keeps_torchs_order(channels: int, is_last: bool) -> None:
    model = build(f"{__name__}.Narrow", {"channels": channels}, (3, 16, 16), 5, 0)
    assert in_channels_last(model) == is_last
    assert overflowing(model) == ([] if is_last else ["shortcut"])


def test_so_does_a_narrow_slice() -> None:
    model = build(RESNET, {}, (3, 16, 16), 5, 0)
    channels = Channels.of(model)
    assert in_channels_last(channels.sliced(0.5)[0])
    assert not in_channels_last(channels.sliced(0.25)[0])
    assert in_channels_last(model)


def test_values_stay() -> None:
    model = Narrow().to(memory_format=torch.channels_last)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    in_best_format(model)
    assert not in_channels_last(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])


TRAIN = """
import torch
from torch import nn
from models.memory_format import in_best_format
for channels, stride in ((1, 2), (4, 3), (7, (1, 2)), (8, 2), (20, 2)):
    net = in_best_format(nn.Conv2d(channels, 13, 1, stride=stride))
    x = torch.randn(2, channels, 24, 24, requires_grad=True)
    for _ in range(40):
        net(x).square().sum().backward()
        kept = [torch.randn(size) for size in (1, 3, 4, 7, 8, 13, 16, 64)]
"""


def test_what_is_called_safe_trains() -> None:
    """In a process of its own, which what is not safe would end on some processors."""
    done = subprocess.run([sys.executable, "-c", TRAIN], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
