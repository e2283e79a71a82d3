"""FedScale's and FLASH's files, small ones written here."""

import collections
import json
import os
import pickle
from pathlib import Path

import pytest
from machines import flops

from fleet.availability import Intervals
from fleet.cost import cost
from fleet.devices import tables
from fleet.traces import REFERENCE_FLOPS, match, read_availability, read_capacity
from fleet.work import ClientWork

DEVICE, LINK = tables().device("phone_mid"), tables().link("wifi")


def pickled(path: Path, node: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(node, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_fedscale_capacity_by_hand(tmp_path: Path, protocol: int) -> None:
    rows = {
        432802: {"computation": 162.0, "communication": 5648.1},
        "b": {"computation": 30, "communication": 1000},
    }
    found = read_capacity(pickled(tmp_path / "c", rows, protocol), DEVICE, LINK)
    assert set(found) == {"432802", "b"}
    device, link = found["432802"].device, found["432802"].link
    assert device.flops_per_s["fp32"] == pytest.approx(REFERENCE_FLOPS / 0.162)
    assert device.flops_per_s["int8"] == pytest.approx(2 * REFERENCE_FLOPS / 0.162)
    assert device.memory_bytes == DEVICE.memory_bytes
    assert (link.down_mbps, link.up_mbps) == pytest.approx((5.6481, 5.6481))
    # FedScale's own law: 3 × batch × steps × ms, and bits / rate (we add a latency each way).
    work = ClientWork(125_000, flops(3 * 20 * 5 * REFERENCE_FLOPS), (), 125_000)
    b = found["b"]
    seconds = cost(work, b.device, b.link, tables().device("server")).seconds
    assert seconds == pytest.approx(3 * 20 * 5 * 0.030 + 2.0 + 2 * LINK.latency_s)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({}, "takes entries by client"),
        ([1, 2], "takes entries by client"),
        ({1: 5}, "client 1: takes an id with a dict"),
        ({1: {"computation": 5}}, "client 1: communication=None: takes a positive number"),
        ({1: {"computation": 0, "communication": 1}}, "computation=0: takes a positive"),
        ({1: {"computation": "5", "communication": 1}}, "computation='5'"),
        ({1: {"computation": float("nan"), "communication": 1}}, "computation=nan"),
        ({1: {"computation": True, "communication": 1}}, "computation=True"),
    ],
)
def test_bad_capacities_are_refused(tmp_path: Path, node: object, message: str) -> None:
    path = pickled(tmp_path / "c", node)
    with pytest.raises(ValueError, match=message) as caught:
        read_capacity(path, DEVICE, LINK)
    assert str(path) in str(caught.value)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize(
    "node", [{1: Evil()}, collections.OrderedDict(a=1), {1: Path("x")}, {1: {2, 3}.__class__}]
)
def test_a_pickle_runs_nothing(tmp_path: Path, monkeypatch, node: object) -> None:
    monkeypatch.chdir(tmp_path)
    path = pickled(tmp_path / "evil", node)
    for read in (lambda: read_capacity(path, DEVICE, LINK), lambda: read_availability(path)):
        with pytest.raises(ValueError, match="takes plain values only"):
            read()
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x04K", pickle.dumps({1: {}})[:-3]])
def test_a_broken_pickle_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a pickle") as caught:
        read_capacity(path, DEVICE, LINK)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_capacity(tmp_path / "none", DEVICE, LINK)
    with pytest.raises(FileNotFoundError):
        read_availability(tmp_path / "none.json")


def test_fedscale_availability(tmp_path: Path) -> None:
    rows = {
        1: {"duration": 40, "active": [10, 50], "inactive": [30, 70], "finish_time": 100},
        2: {"active": [80], "inactive": [], "finish_time": 100, "model": "x"},  # until the end
        3: {"active": [], "inactive": [], "finish_time": 100},  # never
    }
    assert read_availability(pickled(tmp_path / "a", rows)) == {
        "1": Intervals(((10, 30), (50, 70)), 100),
        "2": Intervals(((80, 100),), 100),
    }


def test_flash_timers(tmp_path: Path) -> None:
    path = tmp_path / "cached_timers.json"
    timer = {"isSuccess": True, "trace_start": 1000, "trace_end": 1100}
    rows = {
        "u": timer | {"ready_time": [[1050, 1060], [1010, 1020], [1015, 1030]]},
        "failed": {"isSuccess": False, "trace_start": None, "trace_end": None, "ready_time": []},
    }
    path.write_text(json.dumps(rows))
    assert read_availability(path) == {"u": Intervals(((10, 30), (50, 60)), 100)}


def test_flash_states(tmp_path: Path) -> None:
    path = tmp_path / "state_traces.json"
    events = (
        "00:00:00\tscreen_lock",
        "00:00:10\tWIFI",
        "00:00:20\tbattery_charged_on",  # ready
        "00:00:25\t97%",
        "00:00:30\tscreen_on",
        "00:01:00\t4G",  # no longer
        "00:01:10\twifi",  # ready
        "00:01:30\tscreen_unlock",  # no longer
        "00:02:00\tbattery_charged_off",
    )
    messages = "\n".join(f"2020-01-02 {event}" for event in events)
    path.write_text(json.dumps({"0": {"guid": "g", "model": "m", "messages": messages + "\n"}}))
    assert read_availability(path) == {"0": Intervals(((20, 60), (70, 90)), 120)}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "2020-01-02 00:00:00\tflying"}, "client u: state 'flying' is unknown"),
        ({"messages": "yesterday\twifi"}, "client u: "),
        ({"messages": 5}, "client u: "),
        ({"ready_time": []}, "client u: has no 'isSuccess'"),
        ({"active": [1]}, "client u: has no 'inactive'"),
        ({"active": [1, 2, 3], "inactive": [2], "finish_time": 9}, "3 active and 1 inactive"),
        ({"active": [1], "inactive": [20], "finish_time": 9}, "within the trace"),
        ({"active": ["a"], "inactive": [2], "finish_time": 9}, "client u: "),
        ({"messages": ""}, "no client of it is ever available"),
    ],
)
def test_bad_availability_is_refused(tmp_path: Path, row: dict, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"u": row}))
    with pytest.raises(ValueError, match=message) as caught:
        read_availability(path)
    assert str(path) in str(caught.value)


def test_users_whose_states_cannot_be_followed_are_left_out(tmp_path: Path, caplog) -> None:
    path = tmp_path / "a.json"
    stamps = [f"2020-01-02 00:00:0{n}" for n in range(4)]
    states = ["wifi", "screen_lock", "battery_charged_on", "screen_unlock"]
    good = "\n".join(f"{stamp}\t{state}" for stamp, state in zip(stamps, states, strict=True))
    rows = {"odd": {"messages": f"{stamps[0]}\tflying"}, "good": {"messages": good}}
    path.write_text(json.dumps(rows))
    assert read_availability(path) == {"good": Intervals(((2, 3),), 3)}
    assert "1 clients left out; client odd: state 'flying' is unknown" in caplog.text


def test_broken_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        read_availability(path)


def test_partitions_meet_the_trace() -> None:
    by_id = match(["0", "2", "x"], range(4), seed=0, by_id=True)
    assert by_id == {0: "0", 2: "2"}
    drawn = match(["a", "b"], range(400), seed=0, by_id=False)
    assert set(drawn) == set(range(400))
    assert 150 < list(drawn.values()).count("a") < 250
    assert match(["b", "a"], [7], 0, by_id=False) == {7: drawn[7]}
