"""What crosses between a device and the server's half where the two are not in one process.

    device                              server
    HELLO version, ticket           →   WELCOME, or REFUSED why
    BEGIN                           →   BEGUN, when the half is this device's
    STEP labels, activations        →   STEPPED loss, gradient
    LEARN labels, activations       →                            hierarchical: nothing comes back
    LOSS                            →   LEARNT loss              hierarchical: of all batches
    FORWARD activations             →   ACTIVATIONS              U-shaped: labels stay on the device
    BACKWARD gradient               →   GRADIENT
    END                             →   COMMITTED
                                        FAILED why, in place of any answer

A device asks and is answered, one frame each, but for LEARN, which it does not wait for; seed,
rates, round, link and cut are not in them: the server has its own. As bytes a frame is its kind
(1 byte), the length of its header (4 bytes, little-endian), the header (JSON: the kind's fields,
and the sizes of its packets) and its packets (`quant.packet`) one after the other. Only the
payloads of these count as traffic.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from torch import Tensor

from quant.packet import LENGTH_BYTES, MAX_HEADER_BYTES, Packet

VERSION = 3  # 2: each LEARN was answered; 1: without bfloat16, and the invitation's precision
OVERHEAD = 1 + 3 * (
    LENGTH_BYTES + MAX_HEADER_BYTES
)  # most that is no payload: two packets' headers
LONGEST_TEXT = 600  # characters
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class FrameError(ValueError):
    """What came is no frame, or not the one that is due."""


class Kind(IntEnum):
    """What a frame says; the module's docstring lists who sends which."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    BEGIN = 4
    BEGUN = 5
    STEP = 6
    STEPPED = 7
    LEARN = 8
    LEARNT = 9
    FORWARD = 10
    ACTIVATIONS = 11
    BACKWARD = 12
    GRADIENT = 13
    END = 14
    COMMITTED = 15
    FAILED = 16
    LOSS = 17


FIELDS: Mapping[Kind, Mapping[str, type]] = {
    Kind.HELLO: {"version": int, "ticket": str},
    Kind.REFUSED: {"why": str},
    Kind.STEPPED: {"loss": float},
    Kind.LEARNT: {"loss": float},
    Kind.FAILED: {"why": str},
}
PACKETS: Mapping[Kind, int] = {
    Kind.STEP: 2,
    Kind.STEPPED: 1,
    Kind.LEARN: 2,
    Kind.FORWARD: 1,
    Kind.ACTIVATIONS: 1,
    Kind.BACKWARD: 1,
    Kind.GRADIENT: 1,
}


@dataclass(frozen=True)
class Frame:
    """One message.

    Attributes:
        kind: what it says.
        fields: what its kind has, by name.
        packets: activations or a gradient; before them labels, where the kind has them.
    """

    kind: Kind
    fields: Mapping[str, Any] = field(default_factory=dict)
    packets: tuple[Packet, ...] = ()

    def to_bytes(self) -> bytes:
        """As it crosses.

        Raises:
            ValueError: a packet holds values, which cannot leave the process.
        """
        pieces = [packet.pieces() for packet in self.packets]
        sizes = [sum(len(piece) for piece in one) for one in pieces]
        header = {**self.fields, "sizes": sizes}
        text = _encode(header).encode()
        head = [bytes([self.kind]), len(text).to_bytes(LENGTH_BYTES, "little"), text]
        return b"".join([*head, *(piece for one in pieces for piece in one)])

    @classmethod
    def from_bytes(cls, data: bytes, most: float = math.inf) -> "Frame":
        """Inverse of `to_bytes`; copies the payloads.

        Args:
            data: what came.
            most: bytes that the longest frame has.

        Raises:
            FrameError: it is no frame, whatever the bytes; says why.
        """
        view = memoryview(data)
        if len(view) > most:
            raise FrameError(f"a frame of {len(view)} bytes: takes {most} at most")
        begin = 1 + LENGTH_BYTES
        end = begin + int.from_bytes(view[1:begin], "little")
        if not begin < end <= min(len(view), begin + MAX_HEADER_BYTES):
            raise FrameError(f"a frame of {len(view)} bytes: its header is not in it")
        try:
            kind, header = Kind(view[0]), json.loads(bytes(view[begin:end]))
        except (ValueError, RecursionError) as error:
            raise FrameError(f"a frame's kind or header: {error}") from error
        fields, sizes = _checked(kind, header)
        if end + sum(sizes) != len(view):
            raise FrameError(f"a frame of {len(view)} bytes: {end + sum(sizes)} expected")
        packets = list[Packet]()
        for size in sizes:
            try:
                packets.append(Packet.from_bytes(view[end : end + size]))
            except ValueError as error:
                raise FrameError(str(error)) from error
            end += size
        return cls(kind, fields, tuple(packets))


def labels_packet(labels: Tensor) -> Packet:
    """Labels (B, …) as they cross."""
    return Packet(labels.shape, False, labels.nbytes, (labels,), dtype=labels.dtype)


def labels_in(packet: Packet) -> Tensor:
    """Inverse of `labels_packet`.

    Raises:
        FrameError: the packet holds something else.
    """
    if len(packet.payload) == 1:
        (labels,) = packet.payload
        if labels.shape == packet.shape and labels.dtype == packet.dtype:
            return labels
    raise FrameError(f"labels of shape {tuple(packet.shape)} in {len(packet.payload)} parts")


def _checked(kind: Kind, header: Any) -> tuple[dict[str, Any], list[int]]:
    """The fields of a header, and the sizes of the packets."""
    wanted = FIELDS.get(kind, {})
    if not isinstance(header, dict) or header.keys() != {*wanted, "sizes"}:
        raise FrameError(f"a header of {kind.name}: must hold {', '.join([*wanted, 'sizes'])}")
    sizes = header.pop("sizes")
    count = PACKETS.get(kind, 0)
    is_list = isinstance(sizes, list) and len(sizes) == count
    if not is_list or not all(type(size) is int and size >= 0 for size in sizes):
        raise FrameError(f"a frame {kind.name}: takes {count} packets")
    for name, kind_of in wanted.items():
        value = header[name]
        if type(value) is not kind_of or (isinstance(value, str) and len(value) > LONGEST_TEXT):
            raise FrameError(f"{name} of {kind.name}: takes {kind_of.__name__}")
    return header, sizes
