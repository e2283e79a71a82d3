"""The shared start(): messages, failures, records, checkpoints, on small apps of our own."""

import logging
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
)
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Strategy

from app.engine import SerialGrid
from fleet.selection import select
from strategies import messages
from strategies.client.training import LocalTraining, train_epochs
from strategies.contract import ClientData, Streams, Update, check_arrays
from strategies.fedavg import FedAvg
from strategies.server.aggregation import Averaging
from strategies.server.checkpoint import Checkpoints
from strategies.server.loop import FederatedStrategy
from strategies.server.results import AllClientsFailedError
from tests.plain_clients import Memory

SIZES = (10, 20, 30, 40, 50)


class DivergedError(ArithmeticError):
    pass


def make_app(sizes=SIZES, fails=(), partition_of=lambda node: node, cut=(0, 0), log=None):
    """Clients that add partition + round/10 to every weight, and report partition as their loss.

    ``fails``: (round, partition) pairs; a round of None fails in all. ``cut``: bytes over a cut.
    """
    app = ClientApp()

    @app.query()
    def query(message, context):
        partition = partition_of(context.node_config["partition-id"])
        return messages.introduction(message, partition, sizes[partition])

    @app.train()
    def train(message, context):
        partition = partition_of(context.node_config["partition-id"])
        record, config, server_round = messages.read_request(message)
        if log is not None:
            log.append((server_round, partition, dict(config)))
        if {(server_round, partition), (None, partition)} & set(fails):
            raise DivergedError(f"client {partition} broke on purpose")
        arrays = {
            name: t + partition + server_round / 10 if t.is_floating_point() else t
            for name, t in messages.to_tensors(record).items()
        }
        return messages.reply(message, Update(arrays, sizes[partition], float(partition), *cut))

    return app


def grid(app=None, num_nodes=5, kind=SerialGrid):
    return kind(num_nodes, {}, app or make_app())


def initial():
    return messages.to_record({"w": torch.zeros(2, 3), "n": torch.tensor(4), "s": torch.zeros(())})


def average(server_round, partitions, sizes=SIZES):
    """What the clients of `make_app` add to a weight in a round, in float64."""
    total = sum(sizes[p] for p in partitions)
    return sum(sizes[p] * (p + server_round / 10) for p in partitions) / total


def weights(record):
    return messages.to_arrays(record)["w"]


def states_equal(a, b):
    a, b = messages.to_arrays(a), messages.to_arrays(b)
    return a.keys() == b.keys() and all(a[n].tobytes() == b[n].tobytes() for n in a)


def timeless(records):
    return [{k: v for k, v in r.to_dict().items() if not k.startswith("wall_")} for r in records]


class ShufflingGrid(SerialGrid):
    """Runs the clients and hands out the replies in a random order."""

    seed = 0

    def _execute(self, sent, timeout):
        order = list(sent)
        random.Random(self.seed).shuffle(order)
        replies = list(super()._execute(order, timeout))
        random.Random(self.seed + 1).shuffle(replies)
        return replies


class LossyGrid(SerialGrid):
    """Loses the train replies of some nodes."""

    lost = (2,)

    def _execute(self, sent, timeout):
        replies = super()._execute(sent, timeout)
        return [
            r for r in replies
            if r.metadata.message_type != MessageType.TRAIN
            or r.metadata.src_node_id not in self.lost
        ]  # fmt: skip


# Averages -----------------------------------------------------------------------------------------


def test_rounds_average_by_samples():
    result = FedAvg().start(grid(), initial(), num_rounds=3)
    expected = sum(average(r, range(5)) for r in (1, 2, 3))
    np.testing.assert_allclose(weights(result.arrays), expected, rtol=1e-6)
    arrays = messages.to_arrays(result.arrays)
    assert {n: (a.dtype.str, a.shape) for n, a in arrays.items()} == {
        "w": ("<f4", (2, 3)), "n": ("<i8", ()), "s": ("<f4", ()),
    }  # fmt: skip
    assert arrays["n"] == 4


@pytest.mark.parametrize("seed", range(5))
def test_replies_in_any_order_give_identical_results(seed):
    straight, shuffled = Memory(), Memory()
    first = FedAvg().start(grid(), initial(), 3, sinks=[straight])
    turned = grid(kind=ShufflingGrid)
    turned.seed = seed
    second = FedAvg().start(turned, initial(), 3, sinks=[shuffled])
    assert states_equal(first.arrays, second.arrays)
    assert timeless(straight.rounds) == timeless(shuffled.rounds)
    assert straight.clients == shuffled.clients


def test_node_ids_do_not_matter():
    """The same partitions on other nodes: same clients drawn, same bits."""
    kinds = {"clients_per_round": 3, "seed": 4}
    plain, turned = Memory(), Memory()
    first = FedAvg(**kinds).start(grid(), initial(), 4, sinks=[plain])
    other = grid(make_app(partition_of=lambda node: (node * 2 + 3) % 5))
    second = FedAvg(**kinds).start(other, initial(), 4, sinks=[turned])
    assert states_equal(first.arrays, second.arrays)
    assert plain.clients == turned.clients


def test_another_average_is_used():
    def first_only(values, weights):
        return next(iter(values))

    method = replace(FedAvg().method, aggregate=Averaging(first_only))
    result = FederatedStrategy(method).start(grid(), initial(), num_rounds=1)
    np.testing.assert_array_equal(weights(result.arrays), np.float32(0.1))


def test_the_caller_s_arrays_are_left_alone():
    arrays = initial()
    FedAvg().start(grid(), arrays, num_rounds=2)
    assert states_equal(arrays, initial())


# Who takes part -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("per_round", "expected"), [(1, 1), (3, 3), (1.0, 5), (0.5, 2), (0.01, 1)])
def test_clients_per_round(per_round, expected):
    sink = Memory()
    FedAvg(clients_per_round=per_round, seed=7).start(grid(), initial(), 6, sinks=[sink])
    for server_round, clients in enumerate(sink.clients, 1):
        drawn = [client.partition for client in clients]
        assert len(drawn) == expected
        assert drawn == select(range(5), per_round, 7, server_round)
    if expected == 1:
        assert len({clients[0].partition for clients in sink.clients}) > 1


def test_empty_partitions_are_never_asked(caplog):
    sizes, log = (10, 0, 30, 0, 50), []
    with caplog.at_level(logging.INFO, "strategies.server.discovery"):
        result = FedAvg(clients_per_round=2).start(
            grid(make_app(sizes, log=log)), initial(), num_rounds=8
        )
    assert {partition for _, partition, _ in log} == {0, 2, 4}
    assert len(log) == 16
    assert "2 of 5 clients have no data" in caplog.text
    assert np.isfinite(weights(result.arrays)).all()


def test_nobody_has_data():
    with pytest.raises(RuntimeError, match="no client has any data"):
        FedAvg().start(grid(make_app((0,) * 5)), initial(), 1)


def test_two_nodes_with_one_partition():
    with pytest.raises(ValueError, match="two nodes hold partition 0"):
        FedAvg().start(grid(make_app(partition_of=lambda node: node // 2)), initial(), 1)


def test_more_nodes_than_clients():
    with pytest.raises(ValueError, match=r"clients\.total=4: there are 5 nodes"):
        FedAvg(num_clients=4).start(grid(), initial(), 1)


def test_too_few_nodes():
    with pytest.raises(RuntimeError, match=r"clients\.total=6: only 5 nodes"):
        FedAvg(num_clients=6).start(grid(), initial(), 1, timeout=-1)


def test_nodes_that_come_late_are_waited_for(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)

    class Slow(SerialGrid):
        calls = 0

        def get_node_ids(self):
            self.calls += 1
            return range(min(self.calls, self._num_nodes))

    log = []
    FedAvg(num_clients=5).start(grid(make_app(log=log), kind=Slow), initial(), 1)
    assert sorted(partition for _, partition, _ in log) == [0, 1, 2, 3, 4]


def test_a_node_that_cannot_say_who_it_is_ends_the_run_with_its_reason():
    app = make_app()
    broken = ClientApp()

    @broken.query()
    def query(message, context):
        if context.node_id == 3:
            raise DivergedError("no data here")
        return app(message, context)

    with pytest.raises(RuntimeError, match=r"(?s)node 3 cannot take part.*no data here"):
        FedAvg().start(grid(broken), initial(), 1)


def test_what_a_client_is_told():
    log = []
    train = LocalTraining(epochs=2, lr=0.25, optimizer="adam")
    FedAvg(train=train, seed=9).start(
        grid(make_app(log=log)), initial(), 2, train_config=ConfigRecord({"mine": 5})
    )
    for server_round, _, config in log:
        assert messages.unpack_settings(config, "train", LocalTraining) == train
        assert (config["seed"], config["mine"]) == (9, 5)
        assert config[messages.ROUND] == server_round
    assert [server_round for server_round, _, _ in log] == [1] * 5 + [2] * 5


# Failures -----------------------------------------------------------------------------------------


def test_a_client_that_fails_is_shown_counted_and_left_out(caplog):
    sink = Memory()
    with caplog.at_level(logging.WARNING, "strategies.server.results"):
        result = FedAvg().start(
            grid(make_app(fails=[(2, 3)])), initial(), num_rounds=3, sinks=[sink]
        )
    (warning,) = caplog.records
    text = warning.getMessage()
    assert "round 2: client 3 failed" in text
    assert "Traceback (most recent call last)" in text
    assert "DivergedError: client 3 broke on purpose" in text
    assert "in train" in text  # the line where it happened
    left = (0, 1, 2, 4)
    expected = average(1, range(5)) + average(2, left) + average(3, range(5))
    np.testing.assert_allclose(weights(result.arrays), expected, rtol=1e-6)
    assert [(r.num_clients, r.num_failed) for r in sink.rounds] == [(5, 0), (4, 1), (5, 0)]
    failed = sink.clients[1][3]
    assert (failed.partition, failed.status, failed.loss, failed.bytes_up) == (3, "failed", None, 0)
    assert failed.num_examples == 40
    assert failed.bytes_down == sink.clients[1][0].bytes_down > 0
    assert [c.status for c in sink.clients[1]] == ["ok", "ok", "ok", "failed", "ok"]
    expected_loss = sum(SIZES[p] * p for p in left) / sum(SIZES[p] for p in left)
    assert sink.rounds[1].train_loss == pytest.approx(expected_loss)


def test_failures_that_are_alike_are_shown_once_with_everyone(caplog):
    app, alike = make_app(), ClientApp()
    alike.query()(lambda message, context: app(message, context))

    @alike.train()
    def train(message, context):
        if context.node_id != 1:
            raise DivergedError("no memory" if context.node_id else "no disk")
        return app(message, context)

    with caplog.at_level(logging.WARNING, "strategies.server.results"):
        FedAvg().start(grid(alike), initial(), num_rounds=1)
    texts = [r.getMessage() for r in caplog.records]
    assert len(texts) == 2
    assert texts[0].startswith("round 1: client 0 failed:\n")
    assert texts[1].startswith("round 1: client 2, 3, 4 failed:\n")


def test_the_list_of_who_failed_is_cut_off(caplog):
    app = make_app(sizes=[5] * 14)
    alike = ClientApp()
    alike.query()(lambda message, context: app(message, context))

    @alike.train()
    def train(message, context):
        if context.node_id:
            raise DivergedError("x")
        return app(message, context)

    FedAvg().start(grid(alike, 14), initial(), num_rounds=1)
    (line,) = [r.getMessage().splitlines()[0] for r in caplog.records if r.levelno >= 30]
    assert line == "round 1: client 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 3 more failed:"


def test_all_fail():
    sink = Memory()
    app = make_app(fails=[(2, p) for p in range(5)])
    with pytest.raises(AllClientsFailedError, match=r"round 2: all 5 .*client 0 broke on purpose"):
        FedAvg().start(grid(app), initial(), num_rounds=3, sinks=[sink])
    assert [r.round for r in sink.rounds] == [1]


def test_a_missing_reply_is_a_failure(caplog):
    sink = Memory()
    result = FedAvg().start(grid(kind=LossyGrid), initial(), num_rounds=1, sinks=[sink])
    np.testing.assert_allclose(weights(result.arrays), average(1, (0, 1, 3, 4)), rtol=1e-6)
    assert (sink.rounds[0].num_clients, sink.rounds[0].num_failed) == (4, 1)
    assert [c.partition for c in sink.clients[0] if c.status == "failed"] == [2]
    assert "round 1: client 2 failed:\nno answer in time" in caplog.text


def test_no_reply_at_all():
    lossy = grid(kind=LossyGrid)
    lossy.lost = range(5)
    with pytest.raises(AllClientsFailedError, match="no answer in time"):
        FedAvg().start(lossy, initial(), num_rounds=1)


def test_a_reply_without_its_metrics_is_a_failure_of_that_client():
    app, odd = make_app(), ClientApp()
    odd.query()(lambda message, context: app(message, context))

    @odd.train()
    def train(message, context):
        reply = app(message, context)
        if context.node_id == 2:
            del reply.content[messages.METRICS]
        return reply

    sink = Memory()
    FedAvg().start(grid(odd), initial(), num_rounds=1, sinks=[sink])
    assert sink.rounds[0].num_failed == 1


def test_a_reply_with_other_arrays_is_a_failure_of_that_client():
    app, odd = make_app(), ClientApp()
    odd.query()(lambda message, context: app(message, context))

    @odd.train()
    def train(message, context):
        reply = app(message, context)
        if context.node_id == 2:
            reply.content[messages.ARRAYS] = messages.to_record({"other": torch.zeros(1)})
        return reply

    sink = Memory()
    FedAvg().start(grid(odd), initial(), num_rounds=1, sinks=[sink])
    assert sink.rounds[0].num_failed == 1


def of_metrics(**values):
    def act(reply):
        names = {"n": messages.NUM_EXAMPLES, "loss": messages.LOSS, "up": messages.BYTES_UP}
        metrics = reply.content.metric_records[messages.METRICS]
        metrics.update({names.get(key, messages.EXTRA + key): v for key, v in values.items()})

    return act


def of_array(change):
    def act(reply):
        arrays = messages.to_arrays(reply.content.array_records[messages.ARRAYS])
        reply.content[messages.ARRAYS] = messages.to_record({**arrays, "w": change(arrays["w"])})

    return act


def of_bytes(change):
    def act(reply):
        array = reply.content.array_records[messages.ARRAYS]["w"]
        array.data = change(array.data)

    return act


def filled(value):
    return of_array(lambda w: np.full_like(w, value))


WRONG = [
    (of_metrics(n=0), "num_examples=0: takes 1 to 30"),
    (of_metrics(n=-1), "num_examples=-1: takes 1 to 30"),
    (of_metrics(n=31), "num_examples=31: takes 1 to 30"),
    (of_metrics(n=2.5), "num-examples=2.5: takes a whole number"),
    (of_metrics(n=float("nan")), "num-examples=nan: takes a whole number"),
    (of_metrics(n=float("inf")), "num-examples=inf: takes a whole number"),
    (of_metrics(n=[1, 2]), "num-examples=[1, 2]: takes a number"),
    (of_metrics(loss=float("nan")), "loss=nan: takes a finite number"),
    (of_metrics(loss=-float("inf")), "loss=-inf: takes a finite number"),
    (of_metrics(up=-1), "bytes_up=-1: takes 0 or more"),
    (of_metrics(own=float("inf")), "own=inf: takes a finite number"),
    (filled(np.nan), "array w holds NaN"),
    (filled(-np.inf), "array w holds infinity"),
    (filled(-3e38), "array w holds 3.0e+38: takes values up to 1.8e+19"),
    (of_array(lambda w: w.astype(np.float64)), "array w is float64 (2, 3), expected float32 (2,"),
    (of_array(lambda w: w.astype(np.int64)), "array w is int64 (2, 3), expected float32 (2, 3)"),
    (of_array(lambda w: w.T), "array w is float32 (3, 2), expected float32 (2, 3)"),
    (of_bytes(lambda data: b""), ""),
    (of_bytes(lambda data: data[:-5]), ""),
    (of_bytes(lambda data: b"\x80\x04K\x01."), ""),  # a pickle
    (of_bytes(lambda data: data[:20] + bytes(len(data) - 20)), ""),
]


def test_what_cannot_be_used_is_a_failure_of_that_client():
    """Of an app of somebody's own, which checks nothing itself: as if the client had raised."""
    app = make_app()
    changes = dict(enumerate(change for change, _ in WRONG))

    def outcome(wrong):
        odd = ClientApp()
        odd.query()(lambda message, context: app(message, context))

        @odd.train()
        def train(message, context):
            reply = app(message, context)
            server_round = messages.read_request(message)[2]
            if context.node_id == 2:
                if not wrong:
                    raise DivergedError("left out")
                changes[server_round - 1](reply)
            return reply

        sink = Memory()
        result = FedAvg().start(grid(odd), initial(), num_rounds=len(WRONG), sinks=[sink])
        return result, sink

    (wrong, found), (without, expected) = outcome(True), outcome(False)
    for (_, reason), row in zip(WRONG, found.clients, strict=True):
        assert row[2].status == "failed"
        assert row[2].reason.startswith("its reply cannot be used: ")
        assert reason in row[2].reason
        assert row[2].bytes_up == 0 and row[2].loss is None
    assert timeless(found.rounds) == timeless(expected.rounds)
    assert states_equal(wrong.arrays, without.arrays)


def test_values_that_only_seem_too_large_are_taken():
    """The sum of their squares overflows; none of the squares does."""
    large = torch.full((100,), 1e19)
    assert torch.linalg.vector_norm(large).isinf()
    check_arrays({"w": large, "half": torch.full((9,), 6e4, dtype=torch.float16)})
    check_arrays({"n": torch.tensor([2**62]), "empty": torch.zeros(0), "scalar": torch.tensor(1.0)})


def test_values_of_1e20_in_the_data_are_a_failure():
    """They gave an infinite running variance, which is no parameter."""
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    data = ClientData(torch.randn(8, 3) * 1e20, torch.arange(8) % 2, torch.arange(8))
    train_epochs(model, data, LocalTraining(epochs=1), Streams(0, 1, 0))
    with pytest.raises(ValueError, match=r"array 0\.running_var holds infinity"):
        check_arrays(model.state_dict())


# Records ------------------------------------------------------------------------------------------


def test_sinks_get_each_round_before_the_next_begins():
    events = []
    app = make_app(log=events)

    class Spy(Memory):
        def round(self, record, clients):
            super().round(record, clients)
            events.append((record.round, "sink", {}))

    spies = [Spy(), Spy()]
    FedAvg().start(grid(app), initial(), num_rounds=3, sinks=spies)
    assert [what for _, what, _ in events] == [0, 1, 2, 3, 4, "sink", "sink"] * 3
    assert spies[0].rounds == spies[1].rounds
    assert [r.round for r in spies[0].rounds] == [1, 2, 3]
    assert spies[0].ends == []  # who made the sinks ends them


def test_bytes_are_payload_plus_what_crossed_the_cut():
    payload = 6 * 4 + 8 + 4  # w, n, s
    sink = Memory()
    app = make_app(cut=(1000, 7))
    FedAvg(clients_per_round=3).start(grid(app), initial(), num_rounds=2, sinks=[sink])
    for record, clients in zip(sink.rounds, sink.clients, strict=True):
        assert {c.bytes_up for c in clients} == {payload + 1000}
        assert {c.bytes_down for c in clients} == {payload + 7}
        assert record.bytes_up == 3 * (payload + 1000)
        assert record.bytes_down == 3 * (payload + 7)
        assert record.num_dropped == 0
        assert record.wall_s > 0
        assert record.sim_s is record.energy_j is None


def evaluate_all(calls):
    def evaluate(server_round, arrays):
        calls.append(server_round)
        return MetricRecord(
            {"accuracy": float(weights(arrays)[0, 0]), "loss": 0.5, "edge_accuracy": 0.25}
        )

    return evaluate


@pytest.mark.parametrize(
    ("every", "num_rounds", "expected"),
    [(1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (3, 6, [3, 6]), (100, 4, [4])],
)
def test_evaluate_every_and_the_last_round(every, num_rounds, expected):
    calls, sink = [], Memory()
    result = FedAvg(evaluate_every=every).start(
        grid(), initial(), num_rounds, evaluate_fn=evaluate_all(calls), sinks=[sink]
    )
    assert calls == [0, *expected]
    assert sorted(result.evaluate_metrics_serverapp) == [0, *expected]
    for record in sink.rounds:
        if record.round in expected:
            metrics = result.evaluate_metrics_serverapp[record.round]
            assert record.accuracy == metrics["accuracy"]
            assert record.loss == 0.5
            assert dict(record.extra) == {"edge_accuracy": 0.25}
        else:
            assert record.accuracy is record.loss is None
            assert dict(record.extra) == {}
    assert sink.rounds[-1].accuracy == float(weights(result.arrays)[0, 0])


def test_no_evaluation_before_the_first_round_where_it_returns_none():
    result = FedAvg().start(
        grid(), initial(), 2,
        evaluate_fn=lambda r, a: None if r == 0 else MetricRecord({"accuracy": 0.5}),
    )  # fmt: skip
    assert sorted(result.evaluate_metrics_serverapp) == [1, 2]


def test_result_is_filled():
    sink = Memory()
    result = FedAvg().start(grid(), initial(), 2, evaluate_fn=evaluate_all([]), sinks=[sink])
    assert isinstance(result.arrays, ArrayRecord)
    assert {r: m[messages.LOSS] for r, m in result.train_metrics_clientapp.items()} == {
        r.round: r.train_loss for r in sink.rounds
    }
    assert sink.rounds[0].train_loss == pytest.approx(sum(n * p for p, n in enumerate(SIZES)) / 150)
    assert result.evaluate_metrics_clientapp == {}
    assert sorted(result.evaluate_metrics_serverapp) == [0, 1, 2]


# Checkpoints --------------------------------------------------------------------------------------


def counting(state, results, trained):
    """An aggregate with a state of its own: adds the count of rounds to the model's ``s``."""
    count = state.extra.get("count", np.zeros((), np.int64)) + 1
    state = Averaging()(state, results, trained)
    arrays = {**state.arrays, "s": np.float32(state.arrays["s"] + count)}
    return replace(state, arrays=arrays, extra={"count": np.asarray(count)})


@pytest.mark.parametrize("stopped_at", [1, 2, 3, 4])
def test_continuing_equals_never_having_stopped(tmp_path, stopped_at):
    common = {"clients_per_round": 3, "seed": 3, "evaluate_every": 2}

    def begin(num_rounds, resume_from=None, store=None, fails=()):
        sink = Memory()
        method = replace(FedAvg().method, aggregate=counting)
        result = FederatedStrategy(method, **common).start(
            grid(make_app(fails=fails)), initial(), num_rounds,
            evaluate_fn=evaluate_all([]), sinks=[sink], checkpoints=store, resume_from=resume_from,
        )  # fmt: skip
        return result, sink

    whole, uninterrupted = begin(5)
    store = Checkpoints(tmp_path, every=1)
    with pytest.raises(AllClientsFailedError):
        begin(5, store=store, fails=[(stopped_at + 1, p) for p in range(5)])
    found = store.latest()
    assert found.round == stopped_at
    resumed, after = begin(5, resume_from=found, store=store)
    assert states_equal(whole.arrays, resumed.arrays)
    assert timeless([*found.records, *after.rounds]) == timeless(uninterrupted.rounds)
    assert after.clients == uninterrupted.clients[stopped_at:]
    last = store.latest()
    assert timeless(last.records) == timeless(uninterrupted.rounds)
    assert last.extra["count"] == 5
    assert states_equal(messages.to_record(last.arrays), whole.arrays)


def test_checkpoints_are_written_when_due_and_at_the_end(tmp_path):
    store = Checkpoints(tmp_path, every=2, keep=9)
    FedAvg().start(grid(), initial(), 5, checkpoints=store)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000002", "000004", "000005"]
    assert [r.round for r in store.latest().records] == [1, 2, 3, 4, 5]


def test_continuing_a_finished_run_does_nothing_and_has_its_arrays(tmp_path):
    store, log = Checkpoints(tmp_path), []
    whole = FedAvg().start(grid(), initial(), 2, checkpoints=store)
    again = FedAvg().start(
        grid(make_app(log=log)), initial(), 2, checkpoints=store, resume_from=store.latest()
    )
    assert log == []
    assert states_equal(whole.arrays, again.arrays)


def test_a_finished_run_can_grow(tmp_path):
    store = Checkpoints(tmp_path)
    FedAvg().start(grid(), initial(), 2, checkpoints=store)
    grown = FedAvg().start(grid(), initial(), 4, resume_from=store.latest())
    assert states_equal(grown.arrays, FedAvg().start(grid(), initial(), 4).arrays)


# Flower's contract --------------------------------------------------------------------------------


def test_is_a_flower_strategy_and_needs_a_method():
    assert isinstance(FedAvg(), Strategy)
    with pytest.raises(TypeError, match="method"):
        FederatedStrategy()


def test_configure_and_aggregate_are_usable_directly():
    strategy, nodes = FedAvg(clients_per_round=3, seed=1), grid(kind=ShufflingGrid)
    sent = list(strategy.configure_train(4, initial(), ConfigRecord({"mine": 1}), nodes))
    chosen = select(range(5), 3, 1, 4)
    assert [message.metadata.dst_node_id for message in sent] == chosen
    assert {message.metadata.message_type for message in sent} == {MessageType.TRAIN}
    assert len({id(message.content) for message in sent}) == 1  # put into the object store once
    replies = list(nodes.send_and_receive(sent))
    arrays, metrics = strategy.aggregate_train(4, replies)
    np.testing.assert_allclose(weights(arrays), average(4, chosen), rtol=1e-6)
    total = sum(SIZES[p] for p in chosen)
    assert metrics[messages.LOSS] == pytest.approx(sum(SIZES[p] * p for p in chosen) / total)
    turned, _ = strategy.aggregate_train(4, replies[::-1])
    assert states_equal(arrays, turned)


def test_aggregate_of_failures_and_of_nothing():
    strategy, nodes = FedAvg(), grid(make_app(fails=[(None, p) for p in range(4)]))
    sent = list(strategy.configure_train(1, initial(), ConfigRecord(), nodes))
    replies = list(nodes.send_and_receive(sent))
    arrays, _ = strategy.aggregate_train(1, replies)
    np.testing.assert_allclose(weights(arrays), 4.1, rtol=1e-6)
    assert strategy.aggregate_train(1, replies[:4]) == (None, None)
    assert strategy.aggregate_train(1, []) == (None, None)


def test_clients_do_not_evaluate_and_one_node_is_enough():
    strategy, nodes = FedAvg(), grid(num_nodes=1)
    assert list(strategy.configure_evaluate(1, initial(), ConfigRecord(), nodes)) == []
    result = strategy.start(nodes, initial(), num_rounds=2)
    np.testing.assert_allclose(weights(result.arrays), 0.3, rtol=1e-6)


def test_flower_s_train_config_is_not_written_to():
    config = ConfigRecord({"mine": 1})
    FedAvg().start(grid(), initial(), 2, train_config=config)
    assert dict(config) == {"mine": 1}


def test_a_strategy_starts_again_on_another_grid():
    """Flower draws node ids anew for each run."""
    strategy = FedAvg()
    first = strategy.start(grid(), initial(), 1)
    second = strategy.start(grid(make_app(partition_of=lambda n: 4 - n)), initial(), 1)
    assert states_equal(first.arrays, second.arrays)


def test_a_node_that_does_not_answer_the_query_is_noticed():
    class Deaf(SerialGrid):
        def _execute(self, sent, timeout):
            return [r for r in super()._execute(sent, timeout) if r.metadata.src_node_id != 2]

    with pytest.raises(RuntimeError):
        FedAvg(num_clients=5).start(grid(kind=Deaf), initial(), 1)


class Orphaning(SerialGrid):
    """Node 2 is gone; the SuperLink answers in its own name, and says to which message."""

    def _execute(self, sent, timeout):
        for reply in super()._execute(sent, timeout):
            if reply.metadata.src_node_id == 2 and reply.metadata.message_type == "train":
                answers = reply.metadata.reply_to_message_id
                reply = Message(Error(3, "Node Unavailable"), reply_to=sent[0])
                reply.metadata.__dict__["_src_node_id"] = 999
                reply.metadata.__dict__["_reply_to_message_id"] = answers
            yield reply


def test_a_node_that_is_gone_is_failed(tmp_path) -> None:
    memory = Memory()
    strategy = FedAvg(train=LocalTraining(), num_clients=len(SIZES))
    grid = Orphaning(len(SIZES), {}, make_app())
    strategy.start(grid, ArrayRecord({"w": Array(np.zeros(2))}), num_rounds=1, sinks=[memory])
    failed = [row for rows in memory.clients for row in rows if row.status == "failed"]
    assert [(row.partition, row.reason) for row in failed] == [(2, "Node Unavailable")]
