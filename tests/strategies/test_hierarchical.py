"""Hierarchical training: nothing comes back, each side trains plainly, rounds without network."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    FAULTS,
    assert_same_arrays,
    assert_same_run,
    cut_network,
    rounds,
    settings_of,
    simulate,
    small,
)
from safetensors.numpy import load_file
from torch import Tensor, nn

from app import build_fleet, experiment
from app.jobs import Jobs
from fleet.devices import tables
from fleet.outages import Outage
from fleet.seeds import draw_uniform
from quant.codec import LinkSettings
from quant.link import End
from strategies import hierarchical, messages
from strategies.client.simulated import train_simulated
from strategies.client.tiers import train_tiers
from strategies.client.training import LocalTraining, samples, train_epochs
from strategies.contract import Streams, Task
from strategies.messages import ROUND
from strategies.server.aggregation import mean
from strategies.server.half import LocalHalf
from tests.strategies.test_split_methods import DEVICE, NETWORK, SAMPLES

STRATEGY = "strategy=hierarchical"
RESIDUAL = "model._target_=tests.test_identities.Residual"  # dropout and batch norm
NETWORKS = [
    pytest.param((RESIDUAL, "split.cut=stage2+relu+dropout+add"), id="dropout, batch norm"),
    pytest.param(("model=cnn", "split.cut=stage2", "strategy.exit_width=8"), id="a wide exit"),
]
EXIT = (8 * 10 + 10) * 4  # bytes of the exit of TwoParts


class Client:
    """One client's half of a small experiment, to be trained as the app does."""

    def __init__(self, *overrides: str) -> None:
        self.config = small(STRATEGY, *overrides)
        self.server = experiment.strategy(self.config)
        state = experiment.prepare(self.config, self.server).state_dict()
        self.arrays = {name: tensor.clone() for name, tensor in state.items()}
        self.network = cut_network(self.server)
        self.device_names = self.network.only().names
        self.settings = settings_of(self.server)

    def train(self, arrays: dict[str, Tensor], partition: int = 0, server_round: int = 1):
        settings = {**self.settings, ROUND: server_round}
        client = hierarchical.Hierarchical.client
        model = client.prepare(experiment.network(self.config), settings)
        data = experiment.client_data(self.config, partition)
        task = Task(settings, Streams(0, server_round, partition), len(data))
        update = train_simulated(client, model, arrays, data, task)
        return update, {name: tensor.clone() for name, tensor in update.arrays.items()}

    def edge(self) -> nn.Sequential:
        """What the device has without network."""
        tiers = hierarchical.tiers_in(self.network, self.arrays)
        return nn.Sequential(tiers.halves.device[0], tiers.exit)

    def order(self, chosen: Sequence[int], server_round: int) -> list[int]:
        return self.server.method.schedule.order(chosen, 0, server_round)

    def on_device(self, name: str) -> bool:
        return name in self.device_names


# Nothing comes back -------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_the_cloud_cannot_be_felt_on_the_device(network, monkeypatch) -> None:
    """Whatever its weights, its loss, or its absence: the device's arrays stay the same in bits."""
    client = Client(*network)
    update, plain = client.train(client.arrays)
    assert update.bytes_down == 0 < update.bytes_up
    other = {
        name: tensor if client.on_device(name) or not tensor.is_floating_point()
        else tensor + torch.rand_like(tensor)
        for name, tensor in client.arrays.items()
    }  # fmt: skip
    _, randomised = client.train(other)
    learn = LocalHalf.learn
    monkeypatch.setattr(LocalHalf, "learn", lambda self, z, y: learn(self, z, (y + 3) % 10))
    _, misled = client.train(client.arrays)
    monkeypatch.undo()
    client.settings[messages.ALONE] = True
    _, alone = client.train(client.arrays)
    for found in (randomised, misled, alone):
        for name, tensor in plain.items():
            if client.on_device(name):
                assert torch.equal(found[name], tensor), name
    cloud = [name for name in plain if not client.on_device(name)]
    assert any(not torch.equal(misled[name], plain[name]) for name in cloud)
    assert not alone.keys() & set(cloud)


def test_activations_go_up_without_a_graph() -> None:
    seen = []

    class Watching(LocalHalf):
        def learn(self, z, y):
            seen.append(z.values.requires_grad)
            super().learn(z, y)
            seen.append(z.values.grad is not None)

    client = Client("model=cnn", "split.cut=stage2")
    tiers = hierarchical.tiers_in(client.network, client.arrays)
    device, part = tiers.halves.parts
    settings, link = LocalTraining(batch_size=16), LinkSettings()
    data = experiment.client_data(client.config, 0)
    cloud = Watching(part, settings, End.of_server(link))
    task = Task({}, Streams(0, 1, 0), len(data))
    train_tiers(device, tiers.exit, cloud, End.of_device(link), data, settings, task)
    assert seen and not any(seen)
    assert cloud.bytes_sent == 0


@pytest.mark.parametrize("up", ["fp32", "int8"])
def test_bytes_by_hand(up, tmp_path: Path) -> None:
    simulate(tmp_path, STRATEGY, NETWORK, f"link.up={up}")
    sent = 8 * 4 * SAMPLES if up == "fp32" else 8 * SAMPLES + 3 * 8
    for line in (tmp_path / "clients.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["bytes_up"] == DEVICE + EXIT + sent + SAMPLES
        assert row["bytes_down"] == DEVICE + EXIT
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["cut_bytes_down_per_sample"] == 0
    assert summary["client_params"] * 4 == DEVICE + EXIT


# Each side is a plain training --------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_the_edge_is_a_plain_training_of_device_and_exit(network) -> None:
    client = Client(*network, "train.epochs=2")
    update, found = client.train(client.arrays)
    edge = client.edge()
    settings = client.config.train
    data = experiment.client_data(client.config, 0)
    loss = train_epochs(edge, data, settings, Streams(0, 1, 0))
    device, head = edge
    plain = {**device.state_dict(), **{f"exit.{n}": t for n, t in head.state_dict().items()}}
    assert plain.keys() == client.device_names
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
    assert update.metrics["edge_loss"] == loss


@pytest.mark.parametrize("network", NETWORKS)
def test_the_cloud_is_a_plain_training_on_what_it_gets(network) -> None:
    """Its data are the activations that the device makes as it trains."""
    client = Client(*network, "train.server_lr=0.03")
    update, found = client.train(client.arrays)
    tiers = hierarchical.tiers_in(client.network, client.arrays)
    device, part = (copy.deepcopy(half) for half in tiers.halves.parts)
    edge = nn.Sequential(device, tiers.exit).train()
    settings, streams = client.config.train, Streams(0, 1, 0)
    data, sent = experiment.client_data(client.config, 0), []
    streams.seed_dropout()
    optimizer = torch.optim.SGD(edge.parameters(), settings.lr, momentum=0.9)
    for x, y in samples(data, settings, streams):
        z = device(x)
        sent.append((z.detach().clone(), y))
        optimizer.zero_grad()
        F.cross_entropy(tiers.exit(z), y).backward()
        optimizer.step()
    torch.default_generator.set_state(streams.generator("dropout.cloud").get_state())
    optimizer, total = torch.optim.SGD(part.train().parameters(), 0.03, momentum=0.9), 0.0
    for z, y in sent:
        optimizer.zero_grad()
        loss = F.cross_entropy(part(z), y)
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(y)
    for name, tensor in part.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    assert update.loss == pytest.approx(total / len(data), rel=1e-5)


# Many devices -------------------------------------------------------------------------------------


def test_a_shared_cloud_goes_from_client_to_client_and_devices_are_averaged(tmp_path) -> None:
    chosen = ("model=cnn", "rounds=1", "clients.total=3", "data.partition=dirichlet")
    simulate(tmp_path, STRATEGY, *chosen)
    client = Client(*chosen)
    current, devices, sizes = client.arrays, {}, {}
    for partition in client.order([0, 1, 2], 1):
        update, state = client.train(current, partition)
        devices[partition], sizes[partition] = state, update.num_examples
        current = {n: t if client.on_device(n) else state[n] for n, t in current.items()}
    saved = load_file(tmp_path / "model.safetensors")
    for name, tensor in current.items():
        expected = tensor.numpy()
        if client.on_device(name):
            each = [devices[p][name].numpy() for p in range(3)]
            expected = mean(each, [sizes[p] for p in range(3)]).astype(np.float32)
        assert np.array_equal(saved[name], expected), name


def test_replicas_of_the_cloud_are_averaged_with_the_devices(tmp_path) -> None:
    chosen = (
        "model=cnn", "rounds=1", "clients.total=3", "data.partition=dirichlet",
        "strategy.server_half=replicated",
    )  # fmt: skip
    simulate(tmp_path, STRATEGY, *chosen)
    client = Client(*chosen)
    updates = [client.train(client.arrays, p) for p in range(3)]
    saved = load_file(tmp_path / "model.safetensors")
    for name in client.arrays:
        each = [state[name].numpy() for _, state in updates]
        sizes = [update.num_examples for update, _ in updates]
        assert np.array_equal(saved[name], mean(each, sizes).astype(np.float32)), name


def test_with_one_client_shared_and_replicated_are_the_same(tmp_path) -> None:
    chosen = (STRATEGY, RESIDUAL, "clients.total=1")
    simulate(tmp_path / "shared", *chosen)
    simulate(tmp_path / "replicated", *chosen, "strategy.server_half=replicated")
    assert_same_run(tmp_path / "shared", tmp_path / "replicated")


# Without network ----------------------------------------------------------------------------------


def test_one_device_trains_on_as_if_nothing_had_happened(tmp_path) -> None:
    """After rounds without network its half and exit are those of a run that had it always."""
    chosen = (STRATEGY, "clients.total=1", "rounds=5")
    simulate(tmp_path / "always", *chosen)
    simulate(tmp_path / "lost", *chosen, "strategy.outage=[2,3]")
    always, lost = (load_file(tmp_path / run / "model.safetensors") for run in ("always", "lost"))
    names = Client("clients.total=1").device_names
    for name, array in always.items():
        assert np.array_equal(lost[name], array) == (name in names), name
    here, now = rounds(tmp_path / "always"), rounds(tmp_path / "lost")
    assert [row["link_cut"] for row in now] == [0, 1, 1, 0, 0]
    assert "link_cut" not in here[0]
    for one, other in zip(here, now, strict=True):
        assert one["edge_train_loss"] == other["edge_train_loss"]
        edge = "alone_accuracy" if other["link_cut"] else "edge_accuracy"
        assert one["edge_accuracy"] == other[edge]
        if other["link_cut"]:
            assert (other["bytes_up"], other["bytes_down"]) == (0, 0)
            assert other["train_loss"] == other["edge_train_loss"]
            assert 0 < other["sim_s"] < one["sim_s"]
    for key in ("accuracy", "edge_accuracy", "edge_loss"):  # the global model's, which stays
        assert [row[key] for row in now[1:3]] == [now[0][key]] * 2


def test_many_devices_keep_their_halves_until_the_network_is_back(tmp_path) -> None:
    chosen = ("model=cnn", "clients.total=3", "clients.per_round=2", "strategy.outage=[2]")
    simulate(tmp_path / "1", STRATEGY, *chosen, "rounds=1")
    simulate(tmp_path / "2", STRATEGY, *chosen, "rounds=2")
    before, after = (load_file(tmp_path / run / "model.safetensors") for run in "12")
    assert_same_arrays(before, after)  # nothing reached the server
    client = Client(*chosen)
    chosen_now = sorted(
        row["partition"]
        for row in map(json.loads, (tmp_path / "2" / "clients.jsonl").open())
        if row["round"] == 2
    )
    own = load_file(tmp_path / "2" / "checkpoint" / "000002" / "strategy.safetensors")
    assert {int(key.split("/")[0]) for key in own} == set(chosen_now)
    start = {name: torch.from_numpy(array) for name, array in before.items()}
    client.settings[messages.ALONE] = True
    for partition in chosen_now:
        _, state = client.train(start, partition, 2)
        for name in client.device_names:
            assert np.array_equal(own[f"{partition}/{name}"], state[name].numpy())


def there(server_round: int, num: int = 1) -> set[int]:
    """Whom ``fleet.availability=0.5`` finds in a round."""
    draws = {p: draw_uniform(0, "availability", server_round, p) for p in range(num)}
    return {partition for partition, draw in draws.items() if draw < 0.5}


def clients(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]


def test_a_device_that_comes_and_goes_trains_in_every_round(tmp_path) -> None:
    chosen = (STRATEGY, "clients.total=1", "rounds=6")
    simulate(tmp_path / "always", *chosen)
    simulate(tmp_path / "half", *chosen, "fleet.availability=0.5")
    always, half = (rounds(tmp_path / run) for run in ("always", "half"))
    cut = [not there(r) for r in range(1, 7)]
    assert [row["link_cut"] for row in half] == cut
    assert 0 < sum(cut) < 6
    for one, other in zip(always, half, strict=True):
        assert (other["num_clients"], other["num_dropped"]) == (1, 0)
        assert one["edge_train_loss"] == other["edge_train_loss"]
        if other["link_cut"]:
            assert (other["bytes_up"], other["bytes_down"]) == (0, 0)
            assert 0 < other["sim_s"] < one["sim_s"]
            assert other["alone_accuracy"] == one["edge_accuracy"]
        else:
            assert (other["bytes_up"], other["sim_s"]) == (one["bytes_up"], one["sim_s"])
            assert "alone_accuracy" not in other
            for key in ("edge_accuracy", "edge_loss"):
                assert one[key] == other[key]
    expected = ["alone" if is_cut else "ok" for is_cut in cut]
    assert [row["status"] for row in clients(tmp_path / "half")] == expected


@pytest.mark.parametrize("server_half", ["shared", "replicated"])
def test_who_is_cut_off_in_a_round_by_hand(server_half, tmp_path) -> None:
    """The cloud and the average know the others alone; whoever is cut off trains from its own."""
    chosen = ("model=cnn", "clients.total=3", f"strategy.server_half={server_half}")
    simulate(tmp_path, STRATEGY, *chosen, "fleet.availability=0.5", "rounds=3")
    client = Client(*chosen)
    current, own = client.arrays, {}
    for server_round in (1, 2, 3):
        linked, begun = there(server_round, 3), current
        cut = set(range(3)) - linked
        states, clouds = {}, []
        for p in client.order(range(3), server_round):
            client.settings[messages.ALONE] = p in cut
            base = begun if server_half == "replicated" or p in cut else current
            _, states[p] = client.train(base | own.get(p, {}), p, server_round)
            if p in linked:
                clouds.append(states[p])
                current = {n: t if client.on_device(n) else states[p][n] for n, t in base.items()}
        for name in current:
            if client.on_device(name) or server_half == "replicated":
                each = [states[p][name].numpy() for p in sorted(linked)]
                averaged = mean(each, [80] * len(each)).astype(each[0].dtype)
                current[name] = torch.from_numpy(averaged)
        alone = {p: {n: t for n, t in states[p].items() if client.on_device(n)} for p in cut}
        own = {p: half for p, half in own.items() if p not in linked} | alone
    assert_same_arrays(
        load_file(tmp_path / "model.safetensors"), {n: t.numpy() for n, t in current.items()}
    )
    kept = load_file(tmp_path / "checkpoint" / "000003" / "strategy.safetensors")
    assert {int(key.split("/")[0]) for key in kept} == {2}
    expected = {f"{p}/{n}": t.numpy() for p, half in own.items() for n, t in half.items()}
    assert_same_arrays(kept, expected)
    rows = rounds(tmp_path)
    assert [row["link_cut"] for row in rows] == [1 / 3, 0, 1 / 3]
    for row in clients(tmp_path):
        is_cut = row["partition"] not in there(row["round"], 3)
        assert (row["status"], row["bytes_up"] == row["bytes_down"] == 0) == (
            "alone" if is_cut else "ok", is_cut,
        )  # fmt: skip
        assert ("available in 50%" in (row["reason"] or "")) == is_cut


def test_availability_cuts_links_the_same_on_ray(ray_simulator, tmp_path) -> None:
    chosen = (STRATEGY, "clients.total=4", "fleet.availability=diurnal", "fleet=mobile")
    simulate(tmp_path / "serial", *chosen)
    on_ray = ("engine=ray", "engine.workers=2")
    simulate(tmp_path / "ray", *chosen, *on_ray, simulator=ray_simulator)
    assert_same_run(tmp_path / "serial", tmp_path / "ray")
    assert {row["status"] for row in clients(tmp_path / "ray")} == {"ok", "alone"}


LOST = ["strategy.outage=[2,3]", pytest.param("fleet.availability=0.5", marks=pytest.mark.long)]


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("server_half", ["shared", "replicated"])
def test_a_run_continued_within_an_outage(server_half, lost, tmp_path) -> None:
    chosen = (
        STRATEGY, "clients.total=4", "clients.per_round=3", lost,
        f"strategy.server_half={server_half}",
    )  # fmt: skip
    simulate(tmp_path / "whole", *chosen, "rounds=5")
    simulate(tmp_path / "grown", *chosen, "rounds=2")
    simulate(tmp_path / "grown", *chosen, "rounds=5", "resume=true")
    assert_same_run(tmp_path / "whole", tmp_path / "grown")


def test_outages_are_drawn_by_the_seed() -> None:
    outage = Outage(0.3)
    drawn = [outage.is_now(0, r) for r in range(1, 1001)]
    assert 250 < sum(drawn) < 350
    assert drawn == [outage.is_now(0, r) for r in range(1, 1001)]
    assert drawn != [outage.is_now(1, r) for r in range(1, 1001)]
    assert [r for r in range(1, 20) if Outage.of([1, 11]).is_now(0, r)] == [1, 11]
    assert not any(Outage.of(0).is_now(0, r) for r in range(100))
    assert all(Outage.of(1).is_now(0, r) for r in range(100))


# Failures -----------------------------------------------------------------------------------------


@pytest.fixture
def faults():
    yield lambda text: FAULTS.write_text(text)
    FAULTS.write_text("")


@pytest.mark.parametrize("outage", ["[]", "[1]"])
@pytest.mark.parametrize("server_half", ["shared", "replicated"])
def test_who_fails_has_no_part(server_half, outage, faults, tmp_path) -> None:
    """The run equals one in which those clients were not drawn, with and without network."""
    chosen = (
        STRATEGY, "strategy._target_=tests.strategies.faulty_hierarchical.Faulty", "rounds=2",
        f"strategy.server_half={server_half}", f"strategy.outage={outage}",
    )  # fmt: skip
    faults("1 late\n4 late")
    simulate(tmp_path / "faulty", *chosen)
    faults("1 skip\n4 skip")
    simulate(tmp_path / "absent", *chosen)
    assert_same_arrays(
        load_file(tmp_path / "faulty" / "model.safetensors"),
        load_file(tmp_path / "absent" / "model.safetensors"),
    )
    assert [row["num_failed"] for row in rounds(tmp_path / "faulty")] == [2, 2]


@pytest.mark.parametrize("outage", ["[]", "[1]"])
def test_all_clients_failing_ends_the_run(outage, faults, tmp_path) -> None:
    faults("\n".join(f"{partition} late" for partition in range(6)))
    target = "strategy._target_=tests.strategies.faulty_hierarchical.Faulty"
    with pytest.raises(RuntimeError, match="all 6 clients failed; ArithmeticError"):
        simulate(tmp_path, STRATEGY, target, f"strategy.outage={outage}")


@pytest.mark.parametrize("server_half", ["shared", "replicated"])
def test_those_without_network_train_on_when_all_the_others_fail(
    server_half, faults, tmp_path
) -> None:
    linked = there(1, 6)
    assert 0 < len(linked) < 6
    faults("\n".join(f"{partition} late" for partition in linked))
    chosen = (
        STRATEGY, "strategy._target_=tests.strategies.faulty_hierarchical.Faulty", "rounds=1",
        "fleet.availability=0.5", f"strategy.server_half={server_half}",
    )  # fmt: skip
    simulate(tmp_path, *chosen)
    status = {row["partition"]: row["status"] for row in clients(tmp_path)}
    assert status == {p: "failed" if p in linked else "alone" for p in range(6)}
    start, end = Client().arrays, load_file(tmp_path / "model.safetensors")
    assert all(np.array_equal(end[name], start[name].numpy()) for name in end)


def test_nobody_there_is_no_failure(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(build_fleet, "_clients", lambda *drawn: {})
    simulate(tmp_path / "run", STRATEGY, "strategy.outage=[2]")
    found = [(row["num_clients"], row["link_cut"]) for row in rounds(tmp_path / "run")]
    assert found == [(0, 0), (0, 0)]


# The clock ----------------------------------------------------------------------------------------


def test_a_round_by_hand(tmp_path) -> None:
    """down + batches · (forward + max(exit and backward, upload + cloud)) + up."""
    simulate(tmp_path, STRATEGY, NETWORK, "clients.total=1", "data.max_train=64", "rounds=1")
    (record,) = rounds(tmp_path)
    device, cloud = tables().device("ideal"), tables().device("server")
    half, head, rest = 64 * 8, 8 * 10, 8 * 6 + 6 * 10  # multiply-adds
    size, speed = 16, device.speed("fp32")
    forward = size * 2 * half / speed
    after = size * (3 * 2 * head + 2 * half) / speed  # the exit's three, the weights' gradient
    upload = size * (8 * 4 + 1) * 8 / 100e6
    served = size * 2 * (2 * rest + 6 * 10) / cloud.speed("fp32")  # no gradient of z
    model = 4 * (half + 8 + head + 10) * 8 / 100e6
    expected = 2 * model + 4 * (forward + max(after, upload + served))
    assert upload > after
    assert record["sim_s"] == pytest.approx(expected, rel=0.02)  # the cloud's memory is the rest
    simulate(
        tmp_path / "pipelined", STRATEGY, NETWORK, "clients.total=1", "data.max_train=64",
        "rounds=1", "strategy.pipelined=true",
    )  # fmt: skip
    (ahead,) = rounds(tmp_path / "pipelined")
    expected = model + forward + 4 * upload + max(model, served)  # the uplink is never idle
    assert ahead["sim_s"] == pytest.approx(expected, rel=0.02)
    assert {**ahead, "sim_s": 0, "energy_j": 0} == {**record, "sim_s": 0, "energy_j": 0}


def test_pipelined_is_a_yes_or_no() -> None:
    with pytest.raises(ValueError, match=r"strategy\.pipelined=2: takes true or false"):
        Jobs().check([STRATEGY, "strategy.pipelined=2"], is_sweep=False)


@pytest.mark.parametrize("cut", ["stage1.conv", "stage2.conv"])
def test_a_cut_before_group_norm(cut, tmp_path) -> None:
    """There torch 2.13 crashes, in channels_last, unless somebody asks for the gradient."""
    simulate(tmp_path, STRATEGY, f"split.cut={cut}", "rounds=1")
    assert rounds(tmp_path)[0]["num_failed"] == 0


# What cannot be -----------------------------------------------------------------------------------


class HasExit(nn.Module):
    """A network that has something called exit."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
        self.exit = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.exit(self.stage1(x).relu())
        return logits


def test_names_do_not_collide(tmp_path) -> None:
    target = "model._target_=tests.strategies.test_hierarchical.HasExit"
    simulate(tmp_path, STRATEGY, target, "rounds=1")
    saved = load_file(tmp_path / "model.safetensors")
    assert {"exit.weight", "exit_.linear.weight"} <= saved.keys()


ERRORS = [
    ("strategy.server_half=both", r"strategy\.server_half=both: takes shared, replicated"),
    ("strategy.exit_width=1", r"strategy\.exit_width=1: takes 0, or 2 or more"),
    ("strategy.exit_width=x", r"strategy\.exit_width=x: takes 0, or 2 or more"),
    ("strategy.outage=1.5", r"strategy\.outage=1\.5: takes a probability in \[0, 1\], or a list"),
    ("strategy.outage=[0]", r"strategy\.outage=\[0\]: takes"),
    ("strategy.outage=[1.5]", r"strategy\.outage=\[1\.5\]: takes"),
    ("strategy.outage=true", r"strategy\.outage=True: takes"),
    ("strategy.outage=often", r"strategy\.outage=often: takes"),
    ("split.cut={default:stage1}", r"split\.cut: a mapping needs"),
]


@pytest.mark.parametrize(("override", "message"), ERRORS)
def test_what_cannot_be(override, message) -> None:
    with pytest.raises(ValueError, match=message):
        Jobs().check([STRATEGY, "clients.total=3", override], is_sweep=False)


def test_prepare_comes_first() -> None:
    with pytest.raises(RuntimeError, match=r"needs prepare\(\)"):
        hierarchical.Hierarchical().prepared()
