"""The server's half of a cut network in another process, behind a socket, for tests.

A frame is its length (8 bytes), a kind (1 byte), and fields, each after its own length (8 bytes).

    python -m tests.strategies.half_process FD     serves one client after another on that socket
"""

import functools
import json
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from app import experiment
from app.config.composition import compose
from app.experiment import Experiment, resolve
from models.objective import UNSIGNED
from quant.packet import LENGTH_BYTES, Packet
from strategies.contract import ClientHalf, Streams, Task
from strategies.messages import of_network

BEGIN, STEP, LEARN, FORWARD, BACKWARD, END, ERROR = b"b", b"s", b"l", b"f", b"k", b"e", b"!"


def write(to: socket.socket, kind: bytes, *fields: bytes) -> None:
    body = kind + b"".join(struct.pack("<Q", len(field)) + field for field in fields)
    to.sendall(struct.pack("<Q", len(body)) + body)


def read(source: socket.socket) -> tuple[bytes, list[bytes]]:
    """Kind and fields; no kind where the other side has closed."""
    length = _exactly(source, 8)
    if not length:
        return b"", []
    body = memoryview(_exactly(source, *struct.unpack("<Q", length)))
    fields, place = [], 1
    while place < len(body):
        (size,) = struct.unpack("<Q", body[place : place + 8])
        fields.append(bytes(body[place + 8 : place + 8 + size]))
        place += 8 + size
    return bytes(body[:1]), fields


def _exactly(source: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        piece = source.recv(count - len(found))
        if not piece:
            return b""
        found += piece
    return bytes(found)


class RemoteHalf:
    """The device's view of the half in the other process, to which nothing goes but bytes.

    Attributes:
        sent, received: payload bytes that went through the socket, labels among them.
        formats: whether each packet, either way, was in channels_last.
        trained: the server's arrays, once the round has ended.
        counted: bytes that the other process says it has sent.
    """

    packed = True

    def __init__(
        self, to: socket.socket, overrides: Sequence[str], arrays: Mapping[str, Tensor]
    ) -> None:
        self._to = to
        self._overrides = list(overrides)
        self._arrays = dict(arrays)
        self.sent = self.received = 0
        self.formats: list[bool] = []
        self.trained: dict[str, Tensor] = {}
        self.counted = 0

    def begin(self, task: Task) -> None:
        told = {"overrides": self._overrides, **asdict(task), "settings": dict(task.settings)}
        self._ask(BEGIN, json.dumps(told).encode(), dense(self._arrays))

    def step(self, z: Packet, y: Tensor) -> tuple[Packet, float]:
        gradient, loss = self._ask(STEP, self._out(z), self._labels(y))
        return self._in(gradient), struct.unpack("<d", loss)[0]

    def learn(self, z: Packet, y: Tensor) -> float:
        (loss,) = self._ask(LEARN, self._out(z), self._labels(y))
        return float(struct.unpack("<d", loss)[0])

    def forward(self, z: Packet) -> Packet:
        return self._in(*self._ask(FORWARD, self._out(z)))

    def backward(self, gradient: Packet) -> Packet:
        return self._in(*self._ask(BACKWARD, self._out(gradient)))

    def end(self) -> None:
        arrays, counted = self._ask(END)
        self.trained, self.counted = load(arrays), int(counted)

    def _ask(self, kind: bytes, *fields: bytes) -> list[bytes]:
        write(self._to, kind, *fields)
        answer, found = read(self._to)
        if answer != kind:
            raise RuntimeError(b" ".join(found).decode() or "the other process has ended")
        return found

    def _out(self, packet: Packet) -> bytes:
        data = packet.to_bytes()
        self.sent += self._payload(data)
        self.formats.append(packet.channels_last)
        return data

    def _in(self, data: bytes) -> Packet:
        self.received += self._payload(data)
        packet = Packet.from_bytes(data)
        self.formats.append(packet.channels_last)
        return packet

    def _labels(self, y: Tensor) -> bytes:
        data = y.numpy().tobytes()
        self.sent += len(data)
        return data

    def _payload(self, data: bytes) -> int:
        return len(data) - LENGTH_BYTES - int.from_bytes(data[:LENGTH_BYTES], "little")


def dense(arrays: Mapping[str, Tensor]) -> bytes:
    """Arrays by name; as in Flower's messages, in which weights have no memory format."""
    return save({name: tensor.contiguous() for name, tensor in arrays.items()})


# The other process --------------------------------------------------------------------------------


def begun(told: dict[str, Any], arrays: Mapping[str, Tensor]) -> Any:
    """The server's half of one client's round."""
    task = Task(told["settings"], Streams(**told["streams"]), told["num_examples"])
    network = json.dumps(of_network(task.settings))
    client, model = prepared(tuple(told["overrides"]), network)
    half = client.colocated(model, arrays, task, packed=True)
    assert half is not None
    half.begin(task)
    return half


@functools.lru_cache(maxsize=1)
def composed(overrides: tuple[str, ...]) -> Experiment:
    return resolve(compose(overrides))


@functools.lru_cache(maxsize=1)
def prepared(overrides: tuple[str, ...], network: str) -> tuple[ClientHalf[Any], Any]:
    """What the method's clients do, and what they train."""
    config = composed(overrides)
    client = experiment.method_class(config).client
    return client, client.prepare(experiment.network(config), json.loads(network))


def answer(half: Any, kind: bytes, fields: list[bytes]) -> list[bytes]:
    if kind == END:
        half.end()
        return [dense(half.arrays()), str(half.bytes_sent).encode()]
    packet = Packet.from_bytes(fields[0])
    if kind == FORWARD:
        return [half.forward(packet).to_bytes()]
    if kind == BACKWARD:
        return [half.backward(packet).to_bytes()]
    data = bytearray(fields[1])
    y = torch.frombuffer(data, dtype=UNSIGNED[len(data) // packet.shape[0]])
    if kind == LEARN:
        return [struct.pack("<d", half.learn(packet, y))]
    gradient, loss = half.step(packet, y)
    return [gradient.to_bytes(), struct.pack("<d", loss)]


def main(descriptor: int) -> None:
    torch.set_num_threads(1)
    half: Any = None
    with socket.socket(fileno=descriptor) as device:
        while True:
            kind, fields = read(device)
            if not kind:
                return
            try:
                if kind == BEGIN:
                    half, found = begun(json.loads(fields[0]), load(fields[1])), []
                else:
                    found = answer(half, kind, fields)
            except (ArithmeticError, ValueError) as error:
                write(device, ERROR, f"{type(error).__name__}: {error}".encode())
            else:
                write(device, kind, *found)


if __name__ == "__main__":
    main(int(sys.argv[1]))
