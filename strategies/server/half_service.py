"""The server's halves for devices elsewhere: a listener in the ServerApp's process, over TLS.

A round is opened with its clients, each of whom gets a ticket in its train message. A device dials,
shows the ticket, and trains its half by frames (strategies/frames.py). The half trains on a copy
that END commits; whatever else ends a connection leaves nothing behind: closed, silent for too
long, diverged, a frame that is none or not the one that is due. Where the half goes from one client
to the next (`in_turn`), it waits for each in their order, and passes over who has not dialled in
time.

One thread serves one connection. websockets' threaded server does the rest.
"""

import contextlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.protocol import State
from websockets.sync.server import Server, ServerConnection, serve

from models.precision import FP32, computing
from quant.packet import Packet
from strategies.contract import ColocatedHalf, Invitation, Task
from strategies.frames import (
    LONGEST_TEXT,
    OVERHEAD,
    VERSION,
    Frame,
    FrameError,
    Kind,
    labels_in,
)
from strategies.tls import Identity, keep_alive
from tracking.text import line

TICKET_BYTES = 24
HELLO_S = 10.0  # within which a stranger shows a ticket; it may send as much as a header holds
LOOK_S = 0.2  # between two looks at who is late

log = logging.getLogger(__name__)
_strangers = logging.getLogger(f"{__name__}.connections")  # websockets' own, about whoever dials
_strangers.setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class HalfSettings:
    """What `flwr run -c` says of the server's half.

    Attributes:
        address: ``host:port`` to listen at, which devices are told; port 0 takes any.
        cert: file of a certificate (PEM); empty makes one for the run.
        key: file of its key.
        timeout_s: after so long a silence, or without having dialled, a device is given up.
        precision: that halves compute in, which the configuration says.
    """

    address: str
    cert: str = ""
    key: str = ""
    timeout_s: float = 120.0
    precision: str = FP32

    def __post_init__(self) -> None:
        host_and_port("half_address", self.address)
        if bool(self.cert) != bool(self.key):
            raise ValueError(
                f"half_cert={self.cert!r} half_key={self.key!r}: takes both files, or neither"
            )
        seconds = self.timeout_s
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
            raise ValueError(f"half_timeout_s={seconds!r}: takes seconds above 0")

    @property
    def place(self) -> tuple[str, int]:
        """Host, without the brackets of an IPv6 address, and port."""
        return host_and_port("half_address", self.address)

    def identity(self) -> Identity:
        """The certificate and its key.

        Raises:
            ValueError: the files cannot be used; names half_cert or half_key.
        """
        if not self.cert:
            return Identity.made()
        return Identity.read(Path(self.cert), Path(self.key))

    def service(self) -> "HalfService":
        """What listens there."""
        return HalfService(self)


def host_and_port(key: str, address: str) -> tuple[str, int]:
    """Return the host, without the brackets of an IPv6 address, and the port.

    Raises:
        ValueError: it is none; names the key.
    """
    host, _, port = address.rpartition(":")
    if not host.strip("[]") or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{key}={address!r}: takes host:port")
    return host.strip("[]"), int(port)


# What a round is made of --------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """One client's round with the server's half.

    Attributes:
        partition: the client.
        task: what is trained, at which rates, by which seed: the server's word.
        arrays: what the half begins with, by name.
        make: lends a half for as long as its ``with`` lasts, loaded with arrays.
        batches: samples of each batch, in order.
        shape: of one sample's activations as they come.
        most_bytes: of payload in a frame.
    """

    partition: int
    task: Task
    arrays: Mapping[str, Tensor]
    make: Callable[[Mapping[str, Tensor], Task], contextlib.AbstractContextManager[ColocatedHalf]]
    batches: Sequence[int]
    shape: tuple[int, ...]
    most_bytes: int


@dataclass(frozen=True)
class Trained:
    """What a client made of the server's half.

    Attributes:
        arrays: of the half, by name.
        bytes_up: payload bytes that came.
        bytes_down: payload bytes that were sent.
    """

    arrays: Mapping[str, Tensor]
    bytes_up: int
    bytes_down: int


class Refused(Exception):  # noqa: N818 — what a device is told
    """A device may not, or not any more."""


class _Is(Enum):
    """Where a client of a round is."""

    AWAITED = "awaited"
    THERE = "there"
    TRAINING = "training"
    DONE = "done"
    GONE = "gone"


class OpenRound:
    """A round's clients, and what they have made of the half so far.

    Args:
        turns: the clients; with ``in_turn`` in the order in which the half goes through them.
        in_turn: whether it does; else each begins with arrays of its own.
        wait_s: for who has not dialled when its turn comes.
    """

    def __init__(self, turns: Sequence[Turn], in_turn: bool, wait_s: float) -> None:
        self.turns = {turn.partition: turn for turn in turns}
        self.in_turn = in_turn
        self._wait_s = wait_s
        self._changed = threading.Condition()
        self._are = dict.fromkeys(self.turns, _Is.AWAITED)
        self._since = time.monotonic()  # the turn of the one whose it is
        self._handed_on: Mapping[str, Tensor] | None = None
        self._trained: dict[int, Trained] = {}
        self._is_over = False

    # Of the loop

    def take(self, partition: int) -> Trained:
        """Hand out, once, what came of a client.

        Raises:
            ValueError: its half did not come to an end.
        """
        with self._changed:
            if (found := self._trained.pop(partition, None)) is None:
                raise ValueError("its half on the server did not come to an end")
            return found

    def has_ended(self, partition: int) -> bool:
        """Whether a client's half came to an end, whatever came of its reply."""
        with self._changed:
            return self._are[partition] is _Is.DONE

    @property
    def handed_on(self) -> Mapping[str, Tensor]:
        """The half as it is handed on; empty where nobody has changed it."""
        with self._changed:
            return self._handed_on or {}

    def close(self) -> None:
        """Let nobody begin or commit any more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    # Of connections

    def come(self, partition: int) -> None:
        """A client has dialled.

        Raises:
            Refused: its turn is over, or the round.
        """
        with self._changed:
            if self._is_over or self._are[partition] is not _Is.AWAITED:
                raise Refused("too late: the round has gone on")
            self._are[partition] = _Is.THERE

    def begin(self, partition: int, is_there: Callable[[], bool]) -> Mapping[str, Tensor]:
        """Wait until the half is this client's, and return what it begins with.

        Raises:
            Refused: the round is over.
            ConnectionError: the client is gone.
        """
        with self._changed:
            while not self._is_over and not self._is_turn_of(partition):
                if not is_there():
                    raise ConnectionError("closed before its turn")
                self._changed.wait(LOOK_S)
            if self._is_over:
                raise Refused("the round is over")
            self._are[partition] = _Is.TRAINING
            own = self.turns[partition].arrays
            return own if self._handed_on is None else self._handed_on

    def commit(self, partition: int, trained: Trained) -> None:
        """Keep what a client made of the half.

        Raises:
            Refused: the round is over.
        """
        with self._changed:
            if self._is_over:
                raise Refused("the round is over")
            self._trained[partition] = trained
            self._are[partition] = _Is.DONE
            if self.in_turn:
                self._handed_on = trained.arrays
            self._go_on()

    def leave(self, partition: int) -> None:
        """A connection has ended: without a commit nothing is left of it."""
        with self._changed:
            if self._are[partition] is not _Is.DONE:
                self._are[partition] = _Is.GONE
                self._go_on()

    def pass_over(self) -> list[int]:
        """Give up whose turn it is, if it has not dialled for too long, and say who that is."""
        with self._changed:
            found = list[int]()
            current = self._current() if self.in_turn else None
            is_late = time.monotonic() - self._since > self._wait_s
            if current is not None and self._are[current] is _Is.AWAITED and is_late:
                self._are[current] = _Is.GONE
                self._go_on()
                found.append(current)
            return found

    def _go_on(self) -> None:
        self._since = time.monotonic()
        self._changed.notify_all()

    def _current(self) -> int | None:
        over = (_Is.DONE, _Is.GONE)
        return next((p for p, where in self._are.items() if where not in over), None)

    def _is_turn_of(self, partition: int) -> bool:
        return not self.in_turn or self._current() == partition


# The listener -------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Device:
    """A connection with a ticket.

    Attributes:
        connection: of websockets.
        round: that the ticket is of.
        partition: whose it is.
        sends_since: since when a frame has been on its way; None while none is.
    """

    connection: ServerConnection
    round: OpenRound
    partition: int
    sends_since: float | None = field(default=None)

    def send(self, frame: Frame) -> None:
        """Send; the service cuts a device whose other end takes nothing."""
        self.sends_since = time.monotonic()
        try:
            self.connection.send(frame.to_bytes())
        finally:
            self.sends_since = None

    def cut(self) -> None:
        """End it at once, whatever is being sent or received."""
        with contextlib.suppress(OSError):
            self.connection.socket.shutdown(socket.SHUT_RDWR)


class HalfService:
    """Listens from `__enter__` to `__exit__`, and serves the rounds that are open meanwhile.

    Args:
        settings: where, with which certificate, how patient.
    """

    def __init__(self, settings: HalfSettings) -> None:
        self._settings = settings
        self._identity = settings.identity()
        self._lock = threading.Lock()
        self._seats: dict[str, tuple[OpenRound, int]] = {}  # by ticket
        self._rounds: set[OpenRound] = set()
        self._devices: set[_Device] = set()
        self._is_closing = threading.Event()
        self._server: Server
        self._threads: list[threading.Thread] = []
        self.address = settings.address

    def __enter__(self) -> Self:
        """Listen.

        Raises:
            ValueError: it cannot; names half_address.
        """
        host, port = self._settings.place
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server((host, port), family=family)
        except OSError as error:
            raise ValueError(f"half_address={self.address}: cannot listen there: {error}") from None
        shown = self._settings.address.rpartition(":")[0]
        self.address = f"{shown}:{listener.getsockname()[1]}"
        self._server = serve(
            self._answer,
            sock=listener,
            ssl=self._identity.context,
            compression=None,
            max_size=OVERHEAD,
            open_timeout=HELLO_S,
            ping_interval=None,
            close_timeout=1.0,
            server_header=None,
            logger=_strangers,
        )
        for name, target in (("listener", self._server.serve_forever), ("watch", self._watch)):
            thread = threading.Thread(target=target, name=f"half {name}", daemon=True)
            self._threads.append(thread)
            thread.start()
        log.info("the server's half listens at %s", self.address)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            rounds = list(self._rounds)
        for one in rounds:
            self._close(one)
        self._is_closing.set()
        self._server.shutdown()
        for thread in self._threads:
            thread.join()

    @contextlib.contextmanager
    def open_round(
        self, turns: Sequence[Turn], in_turn: bool = False
    ) -> Iterator[tuple[OpenRound, Mapping[int, Invitation]]]:
        """Open a round; when the ``with`` ends, so do its connections, and its tickets are void.

        Args:
            turns: its clients, in order.
            in_turn: whether the half goes from one to the next.

        Yields:
            the round, and by partition what each client is to be sent.
        """
        opened = OpenRound(turns, in_turn, self._settings.timeout_s)
        tickets = {turn.partition: secrets.token_hex(TICKET_BYTES) for turn in turns}
        with self._lock:
            self._rounds.add(opened)
            self._seats |= {ticket: (opened, p) for p, ticket in tickets.items()}
        certificate = self._identity.certificate
        try:
            yield (
                opened,
                {
                    p: Invitation(self.address, t, certificate, self._settings.precision)
                    for p, t in tickets.items()
                },
            )
        finally:
            self._close(opened)

    def _close(self, opened: OpenRound) -> None:
        opened.close()
        with self._lock:
            self._rounds.discard(opened)
            self._seats = {t: seat for t, seat in self._seats.items() if seat[0] is not opened}
            devices = [device for device in self._devices if device.round is opened]
        for device in devices:
            device.cut()

    def _watch(self) -> None:
        """Look at the clock for all connections and rounds."""
        while not self._is_closing.wait(LOOK_S):
            with self._lock:
                rounds, devices = list(self._rounds), list(self._devices)
            for one in rounds:
                for partition in one.pass_over():
                    log.warning("client %d has not dialled: passed over", partition)
            too_old = time.monotonic() - self._settings.timeout_s
            for device in devices:
                since = device.sends_since
                if since is not None and since < too_old:
                    device.cut()

    def _answer(self, connection: ServerConnection) -> None:
        """Serve one connection, in a thread of its own."""
        torch.set_num_threads(1)
        try:
            device = self._admitted(connection)
        except (Refused, FrameError, TimeoutError) as error:
            with contextlib.suppress(WebSocketException, OSError):
                connection.send(Frame(Kind.REFUSED, {"why": _said(error)}).to_bytes())
            return
        except (WebSocketException, OSError):
            return
        try:
            with computing(self._settings.precision, "cpu"):  # of this thread alone
                Session(device, self._settings.timeout_s).run()
        except (ConnectionClosed, ConnectionError) as error:
            has_ended = device.round.has_ended(device.partition)
            left = "its turn had ended" if has_ended else "rolled back"
            log.warning("client %d is gone: %s: %s", device.partition, error, left)
        except Exception as error:
            log.warning("client %d: %s: rolled back", device.partition, _said(error))
            with contextlib.suppress(WebSocketException, OSError):
                device.send(Frame(Kind.FAILED, {"why": _said(error)}))
        finally:
            device.round.leave(device.partition)
            with self._lock:
                self._devices.discard(device)

    def _admitted(self, connection: ServerConnection) -> _Device:
        """Have a stranger show a ticket, and void it."""
        hello = Frame.from_bytes(connection.recv(HELLO_S, decode=False), OVERHEAD)
        if hello.kind is not Kind.HELLO:
            raise FrameError(f"{hello.kind.name}: takes HELLO first")
        if hello.fields["version"] != VERSION:
            raise Refused(f"version {hello.fields['version']}: takes {VERSION}")
        with self._lock:
            seat = self._seats.pop(hello.fields["ticket"], None)
            if seat is None:
                raise Refused("no such ticket: it was used, or its round is over")
            device = _Device(connection, *seat)
            self._devices.add(device)
        try:
            device.round.come(device.partition)
        except Refused:
            with self._lock:
                self._devices.discard(device)
            raise
        keep_alive(connection.socket)
        # What a stranger may send is short, what this client may send is known.
        turn = device.round.turns[device.partition]
        connection.protocol.max_message_size = OVERHEAD + turn.most_bytes
        return device


class Session:
    """One client's round, frame by frame.

    Args:
        device: to the client.
        timeout_s: a longer silence ends it.
    """

    def __init__(self, device: _Device, timeout_s: float) -> None:
        self._line = device
        self._timeout_s = timeout_s
        self._turn = device.round.turns[device.partition]
        self._bytes_up = 0

    def run(self) -> None:
        """Serve it to the end.

        Raises:
            ConnectionClosed: the client is gone, or the round over.
            FrameError: a frame is none, or not the one that is due.
            FloatingPointError: it diverged.
            TimeoutError: the client was silent.
        """
        device, turn = self._line, self._turn
        device.send(Frame(Kind.WELCOME))
        self._due(Kind.BEGIN)
        is_there = lambda: device.connection.state is State.OPEN  # noqa: E731
        arrays = device.round.begin(device.partition, is_there)
        with turn.make(arrays, turn.task) as half:
            half.begin(turn.task)
            device.send(Frame(Kind.BEGUN))
            for size in turn.batches:
                self._batch(half, size)
                half.settle()
            if self._due(Kind.END, Kind.LOSS).kind is Kind.LOSS:
                device.send(Frame(Kind.LEARNT, {"loss": half.learnt()}))
                self._due(Kind.END)
            half.end()
            trained = {name: tensor.clone() for name, tensor in half.arrays().items()}
            device.round.commit(device.partition, Trained(trained, self._bytes_up, half.bytes_sent))
        device.send(Frame(Kind.COMMITTED))

    def _batch(self, half: ColocatedHalf, size: int) -> None:
        """Train on one batch of ``size`` samples."""
        frame = self._due(Kind.STEP, Kind.LEARN, Kind.FORWARD)
        activations = self._activations(frame.packets[-1], size)
        if frame.kind is Kind.FORWARD:
            self._line.send(Frame(Kind.ACTIVATIONS, packets=(half.forward(activations),)))
            (gradient,) = self._due(Kind.BACKWARD).packets
            self._line.send(Frame(Kind.GRADIENT, packets=(half.backward(gradient),)))
            return
        labels = labels_in(frame.packets[0])
        if len(labels) != size:
            raise FrameError(f"{len(labels)} labels for {size} samples")
        if frame.kind is Kind.LEARN:
            half.learn(activations, labels)
            return
        found, loss = half.step(activations, labels)
        self._line.send(Frame(Kind.STEPPED, {"loss": float(loss)}, (found,)))

    def _activations(self, packet: Packet, size: int) -> Packet:
        """Refuse what would be unpacked to anything but a batch of this client's."""
        expected = (size, *self._turn.shape)
        if tuple(packet.shape) != expected:
            raise FrameError(f"activations of shape {tuple(packet.shape)}: takes {expected}")
        return packet

    def _due(self, *kinds: Kind) -> Frame:
        """Return the frame that comes, if it is one of these."""
        try:
            data = self._line.connection.recv(self._timeout_s, decode=False)
        except TimeoutError:
            raise TimeoutError(f"silent for {self._timeout_s:g} s") from None
        frame = Frame.from_bytes(data, OVERHEAD + self._turn.most_bytes)
        if frame.kind not in kinds:
            names = " or ".join(kind.name for kind in kinds)
            raise FrameError(f"{frame.kind.name}: takes {names}")
        self._bytes_up += sum(packet.num_bytes for packet in frame.packets)
        return frame


def _said(error: BaseException) -> str:
    """An error as a device is told it, in one line."""
    name = "" if isinstance(error, Refused) else f"{type(error).__name__}: "
    return line(f"{name}{error}", LONGEST_TEXT)
