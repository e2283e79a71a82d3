"""A link with a rate, a delay and losses, from this machine to a network namespace on it.

What ``tc netem`` does where the kernel has it: packets that enter a TUN device at one end leave
another at the other end later, or not at all. Both ends speak TCP as over any wire, and so resend
what was lost, slow down and speed up again. Linux alone, with root.

    python -m benchmarks.slow_link NEAR FAR UP_MBPS DOWN_MBPS LATENCY_S LOSS    # the wire itself
"""

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fleet.devices import Link

TUN = Path("/dev/net/tun")
SET_INTERFACE, IS_TUN, WITHOUT_HEADER = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
NEW_NETWORK = 0x40000000  # linux/sched.h, CLONE_NEWNET
MTU = 1500
QUEUE = 1000  # packets that wait at one end; what comes then is lost, as with netem


def can_be_made() -> bool:
    """Whether this machine makes such links."""
    is_root = sys.platform == "linux" and os.geteuid() == 0
    return is_root and TUN.exists() and shutil.which("ip") is not None


@dataclass(frozen=True)
class Ends:
    """Both ends of what will be a wire.

    Attributes:
        address: of this machine, as the namespace sees it.
        namespace: its name.
        near: file descriptor of the TUN device here.
        far: of the one in the namespace.
    """

    address: str
    namespace: str
    near: int
    far: int

    @contextlib.contextmanager
    def joined(self, link: Link, loss: float = 0.0) -> Iterator[None]:
        """Carry packets over this link, of which a share is lost, for as long as the ``with``."""
        numbers = (self.near, self.far, link.up_mbps, link.down_mbps, link.latency_s, loss)
        wire = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.slow_link", *map(str, numbers)],
            pass_fds=(self.near, self.far),
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[1],
        )
        assert wire.stdout is not None
        try:
            if not wire.stdout.readline():
                raise RuntimeError("the wire has not come up")
            yield
        finally:
            wire.kill()
            wire.wait()
            wire.stdout.close()


@contextlib.contextmanager
def ends() -> Iterator[Ends]:
    """Make a namespace with a TUN device in it and one here; both go when the ``with`` ends."""
    number = os.getpid()
    name, network = f"cutbit-{number}", f"10.{64 + number // 256 % 64}.{number % 256}"
    devices = [f"cut{number}{end}" for end in "nf"]
    near, far = (_tun(device) for device in devices)
    try:
        _ip("netns", "add", name)
        _ip("link", "set", devices[1], "netns", name)
        for end, (device, where) in enumerate(zip(devices, ([], ["-n", name]), strict=True)):
            own, peer = f"{network}.{1 + end}", f"{network}.{2 - end}"
            _ip(*where, "addr", "add", own, "peer", peer, "dev", device)
            _ip(*where, "link", "set", device, "mtu", str(MTU), "up")
        yield Ends(f"{network}.1", name, near, far)
    finally:
        os.close(near)
        os.close(far)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def enter(namespace: str) -> None:
    """Move this thread, and those that it starts, into a namespace's network."""
    library = ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/{namespace}").open("rb") as file:
        if library.setns(file.fileno(), NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f"entering {namespace}")


def _tun(name: str) -> int:
    number = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    asked = struct.pack("16sH22x", name.encode(), IS_TUN | WITHOUT_HEADER)
    fcntl.ioctl(number, SET_INTERFACE, asked)
    return number


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


# The wire, a process of its own -------------------------------------------------------------------


@dataclass
class Way:
    """One direction.

    Attributes:
        source: file descriptor that packets come from.
        to: and go to.
        mbps: of the link.
        free_s: when what came before has been sent.
        waiting: when each of the packets that have not been sent will be.
    """

    source: int
    to: int
    mbps: float
    free_s: float = 0.0
    waiting: deque[float] = field(default_factory=deque)

    def leaves(self, packet: bytes, now: float) -> float | None:
        """Return when the last bit of a packet is sent; None where the queue is full."""
        while self.waiting and self.waiting[0] <= now:
            self.waiting.popleft()
        if len(self.waiting) >= QUEUE:
            return None
        self.free_s = max(self.free_s, now) + 8e-6 * len(packet) / self.mbps
        self.waiting.append(self.free_s)
        return self.free_s


def carry(ways: Sequence[Way], latency_s: float, loss: float) -> None:
    """Carry packets until this process is ended."""
    of = {way.source: way for way in ways}
    generator, order = random.Random(0), itertools.count()
    on_the_way: list[tuple[float, int, int, bytes]] = []  # due, in order, to, packet
    while True:
        now = time.monotonic()
        while on_the_way and on_the_way[0][0] <= now:
            _, _, to, packet = heapq.heappop(on_the_way)
            with contextlib.suppress(OSError):  # a device's queue is full: lost
                os.write(to, packet)
        rest = on_the_way[0][0] - now if on_the_way else None
        for number in select.select(list(of), [], [], rest)[0]:
            way = of[number]
            packet = os.read(number, 2 * MTU)
            leaves = way.leaves(packet, time.monotonic())
            if leaves is not None and generator.random() >= loss:
                heapq.heappush(on_the_way, (leaves + latency_s, next(order), way.to, packet))


def main(arguments: Sequence[str]) -> None:
    near, far = map(int, arguments[:2])
    up, down, latency_s, loss = map(float, arguments[2:])
    print("ready", flush=True)
    carry([Way(far, near, up), Way(near, far, down)], latency_s, loss)


if __name__ == "__main__":
    main(sys.argv[1:])
