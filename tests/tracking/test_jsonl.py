"""rounds.jsonl and clients.jsonl: whole lines, on disk when the round ends."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.jsonl import CLIENTS, ROUNDS, JsonlSink, read
from tracking.record import ClientRecord, RoundRecord

numbers = st.floats(allow_nan=False, allow_infinity=False)


def record(server_round, **changes):
    values = {
        "round": server_round, "accuracy": 0.1 + 0.2, "loss": 1 / 3, "train_loss": 2.0,
        "num_clients": 5, "num_failed": 1, "num_dropped": 0, "bytes_up": 2**60, "bytes_down": 0,
        "sim_s": None, "energy_j": None, "wall_s": 0.25,
    }  # fmt: skip
    return RoundRecord(**{**values, **changes})


def client(server_round, partition, **changes):
    values = {
        "round": server_round, "partition": partition, "device": None, "status": "ok",
        "num_examples": 7, "loss": 0.1, "bytes_up": 10, "bytes_down": 20, "sim_s": None,
        "energy_j": None,
    }  # fmt: skip
    return ClientRecord(**{**values, **changes})


def write(folder, rounds, done=()):
    sink = JsonlSink(folder, done)
    for r in rounds:
        sink.round(record(r), [client(r, p) for p in range(2)])
    return sink


def test_one_line_a_round_and_one_a_client_readable_while_the_run_goes_on(tmp_path):
    sink = JsonlSink(tmp_path)
    assert (tmp_path / ROUNDS).read_text() == (tmp_path / CLIENTS).read_text() == ""
    for r in (1, 2, 3):
        sink.round(record(r), [client(r, 0), client(r, 4, status="failed", loss=None)])
        lines = (tmp_path / ROUNDS).read_text().split("\n")  # before finish: flushed
        assert [json.loads(line)["round"] for line in lines[:-1]] == [*range(1, r + 1)]
        assert lines[-1] == ""
        assert len(read(tmp_path / CLIENTS)) == 2 * r
    sink.finish(None)
    assert read(tmp_path / CLIENTS)[-1] == {
        "round": 3, "partition": 4, "device": None, "status": "failed", "num_examples": 7,
        "loss": None, "bytes_up": 10, "bytes_down": 20, "sim_s": None, "energy_j": None,
        "reason": None,
    }  # fmt: skip


def test_the_fields_are_the_design_s_in_its_order(tmp_path):
    write(tmp_path, [1]).finish(None)
    assert list(read(tmp_path / ROUNDS)[0]) == [
        "round", "accuracy", "loss", "train_loss", "num_clients", "num_failed", "num_dropped",
        "bytes_up", "bytes_down", "sim_s", "energy_j", "wall_s",
    ]  # fmt: skip


@settings(deadline=None, max_examples=30)
@given(
    accuracy=st.none() | numbers,
    loss=numbers,
    extra=st.dictionaries(st.text(min_size=1).map(lambda s: "x_" + s), numbers, max_size=3),
)
def test_records_round_trip_exactly(tmp_path_factory, accuracy, loss, extra):
    folder = tmp_path_factory.mktemp("jsonl")
    given_ = record(1, accuracy=accuracy, loss=loss, extra=extra)
    sink = JsonlSink(folder)
    sink.round(given_, [])
    sink.finish({})
    (row,) = read(folder / ROUNDS)
    assert RoundRecord.from_dict(row) == given_


def test_continuing_keeps_what_is_done_and_drops_what_came_after(tmp_path):
    write(tmp_path, range(1, 6)).finish(None)
    done = [record(r, accuracy=r / 7) for r in (1, 2, 3)]
    sink = write(tmp_path, [4, 5, 6], done)
    sink.finish({})
    rows = read(tmp_path / ROUNDS)
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [RoundRecord.from_dict(row) for row in rows[:3]] == done
    assert [(c["round"], c["partition"]) for c in read(tmp_path / CLIENTS)] == [
        (r, p) for r in range(1, 7) for p in range(2)
    ]


def test_continuing_after_a_kill_in_mid_line(tmp_path):
    """Both files end in half a line; the round of it is run again."""
    write(tmp_path, [1, 2]).finish(None)
    for name in (ROUNDS, CLIENTS):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-9])
    assert len(read(tmp_path / ROUNDS)) == 1
    assert len(read(tmp_path / CLIENTS)) == 3
    write(tmp_path, [2], [record(1)]).finish({})
    assert [row["round"] for row in read(tmp_path / ROUNDS)] == [1, 2]
    assert [(c["round"], c["partition"]) for c in read(tmp_path / CLIENTS)] == [
        (1, 0), (1, 1), (2, 0), (2, 1),
    ]  # fmt: skip
    assert not list(tmp_path.glob("*.part"))


def test_starting_anew_empties_both(tmp_path):
    write(tmp_path, [1, 2]).finish(None)
    JsonlSink(tmp_path).finish(None)
    assert read(tmp_path / ROUNDS) == read(tmp_path / CLIENTS) == []


def test_reading_what_is_not_there_and_what_is_cut_off(tmp_path):
    path = tmp_path / "x.jsonl"
    assert read(path) == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3')
    assert read(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": "\\u2028"}\n{"b": "\u2028\x85"}\n', encoding="utf-8")
    assert [*read(path)[1].values()] == ["\u2028\x85"]  # these are no line ends


def test_every_line_is_json_also_where_the_loss_is_no_number(tmp_path):
    sink = JsonlSink(tmp_path)
    sink.round(record(1, loss=float("nan")), [])
    sink.finish(None)

    def refuse(name):
        raise ValueError(name)

    json.loads((tmp_path / ROUNDS).read_text(), parse_constant=refuse)
