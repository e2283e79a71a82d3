"""Packed bits: round trip, exact sizes, and the layout against numpy.packbits."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quant.packing import pack, packed_bytes, unpack

properties = settings(deadline=None, max_examples=80)
ALL_BITS = range(1, 9)
WIDE_BITS = range(9, 33)


@st.composite
def bits_and_codes(draw, most_bits=8):
    bits = draw(st.integers(1, most_bits))
    return bits, draw(st.lists(st.integers(0, 2**bits - 1), max_size=100))


def by_packbits(values, bits):
    """Bit i·b + j of the stream is bit j of code i, bytes filled from their lowest bit."""
    codes = np.asarray(values, dtype=np.uint8).reshape(-1, 1)
    stream = np.unpackbits(codes, axis=1, bitorder="little")[:, :bits].reshape(-1)
    return np.packbits(stream, bitorder="little")


@properties
@given(case=bits_and_codes())
@example(case=(8, [255] * 17))
@example(case=(7, [127] * 9))
@example(case=(3, []))
def test_round_trip_and_layout(case):
    bits, values = case
    codes = torch.tensor(values, dtype=torch.int64)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_bytes(len(values), bits),)
    assert packed.numpy().tolist() == by_packbits(values, bits).tolist()
    back = unpack(packed, bits, len(values))
    assert back.dtype == torch.int64
    assert torch.equal(back, codes)


@properties
@given(case=bits_and_codes(most_bits=32))
@example(case=(32, [2**32 - 1] * 9))
@example(case=(9, [511] * 9))
def test_wide_codes_round_trip_in_the_least_bytes(case):
    bits, values = case
    packed = pack(torch.tensor(values, dtype=torch.int64), bits)
    assert packed.shape == (packed_bytes(len(values), bits),)
    assert unpack(packed, bits, len(values)).tolist() == values


@properties
@given(case=bits_and_codes(most_bits=32).filter(lambda case: case[0] > 8))
def test_wide_codes_lie_lowest_bytes_first(case):
    bits, values = case
    lowest = [value & 0xFF for value in values]
    above = torch.tensor([value >> 8 for value in values], dtype=torch.int64)
    packed = pack(torch.tensor(values, dtype=torch.int64), bits)
    assert packed[: len(values)].tolist() == lowest
    assert torch.equal(packed[len(values) :], pack(above, bits - 8))


@pytest.mark.parametrize("bits", ALL_BITS)
def test_every_code_at_every_place_of_a_group(bits):
    values = torch.arange(2**bits).repeat(9)
    for offset in range(8):
        codes = values[offset:]
        assert torch.equal(unpack(pack(codes, bits), bits, len(codes)), codes)


@properties
@given(num_codes=st.integers(0, 10**9), bits=st.integers(1, 32))
def test_packed_bytes_is_the_least_whole_number(num_codes, bits):
    size = packed_bytes(num_codes, bits)
    assert (size - 1) * 8 < num_codes * bits <= size * 8 or size == num_codes == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_shape_order_and_integer_type(dtype):
    codes = torch.randint(0, 2**5, (3, 4, 5), generator=torch.Generator().manual_seed(0))
    turned = codes.to(dtype).permute(2, 0, 1)
    packed = pack(turned, 5)
    assert torch.equal(unpack(pack(turned, 12), 12, 60), unpack(packed, 5, 60))
    assert torch.equal(unpack(packed, 5, 60).reshape(5, 3, 4), codes.permute(2, 0, 1))
    assert torch.equal(codes.to(dtype).permute(2, 0, 1), turned)


def test_what_pack_returns_owns_its_bytes():
    """A view of the 8-byte words would be sent whole by whoever looks at its storage."""
    packed = pack(torch.arange(8), 3)
    assert packed.untyped_storage().nbytes() == 3


@properties
@given(case=bits_and_codes().filter(lambda case: len(case[1]) > 0), seed=st.integers(0, 99))
def test_bits_past_the_last_code_do_not_matter(case, seed):
    bits, values = case
    packed = pack(torch.tensor(values), bits)
    spare = packed_bytes(len(values), bits) * 8 - len(values) * bits
    packed[-1] |= (0xFF << (8 - spare)) & 0xFF
    assert unpack(packed, bits, len(values)).tolist() == values


@pytest.mark.parametrize("bits", [*ALL_BITS, *WIDE_BITS])
def test_codes_that_do_not_fit_are_refused(bits):
    for wrong in (-1, 2**bits):
        with pytest.raises(ValueError, match=rf"{wrong}.*not {bits} bits"):
            pack(torch.tensor([0, wrong, 1]), bits)


@pytest.mark.parametrize("bits", [-1, 0, 33, 64])
def test_other_bit_widths_are_refused(bits):
    with pytest.raises(ValueError, match=f"1 to 32 bits, got {bits}"):
        pack(torch.tensor([0]), bits)
    with pytest.raises(ValueError, match=f"1 to 32 bits, got {bits}"):
        unpack(torch.zeros(1, dtype=torch.uint8), bits, 1)


@pytest.mark.parametrize("length", [0, 3, 5, 40])
def test_another_number_of_bytes_is_refused(length):
    with pytest.raises(ValueError, match=f"10 codes of 3 bits take 4 bytes, got {length}"):
        unpack(torch.zeros(length, dtype=torch.uint8), 3, 10)
