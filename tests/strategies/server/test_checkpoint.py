"""Checkpoints on disk: whole or not there."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strategies.server import checkpoint as module
from strategies.server.checkpoint import Checkpoints
from strategies.server.method import ServerState
from tracking.record import RoundRecord


def record(server_round, **changes):
    values = {
        "round": server_round, "accuracy": 0.1 + 0.2, "loss": 1 / 3, "train_loss": 1e-17,
        "num_clients": 5, "num_failed": 1, "num_dropped": 2, "bytes_up": 2**40, "bytes_down": 0,
        "sim_s": None, "energy_j": None, "wall_s": 0.25,
    }  # fmt: skip
    return RoundRecord(**{**values, **changes})


def made(server_round, value=0.0, **state):
    return ServerState(
        server_round,
        {"w": np.full((2, 3), value, np.float32)},
        state,
        tuple(record(r) for r in range(1, server_round + 1)),
    )


def same(a, b):
    return a.keys() == b.keys() and all(
        (a[n].dtype, a[n].shape, a[n].tobytes()) == (b[n].dtype, b[n].shape, b[n].tobytes())
        for n in a
    )


ARRAYS = {
    "f4": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
    "f8": np.float64([[-0.0, np.inf, np.nan]]),
    "f2": np.float16([1.5]),
    "i8": np.array([2**62 + 1, -1]),
    "u1": np.uint8([0, 255]),
    "bool": np.array([True, False]),
    "flag": np.array(True),
    "step": np.array(0.125, np.float32),
    "count": np.array(3),
    "empty": np.zeros((0, 2), np.float32),
}


def test_round_trip_of_every_type(tmp_path):
    records = [
        record(1, accuracy=None, loss=None, train_loss=None),
        record(2, sim_s=1.5, energy_j=2.5, extra={"dcor_max": 0.75, "active_channels": 8.0}),
    ]
    state = {"half/3/w": np.arange(4.0), "seen": np.array(False)}
    Checkpoints(tmp_path / "new").save(ServerState(2, ARRAYS, state, records))
    found = Checkpoints(tmp_path / "new").latest()
    assert found.round == 2
    assert same(found.arrays, ARRAYS)
    assert same(found.extra, state)
    assert list(found.records) == records


@pytest.mark.parametrize("where", ["arrays", "extra"])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.arange(10)[::2],
        torch.arange(36.0).reshape(2, 2, 3, 3).to(memory_format=torch.channels_last).numpy(),
    ],
    ids=["transposed", "sliced", "channels_last"],
)
def test_arrays_of_any_layout_come_back(tmp_path, array, where):
    saved = {"arrays": {}, "extra": {}, where: {"w": array}}
    Checkpoints(tmp_path).save(ServerState(1, **saved))
    found = getattr(Checkpoints(tmp_path).latest(), where)
    np.testing.assert_array_equal(found["w"], array)


@settings(deadline=None, max_examples=25)
@given(
    arrays=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
        .filter(lambda name: name != "__metadata__"),
        st.sampled_from(["f4", "i8", "?", "u1"]).flatmap(
            lambda t: hnp.arrays(np.dtype(t), hnp.array_shapes(min_dims=0, max_dims=3))
        ),
        max_size=4,
    ),
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
)  # fmt: skip
def test_round_trip_by_property(tmp_path_factory, arrays, values):
    folder = tmp_path_factory.mktemp("checkpoint")
    records = [record(1, accuracy=values[0], loss=values[1], extra={"x": values[2]})]
    Checkpoints(folder).save(ServerState(1, arrays, {}, records))
    found = Checkpoints(folder).latest()
    assert same(found.arrays, arrays)
    assert found.extra == {}
    assert list(found.records) == records


def test_a_strategy_without_state_has_an_empty_one(tmp_path):
    Checkpoints(tmp_path).save(made(1))
    assert Checkpoints(tmp_path).latest().extra == {}


def test_no_folder_no_checkpoint(tmp_path):
    assert Checkpoints(tmp_path / "nowhere").latest() is None
    assert Checkpoints(tmp_path).latest() is None


def test_latest_of_several_by_number_not_by_time(tmp_path):
    store = Checkpoints(tmp_path, keep=10)
    for server_round in (10, 9, 100, 2):
        store.save(made(server_round, value=server_round))
    found = store.latest()
    assert found.round == 100
    assert found.arrays["w"][0, 0] == 100
    assert len(found.records) == 100


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keep_leaves_the_newest(tmp_path, keep):
    store = Checkpoints(tmp_path, keep=keep)
    for server_round in (2, 4, 6, 8):
        store.save(made(server_round))
    left = sorted(int(path.name) for path in tmp_path.iterdir())
    assert left == [2, 4, 6, 8][-keep:]


@pytest.mark.parametrize(
    ("every", "expected"),
    [(0, []), (1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (7, [7]), (100, [7])],
)
def test_is_due_by_every_and_at_the_end(tmp_path, every, expected):
    store = Checkpoints(tmp_path, every=every)
    assert [r for r in range(1, 8) if store.is_due(r, 7)] == expected


def test_a_part_left_by_a_crash_is_ignored_and_overwritten(tmp_path):
    store = Checkpoints(tmp_path)
    store.save(made(1, value=1))
    part = tmp_path / "000002.part"
    part.mkdir()
    (part / "model.safetensors").write_bytes(b"half")
    (part / "leftover").write_text("x")
    assert store.latest().round == 1
    store.save(made(2, value=2))
    assert store.latest().arrays["w"][0, 0] == 2
    assert not part.exists()
    assert sorted(p.name for p in (tmp_path / "000002").iterdir()) == [
        "manifest.json", "model.safetensors", "records.json", "strategy.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("kill_at", ["first file", "second file", "records", "sync", "rename"])
def test_killed_while_writing_leaves_the_one_before(tmp_path, monkeypatch, kill_at):
    store = Checkpoints(tmp_path, keep=1)
    store.save(made(1, value=1))

    class Killed(BaseException):
        pass

    calls = []

    def dies_at(number, real):
        def act(*args, **kwargs):
            calls.append(1)
            if len(calls) == number:
                raise Killed
            return real(*args, **kwargs)

        return act

    with monkeypatch.context() as patch:
        if kill_at == "first file":
            patch.setattr(module, "save_file", dies_at(1, module.save_file))
        elif kill_at == "second file":
            patch.setattr(module, "save_file", dies_at(2, module.save_file))
        elif kill_at == "records":
            patch.setattr(module.json, "dumps", dies_at(1, json.dumps))
        elif kill_at == "sync":
            patch.setattr(module, "sync", dies_at(2, module.sync))
        else:
            patch.setattr(module.Path, "rename", dies_at(1, module.Path.rename))
        with pytest.raises(Killed):
            store.save(made(2, value=2))
    found = Checkpoints(tmp_path).latest()
    assert found.round == 1
    assert found.arrays["w"][0, 0] == 1
    store.save(made(2, value=2))
    assert [p.name for p in tmp_path.iterdir()] == ["000002"]


def test_everything_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    real_sync, real_rename = module.sync, module.Path.rename
    monkeypatch.setattr(module, "sync", lambda p: (events.append(p.name), real_sync(p)))
    monkeypatch.setattr(
        module.Path, "rename", lambda p, t: (events.append("rename"), real_rename(p, t))[1]
    )
    Checkpoints(tmp_path).save(made(1))
    at = events.index("rename")
    assert set(events[:at]) == {
        "model.safetensors", "strategy.safetensors", "records.json", "manifest.json",
    }  # fmt: skip
    assert events[at + 1 :] == [tmp_path.name]


def test_saving_a_round_again_replaces_it(tmp_path):
    store = Checkpoints(tmp_path)
    store.save(made(3, value=1))
    store.save(made(3, value=2))
    assert store.latest().arrays["w"][0, 0] == 2


def test_files_that_are_no_checkpoints_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "best").mkdir()
    store = Checkpoints(tmp_path, keep=1)
    store.save(made(1))
    store.save(made(2))
    assert store.latest().round == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000002", "best", "notes.txt"]


def test_a_record_field_that_does_not_exist_yet_is_an_extra(tmp_path):
    """Older code reading a newer run keeps what it does not know."""
    Checkpoints(tmp_path).save(made(1))
    path = tmp_path / "000001" / "records.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{**row, "future": 2.0} for row in rows]))
    (tmp_path / "000001" / "manifest.json").unlink()
    (found,) = Checkpoints(tmp_path).latest().records
    assert found.extra == {"future": 2.0}
    assert dataclasses.replace(found, extra={}) == record(1)
