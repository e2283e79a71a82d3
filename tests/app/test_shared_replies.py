"""Replies from another process: as they were sent, whatever their size, in memory of their own."""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from app import runtime
from app.first_workers import CAN_FORK
from app.shared_replies import CHUNK, SharedReplies
from strategies import messages
from strategies.blocks import Block

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="forked on Linux alone")
SIZES = (3, 0, 100_000, 5, 2_000_000, 1)


@pytest.fixture(autouse=True)
def a_run() -> None:
    runtime.start_run(1)


def reply(size: int) -> Message:
    content = RecordDict({"a": messages.to_record({"w": np.arange(size, dtype=np.float32)})})
    return Message(content, dst_node_id=size, message_type="train")


def send_all(shared: SharedReplies, pipe, repeat: int) -> None:
    for _ in range(repeat):
        for size in SIZES:
            shared.send(pipe, reply(size))
    shared.send(pipe, Message(RecordDict(), dst_node_id=7, message_type="query"))
    pipe.send(None)
    os._exit(0)


def started(repeat: int) -> tuple[SharedReplies, Connection, BaseProcess]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    shared = SharedReplies()
    process = context.Process(target=send_all, args=(shared, theirs, repeat))
    process.start()
    theirs.close()
    return shared, ours, process


def test_all_come_as_they_were_sent() -> None:
    shared, ours, process = started(repeat=3)
    taken = [shared.take(ours) for _ in range(3 * len(SIZES))]  # each stays as it came
    assert shared.freed() == []
    for size, one in zip(SIZES * 3, taken, strict=True):
        assert one.metadata.dst_node_id == size
        array = messages.to_arrays(one.content["a"])["w"]
        np.testing.assert_array_equal(array, np.arange(size, dtype=np.float32))
    assert shared.take(ours).metadata.dst_node_id == 7  # without arrays
    assert shared.take(ours) is None
    process.join(10)
    shared.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(shared.file)


def test_a_process_that_ends_is_noticed() -> None:
    shared, ours, process = started(repeat=1)
    shared.take(ours)
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    with pytest.raises((EOFError, OSError)):
        for _ in range(len(SIZES)):
            shared.take(ours)
    shared.close()


def serve(shared: SharedReplies, pipe: Connection) -> None:
    while (what := pipe.recv()) is not None:
        size, freed = what
        shared.free(freed)
        shared.send(pipe, reply(size))
    os._exit(0)


def test_a_place_is_used_again_when_nobody_has_anything_of_it() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    shared = SharedReplies()
    process = context.Process(target=serve, args=(shared, theirs))
    process.start()
    theirs.close()

    def asked(size: int) -> Block:
        ours.send((size, shared.freed()))
        block = shared.take(ours).content["a"].block
        assert isinstance(block, Block)
        return block

    first = asked(1000)
    corner = first["w"][10:12]  # a view of a view
    kept = [asked(1000) for _ in range(3)]
    del first
    kept.append(asked(1000))
    assert shared.freed() == []
    assert corner.tolist() == [10.0, 11.0]
    corner[:] = 5  # it is the driver's own
    kept = [block for block in kept if block["w"][11] == 11]
    assert len(kept) == 4
    del corner
    (place,) = shared.freed()
    shared._given_back.append(place)
    kept.append(asked(1000))
    assert kept[-1]["w"].tolist() == list(range(1000))
    kept.clear()
    places = shared.freed()
    assert len(places) == 5 and place in places
    assert os.fstat(shared.file).st_size == CHUNK
    ours.send((5_000_000, places))  # 20 MB take a chunk of their own
    large = shared.take(ours).content["a"].block
    assert large["w"][-1] == 4_999_999
    assert os.fstat(shared.file).st_size > CHUNK + large.memory.nbytes
    ours.send(None)
    process.join(10)
    shared.close()
    assert large["w"][7] == 7  # what somebody has stays
