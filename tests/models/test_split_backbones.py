"""Every network of the project, cut at its own places: the parts train as the whole does.

`cut` trains copies of the parts and of the whole for two steps and refuses unless outputs,
gradients and buffers are equal in every bit; here it must not refuse, and a state must come apart
and together under the same names. The large networks are cut at a sample of their places, at all of
them by `make test-long`.
"""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from models.cnn import CNN
from models.densenet import densenet121, densenet201
from models.ecg1d import ecg1d
from models.inception_v3 import inception_v3
from models.lenet5 import LeNet5
from models.mobilenetv2 import mobilenetv2
from models.resnet import resnet8, resnet18, resnet50
from models.split import cut, cut_many, cut_points
from models.vgg import vgg16, vgg19
from quant.layers import QuantSpec, quantize

COLOUR = (3, 32, 32)
SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cnn": (CNN, (1, 28, 28)),
    "cnn batch": (lambda: CNN(norm="batch"), (1, 28, 28)),
    "lenet5": (LeNet5, (1, 28, 28)),
    "ecg1d": (lambda: ecg1d(convolutions=4), (1, 128)),
    "resnet8": (resnet8, COLOUR),
}
QUICK = ("resnet18", "vgg16")
LARGE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: resnet18(width=0.25), COLOUR),
    "resnet50": (lambda: resnet50(width=0.25), COLOUR),
    "vgg16": (lambda: vgg16(width=0.25), COLOUR),
    "vgg19": (lambda: vgg19(width=0.25), COLOUR),
    "mobilenetv2": (lambda: mobilenetv2(width=0.25), COLOUR),
    "densenet121": (lambda: densenet121(width=0.25), COLOUR),
    "densenet201": (lambda: densenet201(width=0.25), COLOUR),
    "inception_v3": (inception_v3, (3, 75, 75)),
}


def check_cuts(model: nn.Module, shape: tuple[int, ...], sample: int | None) -> None:
    torch.manual_seed(0)
    names = [point.name for point in cut_points(model, shape)]
    assert names
    if sample is not None:
        names = [names[i * (len(names) - 1) // (sample - 1)] for i in range(sample)]
    whole = model.state_dict()
    for name in dict.fromkeys(names):
        client, server = cut(model, name, shape)
        together = {**client.state_dict(), **server.state_dict()}
        assert together.keys() == whole.keys()
        assert all(torch.equal(together[key], whole[key]) for key in whole)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        pytest.param(name, bits, marks=pytest.mark.long if (number + bits // 32) % 2 else ())
        for number, name in enumerate(SMALL)
        for bits in (32, 4)
    ],
)
def test_every_cut_of_the_small(name: str, bits: int) -> None:
    make, shape = SMALL[name]
    model = quantize(make(), QuantSpec(bits, bits)).to(memory_format=torch.channels_last)
    check_cuts(model, shape, sample=None)


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in LARGE],
)
def test_some_cuts_of_the_large(name: str) -> None:
    make, shape = LARGE[name]
    check_cuts(make().to(memory_format=torch.channels_last), shape, sample=3)


@pytest.mark.long
@pytest.mark.parametrize("name", LARGE)
def test_every_cut_of_the_large(name: str) -> None:
    make, shape = LARGE[name]
    check_cuts(make().to(memory_format=torch.channels_last), shape, sample=None)


@pytest.mark.parametrize("name", SMALL)
def test_two_cuts(name: str) -> None:
    make, shape = SMALL[name]
    first, middle, last = cut_many(make(), ["stage1", "stage3"], shape)
    assert all(any(True for _ in part.parameters()) for part in (first, middle, last))
