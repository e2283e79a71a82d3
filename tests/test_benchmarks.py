"""Every benchmark runs, small, and its table says what it must."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, simulate

from benchmarks import (
    binary,
    clock,
    cloud_round,
    codec,
    evaluation,
    fleet,
    hierarchical,
    machine,
    networks,
    privacy,
    quant,
    remote,
    scale,
    slow_link,
    split,
    steps,
    sweep,
    wire,
)
from fleet.devices import Link
from fleet.devices import tables as fleet_tables
from models.cost import cost
from models.lenet5 import LeNet5
from quant.codec import CODECS
from strategies.client.training import LocalTraining

# What is no benchmark of its own.
PARTS = {
    "__init__",
    "architecture",  # tests/test_architecture.py
    "cloud_round",
    "hierarchical_plot",
    "machine",
    "own_samples",
    "picture",
    "random_data",
    "slow_link",  # tested here, too
    "table",
    "two_machines",  # tests/app/test_deploy.py
}
TESTED = {
    "binary", "clock", "codec", "engine", "evaluation", "fleet", "hierarchical", "networks",
    "privacy", "quant", "remote", "scale", "split", "steps", "sweep", "wire",
}  # fmt: skip

Rows = list[dict[str, str]]


def tables(text: str) -> list[Rows]:
    """The Markdown tables in a text, each row by its heads."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [
        [dict(zip(heads, row, strict=True)) for row in rows]
        for heads, _, *rows in filter(None, found)
    ]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: capsys.readouterr().out


def number(text: str) -> float:
    return float(text.replace(",", "").split()[0])


def test_every_benchmark_is_tested_and_make_bench_runs_those_that_need_no_files() -> None:
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert files >= TESTED
    assert files <= PARTS | TESTED
    (line,) = [
        line
        for line in (ROOT / "Makefile").read_text().splitlines()
        if line.startswith("BENCHMARKS")
    ]
    assert set(line.partition(":=")[2].split()) == TESTED - {"binary", "privacy", "steps"}


@pytest.mark.long
def test_scale(printed: Callable[[], str]) -> None:
    scale.main(["--clients", "6", "--per-round", "8", "--rounds", "2"])
    ((row,),) = tables(printed())
    assert (row["clients"], row["a round"]) == ("6", "6")
    assert number(row["round ms"]) > 0
    assert abs(number(row["ms a client"]) - number(row["round ms"]) / 6) < 0.1
    assert 100 < number(row["peak MiB"]) < 4000


def test_wire(printed: Callable[[], str]) -> None:
    wire.main(["--bits", "2", "--model", "lenet5"])
    ((*parts, whole),) = tables(printed())
    weights = {row["part"]: row for row in parts}["weights at 2 bits"]
    assert number(weights["fp32 bytes"]) == 16 * number(weights["packed bytes"])
    for column in ("fp32 bytes", "packed bytes"):
        assert sum(number(row[column]) for row in parts) == number(whole[column])
    plain = sum(t.numel() for t in LeNet5().state_dict().values())
    assert number(whole["fp32 bytes"]) == 4 * plain


def test_codec(printed: Callable[[], str]) -> None:
    codec.main(["--shape", "2", "4", "6", "6", "--turns", "2"])
    (rows,) = tables(printed())
    sizes = {row["codec"]: number(row["bytes a value"]) for row in rows}
    assert sizes.keys() == {*CODECS, "int8 per channel", "int8 stochastic"}
    assert sizes["fp32"] == 2 * sizes["fp16"] == 4
    assert 1 < sizes["int8"] < sizes["int8 per channel"] < 1.5
    assert sizes["int8"] == sizes["int8 stochastic"]
    assert all(number(row["µs transmit"]) >= 0 for row in rows)


def test_steps(printed: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(64, 1, 14, 14), torch.randint(10, (64,))
    monkeypatch.setattr(steps, "pictures", lambda _: [x, y, x, y])
    monkeypatch.setenv("CUTBIT_DATA", "/nowhere")
    steps.main(["--clients", "2", "--samples", "32", "--rounds", "1"])
    (rows,) = tables(printed())
    assert [row["rule"] for row in rows] == list(steps.VARIANTS)


def test_quant(printed: Callable[[], str]) -> None:
    quant.main(["--steps", "1"])
    (rows,) = tables(printed())
    assert len(rows) == 4 * len(quant.CASES)
    for row in rows:
        assert number(row["ms a step"]) > 0 < number(row["of fp32"])
        assert row["variant"] != "fp32" or row["of fp32"] == "1.00"


def test_evaluation(printed: Callable[[], str]) -> None:
    evaluation.main(["--turns", "1", "--networks", "cnn 8×8"])
    (row,) = tables(printed())[0]
    assert row["network"] == "cnn 8×8"
    assert row[str(evaluation.EVALUATION_BATCH)] == "1.00"
    assert all(number(row[str(batch)]) > 0 for batch in evaluation.BATCHES)


@pytest.mark.long
def test_networks(printed: Callable[[], str]) -> None:
    networks.main(["tutorial", "adaptive"])
    (rows,) = tables(printed())
    assert [row["network"] for row in rows] == ["tutorial", "adaptive"]
    assert [row["exact cuts"] for row in rows] == ["9 of 9", "refused"]
    assert [row["step finite"] for row in rows] == ["yes", "yes"]
    assert "control flow on the values of a tensor" in rows[1]["not exact"]


def test_fleet(printed: Callable[[], str]) -> None:
    fleet.main(["--clients", "5", "--repeats", "1"])
    rows, steps = tables(printed())
    assert [row["rule"] for row in rows] == [
        "parallel", "queued", "sequential", "overlapped", "pipelined"
    ]  # fmt: skip
    assert {row["clients"] for row in rows} == {"5"}
    assert all(number(row["plan"]) > 0 for row in rows)
    assert [row["network"] for row in steps] == ["whole", "cut", "cut, queued"]
    assert all(number(row["step"]) > 0 for row in steps)


def test_hierarchical_of_a_small_network(
    printed: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = LeNet5(3, input_shape=hierarchical.SHAPE)
    monkeypatch.setitem(hierarchical.NETWORKS, "lenet5", lambda: small)
    monkeypatch.setitem(hierarchical.CUTS, "lenet5", "stage2")
    monkeypatch.setitem(hierarchical.PAPER, "lenet5", 0.3)
    hierarchical.main(["--models", "lenet5", "--rates", "0.1", "100"])
    text = printed()
    *savings, limits = tables(text)
    assert len(savings) == 2 * 2 * 2
    assert "lenet5 on jetson_nano, pipelined, z as int8, best cut" in text
    assert {row["device"] for row in limits} == set(fleet_tables().devices)
    assert all(number(row["s/epoch"]) > 0 for rows in savings for row in rows)


@pytest.mark.long  # half a minute of traces; the curves are drawn by the next one
def test_hierarchical(printed: Callable[[], str]) -> None:
    hierarchical.main(["--models", "resnet18", "--rates", "0.1", "100"])
    *savings, limits = tables(printed())
    assert len(savings) == 2 * 2 * 2
    for fixed, best in zip(savings[::2], savings[1::2], strict=True):
        for one, other in zip(fixed, best, strict=True):
            assert one["cut"].startswith("layer3")
            assert number(other["s/epoch"]) <= number(one["s/epoch"])
    for slow, fast in savings:
        assert number(slow["s/epoch"]) > number(fast["s/epoch"])
        shares = [float(slow[name].rstrip("%")) for name in hierarchical.BASELINES]
        assert shares[0] > shares[1] > shares[3]  # fp32 each epoch, uint8 each epoch, uint8 once
    overlapped, pipelined = savings[0], savings[4]
    for one, other in zip(overlapped, pipelined, strict=True):
        assert number(other["s/epoch"]) <= number(one["s/epoch"])
    jetson = {row["device"]: row["Mbit/s"] for row in limits}["jetson_nano"]
    assert number(jetson) == pytest.approx(12.1, abs=0.1)  # as docs/RESULTS.md says


def test_hierarchical_draws_its_curves(tmp_path: Path) -> None:
    hierarchical.main(["--models", "resnet18", "--plot", str(tmp_path / "curves.html")])
    page = (tmp_path / "curves.html").read_text()
    assert "resnet18 cut after layer3" in page
    assert "uint8, once (z as int8)" in page


def test_cloud_round_uploads_inputs_and_labels_once() -> None:
    train = LocalTraining(batch_size=32, epochs=2)
    network = cost(LeNet5(), (1, 28, 28))

    def up(**how: object) -> int:
        work = cloud_round.cloud_round(network, 784, 100, train, **how)  # type: ignore[arg-type]
        return sum(b.count * e.bytes_up for b in work.batches for e in b.exchanges)

    labels = up() - 2 * 100 * 784 * 4
    assert 0 < labels <= 2 * 100 * 8
    assert up(pixels="uint8") == 2 * 100 * 784 + labels
    assert up(uploads=False) == 0


def test_split(printed: Callable[[], str]) -> None:
    split.main(["--clients", "2", "--samples", "32", "--rounds", "1"])
    (rows,) = tables(printed())
    assert [row["method"] for row in rows] == list(split.METHODS)
    assert rows[0]["of FedAvg's"] == "1.000"
    assert all(number(row["of FedAvg's"]) > 0 for row in rows)


needs_a_link = pytest.mark.skipif(
    not slow_link.can_be_made(), reason="takes Linux, root, ip and /dev/net/tun"
)
# Dials, says hello, waits for the last byte, hangs up: seconds of a round trip, and of all.
DIALS = """
import socket, sys, time
from benchmarks.slow_link import enter
enter(sys.argv[1])
began = time.perf_counter()
with socket.create_connection((sys.argv[2], int(sys.argv[3]))) as line:
    joined = time.perf_counter() - began
    line.sendall(b"hello")
    data = b""
    while piece := line.recv(65536):
        data += piece
print(joined, time.perf_counter() - began, data == bytes(range(250)) * 1200)
"""


@needs_a_link
@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_a_slow_link_is_as_slow_as_it_says_and_tcp_gets_everything_through(loss: float) -> None:
    link = Link("some", down_mbps=8.0, up_mbps=4.0, latency_s=0.02)
    with (
        slow_link.ends() as wire,
        socket.create_server((wire.address, 0)) as server,
        wire.joined(link, loss),
    ):
        where = [wire.namespace, wire.address, str(server.getsockname()[1])]
        dials = subprocess.Popen(
            [sys.executable, "-c", DIALS, *where], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        with server.accept()[0] as line:
            assert line.recv(5) == b"hello"
            line.sendall(bytes(range(250)) * 1200)
        joined, took, is_same = dials.communicate(timeout=60)[0].split()
    assert is_same == "True"
    assert float(joined) >= 2 * 0.02
    assert float(took) >= 2 * 2 * 0.02 + 8 * 300_000 / 8e6


@needs_a_link
@pytest.mark.long  # it waits for slow links
def test_clock(printed: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "LINKS", ("wifi",))
    clock.main(["--batches", "2"])
    (rows,) = tables(printed())
    assert [(row["device"], row["link"], row["lost"]) for row in rows] == [
        (device, "wifi", lost) for device in ("whole", "half") for lost in ("0%", "1%")
    ]
    for row in rows:
        measured, simulated = number(row["measured s"]), number(row["simulated s"])
        assert measured > 2 * (0.021 + 2 * 4 * 32 * 400 * 8 / 34.5e6)  # as long as the link takes
        assert 0 < simulated < measured * 3


@pytest.mark.long
def test_remote(printed: Callable[[], str]) -> None:
    remote.main(["--batches", "2", "--repeat", "1", "--clients", "8"])
    (rows,) = tables(printed())
    found = [(row["link"], row["clients"]) for row in rows]
    assert found == [("fp32", "1"), ("fp32", "8"), ("int8", "1"), ("int8", "8")]
    for row in rows:
        assert abs(number(row["exchanges/s"]) * number(row["ms elsewhere"]) - 1000) < 100
        for kind in ("", "CPU "):
            assert number(row[f"{kind}ms beside"]) > 0
            assert number(row[f"{kind}ratio" if kind else "ratio"]) > 0


@pytest.mark.timeout(600)  # starts Ray twice
@pytest.mark.long  # it starts and ends Ray, and Flower's simulation
def test_engine() -> None:
    sizes = ["--clients", "4", "--samples", "128", "--rounds", "2", "--cores", "1"]
    command = [sys.executable, "-m", "benchmarks.engine", *sizes]
    found = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "FLWR_LOG_LEVEL": "ERROR"},
    )
    assert found.returncode == 0, found.stderr
    (rows,) = tables(found.stdout)
    assert [row["engine"] for row in rows] == ["plain", "ray", "serial", "flower"]
    assert rows[0]["of the plain loop"] == "1.00"
    for row in rows:
        assert number(row["samples/s"]) > 0 < number(row["of the plain loop"])
        assert 100 < number(row["peak MB"]) < 20_000


@pytest.mark.long
def test_sweep(printed: Callable[[], str]) -> None:
    """Jobs at once are tested in tests/app/test_side_by_side.py, which starts Ray."""
    small = ["--jobs", "2", "--rounds", "1", "--samples", "40", "--at-once", "1"]
    sweep.main([*small, "--arms", "beside"])
    ((row,),) = tables(printed())
    assert number(row["seconds"]) > 0
    assert (row["arm"], row["of sweep.jobs=1"], row["jobs with equal files"]) == (
        "sweep.jobs=1", "1.00", "2 of 2",
    )  # fmt: skip


def test_a_sweep_is_compared_by_what_it_found(tmp_path: Path) -> None:
    for seed, folder in ((0, "one/0"), (0, "two/0"), (1, "other/0")):
        simulate(tmp_path / folder, "strategy=fedavg", f"seed={seed}", "rounds=1")
        file = tmp_path / folder / "summary.json"
        summary = json.loads(file.read_text())
        summary["provenance"]["command"] = f"python main.py {folder}"
        file.write_text(json.dumps(summary))
    assert sweep.same(tmp_path / "one", tmp_path / "two") == 1
    assert sweep.same(tmp_path / "one", tmp_path / "other") == 0


@pytest.mark.long
def test_binary(printed: Callable[[], str]) -> None:
    arms = ["cnn", "hybrid", "plain"]
    binary.main(
        ["--data", "random", "--epochs", "1", "--seeds", "0", "--turns", "1", "--arms", *arms]
    )
    text = printed()
    accuracies, sizes, times = tables(text)
    assert [row["arm"] for row in accuracies] == arms
    for row in accuracies:
        assert 0 <= number(row["last"]) <= number(row["best"]) <= 100
        assert 0 <= number(row["dCor mean"]) <= number(row["dCor max"]) <= 1
    differ = [line for line in text.splitlines() if line.startswith("bits that differ")]
    assert len(differ) == 3
    assert all(line.partition(": ")[2].startswith("0") for line in differ)
    weights = next(row for row in sizes if row[""] == "weights, bytes")
    assert number(weights["real half"]) == 32 * number(weights["packed"])
    assert [row["batch"] for row in times] == ["1", "32", "256"]


@pytest.mark.long
def test_privacy(tmp_path: Path, printed: Callable[[], str]) -> None:
    for index, epsilon in enumerate(("null", "1")):
        simulate(
            tmp_path / "noise" / str(index), "strategy=binarized_split", "rounds=1",
            f"privacy.epsilon={epsilon}", "data.max_train=60", "data.max_test=60",
        )  # fmt: skip
    privacy.main([str(tmp_path / "noise"), "--plot", str(tmp_path / "noise.html")])
    (rows,) = tables(printed())
    assert [row["privacy.epsilon"] for row in rows] == ["none", "1"]
    for row in rows:
        assert row["seeds"] == "1"
        assert 0 <= number(row["accuracy"]) <= 100
        assert 0 <= number(row["dCor, mean"]) <= number(row["dCor, largest channel"]) <= 1
    assert " of the noise" in (tmp_path / "noise.html").read_text()


def test_privacy_refuses_what_is_no_such_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(tmp_path / "0", "strategy=fedavg", "rounds=1", "data.max_train=30")
    with pytest.raises(SystemExit):
        privacy.main([str(tmp_path)])
    assert "takes finished runs of one of privacy.dcor_weight" in capsys.readouterr().err


def test_the_machine_is_named() -> None:
    line = machine.machine()
    assert f"torch {torch.__version__}" in line
    assert f"{os.cpu_count()} cores of " in line
