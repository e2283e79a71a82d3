"""LeNet-5: the classic sizes, other sizes, names, and what it refuses."""

import pytest
import torch

from models.lenet5 import LeNet5


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_classic_parameters_layer_by_layer():
    model = LeNet5()
    sizes = {name: count(child) for name, child in model.named_children()}
    assert sizes == {"stage1": 156, "stage2": 2416, "stage3": 48_120, "stage4": 10_164, "head": 850}
    assert count(model) == 61_706


def test_names():
    layers = ["stage1.conv", "stage2.conv", "stage3.linear", "stage4.linear", "head"]
    expected = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert list(LeNet5().state_dict()) == expected


@pytest.mark.parametrize("size", [(12, 12), (13, 15), (28, 28), (32, 32), (12, 40)])
def test_sized_by_the_input(size):
    model = LeNet5(3, 7, (3, *size))
    assert model(torch.randn(2, 3, *size)).shape == (2, 7)
    height, width = ((side // 2 - 4) // 2 for side in size)
    assert model.stage2(model.stage1(torch.zeros(1, 3, *size))).shape == (1, 16, height, width)
    convolutions = 3 * 6 * 25 + 6 + 6 * 16 * 25 + 16
    linear = (16 * height * width + 1) * 120 + 121 * 84 + 85 * 7
    assert count(model) == convolutions + linear


@pytest.mark.parametrize("shape", [(1, 11, 12), (1, 12, 11), (1, 8, 8), (1, 28), (1, 28, 28, 28)])
def test_small_images_are_refused(shape):
    by = "×".join(map(str, shape))
    with pytest.raises(ValueError, match=f"^lenet5 takes images of at least 12×12, got {by}$"):
        LeNet5(input_shape=shape)
