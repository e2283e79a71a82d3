"""Weights quantized at once are those that the layers' own quantizers give, in every bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.cnn import CNN
from models.lenet5 import LeNet5
from quant.at_once import at_once
from quant.layers import QuantSpec, quantize
from quant.modules import Weighted


class Skips(nn.Module):
    """Passes over its second layer where the first input is negative, and calls one twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(torch.relu(self.first(x))))
        if self.training and x[0, 0] > 0:
            h = torch.relu(self.second(h))
        result: Tensor = self.last(h)
        return result


NETWORKS = {
    "cnn": (lambda: CNN(input_shape=(1, 8, 8)).to(memory_format=torch.channels_last), (1, 8, 8)),
    "lenet5": (lambda: LeNet5(), (1, 28, 28)),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, 3)),
        None,
    ),
}
SPECS = [
    QuantSpec(),
    QuantSpec(weight_bits=2, act_bits=32),
    QuantSpec(per_channel=True),
    QuantSpec(learn_step=False),
]


def steps(model: nn.Module, run: nn.Module, shape: tuple[int, ...] | None) -> list[float]:
    """Losses of a few training steps."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(4):
        if shape is None:
            x = torch.randint(5, (6, 3), generator=generator)
        else:
            x = torch.randn(6, *shape, generator=generator)
        loss = F.cross_entropy(run(x), torch.arange(6) % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_bit_is_equal(name: str, spec: QuantSpec) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    one = quantize(make(), spec).train()
    other = copy.deepcopy(one)
    assert steps(one, one, shape) == steps(other, at_once(other), shape)
    for (key, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert not any(Weighted.READY in layer.__dict__ for layer in other.modules())


def test_a_layer_that_was_not_called_gets_no_gradient() -> None:
    torch.manual_seed(0)
    model = quantize(Skips(), QuantSpec()).train()
    x = -torch.rand(2, 4)
    at_once(model)(x).sum().backward()
    assert model.second.weight.grad is None
    assert model.second.weight_quantizer.step.grad is None
    assert model.first.weight.grad.abs().sum() > 0
    at_once(model)(-x).sum().backward()
    assert model.second.weight.grad is not None


def test_a_layer_called_twice_gets_the_sum() -> None:
    torch.manual_seed(0)
    model = quantize(Skips(), QuantSpec()).train()
    x = -torch.rand(2, 4)
    model(x)  # sets the steps of the activations
    grads = []
    for run in (model, at_once(model)):
        model.zero_grad()
        run(x).square().sum().backward()
        grads.append([model.first.weight.grad, model.first.weight_quantizer.step.grad])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_a_weight_of_zeros_whose_step_is_not_set_is_left_to_its_layer() -> None:
    model = quantize(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), QuantSpec()).train()
    with torch.no_grad():
        model[0].weight_quantizer.initialised.fill_(False)
        model[0].weight_quantizer.step.fill_(1.0)
    at_once(model)(torch.randn(2, 3)).sum().backward()
    assert model[0].weight_quantizer.is_set
    assert model[0].weight_quantizer.step != 1


def test_an_error_leaves_nothing_behind() -> None:
    model = quantize(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), QuantSpec()).train()
    with pytest.raises(RuntimeError):
        at_once(model)(torch.randn(2, 5))
    assert not any(Weighted.READY in layer.__dict__ for layer in model.modules())


def test_a_network_without_quantizers_is_called_as_it_is() -> None:
    model = nn.Linear(3, 3)
    assert at_once(model) is model


def test_whether_a_step_is_set_is_read_anew_after_each_write() -> None:
    """It is not read from the tensor each time: on a GPU that would wait for all that runs."""
    quantizer = quantize(nn.Linear(3, 3), QuantSpec()).input_quantizer
    assert not quantizer.is_set
    copied = copy.deepcopy(quantizer)
    quantizer(torch.ones(2, 3))
    assert quantizer.is_set and not copied.is_set
    other = copy.deepcopy(quantizer)
    assert other.is_set
    quantizer.load_state_dict(copied.state_dict())
    assert not quantizer.is_set and other.is_set
    with torch.inference_mode():
        assert not copy.deepcopy(quantizer).is_set
