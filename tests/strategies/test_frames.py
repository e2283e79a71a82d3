"""Frames as bytes: they come back as they were, and anything else is refused in one way."""

import json
import math
import random

import pytest
import torch

from quant.codec import Packet
from quant.dense import Affine
from strategies.frames import (
    FIELDS,
    LONGEST_TEXT,
    OVERHEAD,
    PACKETS,
    Frame,
    FrameError,
    Kind,
    labels_in,
    labels_packet,
)

Z = torch.arange(24, dtype=torch.float32).view(2, 3, 2, 2)
VALUES = {"version": 1, "ticket": "ab" * 24, "why": "it’s “over”\n" * 20, "loss": 0.1 + 0.2}


def frame(kind: Kind) -> Frame:
    """One of each kind."""
    packets = [Affine(4).encode(Z.contiguous(memory_format=torch.channels_last), None)]
    if PACKETS.get(kind) == 2:
        packets.insert(0, labels_packet(torch.tensor([3, 250], dtype=torch.uint8)))
    fields = {name: VALUES[name] for name in FIELDS.get(kind, {})}
    return Frame(kind, fields, tuple(packets[: PACKETS.get(kind, 0)]))


@pytest.mark.parametrize("kind", Kind)
def test_there_and_back(kind: Kind) -> None:
    sent = frame(kind)
    data = sent.to_bytes()
    found = Frame.from_bytes(data)
    assert (found.kind, found.fields) == (kind, sent.fields)
    assert [packet.to_bytes() for packet in found.packets] == [p.to_bytes() for p in sent.packets]
    assert len(data) - sum(packet.num_bytes for packet in sent.packets) <= OVERHEAD


def test_as_bytes_by_hand() -> None:
    assert Frame(Kind.END).to_bytes() == b"\x0e" + b"\x0c\0\0\0" + b'{"sizes":[]}'


@pytest.mark.parametrize("loss", [0.1, 1e-45, float(torch.tensor(1 / 3)), math.inf])
def test_losses_cross_exactly(loss: float) -> None:
    found = Frame.from_bytes(Frame(Kind.LEARNT, {"loss": loss}).to_bytes())
    assert found.fields["loss"] == loss


def test_a_loss_that_is_no_number_crosses_too() -> None:
    found = Frame.from_bytes(Frame(Kind.LEARNT, {"loss": math.nan}).to_bytes())
    assert math.isnan(found.fields["loss"])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.float32])
def test_labels(dtype: torch.dtype) -> None:
    labels = torch.tensor([[1, 2], [200, 0]]).to(dtype)
    sent = Frame(Kind.STEP, packets=(labels_packet(labels), frame(Kind.FORWARD).packets[0]))
    found = labels_in(Frame.from_bytes(sent.to_bytes()).packets[0])
    assert found.dtype == dtype
    assert torch.equal(found, labels)
    with pytest.raises(FrameError, match=r"labels of shape \(2, 3, 2, 2\) in 2 parts"):
        labels_in(sent.packets[1])


def with_header(kind: int, header: object, rest: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return bytes([kind]) + len(text).to_bytes(4, "little") + text + rest


REFUSED = [
    (b"", "its header is not in it"),
    (b"\x0e", "its header is not in it"),
    (b"\x0e\xff\xff\xff\xff{}", "its header is not in it"),
    (with_header(99, {"sizes": []}), "99 is not a valid Kind"),
    (with_header(Kind.END, b"{"), "kind or header"),
    (with_header(Kind.END, b"[" * 4000), "kind or header"),
    (with_header(Kind.END, []), "must hold sizes"),
    (with_header(Kind.END, {}), "must hold sizes"),
    (with_header(Kind.END, {"sizes": [], "x": 1}), "must hold sizes"),
    (with_header(Kind.END, {"sizes": [0]}), "takes 0 packets"),
    (with_header(Kind.STEP, {"sizes": [1]}), "takes 2 packets"),
    (with_header(Kind.FORWARD, {"sizes": [-1]}), "takes 1 packets"),
    (with_header(Kind.FORWARD, {"sizes": [1.0]}), "takes 1 packets"),
    (with_header(Kind.FORWARD, {"sizes": [2**60]}), "expected"),
    (with_header(Kind.FORWARD, {"sizes": [3]}, b"abc"), "its header is not in it"),
    (with_header(Kind.END, {"sizes": []}, b"more"), "expected"),
    (with_header(Kind.HELLO, {"version": "1", "ticket": "a", "sizes": []}), "takes int"),
    (with_header(Kind.HELLO, {"version": True, "ticket": "a", "sizes": []}), "takes int"),
    (with_header(Kind.LEARNT, {"loss": 1, "sizes": []}), "takes float"),
    (with_header(Kind.FAILED, {"why": "x" * (LONGEST_TEXT + 1), "sizes": []}), "takes str"),
]


@pytest.mark.parametrize(("data", "line"), REFUSED)
def test_what_is_none(data: bytes, line: str) -> None:
    with pytest.raises(FrameError, match=line):
        Frame.from_bytes(data)


def test_longer_than_may_be() -> None:
    data = frame(Kind.FORWARD).to_bytes()
    assert Frame.from_bytes(data, len(data)).kind is Kind.FORWARD
    with pytest.raises(FrameError, match=f"takes {len(data) - 1} at most"):
        Frame.from_bytes(data, len(data) - 1)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The same with something done to it."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(found) + 1)
        match draw.randrange(4):
            case 0:
                found[place : place + 1] = bytes([draw.randrange(256)])
            case 1:
                del found[place : place + draw.randint(1, 40)]
            case 2:
                found[place:place] = draw.randbytes(draw.randint(1, 40))
            case 3:
                found[place : place + 8] = draw.choice(
                    [b"9" * 8, b"\xff" * 8, b"[[[[[[[[", b"\0" * 8]
                )
        found = found or bytearray(b"\0")
    return bytes(found)


def test_ten_thousand_that_are_damaged_or_random() -> None:
    """Each is a frame or a FrameError, and nothing else."""
    draw, whole = random.Random(0), [frame(kind).to_bytes() for kind in Kind]
    refused = 0
    for number in range(10_000):
        if number % 5:
            data = damaged(draw.choice(whole), draw)
        else:
            data = draw.randbytes(draw.randint(0, 200))
        try:
            found = Frame.from_bytes(data, OVERHEAD + 1000)
        except FrameError:
            refused += 1
        else:
            assert all(isinstance(packet, Packet) for packet in found.packets)
    assert 5_000 < refused < 10_000
