"""Arrays in messages have Flower's own bytes, and are read as Flower reads them."""

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strategies.array_bytes import NUMPY, packed, unpacked

DTYPES = st.one_of(
    hnp.floating_dtypes(endianness="?"),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.boolean_dtypes(),
    hnp.complex_number_dtypes(endianness="?"),
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5)


@given(hnp.arrays(DTYPES, SHAPES))
def test_the_same_bytes_and_the_same_array(array: np.ndarray) -> None:
    flowers, ours = Array(array), packed(array)
    assert (ours.dtype, ours.shape, ours.stype) == (flowers.dtype, flowers.shape, flowers.stype)
    assert ours.data == flowers.data
    assert ours.object_id == flowers.object_id
    for one in (unpacked(ours), unpacked(flowers)):
        read = flowers.numpy()
        assert (one.dtype, one.shape, one.tobytes()) == (read.dtype, read.shape, read.tobytes())
        assert one.flags.writeable and one.flags.c_contiguous


def test_what_is_read_shares_no_memory() -> None:
    sent = packed(np.arange(4.0))
    unpacked(sent)[0] = 9
    assert unpacked(sent)[0] == 0


def test_other_layouts_are_left_to_flower() -> None:
    turned = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    for array in (turned, turned[:, ::2]):
        np.testing.assert_array_equal(unpacked(packed(array)), array)


@pytest.mark.parametrize("keep", [0, 3, 8, 9, 40, 127, 130])
def test_what_is_cut_short_is_refused(keep: int) -> None:
    data = packed(np.ones(5)).data[:keep]
    with pytest.raises((ValueError, EOFError)):
        Array("float64", (5,), NUMPY, data).numpy()
    with pytest.raises((ValueError, EOFError)):
        unpacked(Array("float64", (5,), NUMPY, data))


def test_python_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        packed(np.array([{}, None], dtype=object))
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"x" * 8
    with pytest.raises(ValueError, match=r"[Oo]bject arrays|pickle"):
        unpacked(Array("object", (1,), NUMPY, data))


def test_another_serialization_is_refused() -> None:
    with pytest.raises(TypeError, match="torch"):
        unpacked(Array("float32", (1,), "torch", packed(np.ones(1)).data))
