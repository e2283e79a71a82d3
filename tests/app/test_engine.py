"""Our grids: faults of clients and workers, and what Flower expects of a grid."""

import json
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from conftest import assert_same_run, rounds, simulate
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from ray.exceptions import RayError

from app import actors, calls
from app.actors import Actors
from app.calls import Call, Round, plan
from app.engine import RayGrid, SerialGrid, Simulator, Workers
from app.time_limit import GRACE_S
from strategies import messages
from strategies.server.results import AllClientsFailedError

FAULTY = ("strategy=fedavg", "strategy._target_=tests.app.faulty.Faulty", "clients.total=12")
ON_RAY = ("engine=ray", "engine.workers=2")


@pytest.fixture
def simulator(ray_simulator: Simulator) -> Simulator:
    return ray_simulator


def bare(kind: type[Actors] = Actors) -> Actors:
    """Actors that all have started, on no Ray; those who ask fill in what they need."""
    pool = kind.__new__(kind)
    pool._coming, pool.machine_of, pool._machines, pool._waits_since = {}, {}, None, None
    return pool


def statuses(folder: Path) -> dict[tuple[int, int], str]:
    rows = map(json.loads, (folder / "clients.jsonl").read_text().splitlines())
    return {(row["round"], row["partition"]): row["status"] for row in rows}


@pytest.mark.parametrize(
    "engine",
    [pytest.param(("engine=serial",), marks=pytest.mark.long), ON_RAY],
    ids=["serial", "ray"],
)
def test_a_client_that_raises_is_shown_counted_and_left_out(
    engine: tuple[str, ...],
    tmp_path: Path,
    simulator: Simulator,
    faults: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults(c3="raise", c7="raise")
    summary = simulate(tmp_path, *FAULTY, *engine, simulator=simulator)
    assert summary["num_failed"] == 4
    assert [(r["num_clients"], r["num_failed"]) for r in rounds(tmp_path)] == [(10, 2), (10, 2)]
    assert {p for (_, p), status in statuses(tmp_path).items() if status == "failed"} == {3, 7}
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 2  # one for each round, not one for each client
    assert "client 3, 7 failed" in warnings[0]
    assert "Traceback" in warnings[0]
    assert "ArithmeticError: this phone is broken" in warnings[0]


@pytest.mark.parametrize("engine", [("engine=serial",), ON_RAY], ids=["serial", "ray"])
def test_all_clients_failing_ends_the_run(
    engine: tuple[str, ...], tmp_path: Path, simulator: Simulator, faults: Callable[..., None]
) -> None:
    faults(**{f"c{i}": "raise" for i in range(12)})
    with pytest.raises(AllClientsFailedError, match="all 12 clients failed; ArithmeticError"):
        simulate(tmp_path, *FAULTY, *engine, simulator=simulator)
    assert not (tmp_path / "summary.json").exists()


def test_a_worker_that_dies_is_replaced_and_its_clients_run_again(
    tmp_path: Path, simulator: Simulator, faults: Callable[..., None]
) -> None:
    simulate(tmp_path / "well", *FAULTY, *ON_RAY, simulator=simulator)
    faults(c2="die-once", c9="die-once")
    simulate(tmp_path / "died", *FAULTY, *ON_RAY, simulator=simulator)
    assert_same_run(tmp_path / "well", tmp_path / "died")


def test_a_client_that_kills_every_worker_is_given_up(
    tmp_path: Path, simulator: Simulator, faults: Callable[..., None]
) -> None:
    faults(c5="die")
    simulate(tmp_path, *FAULTY, *ON_RAY, "rounds=1", simulator=simulator)
    failed = {p for (_, p), status in statuses(tmp_path).items() if status == "failed"}
    assert failed == {5}


def test_of_a_dead_actors_calls_the_first_without_replies_is_suspect(monkeypatch) -> None:
    """They fail at the same moment, and the one behind may be noticed first."""
    results = {"done": ["reply"], "ran": RayError("died"), "behind": RayError("died")}

    def get(reference: str) -> list[str]:
        if isinstance(results[reference], RayError):
            raise results[reference]
        return results[reference]

    class Pool(Actors):
        replaced: ClassVar[list[int]] = []

        def replace(self, index: int) -> None:
            self.replaced.append(index)

    monkeypatch.setattr(actors.ray, "get", get)
    monkeypatch.setattr(actors, "node_of", lambda message: message)
    pool = bare(Pool)
    given = {name: Call([i]) for i, name in enumerate(results)}
    other = Call([3])
    state = Round(["a", "b", "c", "d"], {}, [], deque([other]))
    state.flying = {name: (0, call) for name, call in given.items()} | {"away": (1, other)}
    pool._collect(state, "behind")
    assert list(state.replies) == ["reply"]
    assert list(state.flying) == ["away"] and Pool.replaced == [0]
    assert [(call.indices, call.deaths) for call in state.queue] == [([1], 1), ([2], 0), ([3], 0)]


def test_a_suspect_has_its_actor_to_itself() -> None:
    """A reply may be lost with an actor that the next client ends: who died alone is guilty."""

    class Actor:
        def __init__(self) -> None:
            self.handle = self
            self.given = 0

        def remote(self, *_: object) -> tuple[object, int]:
            self.given += 1
            return self, self.given

    pool = bare()
    first, second = pool.actors = [Actor(), Actor()]
    waiting = [Call([0], deaths=1), *(Call([i]) for i in range(1, 9))]
    state = Round(
        [Message(RecordDict(), dst_node_id=i, message_type="train") for i in range(9)],
        {"k": RecordDict()},
        ["k"] * 9,
        deque(waiting),
        references={"k": None},
    )
    pool._fill(state)
    assert (first.given, second.given) == (1, calls.CALLS_IN_FLIGHT)
    pool._fill(state)  # nobody joins it
    assert (first.given, second.given) == (1, calls.CALLS_IN_FLIGHT)
    state.flying = {ref: it for ref, it in state.flying.items() if it[0] == 1}
    state.queue.appendleft(Call([0], deaths=1))
    del state.flying[next(iter(state.flying))]
    pool._fill(state)  # it waits for an actor that has nothing, and gets the first
    assert [call.deaths for _, call in state.flying.values()].count(1) == 1
    assert {index for index, call in state.flying.values() if call.deaths} == {0}


def test_what_a_spent_actor_did_not_run_is_queued_again_unsuspected(monkeypatch) -> None:
    """After a client that took too long its actor runs no other."""
    results = {"cut short": ["reply", "no answer in time"], "behind": []}

    class Pool(Actors):
        replaced: ClassVar[list[int]] = []

        def replace(self, index: int) -> None:
            self.replaced.append(index)

    monkeypatch.setattr(actors.ray, "get", results.__getitem__)
    pool = bare(Pool)
    state = Round(["m"] * 7, {}, [], deque([Call([6])]))
    other = Call([5])
    cut, behind = Call([0, 1, 2]), Call([3, 4])
    state.flying = {"cut short": (1, cut), "away": (0, other), "behind": (1, behind)}
    pool._collect(state, "cut short")
    assert list(state.replies) == ["reply", "no answer in time"]
    assert list(state.flying) == ["away"] and Pool.replaced == [1]
    assert [(c.indices, c.deaths) for c in state.queue] == [([2], 0), ([3, 4], 0), ([6], 0)]


def test_an_actor_that_cannot_even_end_itself_is_ended(monkeypatch) -> None:
    """Such as a stopped process: it has the time to start in, and its clients theirs."""
    killed: list[str] = []
    monkeypatch.setattr(actors.ray, "wait", lambda *_, timeout, **__: ([], timeout))
    monkeypatch.setattr(actors.ray, "kill", killed.append)
    recovered: list[int] = []
    monkeypatch.setattr(Actors, "_recover", lambda _, state, index: recovered.append(index))
    pool = bare()
    pool.actors = ["zero", "one"]
    now = time.monotonic()
    long_ago = now - calls.START_S - 2 * (30 + 2 * GRACE_S) - 1
    given = {"a": (0, [0]), "b": (1, [1, 2]), "c": (1, [3])}
    flying = {name: (index, Call(of)) for name, (index, of) in given.items()}
    heard = {0: now, 1: long_ago}
    state = Round([], {}, [], deque(), limit_s=30.0, flying=flying, heard=heard)
    assert pool._advance(state)
    assert (killed, recovered) == (["one"], [1])
    state.limit_s = None  # nobody is ever overdue
    assert pool._due(state) == {}


def test_a_large_model_goes_to_one_client_per_call() -> None:
    def per_call(num_bytes: int) -> int:
        arrays = messages.to_record({"w": np.zeros(num_bytes, np.uint8)})
        content = RecordDict({"arrays": arrays})
        sent = [Message(content, dst_node_id=i, message_type="train") for i in range(400)]
        return len(plan(sent, "round 1", 1).queue[0].indices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "BYTES_PER_CALL", 640)
        assert [per_call(n) for n in (1, 100, 450, 5000)] == [10, 6, 1, 1]


def test_a_client_that_hangs_is_left_behind(
    tmp_path: Path, simulator: Simulator, faults: Callable[..., None]
) -> None:
    from conftest import small

    from app import experiment

    faults(c1="hang")
    config = small(*FAULTY, *ON_RAY)
    grid = simulator._grid(config)
    strategy = experiment.strategy(config)
    arrays = messages.to_record(experiment.prepare(config, strategy).state_dict())
    from flwr.app import ConfigRecord

    sent = list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    replies = list(grid.send_and_receive(sent, timeout=10))
    assert 6 <= len(replies) < 12
    faults()
    assert len(list(grid.send_and_receive(sent, timeout=60))) == 12  # the workers are well again


@pytest.mark.long  # starts Ray twice
def test_two_sizes_of_pool_in_one_session(tmp_path: Path, simulator: Simulator) -> None:
    one = simulate(tmp_path / "1", *ON_RAY, "engine.workers=1", simulator=simulator)
    two = simulate(tmp_path / "2", *ON_RAY, simulator=simulator)
    assert one["final_accuracy"] == two["final_accuracy"]
    assert simulator._workers is not None
    assert simulator._workers.size == 2


# Flower's contract ------------------------------------------------------------------------------


@pytest.fixture(params=["serial", "ray"])
def grid(request: pytest.FixtureRequest, simulator: Simulator) -> SerialGrid | RayGrid:
    from conftest import small

    engine = ("engine=serial",) if request.param == "serial" else ON_RAY
    return simulator._grid(small("clients.total=5", *engine))  # type: ignore[return-value]


def query(node: int) -> Message:
    return Message(RecordDict(), node, "query")


def test_replies_come_one_by_one_and_say_whose_they_are(grid: SerialGrid | RayGrid) -> None:
    replies = iter(grid.send_and_receive([query(n) for n in (4, 0, 2)]))
    found = [next(replies), *replies]
    partitions = [messages.read_introduction(reply)[0] for reply in found]
    assert sorted(partitions) == [0, 2, 4]
    assert [reply.metadata.src_node_id for reply in found] == partitions


def test_nothing_keeps_a_reply_that_was_handed_out(grid: SerialGrid | RayGrid) -> None:
    seen: list[weakref.ref[Message]] = []
    for reply in grid.send_and_receive([query(n) for n in range(5)]):
        assert all(reference() is None for reference in seen)
        seen.append(weakref.ref(reply))
        del reply
    assert len(seen) == 5


def test_nothing_sent_nothing_received(grid: SerialGrid | RayGrid) -> None:
    assert list(grid.send_and_receive([])) == []


def test_push_and_pull(grid: SerialGrid | RayGrid) -> None:
    ids = list(grid.push_messages([query(1), query(3)]))
    assert len(set(ids)) == 2
    replies = list(grid.pull_messages(ids))
    assert [r.metadata.reply_to_message_id for r in replies] == ids
    assert list(grid.pull_messages(ids)) == []


def test_an_unknown_message_type_is_an_error_reply(grid: SerialGrid | RayGrid) -> None:
    message = Message(RecordDict(), 0, "evaluate")
    (reply,) = grid.send_and_receive([message])
    assert reply.has_error()
    assert "No evaluate function" in reply.error.reason


def test_a_client_beyond_the_total_is_an_error_reply(grid: SerialGrid | RayGrid) -> None:
    (reply,) = grid.send_and_receive([query(5)])
    assert "there is no client 5" in reply.error.reason


def test_several_contents_in_one_send(grid: SerialGrid | RayGrid) -> None:
    """Each client gets its own content, also where a worker remembers another."""
    from conftest import small
    from flwr.app import ConfigRecord

    from app import experiment

    config = small("clients.total=5")
    strategy = experiment.strategy(config)
    state = experiment.prepare(config, strategy).state_dict()
    sent = []
    for node in range(5):
        arrays = messages.to_record(
            {k: v * 0 + node if v.is_floating_point() else v for k, v in state.items()}
        )
        config_record = ConfigRecord({**strategy.client_settings(), "seed": 0, "train.lr": 0.0})
        content = messages.request(arrays, config_record, 1)
        sent.append(Message(content, node, "train"))
    for _ in range(2):
        for reply in grid.send_and_receive(sent):
            returned = messages.read_reply(reply).arrays["head.linear.bias"]
            assert (returned == reply.metadata.src_node_id).all()


def test_an_interrupt_in_this_process_ends_the_run() -> None:
    """It may be the user's; sys.exit and all else that a client raises is the client's."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        raise (KeyboardInterrupt if context.node_id else SystemExit)("leaving")

    first, second = (
        SerialGrid(2, {}, app).send_and_receive([Message(RecordDict(), node, "query")])
        for node in range(2)
    )
    assert next(first).error.reason.endswith("SystemExit: leaving\n")
    with pytest.raises(KeyboardInterrupt):
        next(second)


def test_workers_can_be_closed_twice() -> None:
    workers = Workers(1)
    workers.close()
    workers.close()
