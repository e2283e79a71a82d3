"""Arrays in one piece of memory: the same arrays and averages, and records that are Flower's."""

import copy
import pickle

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app import runtime
from strategies import messages
from strategies.array_bytes import BlockRecord, packed
from strategies.blocks import ALIGNED, Block, Later, Tensors, arrays_of, means
from strategies.contract import Update, check_arrays
from strategies.server.aggregation import combine, mean, median

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
DTYPES = st.sampled_from(["f2", "f4", "f8", "i1", "i8", "u1", "?"]).map(np.dtype)
ARRAYS = st.dictionaries(st.text(max_size=3), hnp.arrays(DTYPES, SHAPES), max_size=6)


def same(one, other) -> bool:
    return list(one) == list(other) and all(
        (one[n].dtype, one[n].shape, one[n].tobytes())
        == (other[n].dtype, other[n].shape, other[n].tobytes())
        for n in one
    )


@given(ARRAYS)
def test_a_block_holds_the_arrays_as_they_are(arrays) -> None:
    block = Block.of(arrays)
    assert same(block, arrays)
    assert same(block.copy(), arrays)
    assert Block.of(block) is block
    assert Block.of(dict(block)).layout is block.layout
    assert all(region.start % ALIGNED == 0 for region in block.layout.regions)
    assert sum(block.layout.sizes[name] for name in block) == sum(a.nbytes for a in arrays.values())
    read = Later(block.layout, lambda start, stop: block.memory[start:stop].copy())
    assert same(read, arrays) and same(Block(read.layout, read.memory), arrays)


def test_tensors_of_any_layout_and_with_gradients() -> None:
    turned = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)
    trained = torch.nn.Parameter(torch.ones(2, 3, 1, 1).to(memory_format=torch.channels_last))
    given = {"turned": turned, "trained": trained, "flag": torch.tensor(True)}
    block = Block.of(given)
    for name, tensor in given.items():
        assert torch.equal(torch.from_numpy(block[name]), tensor.detach())
    block["turned"][:] = 0
    assert turned.any()
    tensors = Tensors(block)
    assert arrays_of(tensors) is block
    tensors["turned"].fill_(5)
    assert (block["turned"] == 5).all()
    with pytest.raises(KeyError):
        block["other"]


def test_python_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="Python objects"):
        messages.to_record({"a": np.array([{}], dtype=object)})


# Averages -----------------------------------------------------------------------------------------

FORMS = {
    "w": ("f4", (70_000,)),
    "n": ("i8", ()),
    "half": ("f2", (3, 2)),
    "b": ("f4", (5,)),
    "flag": ("?", (2,)),
    "wide": ("f8", (7,)),
    "none": ("f4", (0, 3)),
}


def clients(count: int) -> list[dict]:
    draw = np.random.default_rng(count)
    return [
        {
            n: np.asarray(10 * draw.standard_normal(shape)).astype(d)
            for n, (d, shape) in FORMS.items()
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_means_of_blocks_are_those_of_arrays_bit_for_bit(count: int) -> None:
    states, weights = clients(count), [3.0, 1.0, 0.25, 7.0, 2.0][:count]
    blocks = [Block.of(state) for state in states]
    expected = combine(states, weights)
    for name, value in expected.items():
        if value.dtype.kind == "f":
            by_hand = mean([state[name] for state in states], weights).astype(value.dtype)
            assert value.tobytes() == by_hand.tobytes()
    assert same(combine(blocks, weights), expected)
    kept = [Later(b.layout, lambda start, stop, b=b: b.memory[start:stop].copy()) for b in blocks]
    assert same(combine(kept, weights), expected)
    mixed = [blocks[0], *kept[1:]]
    assert same(combine(mixed, weights), expected)
    assert same(combine([blocks[0], *states[1:]], weights), expected)  # not all are blocks
    assert same(combine(blocks, weights, median), combine(states, weights, median))


def test_blocks_in_other_orders_have_no_common_mean() -> None:
    one, other = Block.of({"a": np.ones(2), "b": np.zeros(2)}), {"b": np.ones(2), "a": np.zeros(2)}
    assert means([one, Block.of(other)], [1, 1]) == {}
    assert same(combine([one, Block.of(other)], [1, 3]), combine([dict(one), other], [1, 3]))


@pytest.mark.parametrize("name", ["w", "half", "wide", "b"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_would_spoil_an_average_is_named(name: str, value: float) -> None:
    block = Block.of(clients(1)[0])
    check_arrays(block)
    block[name].reshape(-1)[-1] = value
    assert not block.is_tame
    with pytest.raises(ValueError, match=f"array {name} holds"):
        check_arrays(block)


def test_values_whose_squares_together_overflow_are_no_fault() -> None:
    block = Block.of({"w": np.full(9, 1e19, np.float32), "half": np.full(9, 6e4, np.float16)})
    assert not block.is_tame
    check_arrays(block)


# Records ------------------------------------------------------------------------------------------


@given(ARRAYS)
def test_a_record_is_flowers(arrays) -> None:
    flowers = ArrayRecord({name: packed(array) for name, array in arrays.items()})
    ours = messages.to_record(arrays)
    assert list(ours) == list(flowers) and len(ours) == len(flowers)
    assert same(messages.to_arrays(ours), arrays)
    assert messages.payload_bytes(ours) == messages.payload_bytes(flowers)
    assert ours.block is not None  # nobody has asked for an Array so far
    for again in (pickle.loads(pickle.dumps(ours, p)) for p in (4, 5)):
        assert again.block.layout is ours.block.layout
        assert same(messages.to_arrays(again), arrays)
        assert again.block.memory.flags.writeable
    assert copy.deepcopy(ours) == flowers == ours.copy()
    assert ours == flowers and flowers == ours and repr(ours) == repr(flowers)
    assert pickle.loads(pickle.dumps(ours)) == flowers  # now of Flower's arrays
    assert ours.object_id == flowers.object_id and ours.deflate() == flowers.deflate()
    assert ours.children.keys() == flowers.children.keys()
    read = ArrayRecord.inflate(ours.deflate(), ours.children)
    assert same(messages.to_arrays(read), arrays)


def test_what_is_written_into_a_record_is_read() -> None:
    def new() -> ArrayRecord:
        return RecordDict({"a": messages.to_record({"w": np.ones(2), "b": np.zeros(1)})})["a"]

    record = new()
    assert isinstance(record, BlockRecord)
    record["w"].data = packed(np.full(2, 7.0)).data  # Flower's arrays may be written to
    assert messages.to_arrays(record)["w"].tolist() == [7, 7]
    record = new()
    record["c"] = packed(np.ones(3))
    del record["b"]
    assert list(messages.to_arrays(record)) == ["w", "c"] == list(record)
    assert messages.payload_bytes(record) == 16 + 24
    assert list(pickle.loads(pickle.dumps(record, 5))) == ["w", "c"]


def test_what_is_read_shares_no_memory_and_what_is_sent_does() -> None:
    runtime.start_run(1)
    block = Block.of({"w": np.ones(2)})
    record = messages.to_record(block)
    messages.to_arrays(record)["w"][:] = 5
    messages.to_tensors(record)["w"][:] = 5
    assert block["w"].tolist() == [1, 1]
    request = Message(RecordDict(), dst_node_id=1, message_type="train")
    answer = messages.reply(request, Update(arrays={}, num_examples=1, loss=0.0))
    answer.content[messages.ARRAYS] = record
    assert messages.read_reply(answer).arrays.block is block


def test_memory_travels_beside_the_pickle() -> None:
    record = messages.to_record({"w": np.arange(1000.0)})
    buffers: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(record, 5, buffer_callback=buffers.append)
    assert len(rest) < 1000 and [b.raw().nbytes for b in buffers] == [8000]
    foreign = bytes(buffers[0].raw())  # as Ray hands it out: not to be written to
    read = pickle.loads(rest, buffers=[foreign])
    assert read.block.memory.flags.writeable
    np.testing.assert_array_equal(read.block["w"], np.arange(1000.0))
