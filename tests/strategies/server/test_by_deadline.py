"""schedule=semi: rounds end at the deadline, and what was done by then counts."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import assert_same_run, phases_of, rounds, simulate, small
from safetensors.numpy import load_file

from app import experiment
from app.engine import SerialGrid, Simulator
from fleet.clock import Turn
from strategies import messages
from strategies.client.training import batch_sizes
from strategies.server.method import ServerState

SLOWER = ("fleet=mobile", "rounds=3", "train.epochs=3", "clients.total=8", "fleet.jitter=0.3")
METHODS = [
    ("strategy=fedavg",),
    ("strategy=oqfl", "quant.wire=codes"),
    ("strategy=splitfed_v1", "split.cut=stage2", "link.up=int8"),
    ("strategy=splitfed_v3",),
    ("strategy=ushaped",),
    ("strategy=hierarchical", "strategy.server_half=replicated"),
]


def name_of(method: tuple[str, ...]) -> str:
    return ",".join(part.partition("=")[2] for part in method)


def clients(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]


def turns(*overrides: str) -> list[Turn]:
    """Of all clients in a round."""
    strategy = experiment.check(small(*overrides)).strategy
    found = strategy.method.schedule.rule(list(phases_of(strategy).values()), math.inf)
    return [turn for turn in found if turn is not None]


def middle(*overrides: str) -> float:
    """Seconds by which half of the clients would be late."""
    return float(np.median([turn.end_s for turn in turns(*overrides)]))


@pytest.mark.parametrize(
    "method",
    [METHODS[0], pytest.param(METHODS[3], marks=pytest.mark.long), METHODS[5]],
    ids=name_of,
)
def test_a_deadline_that_all_meet_changes_nothing(method: tuple[str, ...], tmp_path: Path) -> None:
    simulate(tmp_path / "sync", *method, *SLOWER, "rounds=2")
    simulate(
        tmp_path / "semi", *method, *SLOWER, "rounds=2", "schedule=semi", "fleet.deadline_s=1e6"
    )
    found = rounds(tmp_path / "semi")
    assert [row.pop("cut_short") for row in found] == [0, 0]
    assert found == rounds(tmp_path / "sync")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("sync", "semi"))
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", METHODS[1:3], ids=name_of)
def test_who_is_cut_short_sends_what_it_has(
    method: tuple[str, ...], tmp_path: Path, ray_simulator: Simulator
) -> None:
    deadline = middle(*method, *SLOWER)
    chosen = (*method, *SLOWER, "schedule=semi", f"fleet.deadline_s={deadline}")
    simulate(tmp_path / "serial", *chosen)
    rows, found = clients(tmp_path / "serial"), rounds(tmp_path / "serial")
    short = [row for row in rows if (row["reason"] or "").endswith("batches by the deadline")]
    assert sum(row["cut_short"] for row in found) == len(short) > 2
    worked = [row for row in rows if row["status"] == "ok"]
    assert all(row["end_s"] - row["begin_s"] <= deadline * (1 + 1e-9) for row in worked)
    assert all(row["sim_s"] <= deadline * (1 + 1e-9) for row in found)
    assert {row["status"] for row in rows} <= {"ok", "late"}  # of one batch, too
    assert len(worked) > 16  # 12 without those that are cut short, but for jitter
    two = ("engine=ray", "engine.workers=2")
    simulate(tmp_path / "ray", *chosen, *two, simulator=ray_simulator)
    assert_same_run(tmp_path / "serial", tmp_path / "ray")


def test_the_clock_of_a_part_is_that_of_as_many_batches(tmp_path: Path) -> None:
    """A round of m batches by schedule=semi costs what train.max_batches=m does."""
    method = ("strategy=splitfed_v1", *SLOWER, "fleet.jitter=0", "rounds=1")
    deadline = middle(*method)
    simulate(tmp_path / "semi", *method, "schedule=semi", f"fleet.deadline_s={deadline}")
    for row in clients(tmp_path / "semi"):
        if row["reason"] is None:
            continue
        count = int(row["reason"].split()[0])
        folder = tmp_path / str(count)
        if not folder.exists():
            simulate(folder, *method, f"train.max_batches={count}")
        same = next(one for one in clients(folder) if one["partition"] == row["partition"])
        for key in ("bytes_up", "bytes_down", "loss"):
            assert row[key] == same[key]
        assert row["sim_s"] == pytest.approx(same["sim_s"], rel=1e-12)
        assert row["energy_j"] == pytest.approx(same["energy_j"], rel=1e-12)


def test_it_weighs_by_the_samples_that_it_saw(tmp_path: Path) -> None:
    """The next model is the mean of what the clients sent, weighted by the samples in batches."""
    method = ("strategy=fedavg", *SLOWER, "fleet.jitter=0", "rounds=1")
    chosen = small(*method, "schedule=semi", f"fleet.deadline_s={middle(*method)}")
    prepared, sent = experiment.check(chosen), {}

    class Listening(SerialGrid):
        def _execute(self, messages_, timeout):
            for reply in super()._execute(messages_, timeout):
                if not reply.has_error() and reply.metadata.message_type == "train":
                    node = reply.metadata.src_node_id
                    sent[node] = messages.read_reply(reply).arrays
                yield reply

    grid = Listening(8, experiment.run_config(chosen))
    done = prepared.strategy.start(grid, messages.to_record(prepared.model.state_dict()), 1)
    federation = prepared.strategy.federation(grid)
    plan = federation.choose(ServerState(0, messages.to_arrays(done.arrays))).plan
    assert plan is not None
    seen = {}
    for member in plan.members:
        if member.status == "ok":
            sizes = batch_sizes(federation.clients.num_examples[member.partition], chosen.train)
            seen[member.partition] = sum(sizes[: member.batches or None])
    assert len({seen[p] / federation.clients.num_examples[p] for p in seen}) > 1
    total = sum(seen.values())
    for name, array in messages.to_arrays(done.arrays).items():
        expected = sum(
            count / total * sent[federation.nodes[p]][name].double().numpy()
            for p, count in seen.items()
        )
        np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-8)


def test_a_deadline_that_one_batch_meets_is_one() -> None:
    chosen = ("strategy=fedavg", *SLOWER, "fleet.jitter=0")
    fastest = min(t.end_s for t in turns(*chosen))
    sync = small(*chosen, f"fleet.deadline_s={fastest * 0.99}")
    with pytest.raises(ValueError, match="no client can meet the deadline"):
        experiment.check(sync)
    experiment.check(small(*chosen, "schedule=semi", f"fleet.deadline_s={fastest * 0.99}"))
    with pytest.raises(ValueError, match="no client can meet the deadline"):
        experiment.check(small(*chosen, "schedule=semi", f"fleet.deadline_s={fastest * 0.01}"))


def test_it_needs_a_deadline_and_clients_at_once() -> None:
    with pytest.raises(ValueError, match=r"schedule=semi: takes fleet\.deadline_s"):
        experiment.check(small("strategy=fedavg", "schedule=semi"))
    with pytest.raises(ValueError, match="schedule=semi: this method's clients train one after"):
        experiment.check(small("strategy=split", "schedule=semi", "fleet.deadline_s=9"))
    with pytest.raises(ValueError, match="those served first would leave the others no time"):
        experiment.check(small("strategy=splitfed_v2", "schedule=semi", "fleet.deadline_s=9"))
