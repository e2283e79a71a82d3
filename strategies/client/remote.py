"""The server's half on the server, as a device sees it: frames over TLS (strategies/frames.py)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from quant.packet import Packet
from strategies.contract import ClientData, ClientHalf, Invitation, M, Task, Update
from strategies.frames import VERSION, Frame, Kind, labels_packet
from strategies.tls import keep_alive, trusting

OPEN_S = 30.0


class HalfError(RuntimeError):
    """The server's half cannot be reached, refuses, or did not get through the round."""


class Connection(Protocol):
    """What frames go through."""

    def send(self, message: bytes) -> None:
        """Send one."""

    def recv(self) -> bytes | str:
        """Return the next one."""


class RemoteHalf:
    """A `ServerHalf` on the other side of a connection.

    Args:
        connection: to it.
        ticket: of the invitation, shown at once.

    Raises:
        HalfError: it is refused.
    """

    packed = True

    def __init__(self, connection: Connection, ticket: str) -> None:
        self._connection = connection
        self._ask(Kind.WELCOME, Frame(Kind.HELLO, {"version": VERSION, "ticket": ticket}))

    def begin(self, task: Task) -> None:
        """Wait for the half; where it goes from one client to the next, for their turns."""
        self._ask(Kind.BEGUN, Frame(Kind.BEGIN))

    def step(self, z: Packet, y: Tensor) -> tuple[Packet, float]:
        """Activations and labels there, gradient and loss back."""
        found = self._ask(Kind.STEPPED, Frame(Kind.STEP, packets=(labels_packet(y), z)))
        return found.packets[0], found.fields["loss"]

    def learn(self, z: Packet, y: Tensor) -> None:
        """Activations and labels there, nothing back: the device trains on meanwhile."""
        self._send(Frame(Kind.LEARN, packets=(labels_packet(y), z)))

    def learnt(self) -> float:
        """Wait for what was sent to be learnt, and return the mean loss per sample."""
        loss: float = self._ask(Kind.LEARNT, Frame(Kind.LOSS)).fields["loss"]
        return loss

    def forward(self, z: Packet) -> Packet:
        """Activations there, activations back."""
        return self._ask(Kind.ACTIVATIONS, Frame(Kind.FORWARD, packets=(z,))).packets[0]

    def backward(self, gradient: Packet) -> Packet:
        """Gradient there, gradient back."""
        return self._ask(Kind.GRADIENT, Frame(Kind.BACKWARD, packets=(gradient,))).packets[0]

    def end(self) -> None:
        """Have it commit."""
        self._ask(Kind.COMMITTED, Frame(Kind.END))

    def _send(self, frame: Frame) -> None:
        """Send; where that fails, say what the other side said of it.

        Raises:
            HalfError: the half is gone.
        """
        try:
            self._connection.send(frame.to_bytes())
        except (WebSocketException, OSError) as error:
            self._receive()  # raises what it said, unless it said nothing
            raise HalfError(f"the server's half is gone: {error}") from error

    def _ask(self, expected: Kind, frame: Frame) -> Frame:
        self._send(frame)
        answer = self._receive()
        if answer.kind is not expected:
            raise HalfError(f"{answer.kind.name} in answer to {frame.kind.name}")
        return answer

    def _receive(self) -> Frame:
        """Return the next frame.

        Raises:
            HalfError: the half is gone, refuses, or failed.
        """
        try:
            data = self._connection.recv()
        except (WebSocketException, OSError) as error:
            raise HalfError(f"the server's half is gone: {error}") from error
        answer = Frame.from_bytes(data.encode() if isinstance(data, str) else data)
        if answer.kind in (Kind.REFUSED, Kind.FAILED):
            raise HalfError(answer.fields["why"])
        return answer


@contextmanager
def dialled(invitation: Invitation) -> Iterator[Connection]:
    """Dial, and hang up when the ``with`` ends.

    Raises:
        HalfError: nobody is there, or it is somebody else.
    """
    try:
        connection = connect(
            f"wss://{invitation.address}/",
            ssl=trusting(invitation.certificate),
            compression=None,
            proxy=None,
            max_size=None,
            open_timeout=OPEN_S,
            ping_interval=None,
            close_timeout=1.0,
        )
    except (WebSocketException, OSError) as error:
        raise HalfError(f"the server's half at {invitation.address}: {error}") from error
    with connection:
        keep_alive(connection.socket)
        yield connection


def train_remote(
    client: ClientHalf[M],
    model: M,
    arrays: Mapping[str, Tensor],
    data: ClientData,
    task: Task,
    invitation: Invitation,
) -> Update:
    """Train one client for one round, of whose network the server has its part.

    Args:
        client: the method's.
        model: what its ``prepare`` returned.
        arrays: the device's, by name.
        data: the client's.
        task: what to do.
        invitation: where the server's half is.

    Raises:
        HalfError: the server's half refuses, or is gone.
    """
    with dialled(invitation) as connection:
        server = RemoteHalf(connection, invitation.ticket)
        return client.train(model, arrays, data, task, server)
