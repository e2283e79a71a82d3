"""A Flower of its own for a test: SuperLink, SuperNodes and `flwr run` as a user starts them.

It has a FLWR_HOME and ports that nobody else has, and every wait has a limit. At the end of the
`with` block all processes that know this FLWR_HOME are ended, whoever started them: those that
Flower and Ray start detach themselves. Linux alone: they are found in /proc.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from conftest import ROOT

BIN = Path(sys.executable).parent
START_S = 120.0  # each limit is many times what an idle machine needs
RUN_S = 1000.0
END_S = 10.0
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class FlowerRun:
    """How a run ended: Flower's status and details, and what it logged."""

    status: str
    details: str
    log: str


class FlowerHome:
    """Flower's state and the processes that belong to it.

    Args:
        folder: where state and logs go; is made.
        tls: whether everybody talks to the SuperLink by TLS, with a certificate made for it.
    """

    def __init__(self, folder: Path, tls: bool = False) -> None:
        self.folder = folder
        self._tls = tls
        self._ports = contextlib.ExitStack()
        self._children: list[subprocess.Popen[bytes]] = []
        self._env = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
            "FLWR_HOME": str(folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_ADDRESS": "local",  # without it Ray would join any cluster on this machine
        }

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        if self._tls:
            make = [
                "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                "-nodes", "-days", "2", "-subj", "/CN=superlink", "-addext",
                "subjectAltName=IP:127.0.0.1", "-keyout", str(self.key), "-out", str(self.cert),
            ]  # fmt: skip
            subprocess.run(make, check=True, capture_output=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._ports.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + END_S
            while self.processes() and time.monotonic() < deadline:
                time.sleep(0.1)
        for child in self._children:
            child.wait(END_S)

    @property
    def cert(self) -> Path:
        """The SuperLink's certificate, where there is one."""
        return self.folder / "superlink.pem"

    @property
    def key(self) -> Path:
        """Its key."""
        return self.folder / "superlink.key"

    def superlink(self, *options: str) -> str:
        """Start a SuperLink, wait until it answers, and return its address."""
        port = self._ports.enter_context(reserved_port())
        address = f"127.0.0.1:{port}"
        cert, key = str(self.cert), str(self.key)
        tls = ("--ssl-certfile", cert, "--ssl-keyfile", key, "--ssl-ca-certfile", cert)
        process = self._start(
            "flower-superlink", *(tls if self._tls else ("--insecure",)),
            "--disable-runtime-dependency-installation",
            "--host", "127.0.0.1", "--port", str(port), *options,
        )  # fmt: skip
        deadline = time.monotonic() + START_S
        scheme = "https" if self._tls else "http"
        while not answers(f"{scheme}://{address}/health", self.cert if self._tls else None):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no SuperLink: {self.logs()}")
            time.sleep(0.2)
        with (self.folder / "config.toml").open("a") as file:
            name = json.dumps(link_name(address))
            trust = f'root-certificates = "{cert}"' if self._tls else "insecure = true"
            file.write(f'[superlink.{name}]\naddress = "{address}"\n{trust}\n')
        return address

    def supernode(self, superlink: str, node_config: str) -> "subprocess.Popen[bytes]":
        """Start a SuperNode; it comes to the SuperLink when it is ready."""
        port = self._ports.enter_context(reserved_port())
        tls = ("--root-certificates", str(self.cert)) if self._tls else ("--insecure",)
        return self._start(
            "flower-supernode", *tls, "--superlink", superlink,
            "--host", "127.0.0.1", "--port", str(port), "--node-config", node_config,
        )  # fmt: skip

    def run(self, superlink: str, *options: str, **run_config: str | float) -> FlowerRun:
        """`flwr run . --stream -c …` in the repository's root, until the run has ended."""
        name = link_name(superlink)
        config = " ".join(f"{key}={json.dumps(value)}" for key, value in run_config.items())
        log = self._flwr("run", ".", name, "--stream", *options, "-c", config)
        found = re.search(r"Successfully started run (\d+)", log)
        if found is None:
            raise RuntimeError(f"no run was started: {log}")
        listed = self._flwr("list", name, "--run-id", found[1], "--format", "json")
        (run,) = json.loads(listed[listed.index("{") :])["runs"]
        return FlowerRun(run["status"], run["status-details"], log)

    def processes(self) -> list[int]:
        """Ids of all living processes of this home."""
        mark = f"FLWR_HOME={self.folder}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # somebody else's, or gone
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found

    def logs(self) -> str:
        """What all processes wrote."""
        paths = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in paths)

    def _flwr(self, *arguments: str) -> str:
        process = self._start("flwr", *arguments)
        try:
            process.wait(RUN_S)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"flwr {arguments[0]} does not end: {self.logs()}") from error
        return self._log_path(self._children.index(process)).read_text()

    def _start(self, *command: str) -> "subprocess.Popen[bytes]":
        with self._log_path(len(self._children)).open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._children.append(process)
        return process

    def _log_path(self, number: int) -> Path:
        return self.folder / f"{number:02}.log"


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port that nobody else is given; who knows it can listen there, as both reuse addresses."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def answers(url: str, cert: Path | None = None) -> bool:
    """Whether something is served there; by TLS if ``cert`` says whom to trust."""
    context = ssl.create_default_context(cafile=cert) if cert else None
    try:
        with urllib.request.urlopen(url, timeout=2, context=context):
            return True
    except OSError:
        return False


def link_name(address: str) -> str:
    """What config.toml calls the SuperLink at this address."""
    return "at-" + address.rpartition(":")[2]


def die_with_parent() -> None:
    """Have the kernel end this process when the test's own ends, however that happens."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)
