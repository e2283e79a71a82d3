"""What networks that cost the same have in common, and that each is counted once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from models.cnn import CNN
from models.cost import cost
from models.structure import structure_of
from quant.layers import QuantSpec, quantize


def net(seed: int = 0) -> CNN:
    torch.manual_seed(seed)
    return CNN(1, 10)


def test_values_do_not_count() -> None:
    assert structure_of(net(0)) == structure_of(net(1)) is not None


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "an attribute": lambda model: setattr(next(convolutions(model)), "stride", (2, 2)),
    "a parameter that is frozen": lambda model: next(model.parameters()).requires_grad_(False),
    "a type": lambda model: model.double(),
    "a function": lambda model: setattr(model, "activation", lambda x: x),
    "a module": lambda model: model.add_module("more", nn.Identity()),
    "a mode": lambda model: model.eval(),
    "bits": lambda model: [setattr(m, "bits", 3) for m in model.modules() if hasattr(m, "bits")],
}


def convolutions(model: nn.Module) -> "filter[nn.Module]":
    return filter(lambda module: isinstance(module, nn.Conv2d), model.modules())


@pytest.mark.parametrize("what", CHANGES)
def test_all_else_does(what: str) -> None:
    one, other = (quantize(net(), QuantSpec(4, 4)) for _ in range(2))
    assert structure_of(one) == structure_of(other)
    CHANGES[what](other)
    assert structure_of(one) != structure_of(other)


def test_a_weight_that_is_shared_is_another_network() -> None:
    one, other = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))
    assert structure_of(one) == structure_of(other)
    other[1].weight = other[0].weight
    assert structure_of(one) != structure_of(other)


def test_a_class_that_is_written_anew_is_another() -> None:
    def written(body: str) -> nn.Module:
        names: dict[str, type[nn.Module]] = {}
        exec(
            f"class Net(nn.Module):\n    def forward(self, x):\n        return {body}",
            globals(),
            names,
        )
        return names["Net"]()

    one, other = written("x @ x.mT"), written("x @ x.mT @ x")
    assert structure_of(one) != structure_of(other)
    assert cost(one, (3, 4)).flops_forward < cost(other, (3, 4)).flops_forward


def test_what_cannot_be_described_is_counted_each_time() -> None:
    parametrized = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))
    assert structure_of(parametrized) is None
    assert cost(parametrized, (4,)) == cost(parametrized, (4,))


class Counts(nn.Module):
    """Says in a list of its class how often it ran."""

    def __init__(self, calls: list[int], reads: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.calls, self.reads = lambda: calls.append(0), reads

    def forward(self, x: Tensor) -> Tensor:
        self.calls()
        small = self.reads and float(self.layer.weight.sum()) < 0
        out: Tensor = self.layer(x if not small else self.layer(x))
        return out


def test_counted_once() -> None:
    calls: list[int] = []
    model = Counts(calls, reads=False)
    first = cost(model, (4,))
    ran = len(calls)
    assert ran and cost(model, (4,)) == first and len(calls) == ran
    assert cost(model, (2, 4)) != first, "at another input it costs something else"


def test_what_needs_values_is_counted_each_time() -> None:
    model = Counts([], reads=True)
    nn.init.constant_(model.layer.weight, 1.0)
    large = cost(model, (4,)).flops_forward
    nn.init.constant_(model.layer.weight, -1.0)
    assert cost(model, (4,)).flops_forward == 2 * large
