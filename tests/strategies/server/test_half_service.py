"""The server's half as strangers and broken devices meet it: rolled back, refused, no waiting."""

import contextlib
import datetime
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from torch import Tensor
from websockets.exceptions import WebSocketException

from quant.dense import Fp32
from quant.packet import Packet
from strategies.client.remote import HalfError, RemoteHalf, dialled
from strategies.contract import Invitation, Streams, Task
from strategies.frames import VERSION, Frame, FrameError, Kind, labels_packet
from strategies.server import half_service
from strategies.server.half_service import HalfService, HalfSettings, Turn
from strategies.tls import Identity, trusting
from tests.strategies.test_frames import damaged

SIZE = 3  # samples of a batch
WAIT_S = 30.0  # for what takes no time


class Adding:
    """A half whose array grows by the mean of each batch's activations."""

    packed = True

    def __init__(self, arrays: Mapping[str, Tensor]) -> None:
        self._w = arrays["w"].clone()
        self.bytes_sent = 0

    def arrays(self) -> dict[str, Tensor]:
        return {"w": self._w}

    def begin(self, task: Task) -> None:
        pass

    def step(self, z: Packet, y: Tensor) -> tuple[Packet, float]:
        self._w += Fp32().decode(z).mean()
        self.bytes_sent += z.num_bytes
        return z, float(self._w)

    def learn(self, z: Packet, y: Tensor) -> None:
        self._w += Fp32().decode(z).mean()

    def learnt(self) -> float:
        return float(self._w)

    def settle(self) -> None:
        pass

    def end(self) -> None:
        if not torch.isfinite(self._w).all():
            raise FloatingPointError("training diverged")


@contextlib.contextmanager
def lend(arrays: Mapping[str, Tensor], task: Task) -> Iterator[Any]:
    yield Adding(arrays)


def turn(partition: int, batches: int = 2, width: int = 4) -> Turn:
    task = Task({}, Streams(0, 1, partition), SIZE * batches)
    arrays = {"w": torch.zeros(1)}
    return Turn(partition, task, arrays, lend, [SIZE] * batches, (width,), 4 * width * SIZE + SIZE)


@pytest.fixture
def service() -> Iterator[HalfService]:
    with HalfService(HalfSettings("127.0.0.1:0", timeout_s=WAIT_S)) as service:
        yield service


@pytest.fixture
def impatient() -> Iterator[HalfService]:
    with HalfService(HalfSettings("127.0.0.1:0", timeout_s=0.5)) as service:
        yield service


def batch(value: float = 1.0, width: int = 4) -> tuple[Packet, Tensor]:
    z = Fp32().encode(torch.full((SIZE, width), value), None)
    return Packet.from_bytes(z.to_bytes()), torch.zeros(SIZE, dtype=torch.uint8)


def train(invitation: Invitation, value: float = 1.0) -> list[float]:
    """A device that does as it should; the losses."""
    with dialled(invitation) as connection:
        half = RemoteHalf(connection, invitation.ticket)
        half.begin(Task({}, Streams(0, 1, 0), 0))
        losses = [half.step(*batch(value))[1] for _ in range(2)]
        half.end()
    return losses


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_round_of_clients_with_a_copy_each(service: HalfService) -> None:
    with service.open_round([turn(p) for p in range(3)]) as (halves, invitations):
        assert train(invitations[2]) == [1, 2]
        assert train(invitations[0], 5.0) == [5, 10]
        assert halves.take(2).arrays["w"] == 2
        assert halves.take(0).arrays["w"] == 10
        with pytest.raises(ValueError, match="its half on the server did not come to an end"):
            halves.take(1)
        with pytest.raises(ValueError, match="did not come to an end"):
            halves.take(0)  # once


def test_bytes_are_counted_here(service: HalfService) -> None:
    with service.open_round([turn(0)]) as (halves, invitations):
        train(invitations[0])
        trained = halves.take(0)
    assert trained.bytes_up == 2 * (4 * 4 * SIZE + SIZE)
    assert trained.bytes_down == 2 * 4 * 4 * SIZE


def test_thirty_two_at_once(service: HalfService) -> None:
    with (
        service.open_round([turn(p) for p in range(32)]) as (halves, invitations),
        ThreadPoolExecutor(32) as pool,
    ):
        list(pool.map(lambda p: train(invitations[p], float(p)), range(32)))
        assert [float(halves.take(p).arrays["w"]) for p in range(32)] == [
            2.0 * p for p in range(32)
        ]


class Slow(Adding):
    """Learns a batch, or fails, when it may."""

    def __init__(self, arrays: Mapping[str, Tensor], may: threading.Event, fails: bool) -> None:
        super().__init__(arrays)
        self._may, self._fails = may, fails

    def learn(self, z: Packet, y: Tensor) -> None:
        assert self._may.wait(WAIT_S)
        if self._fails:
            raise FloatingPointError("training diverged")
        super().learn(z, y)


def slow_turn(may: threading.Event, batches: int, fails: bool = False) -> Turn:
    @contextlib.contextmanager
    def lend(arrays: Mapping[str, Tensor], task: Task) -> Iterator[Any]:
        yield Slow(arrays, may, fails)

    return replace(turn(0, batches), make=lend)


def test_what_is_learnt_is_not_waited_for(service: HalfService) -> None:
    """A device trains to the end of its round before the half has learnt anything."""
    may, batches = threading.Event(), 40
    with (
        service.open_round([slow_turn(may, batches)]) as (halves, invitations),
        dialled(invitations[0]) as connection,
    ):
        half = RemoteHalf(connection, invitations[0].ticket)
        half.begin(Task({}, Streams(0, 1, 0), 0))
        for _ in range(batches):
            half.learn(*batch())
        may.set()
        assert half.learnt() == batches
        half.end()
        trained = halves.take(0)
    assert trained.arrays["w"] == batches
    assert trained.bytes_down == 0 < trained.bytes_up


def test_a_device_that_does_not_wait_is_told_what_failed(service: HalfService) -> None:
    may, batches = threading.Event(), 10_000
    may.set()
    with (
        service.open_round([slow_turn(may, batches, fails=True)]) as (halves, invitations),
        dialled(invitations[0]) as connection,
    ):
        half = RemoteHalf(connection, invitations[0].ticket)
        half.begin(Task({}, Streams(0, 1, 0), 0))
        with pytest.raises(HalfError, match="training diverged"):
            for _ in range(batches):
                half.learn(*batch())
        with pytest.raises(ValueError, match="did not come to an end"):
            halves.take(0)


# From one client to the next ----------------------------------------------------------------------


def test_the_order_is_the_services_whoever_dials_first(service: HalfService) -> None:
    with (
        service.open_round([turn(p) for p in (2, 0, 1)], in_turn=True) as (halves, invitations),
        ThreadPoolExecutor(3) as pool,
    ):
        last = pool.submit(train, invitations[1])
        until(lambda: halves._are[1] is half_service._Is.THERE)
        second = pool.submit(train, invitations[0])
        until(lambda: halves._are[0] is half_service._Is.THERE)
        assert not last.done()
        assert train(invitations[2]) == [1, 2]
        assert second.result(WAIT_S) == [3, 4]
        assert last.result(WAIT_S) == [5, 6]
        assert halves.handed_on["w"] == 6


def test_who_has_not_dialled_is_passed_over_and_then_too_late(impatient: HalfService) -> None:
    with impatient.open_round([turn(0), turn(1)], in_turn=True) as (halves, invitations):
        assert train(invitations[1]) == [1, 2]
        with pytest.raises(HalfError, match="too late: the round has gone on"):
            train(invitations[0])
        assert halves.handed_on["w"] == 2


@pytest.mark.parametrize("at", ["hello", "begin", "step", "steps"])
def test_a_connection_that_breaks_leaves_the_half_as_it_was(at: str, service: HalfService) -> None:
    with service.open_round([turn(0), turn(1)], in_turn=True) as (halves, invitations):
        with dialled(invitations[0]) as connection:
            half = RemoteHalf(connection, invitations[0].ticket)
            if at != "hello":
                half.begin(Task({}, Streams(0, 1, 0), 0))
            for _ in range({"step": 1, "steps": 2}.get(at, 0)):
                half.step(*batch(9.0))
        assert train(invitations[1]) == [1, 2]
        assert not halves.has_ended(0)
        assert halves.handed_on["w"] == 2


def test_a_reply_that_is_lost_after_the_end_leaves_its_steps(service: HalfService) -> None:
    with service.open_round([turn(0), turn(1)], in_turn=True) as (halves, invitations):
        with dialled(invitations[0]) as connection:
            half = RemoteHalf(connection, invitations[0].ticket)
            half.begin(Task({}, Streams(0, 1, 0), 0))
            half.step(*batch())
            half.step(*batch())
            connection.send(Frame(Kind.END).to_bytes())  # and hangs up without an answer
            until(lambda: halves.has_ended(0))
        assert train(invitations[1]) == [3, 4]


def test_one_that_diverges_is_told_and_leaves_nothing(service: HalfService) -> None:
    with service.open_round([turn(0), turn(1)], in_turn=True) as (_, invitations):
        with pytest.raises(HalfError, match=r"^FloatingPointError: training diverged$"):
            train(invitations[0], float("nan"))
        assert train(invitations[1]) == [1, 2]


# Tickets ------------------------------------------------------------------------------------------


def hello(invitation: Invitation, **changes: Any) -> None:
    with dialled(replace(invitation, **changes)) as connection:
        RemoteHalf(connection, changes.get("ticket", invitation.ticket))


def test_a_ticket_is_for_once(service: HalfService) -> None:
    with service.open_round([turn(0)]) as (_, invitations):
        hello(invitations[0])
        with pytest.raises(HalfError, match="no such ticket: it was used, or its round is over"):
            hello(invitations[0])


def test_foreign_and_late_tickets(service: HalfService) -> None:
    with service.open_round([turn(0), turn(1)]) as (_, invitations):
        for ticket in ("", "00" * 24, invitations[0].ticket[:-1], invitations[0].ticket.upper()):
            with pytest.raises(HalfError, match="no such ticket"):
                hello(invitations[0], ticket=ticket)
    with pytest.raises(HalfError, match="no such ticket"):
        hello(invitations[1])


def test_tickets_are_of_24_random_bytes(service: HalfService) -> None:
    with service.open_round([turn(p) for p in range(50)]) as (_, invitations):
        tickets = [bytes.fromhex(one.ticket) for one in invitations.values()]
    assert {len(ticket) for ticket in tickets} == {24}
    assert len(set(tickets)) == 50


def test_another_version(service: HalfService) -> None:
    with (
        service.open_round([turn(0)]) as (_, invitations),
        dialled(invitations[0]) as connection,
    ):
        fields = {"version": VERSION + 1, "ticket": invitations[0].ticket}
        connection.send(Frame(Kind.HELLO, fields).to_bytes())
        answer = Frame.from_bytes(connection.recv())
        assert answer == Frame(Kind.REFUSED, {"why": f"version {VERSION + 1}: takes {VERSION}"})


def test_a_round_that_is_over_ends_its_connections(service: HalfService) -> None:
    with contextlib.ExitStack() as stack:
        with service.open_round([turn(0), turn(1)], in_turn=True) as (halves, invitations):
            halves_of = [
                RemoteHalf(stack.enter_context(dialled(invitations[p])), invitations[p].ticket)
                for p in (0, 1)
            ]
            halves_of[0].begin(Task({}, Streams(0, 1, 0), 0))
            waiting = ThreadPoolExecutor(1).submit(
                halves_of[1].begin, Task({}, Streams(0, 1, 1), 0)
            )
        with pytest.raises(HalfError):
            waiting.result(WAIT_S)
        with pytest.raises(HalfError):
            for _ in range(2):
                halves_of[0].step(*batch())
        assert not halves.has_ended(0)


# Strangers ----------------------------------------------------------------------------------------


def test_a_device_trusts_the_certificate_of_the_run_alone(service: HalfService) -> None:
    with service.open_round([turn(0)]) as (_, invitations):
        other = Identity.made().certificate
        with pytest.raises(HalfError, match="CERTIFICATE_VERIFY_FAILED"):
            hello(invitations[0], certificate=other)
        assert train(invitations[0]) == [1, 2]


def test_without_tls_nobody_answers(service: HalfService) -> None:
    host, port = service.address.split(":")
    with socket.create_connection((host, int(port)), 5) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"HTTP" not in raw.recv(100)


def raw_tls(service: HalfService) -> ssl.SSLSocket:
    host, port = service.address.split(":")
    plain = socket.create_connection((host, int(port)), WAIT_S)
    return trusting(service._identity.certificate).wrap_socket(plain)


def drip(connection: ssl.SSLSocket, data: bytes, pause_s: float) -> float:
    """Send a byte at a time until the other end hangs up; seconds that took."""
    began = time.monotonic()
    with contextlib.suppress(OSError):
        for one in data:
            connection.sendall(bytes([one]))
            time.sleep(pause_s)
        connection.settimeout(WAIT_S)
        while connection.recv(1000):
            pass
    return time.monotonic() - began


def test_bytes_that_drip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a handshake nor a frame may take as long as it likes."""
    monkeypatch.setattr(half_service, "HELLO_S", 0.5)
    with HalfService(HalfSettings("127.0.0.1:0", timeout_s=0.5)) as service:
        with raw_tls(service) as connection:
            assert drip(connection, b"GET / HTTP/1.1\r\n" * 100, 0.05) < 10
        with (
            service.open_round([turn(0)]) as (halves, invitations),
            dialled(invitations[0]) as found,
        ):
            half = RemoteHalf(found, invitations[0].ticket)
            half.begin(Task({}, Streams(0, 1, 0), 0))
            assert drip(found.socket, b"\x82\xfe\x00\x80" + b"\0" * 132, 0.05) < 10  # type: ignore[attr-defined]
            until(lambda: halves._are[0] is half_service._Is.GONE)


def test_silence(impatient: HalfService) -> None:
    with (
        impatient.open_round([turn(0)]) as (_, invitations),
        dialled(invitations[0]) as connection,
    ):
        half = RemoteHalf(connection, invitations[0].ticket)
        half.begin(Task({}, Streams(0, 1, 0), 0))
        answer = Frame.from_bytes(connection.recv())
        assert answer.fields["why"] == "TimeoutError: silent for 0.5 s"


def test_who_takes_nothing_is_cut_off(impatient: HalfService) -> None:
    """Sending to it would block for as long as its TCP lives."""
    width = 2**20
    wide = turn(0, batches=8, width=width)
    with (
        impatient.open_round([wide, turn(1)], in_turn=True) as (_, invitations),
        raw_tls(impatient) as connection,
        ThreadPoolExecutor(1) as pool,
    ):
        next_one = pool.submit(train, invitations[1])
        connection.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        fields = {"version": VERSION, "ticket": invitations[0].ticket}
        step = Frame(Kind.STEP, packets=(labels_packet(batch()[1]), batch(width=width)[0]))
        frames = [Frame(Kind.HELLO, fields), Frame(Kind.BEGIN), step, step, step]
        with contextlib.suppress(OSError):  # cut off while it sends
            for frame in frames:
                data = frame.to_bytes()
                connection.sendall(b"\x82\xff" + len(data).to_bytes(8, "big") + b"\0" * 4 + data)
        assert next_one.result(WAIT_S) == [1, 2]


BAD = {
    "no frame": lambda: b"nonsense",
    "another kind": lambda: Frame(Kind.COMMITTED).to_bytes(),
    "the end, early": lambda: Frame(Kind.END).to_bytes(),
    "a gradient of nothing": lambda: Frame(Kind.BACKWARD, packets=(batch()[0],)).to_bytes(),
    "another shape": lambda: step_of(Fp32().encode(torch.zeros(SIZE, 2), None)),
    "another batch": lambda: step_of(Fp32().encode(torch.zeros(SIZE - 1, 4), None)),
    "values that are not there": lambda: step_of(replace(batch()[0], shape=torch.Size([2**30]))),
    "other labels": lambda: step_of(batch()[0], torch.zeros(SIZE + 1, dtype=torch.uint8)),
    "too long": lambda: b"x" * 20_000,
    "far too long": lambda: b"x" * 2**24,
}  # fmt: skip


def step_of(z: Packet, y: Tensor | None = None) -> bytes:
    labels = torch.zeros(SIZE, dtype=torch.uint8) if y is None else y
    return Frame(Kind.STEP, packets=(labels_packet(labels), z)).to_bytes()


@pytest.mark.parametrize("what", BAD)
def test_what_is_not_due_rolls_back(what: str, service: HalfService) -> None:
    with service.open_round([turn(0), turn(1)], in_turn=True) as (halves, invitations):
        with dialled(invitations[0]) as connection:
            half = RemoteHalf(connection, invitations[0].ticket)
            half.begin(Task({}, Streams(0, 1, 0), 0))
            half.step(*batch(9.0))
            with contextlib.suppress(WebSocketException, OSError):
                connection.send(BAD[what]())
                assert Frame.from_bytes(connection.recv()).kind is Kind.FAILED
        assert train(invitations[1]) == [1, 2]
        assert not halves.has_ended(0)


def test_more_batches_than_there_are(service: HalfService) -> None:
    with service.open_round([turn(0)]) as (_, invitations), dialled(invitations[0]) as connection:
        half = RemoteHalf(connection, invitations[0].ticket)
        half.begin(Task({}, Streams(0, 1, 0), 0))
        for _ in range(2):
            half.step(*batch())
        with pytest.raises(HalfError, match="STEP: takes END"):
            half.step(*batch())


@pytest.mark.parametrize(
    "count", [60, pytest.param(600, marks=pytest.mark.long)], ids=lambda count: str(count)
)
def test_fuzzed_frames_through_the_socket(count: int, service: HalfService) -> None:
    """Whatever they are, before or after a ticket: the service goes on, and nobody gets in."""
    draw = random.Random(1)
    whole = [Frame(Kind.BEGIN).to_bytes(), step_of(batch()[0]), Frame(Kind.END).to_bytes()]
    with service.open_round([turn(p) for p in range(count)]) as (halves, invitations):
        for partition in range(count - 1):
            invitation = invitations[partition]
            with (
                dialled(invitation) as connection,
                contextlib.suppress(WebSocketException, OSError, HalfError),
            ):
                if partition % 2:
                    half = RemoteHalf(connection, invitation.ticket)
                    if partition % 4 == 1:
                        half.begin(Task({}, Streams(0, 1, 0), 0))
                connection.send(damaged(draw.choice(whole), draw))
                connection.send(draw.randbytes(draw.randint(0, 300)))
                with contextlib.suppress(FrameError):
                    Frame.from_bytes(connection.recv())
        assert train(invitations[count - 1]) == [1, 2]
        assert not any(halves.has_ended(p) for p in range(count - 1))


# What is left -------------------------------------------------------------------------------------


def test_no_listener_and_no_thread_is_left_after_an_exception() -> None:
    before = set(threading.enumerate())
    device = contextlib.ExitStack()
    service = HalfService(HalfSettings("127.0.0.1:0"))
    with (
        pytest.raises(RuntimeError, match="the run broke off"),
        service,
        service.open_round([turn(0), turn(1)], in_turn=True) as (_, invitations),
    ):
        connection = device.enter_context(dialled(invitations[1]))
        RemoteHalf(connection, invitations[1].ticket)
        connection.send(Frame(Kind.BEGIN).to_bytes())  # waits for its turn
        raise RuntimeError("the run broke off")
    device.close()
    host, port = service.address.split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), 5)
    until(lambda: set(threading.enumerate()) <= before)


SETTINGS = [
    ({"address": ""}, r"half_address='': takes host:port"),
    ({"address": "host"}, r"half_address='host': takes host:port"),
    ({"address": ":80"}, r"half_address=':80': takes host:port"),
    ({"address": "host:x"}, r"half_address='host:x': takes host:port"),
    ({"address": "host:65536"}, r"half_address='host:65536': takes host:port"),
    ({"timeout_s": 0}, r"half_timeout_s=0: takes seconds above 0"),
    ({"timeout_s": "long"}, r"half_timeout_s='long': takes seconds above 0"),
    ({"cert": "a.pem"}, r"half_cert='a\.pem' half_key='': takes both files, or neither"),
]


@pytest.mark.parametrize(("given", "line"), SETTINGS)
def test_settings_that_cannot_be(given: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        HalfSettings(**{"address": "127.0.0.1:0", **given})


def test_where_it_cannot_listen(service: HalfService) -> None:
    for address, why in ((service.address, "in use"), ("192.0.2.1:0", "")):
        with pytest.raises(
            ValueError, match=f"half_address={address}: cannot listen there: .*{why}"
        ):
            HalfService(HalfSettings(address)).__enter__()


def test_a_certificate_of_the_users(tmp_path: Path) -> None:
    """Devices are told it, and trust it whoever signed it."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    settings = HalfSettings("127.0.0.1:0", str(cert), str(key))
    with pytest.raises(ValueError, match=r"half_cert=.*cert\.pem: no such file"):
        HalfService(settings)
    cert.write_text("nonsense")
    key.write_text("nonsense")
    with pytest.raises(ValueError, match=r"half_cert=.* half_key=.*: "):
        HalfService(settings)
    signed_by_another(cert, key)
    with HalfService(settings) as service, service.open_round([turn(0)]) as (_, invitations):
        assert invitations[0].certificate == cert.read_text()
        assert train(invitations[0]) == [1, 2]
    with (
        HalfService(HalfSettings("127.0.0.1:0")) as another,
        another.open_round([turn(0)]) as (_, invitations),
        pytest.raises(HalfError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        hello(invitations[0], certificate=cert.read_text())


def signed_by_another(cert: Path, key: Path) -> None:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    authority, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    now = datetime.datetime.now(datetime.UTC)
    built = x509.CertificateBuilder(
        issuer_name=name("an authority"),
        subject_name=name("half.example"),
        public_key=own.public_key(),
        serial_number=1,
        not_valid_before=now,
        not_valid_after=now + datetime.timedelta(days=1),
    )
    cert.write_bytes(built.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM))
    key.write_bytes(own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
