"""`python -m app.measure`: its rows are rows of the tables, and say what was measured."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from app.commands import measure
from app.commands.measure import Timed, fitted
from fleet.devices import TABLES, load_tables
from fleet.work import Compute


def test_a_fit_of_two_figures_by_hand() -> None:
    """10 GFLOP/s and 2 GB/s: 1e7 operations and 4e6 bytes take 1 ms + 2 ms."""
    one = Timed("a", 0.003, 0.0, Compute({"fp32": 1e7}, 4e6), Compute())
    two = Timed("b", 0.0105, 0.0215, Compute({"fp32": 1e8}, 1e6), Compute({"fp32": 2e8}, 3e6))
    speed, bandwidth = fitted([one, two])
    assert speed == pytest.approx(1e10, rel=1e-6)
    assert bandwidth == pytest.approx(2e9, rel=1e-6)


def test_rows_of_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "app.measure", f"serve={address}"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert address in server.stdout.readline()
    assert measure.main(["name=mine", f"link={address}", "model=lenet5", "data=mnist"]) == 0
    assert server.wait(30) == 0
    table, devices, links = capsys.readouterr().out.split("\n# fleet/tables/")
    assert table.splitlines()[2].startswith("| stage1.conv | ")
    tables = tmp_path / "tables"
    shutil.copytree(TABLES, tables)
    for text in (devices, links):
        name, _, row = text.partition("\n")
        with (tables / name).open("a") as file:
            file.write("\n" + row)
    found = load_tables(tables)
    device, link = found.device("mine"), found.link("mine_link")
    for row in table.splitlines()[2:]:
        forward, backward, clock = (float(cell) for cell in row.strip("| ").split(" | ")[1:])
        assert forward > 0
        assert clock < 20 * (forward + backward)
    assert 1e6 < device.speed("fp32") <= 1e18
    assert link.up_mbps > 1
    assert link.down_mbps > 1
    assert link.latency_s < 1


def test_what_cannot_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert measure.main(["model=nope"]) == 1
    assert "error: model=nope" in capsys.readouterr().err
    for key, address in (("serve", "9500"), ("serve", "here:"), ("link", "here:99999")):
        assert measure.main([f"{key}={address}"]) == 1
        assert capsys.readouterr().err == f"error: {key}='{address}': takes host:port\n"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        assert measure.main([f"link={address}", "data.max_train=20"]) == 1
    assert "Connection refused" in capsys.readouterr().err
