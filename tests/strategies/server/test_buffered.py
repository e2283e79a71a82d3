"""schedule=buffered: identities, a run replayed by hand, resume, and what it refuses."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import assert_same_arrays, assert_same_run, rounds, simulate, small
from safetensors.numpy import load_file

from app import experiment
from app.engine import SerialGrid, Simulator
from fleet.flights import Flight
from quant.quantizer import initialised_flag
from strategies import messages
from strategies.server.buffered import BroughtUp, flights_of, in_turn
from strategies.server.checkpoint import Checkpoints
from strategies.server.method import ServerState
from strategies.server.schedule_settings import ScheduleSettings
from tests.plain_clients import Memory, add_to_each, client_app

ALL = ("schedule=buffered", "schedule.buffer=1.0", "schedule.concurrency=1.0")
UNEQUAL = ("schedule=buffered", "fleet=mobile", "schedule.buffer=2", "schedule.concurrency=4")
OWN = ("staleness_mean", "staleness_max", "in_flight", "left", "stale")
METHODS = [
    ("strategy=fedavg", "strategy.server_optimizer=fedadam", "strategy.server_learning_rate=0.01"),
    ("strategy=fedavg", "strategy.proximal_mu=0.1", "model.norm=batch"),
    ("strategy=oqfl",),
    ("strategy=oqfl", "quant.wire=codes_both"),
    ("strategy=splitfed_v1", "split.cut=stage2", "link.up=int8"),
    ("strategy=splitfed_v3",),
    ("strategy=ushaped",),
    ("strategy=binarized_split", "strategy.base=splitfed_v1"),
    ("strategy=deprune", "strategy.base=splitfed_v1", "prune.rounds=3"),
    ("strategy=prune", "prune.rounds=2", "prune.pretrain_rounds=1"),
    ("strategy=hierarchical", "strategy.server_half=replicated"),
    ("strategy=oqfl", "quant.wire=updates"),
]
# With one server part for all: the order is that of arrival, which no round has.
QUEUED = [
    ("strategy=splitfed_v2", "link.up=int8", "fleet.selection=fastest"),
    ("strategy=binarized_split", "strategy.base=splitfed_v2"),
    ("strategy=deprune", "strategy.base=splitfed_v2", "prune.rounds=3"),
    ("strategy=prune", "strategy.base=splitfed_v2", "prune.rounds=2", "prune.pretrain_rounds=1"),
]


def some_long(*short: int, methods: list[tuple[str, ...]] = METHODS) -> list[Any]:
    """All methods, of which a few are always tested."""
    return [
        pytest.param(method, id=name_of(method), marks=() if i in short else pytest.mark.long)
        for i, method in enumerate(methods)
    ]


def name_of(method: tuple[str, ...]) -> str:
    return ",".join(part.partition("=")[2] for part in method)


def clients(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]


def without(rows: list[dict[str, Any]], names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in names} for row in rows]


# Identities ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", some_long(0, 2, 4))
def test_a_buffer_of_all_is_the_synchronous_method(method: tuple[str, ...], tmp_path: Path) -> None:
    chosen = (*method, "rounds=3", "data.partition=dirichlet", "fleet.jitter=0")
    simulate(tmp_path / "sync", *chosen)
    simulate(tmp_path / "buffered", *chosen, *ALL)
    sync, buffered = (rounds(tmp_path / name) for name in ("sync", "buffered"))
    # Clients with more samples take longer: the clock of a round is that of the slowest either way.
    assert [row["accuracy"] for row in sync] == [row["accuracy"] for row in buffered]
    same = ("train_loss", "num_clients", "bytes_up", "bytes_down", "loss")
    assert [[row[k] for k in same] for row in sync] == [[row[k] for k in same] for row in buffered]
    assert all(row["staleness_max"] == row["in_flight"] == 0 for row in buffered)
    arrays = [load_file(tmp_path / name / "model.safetensors") for name in ("sync", "buffered")]
    assert_same_arrays(*arrays)


@pytest.mark.parametrize("strategy", ["fedavg", "splitfed_v1"])
def test_and_where_all_are_as_fast_its_clock_too(strategy: str, tmp_path: Path) -> None:
    chosen = (f"strategy={strategy}", "rounds=2", "data.samples_per_client=40")
    simulate(tmp_path / "sync", *chosen)
    simulate(tmp_path / "buffered", *chosen, *ALL)
    assert rounds(tmp_path / "sync") == without(rounds(tmp_path / "buffered"), OWN)
    one, other = ((tmp_path / name / "clients.jsonl") for name in ("sync", "buffered"))
    assert one.read_text() == other.read_text()


@pytest.mark.parametrize("strategy", ["fedavg", "splitfed_v2"])
def test_one_at_a_time_is_one_client_a_round(strategy: str, tmp_path: Path) -> None:
    chosen = (f"strategy={strategy}", "rounds=5")
    simulate(tmp_path / "sync", *chosen, "clients.per_round=1")
    one = ("schedule=buffered", "schedule.buffer=1", "schedule.concurrency=1")
    simulate(tmp_path / "one", *chosen, *one)
    assert_same_arrays(*(load_file(tmp_path / n / "model.safetensors") for n in ("sync", "one")))
    assert rounds(tmp_path / "sync") == without(rounds(tmp_path / "one"), OWN)


# By hand ------------------------------------------------------------------------------------------


def all_but_the_fifth(
    partition: int, server_round: int, sent: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    if partition == 5:
        raise RuntimeError("is broken")
    return add_to_each(partition, server_round, sent)


def test_a_run_replayed_by_hand() -> None:
    """From who came when alone: what each began from, what it changed, and what that counts."""
    chosen = small(
        "strategy=fedavg", *UNEQUAL, "schedule.exponent=0.7", "data.partition=dirichlet",
        "clients.total=12", "seed=2",
    )  # fmt: skip
    prepared, memory, count = experiment.check(chosen), Memory(), 30
    record = messages.to_record(prepared.model.state_dict())
    sizes = experiment.num_examples(chosen)
    grid = SerialGrid(12, {}, client_app(sizes, all_but_the_fifth))
    done = prepared.strategy.start(grid, record, count, sinks=[memory])
    # Who began when follows from the times at which steps ended.
    ends = np.cumsum([row.sim_s for row in memory.rounds])
    value, history = 0.0, [0.0]  # what has been added to every weight, after each step
    late = []
    for number, rows in enumerate(memory.clients, start=1):
        came = [row for row in rows if row.status == "ok"]
        steps = {}
        for row in [row for row in rows if row.status in ("ok", "failed")]:
            after = np.searchsorted(ends, row.begin_s + 1e-12, side="right") + 1
            steps[row.partition] = min(int(after), number)
        late += [number - steps[row.partition] for row in came]
        if came:
            total = sum(sizes[row.partition] for row in came)
            value += sum(
                sizes[row.partition]
                / total
                * (1 + number - steps[row.partition]) ** -0.7
                * (row.partition + steps[row.partition] / 10)
                for row in came
            )
        history.append(value)
    assert max(late) >= 2
    assert any(row.status == "failed" for rows in memory.clients for row in rows)
    before, after = prepared.model.state_dict(), messages.to_arrays(done.arrays)
    for name, array in after.items():
        np.testing.assert_allclose(array, before[name].numpy() + value, rtol=1e-4)
    assert [row.num_failed for row in memory.rounds].count(1) >= 2


def test_a_change_is_added_to_the_present_model_and_a_step_is_multiplied() -> None:
    one, flag = np.array(True), initialised_flag("w_quantizer.step")
    base = {"w": np.float32([1, 2]), "mean": np.float32([5]), "n": np.int64(1),
            "w_quantizer.step": np.float32(0.1), flag: one}  # fmt: skip
    now = {"w": np.float32([3, 3]), "mean": np.float32([6]), "n": np.int64(4),
           "w_quantizer.step": np.float32(0.4), flag: one}  # fmt: skip
    own = {"w": np.float32([2, 1]), "mean": np.float32([9]), "n": np.int64(2),
           "w_quantizer.step": np.float32(0.05), flag: one}  # fmt: skip
    found = BroughtUp(own, base, now, 0.5, {"w", "w_quantizer.step"})
    assert found["w"].tolist() == [3.5, 2.5]  # half of (1, −1)
    assert found["w"].dtype == np.float32
    assert found["mean"].tolist() == [9]  # statistics count as they came
    assert found["n"] == 2
    assert found["w_quantizer.step"] == pytest.approx(
        0.4 * 0.5**0.5, rel=1e-6
    )  # halved, half of it
    assert list(found) == list(own)
    new = BroughtUp(own, {**base, flag: ~one}, now, 0.5, {"w", "w_quantizer.step"})
    assert new["w_quantizer.step"] == np.float32(0.05)  # the client was the first to set it


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("constant", 0.5, 4), [1, 1, 1, 1]),
        (("polynomial", 0.5, 4), [1, 2**-0.5, 3**-0.5, 10**-0.5]),
        (("polynomial", 0.0, 4), [1, 1, 1, 1]),
        (("hinge", 2.0, 1), [1, 1, 1 / 3, 1 / 17]),
    ],
)
def test_what_a_late_update_counts(settings: tuple[Any, ...], expected: list[float]) -> None:
    staleness, exponent, hinge = settings
    chosen = ScheduleSettings(staleness=staleness, exponent=exponent, hinge=hinge)
    assert [chosen.damping(k) for k in (0, 1, 2, 9)] == pytest.approx(expected)


def test_clients_are_asked_once_each() -> None:
    for first in ([], [7], [3, 90, 1], list(range(60))):
        found = list(in_turn(range(100), first, random.Random(1)))
        assert sorted(found) == list(range(100))
        assert found[: len(first)] == first
    assert list(in_turn([], [], random.Random(1))) == []


# Whole runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", some_long(3, 5, methods=[*METHODS, *QUEUED]))
def test_continued_and_on_ray_it_is_the_same(
    method: tuple[str, ...], tmp_path: Path, ray_simulator: Simulator
) -> None:
    chosen = (*method, *UNEQUAL, "fleet.jitter=0.5", "fleet.dropout=0.1")
    simulate(tmp_path / "whole", *chosen, "rounds=6")
    simulate(tmp_path / "parts", *chosen, "rounds=3")
    state = Checkpoints(tmp_path / "parts" / "checkpoint").latest()
    assert state is not None
    assert len(flights_of(state)) in (2, 3)  # of four at work, two arrived
    simulate(tmp_path / "parts", *chosen, "rounds=6", "resume=true")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    two = ("engine=ray", "engine.workers=2")
    simulate(tmp_path / "ray", *chosen, "rounds=6", *two, simulator=ray_simulator)
    assert_same_run(tmp_path / "whole", tmp_path / "ray")
    found = rounds(tmp_path / "whole")
    assert max(row["staleness_max"] for row in found) >= 1
    assert sum(row["num_clients"] for row in found) == 12


def test_records_say_who_worked_when(tmp_path: Path) -> None:
    summary = simulate(tmp_path, "strategy=fedavg", *UNEQUAL, "rounds=8", "fleet.dropout=0.3")
    found, rows = rounds(tmp_path), clients(tmp_path)
    ends = np.cumsum([row["sim_s"] for row in found])
    for row in rows:
        assert row["end_s"] - row["begin_s"] == pytest.approx(row["sim_s"])
        assert row["end_s"] <= ends[row["round"] - 1] + 1e-9
        assert row["status"] in ("ok", "left")
    lost = [row for row in rows if row["status"] == "left"]
    size = found[0]["bytes_down"] // len([r for r in rows if r["round"] == 1])
    assert lost
    assert all((row["bytes_up"], row["bytes_down"]) == (0, size) for row in lost)
    assert sum(row["left"] for row in found) == len(lost)
    for row in found:
        own = [one for one in rows if one["round"] == row["round"]]
        for key in ("bytes_up", "bytes_down", "energy_j"):
            assert row[key] == pytest.approx(sum(one[key] for one in own))
    assert summary["total_sim_s"] == pytest.approx(ends[-1])
    # Nobody is at two works at once, and never more than four are at work.
    for one in rows:
        at_once = [
            other for other in rows if other["begin_s"] <= one["begin_s"] < other["end_s"] - 1e-9
        ]
        assert len(at_once) <= 4
        assert len({other["partition"] for other in at_once}) == len(at_once)


def test_old_updates_are_left_out_and_counted(tmp_path: Path) -> None:
    chosen = ("strategy=fedavg", *UNEQUAL, "schedule.buffer=1", "rounds=12", "fleet.jitter=1")
    simulate(tmp_path / "all", *chosen)
    simulate(tmp_path / "some", *chosen, "schedule.max_staleness=1")
    assert max(row["staleness_max"] for row in rounds(tmp_path / "all")) > 1
    found, rows = rounds(tmp_path / "some"), clients(tmp_path / "some")
    assert max(row["staleness_max"] for row in found) <= 1
    stale = [row for row in rows if row["status"] == "stale"]
    assert sum(row["stale"] for row in found) == len(stale) > 0
    assert all(row["bytes_up"] == row["bytes_down"] > 0 and row["loss"] is None for row in stale)
    assert sum(row["num_dropped"] for row in found) == len(stale)


def test_a_network_that_has_changed_takes_no_old_updates(tmp_path: Path) -> None:
    """The bottleneck grows from round to round: who began before comes with other shapes."""
    chosen = ("strategy=deprune", "strategy.base=splitfed_v1", "prune.ratio=0.5", *UNEQUAL)
    simulate(tmp_path, *chosen, "schedule.buffer=1", "rounds=6")
    found = rounds(tmp_path)
    assert len({row["active_channels"] for row in found}) > 1
    assert sum(row["stale"] for row in found) > 0


@pytest.mark.long
def test_it_learns(tmp_path: Path) -> None:
    chosen = ("strategy=oqfl", *UNEQUAL, "data.max_train=1000", "train.epochs=3")
    summary = simulate(tmp_path, *chosen, "rounds=30", "evaluate.every=30", "fleet.jitter=0.3")
    assert summary["final_accuracy"] > 0.8


def test_clients_leave_synchronous_rounds_too(tmp_path: Path) -> None:
    chosen = ("strategy=splitfed_v1", "fleet=mobile", "rounds=4", "fleet.dropout=0.4")
    simulate(tmp_path, *chosen)
    rows, found = clients(tmp_path), rounds(tmp_path)
    left = [row for row in rows if row["status"] == "left"]
    whole = {row["partition"]: row for row in rows if row["status"] == "ok"}
    assert sum(row["left"] for row in found) == len(left) > 0
    for row in left:
        share = float(row["reason"].split()[2].rstrip("%")) / 100
        if row["partition"] in whole:
            sent = whole[row["partition"]]["bytes_down"]
            assert row["bytes_down"] == pytest.approx(sent * share, rel=0.2)
            assert row["sim_s"] < whole[row["partition"]]["sim_s"]
    assert all(row["num_clients"] + row["left"] == 6 for row in found)


# What it refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("strategy=split",), "schedule=buffered: this method's clients train one after another"),
        (("strategy=split",), "from both parts, so that none can begin while another is at work"),
        (("strategy=prune", "strategy.base=split"), "or wait in a queue: splitfed_v2, others with"),
        (("strategy=hierarchical",), "strategy.server_half=replicated"),
        (("strategy=hierarchical",), "share the cloud on the clock, where none comes before"),
        (
            (
                "strategy=hierarchical", "strategy.server_half=replicated",
                "fleet.availability=0.5",
            ),
            "schedule=buffered: takes clients that have a network",
        ),
        (("fleet.over_select=1.5",), r"fleet\.over_select=1\.5: takes 1 with schedule=buffered"),
        (("schedule.buffer=7",), r"schedule\.buffer=7: takes at most the 6 clients"),
        (("schedule.buffer=0",), r"schedule\.buffer=0: takes an integer from 1, or a share"),
        (("schedule.buffer=true",), r"schedule\.buffer=True: takes"),
        (("schedule.concurrency=1.5",), r"schedule\.concurrency=1\.5: takes"),
        (("schedule.staleness=linear",), r"schedule\.staleness=linear: takes constant, poly"),
        (("schedule.exponent=-1",), r"schedule\.exponent=-1\.0: takes 0 or more"),
        (("schedule.max_staleness=-1",), r"schedule\.max_staleness=-1: takes 0 or more"),
        (("fleet.dropout=1",), r"fleet\.dropout=1\.0: takes a probability in \[0, 1\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment.check(small("schedule=buffered", *overrides))


def test_a_server_all_of_whose_clients_fail_ends() -> None:
    from strategies.server.results import AllClientsFailedError

    chosen = small("strategy=fedavg", *UNEQUAL, "clients.total=6")
    prepared = experiment.check(chosen)

    def fail(
        partition: int, server_round: int, sent: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        raise RuntimeError("is broken")

    app = client_app(experiment.num_examples(chosen), fail)
    memory = Memory()
    record = messages.to_record(prepared.model.state_dict())
    with pytest.raises(AllClientsFailedError, match="is broken"):
        prepared.strategy.start(SerialGrid(6, {}, app), record, 30, sinks=[memory])
    assert len(memory.rounds) == 2  # as many as are at work


def test_the_state_holds_who_is_at_work() -> None:
    from strategies.server.buffered import base, keeping

    now, old = {"w": np.ones(2)}, {"w": np.zeros(2)}
    state = ServerState(3, now, {"other": np.ones(1)})
    flights = (Flight(2, 2, -1.5, 0.25, 1.75, 3), Flight(0, 4, 0.5, 2.0, 1.5, 3, 0.25))
    kept = keeping(state, flights, {2: old, 4: now})
    assert flights_of(kept) == flights
    assert torch.equal(torch.from_numpy(base(kept, 2)["w"]), torch.zeros(2))
    assert base(kept, 4)["w"] is now["w"]
    assert keeping(kept, (), {}).extra.keys() == {"other"}
