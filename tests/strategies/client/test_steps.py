"""Quantizers' steps in training: bounded and positive whatever comes, and parameters that get no
gradient."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quant.layers import QuantSpec, quantize
from quant.quantizer import Quantizer, is_step
from strategies.client import training
from strategies.client.steps import MOST_CHANGE
from strategies.client.training import make_optimizer, train_epochs
from strategies.contract import ClientData, Streams

OPTIMIZERS = ("sgd", "adam", "adamw")
LocalTraining = partial(training.LocalTraining, epochs=1)
modest = settings(deadline=None, max_examples=40)


def network(bits: int = 4, per_channel: bool = False) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    return quantize(plain, QuantSpec(bits, bits, per_channel=per_channel))


def learned_steps(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if is_step(n) and p.requires_grad}


# How far a step goes ------------------------------------------------------------------------------

gradients = st.floats(-1e30, 1e30)


@modest
@given(
    optimizer=st.sampled_from(OPTIMIZERS),
    lr=st.floats(1e-6, 1e6),
    values=st.lists(gradients, min_size=1, max_size=6),
    per_channel=st.booleans(),
    decay=st.sampled_from([0.0, 0.5]),
)
def test_an_update_changes_a_step_by_a_tenth_at_most(optimizer, lr, values, per_channel, decay):
    model = network(per_channel=per_channel)
    model(torch.randn(8, 4))
    made = make_optimizer([model], LocalTraining(lr=lr, optimizer=optimizer, weight_decay=decay))
    steps = learned_steps(model)
    for value in values:
        before = {name: step.detach().clone() for name, step in steps.items()}
        for step in steps.values():
            step.grad = torch.full_like(step, value)
        made.step()
        for name, step in steps.items():
            ratio = step.detach() / before[name]
            assert (ratio <= MOST_CHANGE * (1 + 1e-6)).all()
            assert (ratio >= (1 - 1e-6) / MOST_CHANGE).all()
            if (
                optimizer == "sgd"
            ):  # against the gradient, and by all of the limit where it is large
                assert ((step.detach() - before[name]) * value <= 0).all()
                if abs(lr * value) > 1e3:
                    assert torch.allclose(ratio.log().abs(), torch.tensor(math.log(MOST_CHANGE)))


def test_a_small_update_of_sgd_has_no_momentum_but_its_rate_in_the_long_run():
    model = network()
    model(torch.randn(8, 4))
    made = make_optimizer([model], LocalTraining(lr=0.1, momentum=0.9))
    steps, weight = learned_steps(model), model[2].weight
    for step in steps.values():
        step.data.fill_(1.0)
    weight.data.fill_(1.0)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.01)
        made.step()
    for step in steps.values():
        assert float(step.detach()) == pytest.approx(1 - 3 * 1.0 * 0.01, rel=1e-6)
    velocity = 1 + (1 + 0.9) + (1 + 0.9 + 0.81)
    torch.testing.assert_close(weight.data, torch.full_like(weight, 1 - 0.1 * 0.01 * velocity))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_small_update_of_adam_is_its_rate(optimizer):
    model = network()
    model(torch.randn(8, 4))
    made = make_optimizer([model], LocalTraining(lr=1e-3, optimizer=optimizer, weight_decay=0.1))
    for step in learned_steps(model).values():
        step.data.fill_(1.0)
        step.grad = torch.full_like(step, -3.0)
    made.step()
    for step in learned_steps(model).values():
        assert float(step.detach()) == pytest.approx(1.001, rel=1e-5)


def test_a_runaway_gradient_is_forgotten_after_its_update():
    """With momentum, one gradient that is too large goes on for as long as momentum lasts."""
    model = network()
    model(torch.randn(8, 4))
    made = make_optimizer([model], LocalTraining(lr=0.1, momentum=0.9))
    step = model[2].weight_quantizer.step
    before = float(step.detach())
    for gradient in (-1e6, *[0.0] * 20):
        step.grad = torch.full_like(step, gradient)
        made.step()
    assert float(step.detach()) == pytest.approx(MOST_CHANGE * before, rel=1e-6)


# Parameters without a gradient --------------------------------------------------------------------


@modest
@given(
    optimizer=st.sampled_from(OPTIMIZERS),
    momentum=st.sampled_from([0.0, 0.9]),
    decay=st.sampled_from([0.0, 0.1]),
    has=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6),
)
def test_what_has_no_gradient_is_passed_over(optimizer, momentum, decay, has):
    """Against torch's own loop over parameters, for any order in which gradients first come."""
    torch.manual_seed(0)
    mine = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))
    theirs = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))
    theirs.load_state_dict(mine.state_dict())
    made = make_optimizer(
        [mine],
        LocalTraining(lr=0.1, optimizer=optimizer, momentum=momentum, weight_decay=decay),
    )
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if optimizer == "sgd":
        plain = torch.optim.SGD(theirs.parameters(), 0.1, momentum=momentum, weight_decay=decay,
                                foreach=False)  # fmt: skip
    else:
        plain = kinds[optimizer](theirs.parameters(), 0.1, weight_decay=decay, foreach=False)
    for pattern in has:
        for a, b, present in zip(mine.parameters(), theirs.parameters(), pattern, strict=True):
            a.grad = torch.randn_like(a) if present else None
            b.grad = None if a.grad is None else a.grad.clone()
        made.step()
        plain.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class ZeroHead(nn.Module):
    """Layers that begin with zeros: their steps are unset until an update has moved them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)
        nn.init.zeros_(self.b.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.a(x).relu()).relu().mean((2, 3)))


class Skipped(nn.Module):
    """Stochastic depth: a block that is skipped has no gradients in that step."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            keep = not self.training or bool(torch.rand(()) < 0.5)
            x = x + block(x).relu() if keep else x
        return self.head(x.mean((2, 3)))


def patterns(n: int = 256) -> ClientData:
    """Four classes: noise around a mean image."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 1, 8, 8, generator=generator)
    y = torch.randint(4, (n,), generator=generator)
    x = means[y] + 0.5 * torch.randn(n, 1, 8, 8, generator=generator)
    return ClientData(x=x, y=y, rows=torch.arange(n))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bits", [4, pytest.param(32, marks=pytest.mark.long)])
@pytest.mark.parametrize("make", [ZeroHead, Skipped])
def test_networks_with_late_gradients_learn(make, bits, optimizer):
    torch.manual_seed(0)
    plain = make()
    model = plain if bits == 32 else quantize(plain, QuantSpec())
    lr = 0.05 if optimizer == "sgd" else 0.01
    train = LocalTraining(lr=lr, optimizer=optimizer, momentum=0.9, epochs=24)
    data = patterns()
    train_epochs(model, data, train, Streams(0, 1, 0))
    model.eval()
    with torch.no_grad():
        loss = float(F.cross_entropy(model(data.x), data.y))
    assert loss < 0.6 * math.log(4)
    if make is ZeroHead:
        assert model.head.weight.abs().sum() > 0
        assert model.b.weight.abs().sum() > 0
    for module in model.modules():
        if isinstance(module, Quantizer):
            assert module.initialised
            assert (module.step > 0).all()
