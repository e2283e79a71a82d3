"""Methods that cut, with their server halves behind the service: the numbers of `engine=serial`.

Devices are in this process, and reach the halves over TLS all the same; tests/app/
test_half_supernodes.py has SuperNodes.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, assert_same_run, rounds, simulate, small, strategies
from flwr.app import Context, Message, RecordDict

from app import experiment, server
from app.engine import SerialGrid
from strategies import messages
from strategies.contract import Invitation

CUTTING = [
    "split", "splitfed_v1", "splitfed_v2", "splitfed_v3", "ushaped", "binarized_split", "deprune",
    "prune", "hierarchical",
]  # fmt: skip
# The other tests of this file run these, too.
COVERED = ("split", "splitfed_v1", "splitfed_v3", "deprune", "prune")
THREE = ("clients.total=3", "data.max_train=120")
HERE = "127.0.0.1:0"


class Watching(SerialGrid):
    """Keeps what crosses."""

    def __init__(self, num_nodes: int, run_config: dict[str, Any]) -> None:
        super().__init__(num_nodes, run_config)
        self.asked: list[Message] = []
        self.answered: list[Message] = []

    def _execute(self, sent: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        trains = [message for message in sent if message.metadata.message_type == "train"]
        self.asked += trains
        for reply in super()._execute(sent, timeout):
            self.answered += [reply] if trains else []
            yield reply


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Watching]:
    """Start the ServerApp as Flower does, into tmp_path/run."""

    def go(*overrides: str, **run_config: Any) -> Watching:
        text = " ".join([*SMALL, *THREE, *overrides])
        given = {"overrides": text, "output": str(tmp_path / "run"), "half_address": HERE}
        grid = Watching(3, given | run_config)
        server.main(grid, Context(1, 1, {}, RecordDict(), given | run_config))
        return grid

    return go


def clients(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (folder / "clients.jsonl").read_text().splitlines()]


def test_these_are_the_methods_that_cut() -> None:
    names = [
        name
        for name in strategies()
        if experiment.method_class(small(f"strategy={name}")).has_server_half
    ]
    assert sorted(names) == sorted(CUTTING)


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=pytest.mark.long if m in COVERED else ()) for m in CUTTING],
)
def test_every_method(method: str, start: Callable[..., Watching], tmp_path: Path) -> None:
    link = ("link.up=int8", "link.down=int8", "link.rounding=stochastic")
    chosen = (f"strategy={method}", *link)
    grid = start(*chosen)
    simulate(tmp_path / "ours", *THREE, *chosen)
    assert_same_run(tmp_path / "run", tmp_path / "ours")
    on_device = device_names(*chosen)
    assert len(grid.asked) == len(grid.answered) == 6
    for message in (*grid.asked, *grid.answered):
        assert messages.ARRAYS in message.content
        assert set(message.content.array_records[messages.ARRAYS]) == on_device


def device_names(*overrides: str) -> set[str]:
    config = small(*THREE, *overrides)
    strategy = experiment.strategy(config)
    experiment.prepare(config, strategy)
    return set(strategy.prepared().in_round(1).on_device(0) or ())


FLEET = ("fleet=mobile", "fleet.jitter=0.5")
OTHERS = [
    (
        "strategy=splitfed_v1",
        "split.cut={0:stage1,default:stage2}",
        "quant.bits={0:2,default:8}",
        "submodel.share={0:0.25,1:0.5,default:1.0}",
    ),
    ("strategy=splitfed_v1", "split.cut={0:stage1,default:stage2}"),
    ("strategy=splitfed_v1", "model._target_=tests.test_identities.Residual"),
    ("strategy=deprune", "strategy.base=splitfed_v1", "quant.bits=4"),
    ("strategy=splitfed_v1", *FLEET, "schedule=buffered", "schedule.buffer=1", "rounds=4"),
    ("strategy=splitfed_v3", "clients.per_round=2", "rounds=3"),
    ("strategy=hierarchical", "strategy.outage=[2]", "rounds=3"),
    ("strategy=hierarchical", "fleet.availability=0.5", "strategy.server_half=replicated"),
    ("strategy=splitfed_v2", *FLEET, "schedule=buffered", "schedule.buffer=2", "rounds=4"),
    ("strategy=deprune", "strategy.base=splitfed_v2", *FLEET, "schedule=buffered", "rounds=3"),
    ("strategy=deprune", "strategy.base=splitfed_v2", "quant.bits=4", "rounds=3"),
]


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(chosen, marks=pytest.mark.long if i % 6 else ())
        for i, chosen in enumerate(OTHERS)
    ],
    ids=lambda chosen: " ".join(chosen),
)
def test_every_schedule(
    chosen: tuple[str, ...], start: Callable[..., Watching], tmp_path: Path
) -> None:
    start(*chosen)
    simulate(tmp_path / "ours", *THREE, *chosen)
    assert_same_run(tmp_path / "run", tmp_path / "ours")


@pytest.mark.parametrize("method", ["splitfed_v2", "splitfed_v3"])
def test_a_run_that_is_resumed(method: str, start: Callable[..., Watching], tmp_path: Path) -> None:
    """What V3's clients keep is in the checkpoint: a device need not have been there before."""
    chosen = (f"strategy={method}", "clients.per_round=2")
    start(*chosen)
    start(*chosen, "rounds=4", "resume=true")
    simulate(tmp_path / "ours", *THREE, *chosen, "rounds=4")
    assert_same_run(tmp_path / "run", tmp_path / "ours")


# Mixed precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chosen", [("strategy=splitfed_v1", "quant.bits=4", "link.up=int8"), ("strategy=ushaped",)]
)
def test_the_half_computes_in_the_precision_of_the_run(
    chosen: tuple[str, ...], start: Callable[..., Watching], tmp_path: Path
) -> None:
    start(*chosen, "engine.precision=bf16")
    simulate(tmp_path / "ours", *THREE, *chosen, "engine.precision=bf16")
    assert_same_run(tmp_path / "run", tmp_path / "ours")


def test_a_device_of_another_precision_is_refused(start: Callable[..., Watching]) -> None:
    with pytest.raises(Exception, match="fp32: takes bf16, which the server's half computes in"):
        start("strategy=split", "engine.precision=bf16", precision="fp32")


# Failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["FaultySplit", "FaultyV2", "FaultyV3"])
def test_a_device_that_breaks_before_its_turn_ends(
    method: str, start: Callable[..., Watching], faults: Callable[..., None], tmp_path: Path
) -> None:
    faults(c1="raise")
    name = {"FaultySplit": "split", "FaultyV2": "splitfed_v2", "FaultyV3": "splitfed_v3"}[method]
    chosen = (f"strategy={name}", f"strategy._target_=tests.strategies.faulty_split.{method}")
    start(*chosen)
    simulate(tmp_path / "ours", *THREE, *chosen)
    assert_same_run(tmp_path / "run", tmp_path / "ours")
    assert [row["partition"] for row in clients(tmp_path / "run") if row["reason"]] == [1, 1]


def test_a_device_that_breaks_after_its_turn_has_ended(
    start: Callable[..., Watching], faults: Callable[..., None], tmp_path: Path
) -> None:
    """Others have gone on from the half as it left it: its steps stay, and the record says so."""
    faults(c1="late")
    target = "strategy._target_=tests.strategies.faulty_split.FaultyV2"
    start("strategy=splitfed_v2", target, "rounds=1")
    (failed,) = [row for row in clients(tmp_path / "run") if row["reason"]]
    assert failed["partition"] == 1
    assert failed["reason"].endswith(
        "this phone breaks at the end; its turn had ended: the server's half keeps its steps"
    )


def test_without_its_half_a_reply_is_none(
    start: Callable[..., Watching], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that answers without having dialled is failed; the run goes on with the others."""
    read = messages.read_invitation

    def forged(message: Message) -> Invitation | None:
        return None if message.metadata.dst_node_id == 1 else read(message)

    def alone(client: Any, model: Any, arrays: Any, data: Any, task: Any) -> Any:
        return client.train(model, arrays, data, task, client.colocated(model, whole, task))

    config = small(*THREE, "strategy=splitfed_v1")
    whole = experiment.prepare(config, experiment.strategy(config)).state_dict()
    monkeypatch.setattr("app.client.messages.read_invitation", forged)
    monkeypatch.setattr("app.client.train_simulated", alone)
    start("strategy=splitfed_v1", "rounds=1")
    (failed,) = [row for row in clients(tmp_path / "run") if row["reason"]]
    assert failed["partition"] == 1
    assert "its half on the server did not come to an end" in failed["reason"]
    assert rounds(tmp_path / "run")[0]["num_clients"] == 2


# What is said -------------------------------------------------------------------------------------


def test_dropout_on_both_sides_is_said(
    start: Callable[..., Watching], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run is another than the simulation's, and the same whenever it is started."""
    network = ("model._target_=tests.test_identities.Residual", "split.cut=stage3", "rounds=1")
    with caplog.at_level(logging.WARNING):
        start("strategy=splitfed_v1", *network)
        start("strategy=splitfed_v1", *network, output=str(tmp_path / "again"))
    said = [text for text in caplog.messages if "dropout on both sides" in text]
    assert len(said) == 2
    assert said[0].startswith("split.cut=stage3: ")
    assert_same_run(tmp_path / "run", tmp_path / "again")
    simulate(tmp_path / "ours", *THREE, "strategy=splitfed_v1", *network)
    assert rounds(tmp_path / "ours") != rounds(tmp_path / "run")


def test_an_address_that_is_not_used_is_said(
    start: Callable[..., Watching], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        start("strategy=fedavg", "rounds=1")
    assert f"half_address={HERE}: not used: strategy=fedavg cuts nothing" in caplog.messages
