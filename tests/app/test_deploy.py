"""docs/DEPLOY.md: its commands, executed as they are there, on this machine."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from flower_home import BIN, answers, reserved_port

PAGE = (ROOT / "docs/DEPLOY.md").read_text("utf-8")
TOOLS = ("openssl", "ssh-keygen", "bash")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
    pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)}"),
]


def blocks(label: str) -> list[str]:
    """The commands of a machine, in order."""
    return re.findall(rf"^```bash {label}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


class Shell:
    """Runs blocks in bash, with what the first one would have set."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.folder = folder
        self.env = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
            "HOME": str(folder),
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "HOST": "127.0.0.1",
            "PORT": str(ports[0]),
            "HALF_PORT": str(ports[1]),
            "KEYS": str(folder / "keys"),
            "OUTPUT": str(folder),
        }

    def run(self, block: str) -> str:
        done = subprocess.run(
            ["bash", "-euc", block], cwd=ROOT, env=self.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, block: str, name: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            subprocess.Popen(
                ["bash", "-euc", block], cwd=ROOT, env=self.env, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def processes(self) -> list[int]:
        mark = f"FLWR_HOME={self.env['FLWR_HOME']}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(reserved_port()) for _ in range(4)]
        shell = Shell(tmp_path, ports)
        shell.env["NODE_PORTS"] = f"{ports[2]} {ports[3]}"
        yield shell
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in shell.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + 10
        while shell.processes() and time.monotonic() < deadline:
            time.sleep(0.1)


def test_the_page_has_what_is_executed() -> None:
    first, *_ = blocks("server")
    assert first.startswith("export HOST=")
    names = re.findall(r"(\w+)=", first)
    assert names == ["HOST", "PORT", "HALF_PORT", "KEYS", "OUTPUT"]
    assert len(blocks("server background")) == len(blocks("device")) == 1
    assert len(blocks("server")) == 5


def test_keys_and_certificates(shell: Shell) -> None:
    """Those of the page are what Flower and we can read."""
    _, keys, *_ = blocks("server")
    shell.run(keys)
    assert {path.name for path in (shell.folder / "keys").iterdir()} == {
        "superlink.key", "superlink.pem", "device0", "device0.pub", "device1", "device1.pub",
    }  # fmt: skip
    assert (shell.folder / "keys").stat().st_mode & 0o77 == 0


@pytest.mark.long  # a SuperLink, two SuperNodes, two runs
@pytest.mark.timeout(1500)
def test_the_commands(shell: Shell) -> None:
    _, keys, register, federated, split = blocks("server")
    (superlink,), (device,) = blocks("server background"), blocks("device")
    shell.run(keys)
    shell.start(superlink, "superlink")
    cert, deadline = shell.folder / "keys" / "superlink.pem", time.monotonic() + 120
    while not answers(f"https://127.0.0.1:{shell.env['PORT']}/health", cert):
        assert time.monotonic() < deadline, (shell.folder / "superlink.log").read_text()
        time.sleep(0.2)
    shell.run(register)
    for number, port in enumerate(shell.env["NODE_PORTS"].split()):
        own = device.replace("device0", f"device{number}").replace("9094", port)
        shell.start(own.replace("partition-id=0", f"partition-id={number}"), f"device{number}")
    for name, block in (("oqfl", federated), ("split", split)):
        said = shell.run(block)
        assert (shell.folder / name / "summary.json").exists(), said


@pytest.mark.long  # a SuperLink, three SuperNodes, a run
@pytest.mark.timeout(1500)
@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_two_machines() -> None:
    command = [sys.executable, "-m", "benchmarks.two_machines", "strategy=ushaped", "rounds=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| the same |") == 1
    for number in range(3):
        assert f"of device{number}: 479 inputs with labels, 0 test samples |" in done.stdout
