"""FedProx: the proximal term's gradient, the loop with it, and whole runs."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same_run, rounds, simulate, small
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedProx
from safetensors.numpy import load_file
from torch import nn

from app import experiment
from app.config.composition import compose, config_hash
from models.cnn import CNN
from quant.layers import QuantSpec, quantize
from quant.quantizer import is_step
from strategies import messages
from strategies.client.proximal import Proximal
from strategies.client.training import (
    LocalTraining,
    batches,
    make_optimizer,
    train_epochs,
)
from strategies.contract import ClientData, Streams
from strategies.fedavg import FedAvg
from strategies.server.aggregation import AveragingSettings

STREAMS = Streams(0, 1, 2)


def data(n=23, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return ClientData(
        x=torch.randn(64, 1, 8, 8, generator=generator, dtype=dtype),
        y=torch.randint(10, (64,), generator=generator),
        rows=torch.randperm(64, generator=generator)[:n],
    )


def network(norm="group", seed=0):
    torch.manual_seed(seed)
    return CNN(input_shape=(1, 8, 8), width=4, norm=norm)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# The gradient -------------------------------------------------------------------------------------


def test_gradient_is_that_of_the_term_by_differences():
    """Of loss + μ/2·‖w − w⁰‖², in float64, coordinate by coordinate."""
    torch.manual_seed(0)
    mu, h = 0.3, 1e-6
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    start = copy.deepcopy(model)
    proximal = Proximal(model, mu)
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p)

    def objective():
        term = sum(
            ((p - q) ** 2).sum()
            for p, q in zip(model.parameters(), start.parameters(), strict=True)
        )
        return F.cross_entropy(model(x), y) + mu / 2 * term

    F.cross_entropy(model(x), y).backward()
    proximal.add_gradient()
    for p in model.parameters():
        for i in range(p.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    p.view(-1)[i] += sign * h
                    values.append(float(objective()))
                    p.view(-1)[i] -= sign * h
            by_differences = (values[0] - values[1]) / (2 * h)
            assert float(p.grad.view(-1)[i]) == pytest.approx(by_differences, abs=1e-7)


def test_gradient_is_the_formula_exactly():
    model = network()
    proximal, start = Proximal(model, 0.5), [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p += 1
            p.grad = torch.full_like(p, 2.0)
    proximal.add_gradient()
    for p, w0 in zip(model.parameters(), start, strict=True):
        assert torch.equal(p.grad, 2 + 0.5 * (p.detach() - w0))


def test_at_the_start_it_adds_nothing():
    model = network()
    proximal = Proximal(model, 10.0)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    before = [p.grad.clone() for p in model.parameters()]
    proximal.add_gradient()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


def test_steps_and_what_does_not_train_are_left_out():
    model = quantize(network(), QuantSpec(weight_bits=4, act_bits=4))
    model.head.linear.bias.requires_grad_(False)
    names = {id(p): name for name, p in model.named_parameters()}
    held = {names[id(p)] for p in Proximal(model, 0.1).parameters}
    assert held == {
        name for name in names.values() if not is_step(name) and name != "head.linear.bias"
    }
    assert any(is_step(name) for name in names.values())


def test_a_parameter_without_a_gradient_keeps_none():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    proximal = Proximal(model, 0.1)
    proximal.add_gradient()
    assert all(p.grad is None for p in model.parameters())
    model[0](torch.ones(1, 2)).sum().backward()
    proximal.add_gradient()
    assert model[1].weight.grad is None


# The loop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_loop_equals_one_through_autograd(optimizer, norm):
    """Weights, and the loss that is reported: of the data alone."""
    mu, mine = 0.7, data(41, torch.float64)
    settings = LocalTraining(
        epochs=3, batch_size=8, lr=0.01, optimizer=optimizer, momentum=0.9, weight_decay=0.01
    )
    model = network(norm).double()
    twin, start = copy.deepcopy(model).train(), flat(model)
    loss = train_epochs(model, mine, settings, STREAMS, mu)
    other, losses = make_optimizer([twin], settings), []
    for rows in batches(mine.rows, settings, STREAMS.generator("batches")):
        alone = F.cross_entropy(twin(mine.x[rows]), mine.y[rows])
        parameters = torch.cat([p.flatten() for p in twin.parameters()])
        other.zero_grad()
        (alone + mu / 2 * ((parameters - start) ** 2).sum()).backward()
        other.step()
        losses += [float(alone.detach())] * len(rows)
    torch.testing.assert_close(flat(model), flat(twin), rtol=1e-9, atol=1e-11)
    assert loss == pytest.approx(np.mean(losses), rel=1e-6)


def test_zero_is_the_loop_without_it_bit_for_bit():
    settings = LocalTraining(epochs=2, batch_size=8, lr=0.05, momentum=0.9)
    one, other = network(), network()
    assert train_epochs(one, data(), settings, STREAMS) == train_epochs(
        other, data(), settings, STREAMS, 0.0
    )
    assert torch.equal(flat(one), flat(other))


def test_the_larger_the_nearer():
    distances = []
    for mu in (0.0, 0.1, 1.0, 10.0):
        model = network()
        start = flat(model)
        settings = LocalTraining(epochs=5, batch_size=8, lr=0.05)
        train_epochs(model, data(), settings, STREAMS, mu)
        distances.append(float((flat(model) - start).norm()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.3 * distances[0]


# The message --------------------------------------------------------------------------------------


def test_mu_travels_under_flower_s_name_and_only_where_there_is_one():
    assert "proximal-mu" not in FedAvg().client_settings()
    config = FedAvg(averaging=AveragingSettings(proximal_mu=0.25)).client_settings()
    assert messages.proximal_mu(config) == config["proximal-mu"] == 0.25
    assert messages.proximal_mu(FedAvg().client_settings()) == 0
    theirs, nodes = ConfigRecord(), type("Nodes", (), {"get_node_ids": lambda self: range(0)})()
    strategy = FedProx(proximal_mu=0.25, fraction_train=0.0)
    strategy.configure_train(1, ArrayRecord(), theirs, nodes)
    assert messages.proximal_mu(theirs) == 0.25


@pytest.mark.parametrize("strategy", ["fedavg", "oqfl"])
def test_whole_runs(strategy: str, tmp_path: Path):
    common = (f"strategy={strategy}", "clients.total=3", "data.max_train=96", "train.epochs=2")
    simulate(tmp_path / "plain", *common)
    simulate(tmp_path / "zero", *common, "strategy.proximal_mu=0")
    simulate(tmp_path / "one", *common, "strategy.proximal_mu=1")
    assert_same_run(tmp_path / "plain", tmp_path / "zero")
    config = small(*common)
    start = experiment.prepare(config, experiment.strategy(config)).state_dict()
    ends = {name: load_file(tmp_path / name / "model.safetensors") for name in ("plain", "one")}
    moved = {
        run: sum(((end[n] - start[n].numpy()) ** 2).sum() for n in end if n.endswith("weight"))
        for run, end in ends.items()
    }
    assert 0 < moved["one"] < 0.9 * moved["plain"]
    for row, other in zip(rounds(tmp_path / "plain"), rounds(tmp_path / "one"), strict=True):
        assert row["bytes_up"] == other["bytes_up"]
        assert row["bytes_down"] == other["bytes_down"]


@pytest.mark.parametrize("value", ["-0.1", "inf", "nan", "true", "much", "null"])
def test_wrong_values_are_one_line(value: str):
    with pytest.raises(ValueError, match=r"^strategy\.proximal_mu=\S+: takes 0 or more, and fini"):
        compose([f"strategy.proximal_mu={value}"])


def test_it_is_part_of_the_experiment():
    plain, held = (compose(["strategy=fedavg", f"strategy.proximal_mu={mu}"]) for mu in (0.0, 0.1))
    assert config_hash(plain, ()) != config_hash(held, ())
    with pytest.raises(ValueError, match=r"strategy\.proximal_mu=-1"):
        AveragingSettings(proximal_mu=-1)
