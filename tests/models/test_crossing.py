"""What crosses a cut back: autograd does on both sides what it does in the whole."""

import pytest
import torch
from torch import Tensor, nn

from models.crossing import answer, receive
from models.mobilenetv2 import mobilenetv2
from models.split import cut

SHAPE = (3, 32, 32)


@pytest.mark.parametrize("at", ["features.15", "features.16"])
def test_gradients_are_summed_in_place_where_the_whole_does(at: str) -> None:
    """Two uses of what crosses, of 1×1 pixels, whose gradients come with unlike strides."""
    model = mobilenetv2(input_shape=SHAPE, stem="imagenet").to(memory_format=torch.channels_last)
    cut(model, at, SHAPE)


def test_the_gradient_is_given_once_and_held_by_nobody() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    z = x * 2
    received, gradients = receive(z)
    assert received.requires_grad
    (received.square().sum() + received.sum()).backward()
    (gradient,) = gradients
    assert torch.equal(gradient, 2 * received + 1)
    del gradient
    answer(z, gradients).backward()
    assert gradients == []
    assert torch.equal(x.grad, 2 * (2 * z.detach() + 1))


def test_losses_add_up_with_what_comes_back() -> None:
    layer, x = nn.Linear(3, 3), torch.randn(4, 3)

    def gradient(both: bool) -> Tensor:
        layer.zero_grad()
        z = layer(x)
        if both:
            (z.sum() + z.square().sum()).backward()
        else:
            torch.autograd.backward([answer(z, [torch.ones(4, 3)]), z.square().sum()])
        return layer.weight.grad.clone()

    assert torch.allclose(gradient(True), gradient(False))
