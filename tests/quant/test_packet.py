"""Packets as bytes: they come back as they were, and damage is refused."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.codec import CODECS, make_codec
from quant.packet import LENGTH_BYTES, Packet


def packet_of(codec="int4", shape=(3, 4, 5, 2), memory_format=torch.contiguous_format):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return make_codec(codec).encode(x.to(memory_format=memory_format), None)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (1, 1, 1, 1)])
def test_there_and_back(codec, shape, memory_format):
    packet = packet_of(codec, shape, memory_format)
    data = packet.to_bytes()
    found = Packet.from_bytes(memoryview(data))
    for name in ("shape", "dtype", "channels_last", "num_bytes", "values", "support"):
        assert getattr(found, name) == getattr(packet, name), name
    for one, other in zip(found.payload, packet.payload, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    header = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    assert len(data) == header + packet.num_bytes


def test_a_batch_of_none():
    packet = make_codec("fp32").encode(torch.zeros(0, 3), None)
    assert Packet.from_bytes(packet.to_bytes()).shape == (0, 3)


def test_values_do_not_leave_the_process():
    with pytest.raises(ValueError, match="holds values: only a packed one can leave the process"):
        Packet.unpacked(torch.zeros(2, 3), None, 24).to_bytes()


def test_what_arrives_has_memory_of_its_own():
    data = bytearray(packet_of("fp32").to_bytes())
    found = Packet.from_bytes(data)
    before = found.payload[0].clone()
    data[-100:] = bytes(100)
    assert torch.equal(found.payload[0], before)


def rewritten(**changes):
    """A packet's bytes with another header."""
    data = packet_of().to_bytes()
    end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    header = json.loads(data[LENGTH_BYTES:end]) | changes
    text = json.dumps({k: v for k, v in header.items() if v != "absent"}).encode()
    return len(text).to_bytes(LENGTH_BYTES, "little") + text + data[end:]


DAMAGED = {
    "nothing": (b"", "its header is not in it"),
    "a length alone": (b"\1\0\0\0", "its header is not in it"),
    "a header too long": ((5000).to_bytes(4, "little") + bytes(5000), "its header is not in it"),
    "no JSON": (b"\2\0\0\0{]", "is not JSON"),
    "too deep": ((4096).to_bytes(4, "little") + b"[" * 4096, "is not JSON"),
    "another JSON": (b"\2\0\0\0[]", "must hold dtype, memory_format, parts, shape"),
    "cut off": (packet_of().to_bytes()[:-1], "expected"),
    "too long": (packet_of().to_bytes() + b"\0", "expected"),
    "a key too few": (rewritten(shape="absent"), "must hold"),
    "a key too many": (rewritten(kind="step"), "must hold"),
    "a size below 0": (rewritten(shape=[3, -4]), "shape="),
    "no number": (rewritten(shape=[3, 4.0]), "shape="),
    "true": (rewritten(shape=[True]), "shape="),
    "too large": (rewritten(shape=[2**30, 2**30]), "shape="),
    "another dtype": (rewritten(dtype="int3"), "dtype=int3"),
    "no dtype": (rewritten(dtype=["float32"]), "dtype="),
    "another format": (rewritten(memory_format="turned"), "memory_format=turned"),
    "of three dimensions": (rewritten(shape=[3, 4, 5], memory_format="channels_last"), "of four"),
    "parts": (rewritten(parts={}), "parts="),
    "a part": (rewritten(parts=[["uint8"]]), "a dtype and a shape"),
    "a part of more than there is": (rewritten(parts=[["uint8", [10**9]]]), "expected, or more"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damage_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        Packet.from_bytes(data)


@settings(deadline=None, max_examples=300)
@given(place=st.integers(0, 10**6), byte=st.integers(0, 255), length=st.integers(0, 400))
def test_any_damage_is_a_packet_or_refused(place, byte, length):
    data = bytearray(packet_of().to_bytes())
    data[place % len(data)] = byte
    for damaged in (data, data[:length]):
        try:
            found = Packet.from_bytes(damaged)
        except ValueError:
            continue
        assert found.num_bytes == packet_of().num_bytes
