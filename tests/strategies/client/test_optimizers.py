"""Optimizers against their formulas and torch's own, schedules over rounds, and clipping."""

import dataclasses
import math

import pytest
import torch
from conftest import small
from torch import nn

from app.config.composition import compose, relevant
from quant.layers import QuantSpec, quantize
from strategies.client.training import LocalTraining, make_optimizer, train_epochs
from strategies.contract import ClientData, Streams
from strategies.fedavg import FedAvg
from strategies.messages import unpack_settings


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def client(n: int = 24) -> ClientData:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 5, generator=g), torch.randint(3, (n,), generator=g)
    return ClientData(x, y, torch.arange(n))


OPTIMIZERS = [
    (
        LocalTraining(optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    (
        LocalTraining(optimizer="adam", lr=0.01, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.01),
    ),
    (
        LocalTraining(optimizer="adamw", lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    ),
]


@pytest.mark.parametrize(("settings", "make"), OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_a_round_is_torchs_own_loop(settings, make, clip_norm) -> None:
    settings = dataclasses.replace(settings, epochs=2, batch_size=8, clip_norm=clip_norm)
    mine, other, data = network(), network(), client()
    loss = train_epochs(mine, data, settings, Streams(0, 1, 0))
    optimizer, total = make(other.parameters()), 0.0
    generator = Streams(0, 1, 0).generator("batches")
    for _ in range(2):
        for chunk in torch.randperm(24, generator=generator).split(8):
            optimizer.zero_grad()
            value = nn.functional.cross_entropy(other(data.x[chunk]), data.y[chunk])
            value.backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(other.parameters(), clip_norm)
            optimizer.step()
            total += float(value.detach()) * 8
    assert loss == pytest.approx(total / 48, rel=1e-6)
    for one, two in zip(mine.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_nesterov_is_its_formula() -> None:
    """v = μv + g, w -= lr·(g + μv), of Sutskever et al. 2013 in torch's form."""
    layer = nn.Linear(1, 1, bias=False)
    w, v = float(layer.weight), 0.0
    optimizer = make_optimizer([layer], LocalTraining(lr=0.1, momentum=0.5, nesterov=True))
    for gradient in (1.0, -2.0, 0.5):
        layer.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        v = 0.5 * v + gradient
        w -= 0.1 * (gradient + 0.5 * v)
    assert float(layer.weight) == pytest.approx(w, rel=1e-5)


def test_clipping_is_over_all_that_one_side_trains() -> None:
    """Steps of quantizers among it; each side of a cut by itself."""
    model = quantize(network(), QuantSpec(4, 4))
    settings = LocalTraining(lr=1.0, momentum=0.0, clip_norm=0.25)
    optimizer = make_optimizer([model], settings)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    assert norm == pytest.approx(0.25, rel=1e-4)
    small_gradient = torch.full((4, 5), 1e-3)
    layer = nn.Linear(5, 4, bias=False)
    layer.weight.grad = small_gradient.clone()
    make_optimizer([layer], settings).step()
    assert torch.equal(layer.weight.grad, small_gradient)


def test_rates_follow_torchs_cosine() -> None:
    settings = LocalTraining(lr=0.3, server_lr=0.6, schedule="cosine").resolved(7)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
    for number in range(1, 8):
        found = settings.in_round(number)
        assert found.lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        assert found.server_lr == pytest.approx(2 * found.lr)
        optimizer.step()
        schedule.step()
    assert 0 < settings.in_round(20).server_lr < 1e-8  # type: ignore[operator]


def test_rates_rise_then_follow_the_schedule() -> None:
    warm = LocalTraining(lr=1.0, warmup_rounds=3, lr_decay=0.5)
    shares = [warm.share_of_rate(number) for number in range(1, 7)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert warm.in_round(2).lr == pytest.approx(0.5 * 0.5)
    both = LocalTraining(schedule="cosine", warmup_rounds=2).resolved(6)
    shares = [both.share_of_rate(number) for number in range(1, 7)]
    cosine = [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    assert shares == pytest.approx([1 / 3, 2 / 3, *cosine])
    assert LocalTraining(schedule="cosine", warmup_rounds=1).resolved(1).share_of_rate(1) == 0.5
    with pytest.raises(ValueError, match=r"^train\.decay_rounds=null: takes the number of rounds"):
        LocalTraining(schedule="cosine").in_round(1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.schedule=step", "train.schedule=step: takes constant, cosine"),
        ("train.clip_norm=0", "train.clip_norm=0.0: takes a finite number above 0"),
        ("train.warmup_rounds=-1", "train.warmup_rounds=-1: takes 0 or more"),
        ("train.decay_rounds=0", "train.decay_rounds=0: takes 1 or more"),
        ("train.nesterov=true train.momentum=0", "train.nesterov=true: takes train.momentum above"),
        (
            "train.schedule=cosine train.warmup_rounds=9 rounds=4",
            "train.warmup_rounds=9: takes at most the 4 rounds of train.decay_rounds",
        ),
    ],
)
def test_settings_that_cannot_be(override: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        compose(override.split())
    assert str(caught.value).startswith(message)


def test_keys_are_part_of_what_they_change_alone() -> None:
    plain = small("strategy=fedavg")
    assert small("strategy=fedavg", "train.decay_rounds=5").hash == plain.hash
    adam = small("strategy=fedavg", "train.optimizer=adam")
    assert small("strategy=fedavg", "train.optimizer=adam", "train.nesterov=true").hash == adam.hash
    changed = ("train.nesterov=true", "train.clip_norm=1", "train.warmup_rounds=1",
               "train.schedule=cosine", "task.loss=multi_margin")  # fmt: skip
    hashes = {small("strategy=fedavg", one).hash for one in changed}
    assert len(hashes | {plain.hash}) == len(changed) + 1
    assert small("strategy=fedavg", "task.loss=cross_entropy").hash == plain.hash
    # What null stands for: another number of rounds is another schedule.
    cosine = relevant(compose(["train.schedule=cosine", "rounds=9"]), ())
    assert cosine["train.decay_rounds"] == 9


def test_clients_are_told_the_rate_of_the_round() -> None:
    strategy = FedAvg(train=LocalTraining(lr=0.4, warmup_rounds=1, clip_norm=2.0))
    told = [strategy.client_settings(number) for number in (1, 2)]
    assert [one["train.lr"] for one in told] == pytest.approx([0.2, 0.4])
    assert unpack_settings(told[0], "train", LocalTraining).clip_norm == 2.0
