"""Somebody else's Ray cluster: whether its machines can take our workers, and which are gone."""

import importlib.metadata
import logging
import platform
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

COMPARED = ("torch", "flwr", "numpy", "safetensors")
ANSWER_S = 300.0  # that a machine may take to unpack our code and to start a process
CONNECT_S = 2.0
LOOK_S = 1.0  # how often somebody looks whether the head is back
HEAD_S = 30.0  # that a head may be away; one that is restarted by then goes on

log = logging.getLogger(__name__)


class NoMachineError(RuntimeError):
    """No machine is left that could run a client."""


class Machines:
    """The machines of a cluster that this process has joined.

    Args:
        address: of the cluster.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.lost: list[str] = []  # ids of those that went away while they had workers of ours
        self.is_headless = False  # for good
        self._checked: set[str] = set()
        self._head = ray.get_runtime_context().gcs_address
        self._here = node_id()
        self._away_since: float | None = None

    def check(self, nodes: Sequence[str] | None = None) -> None:
        """Refuse machines whose libraries are not this one's; those checked before are not asked.

        Args:
            nodes: their ids; None takes all that have CPUs.

        Raises:
            ValueError: names engine.address, the machine and both versions.
        """
        if nodes is None:
            nodes = [node["NodeID"] for node in alive() if num_cpus(node)]
        asked = {node: _ask(node) for node in nodes if node not in self._checked}
        mine, until = reader()(COMPARED), time.monotonic() + ANSWER_S
        for node, reference in asked.items():
            try:
                found = ray.get(reference, timeout=max(0.0, until - time.monotonic()))
            except RayError as error:
                if self.is_gone(node):
                    continue
                slow = isinstance(error, GetTimeoutError)
                reason = f"no answer in {ANSWER_S:.0f} s" if slow else _first(error)
                raise ValueError(
                    f"engine.address={self.address}: {self.name(node)} cannot run our code: "
                    f"{reason}"
                ) from error
            if wrong := differences(mine, found):
                raise ValueError(f"engine.address={self.address}: {self.name(node)} has {wrong}")
            self._checked.add(node)

    def is_gone(self, node: str | None) -> bool:
        """Whether a machine is no longer there; asks it, as Ray needs a while to notice."""
        for one in ray.nodes():
            if one["NodeID"] == node:
                where = (one["NodeManagerAddress"], one["NodeManagerPort"])
                return not (one["Alive"] and _answers(*where))
        return node is not None

    def is_lost(self, node: str) -> bool:
        """As `is_gone`, of a machine that has workers of ours; says so the first time."""
        if not self.is_gone(node):
            return False
        if node not in self.lost:
            self.lost.append(node)
            log.warning(
                "engine.address=%s: %s is gone (%d so far); its clients run on the others",
                self.address, self.name(node), len(self.lost),
            )  # fmt: skip
        return True

    def require(self) -> None:
        """Refuse to wait for workers where no machine is left to start any.

        Raises:
            NoMachineError: names engine.address.
        """
        if not any(num_cpus(node) and node["NodeID"] not in self.lost for node in alive()):
            raise NoMachineError(
                f"engine.address={self.address}: no machine with a CPU is left; the same command "
                "with resume=true continues"
            )

    def wait_for_head(self) -> None:
        """Wait while the head is away: until then each question to Ray waits, and says nothing.

        Raises:
            NoMachineError: as `has_head`.
        """
        while not self.has_head():
            time.sleep(LOOK_S)

    def has_head(self) -> bool:
        """Whether head and this machine's own Ray, without which nothing works, are there.

        Raises:
            NoMachineError: the head has been away for long, or the own one is; names
                engine.address.
        """
        host, _, port = self._head.rpartition(":")
        if not _answers(host, int(port)):
            self._away_since = self._away_since or time.monotonic()
            if time.monotonic() - self._away_since <= HEAD_S:
                return False
            gone = "its head"
        elif self.is_gone(self._here):
            gone = "the Ray of this machine"
        else:
            self._away_since = None
            return True
        self.is_headless = True
        raise NoMachineError(
            f"engine.address={self.address}: {gone} is gone; the same command with resume=true "
            "continues"
        )

    def name(self, node: str) -> str:
        """What to call a machine: its name, and the begin of its id, as one may hold several."""
        names = {one["NodeID"]: one.get("NodeManagerHostname", "") for one in ray.nodes()}
        return f"machine {names.get(node, '')} ({node[:8]})"


def alive() -> Sequence[Mapping[str, Any]]:
    """The machines that Ray takes for alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def num_cpus(node: Mapping[str, Any]) -> int:
    """How many CPUs a machine has for Ray; a head may have none."""
    return int(node["Resources"].get("CPU", 0))


def reader() -> Callable[[Sequence[str]], dict[str, str]]:
    """Return a function that says which versions of Python and of libraries a process has.

    Ray sends one that was made in a function whole, and not as a name in a module of ours, which a
    machine without our libraries could not import.
    """

    def versions(names: Sequence[str]) -> dict[str, str]:
        """Without builds such as +cpu; empty where missing."""
        found = {"python": ".".join(platform.python_version_tuple()[:2])}
        for name in names:
            try:
                found[name] = importlib.metadata.version(name).partition("+")[0]
            except importlib.metadata.PackageNotFoundError:
                found[name] = ""
        return found

    return versions


def differences(mine: Mapping[str, str], found: Mapping[str, str]) -> str:
    """What another machine has that this one has not, in words; empty where they are equal."""
    wrong = [
        f"{name} {found[name]}, this machine {mine[name]}" if found[name] else f"no {name}"
        for name in mine
        if found[name] != mine[name]
    ]
    return "; ".join(wrong) + "; takes the same versions on all" if wrong else ""


def node_id() -> str:
    """In a worker: id of the machine that it runs on."""
    found: str = ray.get_runtime_context().get_node_id()
    return found


def _ask(node: str) -> Any:
    """Have a machine say its versions."""
    options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0}
    options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(**options)(reader()).remote(COMPARED)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
