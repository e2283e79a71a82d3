"""The fleet in whole runs: what is planned is what happens, and who is left out has no part."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import cut_network, phases_of, rounds, simulate, small, works_of
from safetensors.numpy import load_file
from test_conformance import CASES, some_always

from app import build_fleet as fleets
from app import experiment
from app.config.composition import compose
from app.jobs import Jobs
from fleet.clock import parallel
from fleet.devices import tables
from fleet.traces import match
from strategies.client.training import LocalTraining, batch_sizes, batches


def clients(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]


def prepared(*overrides):
    config = small(*overrides)
    strategy = experiment.strategy(config)
    experiment.prepare(config, strategy)
    return strategy


@pytest.mark.parametrize(("strategy", "overrides"), list(some_always(CASES, 9)))
def test_bytes_planned_from_shapes_are_those_that_cross(strategy, overrides, tmp_path) -> None:
    chosen = (f"strategy={strategy}", *overrides, "data.partition=dirichlet")
    simulate(tmp_path, *chosen)
    works = works_of(prepared(*chosen))
    for row in [row for row in clients(tmp_path) if row["round"] == 1]:  # shapes may change later
        total = works[row["partition"]].total()
        assert (row["bytes_up"], row["bytes_down"]) == (total.bytes_up, total.bytes_down)


@pytest.mark.parametrize("num", [1, 2, 15, 16, 17, 33, 49])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("max_batches", [None, 3])
def test_batch_sizes_are_those_of_the_batches(num, batch_size, max_batches) -> None:
    import torch

    settings = LocalTraining(epochs=2, batch_size=batch_size, max_batches=max_batches)
    found = [len(rows) for rows in batches(torch.arange(num), settings, torch.Generator())]
    assert found == batch_sizes(num, settings)
    assert sum(found) == 2 * num or max_batches


def test_a_round_by_hand(tmp_path) -> None:
    """Two ideal clients of 32 samples, two batches, 64 → 8 → 6 → 10 cut after the first layer."""
    chosen = (
        "model._target_=tests.strategies.test_split_methods.TwoParts", "clients.total=2",
        "data.max_train=64", "rounds=1",
    )  # fmt: skip
    simulate(tmp_path / "split", "strategy=splitfed_v1", *chosen)
    (record,) = rounds(tmp_path / "split")
    device, server = tables().device("ideal"), tables().device("server")
    half, rest = 64 * 8, 8 * 6 + 6 * 10
    flops = 32 * (2 * half + 2 * half)  # forward, and the gradient of the weights alone
    served = 32 * 3 * 2 * rest
    sent = 2 * 4 * (half + 8) + 32 * (2 * 4 * 8 + 1)  # weights twice, z and its gradient, labels
    seconds = flops / device.speed("fp32") + 2 * served / server.speed("fp32") + sent * 8 / 100e6
    assert record["sim_s"] == pytest.approx(seconds, rel=0.02)  # memory traffic is the rest
    simulate(tmp_path / "whole", "strategy=fedavg", *chosen)
    (record,) = rounds(tmp_path / "whole")
    sent = 2 * 4 * (half + 8 + rest + 16)
    seconds = (flops + served) / device.speed("fp32") + sent * 8 / 100e6
    assert record["sim_s"] == pytest.approx(seconds, rel=0.05)


@pytest.mark.parametrize("strategy", ["fedavg", "splitfed_v2", "splitfed_v3", "split"])
def test_who_is_late_has_no_part(strategy, tmp_path) -> None:
    """A run with a deadline equals one in which the late ones were never drawn."""
    chosen = (f"strategy={strategy}", "fleet=mobile", "clients.total=8", "rounds=1")
    free = prepared(*chosen)
    turns = free.method.schedule.rule(list(phases_of(free).values()), float("inf"))
    ends = sorted(turn.end_s for turn in turns)
    deadline = (ends[2] + ends[3]) / 2
    simulate(tmp_path, *chosen, f"fleet.deadline_s={deadline}")
    (record,) = rounds(tmp_path)
    statuses = {row["partition"]: row["status"] for row in clients(tmp_path)}
    took_part = {p for p, status in statuses.items() if status == "ok"}
    assert 0 < len(took_part) < 8
    assert set(statuses.values()) == {"ok", "late"}
    assert record["num_clients"] == len(took_part)
    assert record["num_dropped"] == 8 - len(took_part)
    assert record["sim_s"] == pytest.approx(deadline)
    for row in clients(tmp_path):
        is_ok = row["status"] == "ok"
        assert (row["bytes_up"] > 0) == is_ok == (row["sim_s"] is not None)
        assert ("deadline" in (row["reason"] or "")) != is_ok


def test_dropping_all_leaves_the_model_and_says_so(tmp_path, caplog) -> None:
    simulate(tmp_path, "strategy=fedavg", "fleet.availability=0.0", "rounds=2")
    assert "no client took part in any round: the model is the initial one" in caplog.text
    before = experiment.network(small("strategy=fedavg")).state_dict()
    after = load_file(tmp_path / "model.safetensors")
    assert all(np.array_equal(after[name], tensor.numpy()) for name, tensor in before.items())
    for record in rounds(tmp_path):
        assert (record["num_clients"], record["num_dropped"], record["bytes_up"]) == (0, 6, 0)
        assert record["train_loss"] is None
    assert {row["status"] for row in clients(tmp_path)} == {"absent"}


def test_availability_changes_from_round_to_round(tmp_path) -> None:
    simulate(tmp_path, "strategy=splitfed_v1", "fleet.availability=0.5", "rounds=4")
    there = [
        {
            row["partition"]
            for row in clients(tmp_path)
            if row["round"] == r and row["status"] == "ok"
        }
        for r in range(1, 5)
    ]
    assert len({frozenset(one) for one in there}) > 1
    assert all(record["num_dropped"] + record["num_clients"] == 6 for record in rounds(tmp_path))


class InTurns:
    """Half of the clients are there in even tenths of simulated seconds, the others in odd ones."""

    def absence(self, partition, server_round, now_s, seed):
        return None if (int(now_s * 10) + partition) % 2 else "its time is over"


def test_a_continued_run_goes_on_at_its_simulated_time(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fleets, "_availability", lambda *drawn: InTurns())
    chosen = ("strategy=fedavg", "fleet=iot", "evaluate.every=9")
    simulate(tmp_path / "whole", *chosen, "rounds=5")
    simulate(tmp_path / "grown", *chosen, "rounds=3")
    simulate(tmp_path / "grown", *chosen, "rounds=5", "resume=true")
    rows = [row for row in clients(tmp_path / "whole") if row["status"] == "ok"]
    assert len({frozenset(r["partition"] for r in rows if r["round"] == n) for n in (4, 5)}) == 2
    assert clients(tmp_path / "whole") == clients(tmp_path / "grown")


def test_over_selection_takes_the_first(tmp_path) -> None:
    chosen = ("strategy=fedavg", "fleet=mobile", "clients.total=12", "clients.per_round=4")
    summary = simulate(tmp_path / "over", *chosen, "fleet.over_select=2")
    plain = simulate(tmp_path / "plain", *chosen)
    assert summary["total_sim_s"] < plain["total_sim_s"]
    record = rounds(tmp_path / "over")[0]
    assert (record["num_clients"], record["num_dropped"]) == (4, 4)
    assert {row["status"] for row in clients(tmp_path / "over")} == {"ok", "surplus"}


NARROW = ("prune.schedule=fixed", "prune.ratio=0.9375")
AUTO = [
    ("splitfed_v1", ()), ("splitfed_v2", ()), ("ushaped", ()), ("deprune", NARROW),
    ("binarized_split", ()), ("hierarchical", ()),
]  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "own"),
    [
        pytest.param(*row, id=row[0], marks=pytest.mark.long if i % 2 else ())
        for i, row in enumerate(AUTO)
    ],
)
def test_auto_is_no_slower_than_any_single_cut(strategy, own) -> None:
    def seconds(cut: str) -> float:
        method = prepared(
            f"strategy={strategy}", *own, "fleet=mobile", "clients.total=12", f"split.cut={cut}"
        )
        turns = method.method.schedule.rule(list(phases_of(method).values()), float("inf"))
        return max(turn.end_s for turn in turns if turn is not None)

    best = seconds("auto")
    for cut in ("stage1", "stage2", "stage2.conv", "stage3.conv"):
        assert best <= seconds(cut) * (1 + 1e-9)


def test_auto_by_joules_and_for_classes(tmp_path) -> None:
    chosen = ("strategy=splitfed_v1", "fleet=mobile", "clients.total=12", "rounds=1")
    by = {
        objective: simulate(
            tmp_path / objective, *chosen, "split.cut=auto", f"fleet.objective={objective}"
        )
        for objective in ("seconds", "joules")
    }
    assert by["joules"]["total_energy_j"] <= by["seconds"]["total_energy_j"]
    method = prepared(*chosen, "split.cut={phone_low:stage1,default:stage3}")
    for partition in range(12):
        is_low = method.rounds.fleet.clients[partition].device.name == "phone_low"
        assert cut_network(method).place(partition).split.cut == ("stage1" if is_low else "stage3")


def test_a_device_that_does_not_fit(tmp_path, monkeypatch) -> None:
    """Left out with the reason; where no device fits, nothing begins."""
    strategy = prepared("strategy=fedavg", "fleet=mobile", "clients.total=12")
    need = next(iter(phases_of(strategy).values())).peak_bytes
    original = fleets.make

    def cramped(drawn, largest):
        made = original(*drawn)
        for partition, client in made.clients.items():
            small_device = client.device.__class__(
                **{**vars(client.device), "memory_bytes": need - 1 if partition < largest else 1e12}
            )
            made.clients[partition] = client.__class__(small_device, client.link)
        return made

    monkeypatch.setattr(fleets, "make", lambda *drawn: cramped(drawn, 3))
    simulate(tmp_path, "strategy=fedavg", "rounds=1")
    rows = clients(tmp_path)
    assert [row["partition"] for row in rows if row["status"] == "unfit"] == [0, 1, 2]
    assert "MiB" in rows[0]["reason"]
    monkeypatch.setattr(fleets, "make", lambda *drawn: cramped(drawn, 100))
    with pytest.raises(ValueError, match=r"fleet: training needs .* MiB, and no client has more"):
        Jobs().check(["strategy=fedavg"], is_sweep=False)


def test_quantized_devices_are_faster_only_as_far_as_the_table_says() -> None:
    def seconds(*overrides: str) -> float:
        method = prepared("fleet=mobile", "clients.total=2", *overrides)
        (turn,) = parallel([next(iter(phases_of(method).values()))])
        return turn.end_s

    full = seconds("strategy=oqfl", "quant.bits=32")
    four, eight = (seconds("strategy=oqfl", f"quant.bits={b}") for b in (4, 8))
    assert four == pytest.approx(eight, rel=0.01)  # int4 is no faster than int8 in the tables
    assert four < full


def test_what_cannot_be(tmp_path) -> None:
    bad = tmp_path / "capacity.pickle"
    bad.write_bytes(pickle.dumps({"1": {"computation": 10.0}}))
    for overrides, message in (
        (
            ["fleet.deadline_s=1e-9"],
            r"fleet\.deadline_s=1e-09: no client can meet the deadline; the fastest",
        ),
        (["fleet.deadline_s=0"], r"fleet\.deadline_s=0\.0: takes a positive number"),
        (["fleet.availability=often"], r"fleet\.availability=often: takes always, a probability"),
        (["fleet.availability=1.5"], r"fleet\.availability=1\.5: takes a probability"),
        (["fleet.over_select=0.5"], r"fleet\.over_select=0\.5: takes a factor of 1 or more"),
        (["fleet.jitter=-1"], r"fleet\.jitter=-1\.0: takes"),
        (["fleet.objective=money"], r"fleet\.objective=money: takes seconds, joules"),
        (["fleet=trace"], r"fleet=trace: takes either fleet\.population or fleet\.capacity"),
        (["fleet=trace", "fleet.capacity=/nowhere"], r"fleet\.capacity=/nowhere: no such file"),
        (["fleet=trace", f"fleet.capacity={bad}"], r"capacity\.pickle.*communication"),
        (
            ["split.cut={phone_huge:stage1,default:stage2}"],
            r"split\.cut\.phone_huge: takes as keys",
        ),
        (["split.cut={0:auto,default:stage2}"], r"split\.cut\.0=auto: auto is for all"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            Jobs().check(["strategy=splitfed_v1", *overrides], is_sweep=False)


def test_a_trace(tmp_path) -> None:
    """Devices from FedScale's file, drawn by seed."""
    file = tmp_path / "capacity.pickle"
    rows = {str(i): {"computation": 20.0 * (i + 1), "communication": 5000.0} for i in range(5)}
    file.write_bytes(pickle.dumps(rows))
    chosen = ("strategy=fedavg", "fleet=trace", f"fleet.capacity={file}")
    simulate(tmp_path / "run", *chosen, "rounds=1")
    found = clients(tmp_path / "run")
    assert [row["status"] for row in found] == ["ok"] * 6
    names = match(list(rows), range(6), 0, by_id=False)
    times = [row["sim_s"] for row in sorted(found, key=lambda row: names[row["partition"]])]
    assert times == sorted(times)
    assert len(set(times)) == len(set(names.values()))
    assert compose(["fleet=uniform"]).fleet.population == "uniform"
