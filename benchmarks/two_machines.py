"""See it split: a server and three devices that share no files and no memory.

    make two-machines                       python -m benchmarks.two_machines strategy=ushaped

On Linux with root each has a network namespace of its own, joined by virtual cables, and of their
folders sees its own alone; elsewhere they are processes with folders of their own. The server has a
SuperLink with TLS and the test set; a device has a SuperNode and its own samples. Printed is who
has what, what crossed, counted by the run and by the cables, and whether the rounds are those of
`engine=serial` with all samples in one place.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from app import experiment
from app.config.composition import compose
from benchmarks.own_samples import FILE
from data.digits import load

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
DEVICES = 3
NET = "10.77.0"
SUPERLINK, HALF = 9000, 9443
DEFAULT = (
    "strategy=splitfed_v2", "link.up=int8", "link.down=int8", "rounds=2", "train.epochs=1",
)  # fmt: skip
DATA = (
    "data.source=benchmarks.own_samples", "data.partition=benchmarks.own_samples.by_owner",
    f"clients.total={DEVICES}", "tracker.wandb.mode=disabled",
)  # fmt: skip
START_S, RUN_S = 120.0, 900.0


@dataclass
class Machine:
    """One of them.

    Attributes:
        name: of its namespace and its folder.
        address: in the network.
        folder: its own.
        others: folders that it must not see.
        is_apart: whether it is a namespace.
    """

    name: str
    address: str
    folder: Path
    others: list[Path] = field(default_factory=list)
    is_apart: bool = False

    def command(self, *words: str) -> list[str]:
        """What runs a command there: an empty file system over what is not its own."""
        if not self.is_apart:
            return list(words)
        hide = "; ".join(f"mount -t tmpfs tmpfs {folder}" for folder in self.others)
        return ["ip", "netns", "exec", self.name, "sh", "-c", f'{hide}; exec "$@"', "-", *words]

    def environment(self) -> dict[str, str]:
        """Its own home, data and Flower."""
        kept = {n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "CUTBIT_DATA")}
        return {
            **kept,
            "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
            "HOME": str(self.folder),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "FLWR_HOME": str(self.folder / "flwr"),
            "CUTBIT_DATA": str(self.folder / "data"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        """Start a command there; what it says is in its folder."""
        with (self.folder / f"{Path(words[0]).name}.log").open("wb") as log:
            return subprocess.Popen(
                self.command(*words),
                cwd=ROOT,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, *words: str) -> str:
        """Run a command there, and return what it says."""
        done = subprocess.run(
            self.command(*words), cwd=ROOT, env=self.environment(), capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout


# The machines -------------------------------------------------------------------------------------


def can_be_apart() -> bool:
    """Whether this machine makes namespaces with virtual cables."""
    if sys.platform != "linux" or os.geteuid() or shutil.which("ip") is None:
        return False
    done = subprocess.run(["ip", "netns", "add", "cutbit-try"], capture_output=True)
    if not done.returncode:
        subprocess.run(["ip", "netns", "del", "cutbit-try"], check=True)
    return not done.returncode


@contextlib.contextmanager
def machines(base: Path) -> Iterator[list[Machine]]:
    """The server, and then the devices; what was made for them is taken away again."""
    names = ["server", *(f"device{number}" for number in range(DEVICES))]
    apart = can_be_apart()
    found = [
        Machine(
            f"cutbit-{os.getpid()}-{name}" if apart else name,
            f"{NET}.{number + 1}" if apart else "127.0.0.1",
            base / name,
            [base / other for other in names if other != name],
            apart,
        )
        for number, name in enumerate(names)
    ]
    for machine in found:
        (machine.folder / "data").mkdir(parents=True)
    try:
        if apart:
            wire(found)
        yield found
    finally:
        if apart:
            for machine in found:
                subprocess.run(["ip", "netns", "del", machine.name], capture_output=True)


def wire(found: Sequence[Machine]) -> None:
    """Namespaces, and a cable from each device to a bridge in the server's."""
    server, *devices = found
    for machine in found:
        ip("netns", "add", machine.name)
        ip("-n", machine.name, "link", "set", "lo", "up")
    ip("-n", server.name, "link", "add", "bridge", "type", "bridge")
    ip("-n", server.name, "addr", "add", f"{server.address}/24", "dev", "bridge")
    ip("-n", server.name, "link", "set", "bridge", "up")
    for number, device in enumerate(devices):
        here = f"cable{number}"
        ip("-n", server.name, "link", "add", here, "type", "veth", "peer", "name", "cable",
           "netns", device.name)  # fmt: skip
        ip("-n", server.name, "link", "set", here, "master", "bridge", "up")
        ip("-n", device.name, "addr", "add", f"{device.address}/24", "dev", "cable")
        ip("-n", device.name, "link", "set", "cable", "up")


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def deal(found: Sequence[Machine], together: Path) -> None:
    """Each device its third of the training samples, the server the test set; all in one place."""
    digits = load(Path())
    server, *devices = found
    owner = np.arange(len(digits.train_y)) % len(devices)
    blank = np.zeros((1, 1, 8, 8), np.float32), np.zeros(1, np.int64), np.array([-1])
    x, y = digits.train_x.numpy(), digits.train_y.numpy()
    test = {"test_x": digits.test_x.numpy(), "test_y": digits.test_y.numpy()}
    none = {"test_x": blank[0], "test_y": blank[1]}

    def write(
        folder: Path, x: np.ndarray, y: np.ndarray, owner: np.ndarray, **test: object
    ) -> None:
        np.savez(folder / FILE, train_x=x, train_y=y, owner=owner, **test)

    write(server.folder / "data", *blank, **test)
    for number, device in enumerate(devices):
        own = owner == number
        write(device.folder / "data", x[own], y[own], owner[own], **none)
    order = np.argsort(owner, kind="stable")
    write(together, x[order], y[order], owner[order], **test)


# A run --------------------------------------------------------------------------------------------


def run(found: Sequence[Machine], overrides: Sequence[str]) -> Path:
    """Start SuperLink, SuperNodes and a run, and return the run's folder when it has ended."""
    server, *devices = found
    cert, key = server.folder / "superlink.pem", server.folder / "superlink.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=superlink",
         "-addext", f"subjectAltName=IP:{server.address}",
         "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True,
    )  # fmt: skip
    link = f"{server.address}:{SUPERLINK}"
    (server.folder / "flwr").mkdir()
    (server.folder / "flwr" / "config.toml").write_text(
        f'[superlink.dep]\naddress = "{link}"\nroot-certificates = "{cert}"\n'
    )
    started = [
        server.start("flower-superlink", "--ssl-certfile", str(cert), "--ssl-keyfile", str(key),
                     "--ssl-ca-certfile", str(cert), "--disable-runtime-dependency-installation",
                     "--host", server.address, "--port", str(SUPERLINK)),
    ]  # fmt: skip
    try:
        wait_for(server, f"https://{link}/health", cert)
        for number, device in enumerate(devices):
            shutil.copy(cert, device.folder)
            started.append(
                device.start("flower-supernode", "--root-certificates",
                             str(device.folder / cert.name), "--superlink", link, "--host",
                             device.address, "--port", str(SUPERLINK + 100 + number),
                             "--node-config", f"partition-id={number}")
            )  # fmt: skip
        output = server.folder / "run"
        config = {
            "overrides": " ".join([*overrides, *DATA]),
            "output": str(output),
            "half_address": f"{server.address}:{HALF}",
        }
        text = " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())
        said = server.run("flwr", "run", ".", "dep", "--stream", "-c", text)
        (server.folder / "stream.log").write_text(said)
        if not (output / "summary.json").exists():
            raise RuntimeError(said)
        return output
    finally:
        end(found, started)


def wait_for(server: Machine, url: str, cert: Path) -> None:
    """Wait until the SuperLink answers."""
    ask = (
        "import ssl, sys, urllib.request as u;"
        "u.urlopen(sys.argv[1], context=ssl.create_default_context(cafile=sys.argv[2]), timeout=2)"
    )
    deadline = time.monotonic() + START_S
    while True:
        try:
            server.run(sys.executable, "-c", ask, url, str(cert))
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


def end(found: Sequence[Machine], started: Sequence["subprocess.Popen[bytes]"]) -> None:
    """End what was started, and what that started in turn."""

    def running() -> set[int]:
        pids = {process.pid for process in started if process.poll() is None}
        for machine in found if found[0].is_apart else ():
            pids |= {int(pid) for pid in ip("netns", "pids", machine.name).split()}
        return pids

    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + 10
        while running() and time.monotonic() < deadline:
            time.sleep(0.1)


# What is printed ----------------------------------------------------------------------------------


LOOK = """
import os, sys, numpy as np
from pathlib import Path
for path in sorted(Path(sys.argv[1]).rglob("samples.npz")):
    f = np.load(path)
    real = int((f["owner"] >= 0).sum()) if "owner" in f else 0
    print(path.parent.parent.name, real, len(f["test_y"]) if len(f["test_y"]) > 1 else 0)
"""


def who_sees_what(
    found: Sequence[Machine], base: Path, sizes: Mapping[str, Mapping[str, int]]
) -> None:
    """Look from inside each: which sample files there are."""
    print("| machine | address | files of samples that it can open | its part of the network |")
    print("|---|---|---|---|")
    for machine in found:
        seen = machine.run(sys.executable, "-c", LOOK, str(base)).splitlines()
        files = "; ".join(
            f"of {name}: {train} inputs with labels, {test} test samples"
            for name, train, test in (row.split() for row in seen)
        )
        own = sizes["server" if machine is found[0] else "device"]
        arrays = ", ".join(f"{name} {size:,}" for name, size in own.items())
        print(
            f"| {machine.folder.name} | {machine.address} | {files} "
            f"| {sum(own.values()):,} B: {arrays} |"
        )


def parts(overrides: Sequence[str]) -> tuple[dict[str, dict[str, int]], tuple[int, int]]:
    """Bytes of each array of each side; and of the device's part as it crosses, down and up."""
    config = experiment.resolve(compose([*overrides, f"clients.total={DEVICES}"]))
    strategy = experiment.strategy(config)
    state = experiment.prepare(config, strategy).state_dict()
    network = strategy.prepared().in_round(1)
    on_device = network.on_device(0) or frozenset()
    found: dict[str, dict[str, int]] = {"device": {}, "server": {}}
    for name, tensor in state.items():
        side = "device" if name in on_device else "server"
        found[side][name] = tensor.numel() * tensor.element_size()
    return found, strategy.method.wire.num_bytes(network, 0)


def what_crossed(output: Path, relayed: tuple[int, int]) -> None:
    """Bytes of each device in the first round, as the server counted them."""
    down, up = relayed
    print("\nWhat crossed in round 1, in bytes of payload:\n")
    print("| device | its part, down | gradients | activations and labels | its part, up |")
    print("|---|---|---|---|---|")
    for line in (output / "clients.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["round"] == 1:
            back, there = row["bytes_down"] - down, row["bytes_up"] - up
            print(f"| device{row['partition']} | {down:,} | {back:,} | {there:,} | {up:,} |")


def counters(device: Machine) -> tuple[int, int]:
    """Bytes that a device's cable has carried, up and down."""
    (shown,) = json.loads(ip("-n", device.name, "-s", "-j", "link", "show", "cable"))
    return shown["stats64"]["tx"]["bytes"], shown["stats64"]["rx"]["bytes"]


def main(arguments: Sequence[str]) -> None:
    overrides = arguments or DEFAULT
    with tempfile.TemporaryDirectory(prefix="cutbit-machines-") as name:
        base = Path(name)
        together = base / "together" / "data"
        together.mkdir(parents=True)
        with machines(base / "machines") as found:
            deal(found, together)
            kind = "namespaces of their own" if found[0].is_apart else "processes and folders alone"
            print(f"{' '.join(overrides)}\na server and {DEVICES} devices: {kind}\n")
            sizes, relayed = parts(overrides)
            who_sees_what(found, base / "machines", sizes)
            began = time.perf_counter()
            output = run(found, overrides)
            wall_s = time.perf_counter() - began
            what_crossed(output, relayed)
            if found[0].is_apart:
                print("\nWhat the cables carried, Flower's messages and the code included:\n")
                for device in found[1:]:
                    up, down = counters(device)
                    print(f"    {device.folder.name}: {up:,} B up, {down:,} B down")
        command = ["main.py", "engine=serial", *overrides, *DATA, f"hydra.run.dir={base}/serial"]
        subprocess.run(
            [sys.executable, *command], cwd=ROOT, check=True, capture_output=True,
            env={**os.environ, "CUTBIT_DATA": str(together), "XDG_CACHE_HOME": f"{base}/cache"},
        )  # fmt: skip
        print("\n| round | accuracy | train loss | B up | B down | engine=serial |")
        print("|---|---|---|---|---|---|")
        is_same = True
        for row, one in zip(rows(output), rows(base / "serial"), strict=True):
            is_same &= row == one
            print(
                f"| {row['round']} | {row['accuracy']:.4f} | {row['train_loss']:.4f} "
                f"| {row['bytes_up']:,} | {row['bytes_down']:,} "
                f"| {'the same' if row == one else one} |"
            )
        print(f"\n{wall_s:.0f} s from the SuperLink's start to the run's end")
        if not is_same:
            sys.exit("the rounds differ from those of engine=serial")


def rows(folder: Path) -> list[dict[str, object]]:
    """rounds.jsonl without what a clock measured."""
    found = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("wall_")} for row in found]


if __name__ == "__main__":
    main(sys.argv[1:])
