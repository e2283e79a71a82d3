"""The small convolutional network: sizes, names, and what it refuses."""

import pytest
import torch
from torch import nn

from models.cnn import CNN


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def by_hand(in_channels, num_classes, w):
    """Convolutions without bias, two values a channel for the normalisation, a linear layer."""
    convolutions = 9 * (in_channels * w + w * 2 * w + 2 * w * 4 * w)
    return convolutions + 2 * (w + 2 * w + 4 * w) + 4 * w * num_classes + num_classes


def test_parameters_of_the_docstring():
    assert count(CNN()) == 24_058


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize(
    ("in_channels", "num_classes", "width"), [(1, 10, 16), (3, 7, 4), (2, 2, 32)]
)
def test_parameters_by_hand(in_channels, num_classes, width, norm):
    model = CNN(in_channels, num_classes, (in_channels, 9, 9), width, norm)
    assert count(model) == by_hand(in_channels, num_classes, width)


def test_names():
    model = CNN()
    assert [name for name, _ in model.named_children()] == ["stage1", "stage2", "stage3", "head"]
    stage = ["conv.weight", "norm.weight", "norm.bias"]
    expected = [f"stage{i}.{name}" for i in (1, 2, 3) for name in stage]
    assert list(model.state_dict()) == [*expected, "head.linear.weight", "head.linear.bias"]


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (8, 8), (28, 28), (4, 31)])
def test_shapes_after_each_stage(size):
    model = CNN(2, 6, (2, *size), width=8)
    x = torch.randn(3, 2, *size)
    half, quarter = ([side // by for side in size] for by in (2, 4))
    for stage, shape in (
        (model.stage1, (3, 8, *half)),
        (model.stage2, (3, 16, *quarter)),
        (model.stage3, (3, 32, *quarter)),
        (model.head, (3, 6)),
    ):
        x = stage(x)
        assert x.shape == shape


def test_group_norm_does_not_mix_samples_nor_keep_statistics():
    model = CNN(width=4).double().train()
    assert not list(model.buffers())
    x = torch.randn(5, 1, 12, 12, dtype=torch.float64)
    together, alone = model(x), torch.cat([model(sample[None]) for sample in x])
    torch.testing.assert_close(together, alone)


def test_batch_norm_keeps_statistics():
    model = CNN(norm="batch")
    assert {name.rpartition(".")[2] for name, _ in model.named_buffers()} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    assert not any(isinstance(module, nn.GroupNorm) for module in model.modules())


def test_learns_to_tell_two_patterns_apart():
    torch.manual_seed(0)
    model = CNN(1, 2, (1, 8, 8), width=4)
    y = torch.arange(32) % 2
    x = torch.randn(32, 1, 8, 8)
    x[y == 1, :, ::2] += 1.5  # stripes
    optimizer = torch.optim.SGD(model.parameters(), 0.2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.9


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 8, 3), (1, 8), (8,), (1, 8, 8, 8)])
def test_small_images_are_refused(shape):
    by = "×".join(map(str, shape))
    with pytest.raises(ValueError, match=f"^cnn takes images of at least 4×4, got {by}$"):
        CNN(input_shape=shape)


@pytest.mark.parametrize("width", [-4, 0, 1, 6, 15])
def test_width_is_a_positive_multiple_of_four(width):
    with pytest.raises(ValueError, match=rf"^model\.width={width}: "):
        CNN(width=width)


@pytest.mark.parametrize("norm", ["layer", "", "Group", None])
def test_norm_names_its_key(norm):
    with pytest.raises(ValueError, match=rf"^model\.norm={norm}: takes group, batch$"):
        CNN(norm=norm)
