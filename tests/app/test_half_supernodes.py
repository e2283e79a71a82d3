"""Split learning on a real SuperLink with TLS and two SuperNodes, and what breaks there.

Every message starts a process, which takes long: one round of one method in the default run.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, assert_same_run
from flower_home import FlowerHome, FlowerRun, reserved_port

COMMON = (
    "clients.total=2", "train.epochs=1", "data.max_train=240", "tracker.wandb.mode=disabled",
    "checkpoint.every=1",
)  # fmt: skip
METHODS = (
    "splitfed_v2", "hierarchical", "split", "splitfed_v1", "splitfed_v3", "ushaped",
    "binarized_split", "deprune", "prune",
)  # fmt: skip
WAIT_S = 400.0

pytestmark = [
    pytest.mark.timeout(1500),  # Flower starts again what takes 30 s to start
    pytest.mark.skipif(sys.platform != "linux", reason="FlowerHome finds processes in /proc"),
]


class Federation:
    """A SuperLink with TLS, and two SuperNodes."""

    def __init__(self, home: FlowerHome) -> None:
        self.home = home
        self.link = home.superlink()
        self.nodes = [home.supernode(self.link, f"partition-id={p}") for p in (0, 1)]

    def run(self, folder: Path, *overrides: str, port: int = 0, **config: Any) -> FlowerRun:
        return self.home.run(
            self.link,
            overrides=" ".join([*COMMON, *overrides]),
            output=str(folder),
            half_address=f"127.0.0.1:{port}",
            **config,
        )

    def in_background(
        self, *arguments: Any, **config: Any
    ) -> tuple[threading.Thread, list[FlowerRun]]:
        """The same, in a thread; the run is in the list when it has ended."""
        ended: list[FlowerRun] = []
        thread = threading.Thread(target=lambda: ended.append(self.run(*arguments, **config)))
        thread.start()
        return thread, ended

    def dialled(self, port: int) -> list[int]:
        """Processes of devices that are connected to this port."""
        found = []
        inodes = {line[9] for line in connections() if line[2].endswith(f":{port:04X}")}
        for pid in self.home.processes():
            with contextlib.suppress(OSError):
                links = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
                if any(f"socket:[{inode}]" in links for inode in inodes):
                    found.append(pid)
        return found

    def named(self, name: str) -> list[int]:
        """Processes whose command line has this word."""
        found = []
        for pid in self.home.processes():
            with contextlib.suppress(OSError):
                if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found


def connections() -> list[list[str]]:
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [line for line in lines if line[3] == "01"]  # established


def until(is_so: Any) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (found := is_so()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with FlowerHome(tmp_path_factory.mktemp("supernodes") / "flower", tls=True) as home:
        yield Federation(home)
    assert home.processes() == []


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Federation]:
    """For a test that breaks it."""
    with FlowerHome(tmp_path / "flower", tls=True) as home:
        yield Federation(home)
    assert home.processes() == []


@pytest.fixture
def port() -> Iterator[int]:
    with reserved_port() as port:
        yield port


def by_main(folder: Path, *overrides: str) -> Path:
    command = ["main.py", "engine=serial", *COMMON, *overrides, f"hydra.run.dir={folder}"]
    subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=True)
    return folder


def clients(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (folder / "clients.jsonl").read_text().splitlines()]


def test_a_round(federation: Federation, tmp_path: Path) -> None:
    """Of the method whose half goes from device to device."""
    chosen = ("strategy=splitfed_v2", "link.up=int8", "rounds=1")
    run = federation.run(tmp_path / "run", *chosen)
    assert run.status == "finished:completed", federation.home.logs()
    assert_same_run(by_main(tmp_path / "main", *chosen), tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str, federation: Federation, tmp_path: Path) -> None:
    chosen = (f"strategy={method}", "link.up=int8", "link.down=int8", "rounds=2")
    run = federation.run(tmp_path / "run", *chosen)
    assert run.status == "finished:completed", federation.home.logs()
    assert_same_run(by_main(tmp_path / "main", *chosen), tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize("method", ["splitfed_v1", "splitfed_v2"])
def test_a_device_that_is_killed_in_mid_round(
    method: str, federation: Federation, tmp_path: Path, port: int
) -> None:
    """It is failed and rolled back; the other goes on."""
    chosen = (f"strategy={method}", "train.epochs=300", "rounds=1")
    thread, ended = federation.in_background(tmp_path / "run", *chosen, port=port)
    pids = until(lambda: federation.dialled(port))
    time.sleep(2)  # it trains
    os.kill(pids[0], signal.SIGKILL)
    thread.join(WAIT_S)
    assert ended and ended[0].status == "finished:completed", federation.home.logs()
    reasons = [row["reason"] for row in clients(tmp_path / "run")]
    assert sum(reason is not None for reason in reasons) == 1
    assert not federation.dialled(port)


@pytest.mark.long
def test_a_supernode_that_is_killed_in_mid_round(
    own: Federation, tmp_path: Path, port: int
) -> None:
    chosen = ("strategy=splitfed_v2", "train.epochs=300", "rounds=1")
    thread, ended = own.in_background(tmp_path / "run", *chosen, port=port)
    until(lambda: own.dialled(port))
    own.nodes[1].kill()
    thread.join(WAIT_S)
    assert ended and ended[0].status == "finished:completed", own.home.logs()
    assert len(clients(tmp_path / "run")) == 2


@pytest.mark.long
def test_a_serverapp_that_is_killed_is_resumed(own: Federation, tmp_path: Path, port: int) -> None:
    """Devices answer, the port is free, and the same command goes on with the same bits."""
    chosen = ("strategy=splitfed_v2", "rounds=3", "train.epochs=20")
    thread, _ = own.in_background(tmp_path / "run", *chosen, port=port)
    until(lambda: (tmp_path / "run" / "rounds.jsonl").exists() and own.dialled(port))
    for pid in own.named("flwr-serverapp"):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not own.dialled(port))
    thread.join(WAIT_S)
    run = own.run(tmp_path / "run", *chosen, "resume=true", port=port)
    assert run.status == "finished:completed", own.home.logs()
    assert_same_run(by_main(tmp_path / "main", *chosen), tmp_path / "run")
