"""A server's half in another process trains the same bits as one beside the client."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from conftest import ROOT

from quant.codec import LinkSettings
from quant.packet import LENGTH_BYTES
from strategies.client.remote import HalfError, RemoteHalf, dialled
from strategies.contract import Update
from strategies.frames import Frame
from strategies.messages import pack_settings
from strategies.server.half_service import Trained
from tests.strategies.half_process import Asked
from tests.strategies.one_client import OneClient


@pytest.fixture(scope="module")
def server() -> Iterator[Connection]:
    """The pipe to the process that has the service."""
    mine, its = Pipe()
    command = [sys.executable, "-m", "tests.strategies.half_process", str(its.fileno())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[its.fileno()])
    its.close()
    with mine:
        yield mine
        mine.send(None)
    assert process.wait(timeout=30) == 0


class Counted:
    """A connection that keeps what went through it, as bytes."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.sent: list[bytes] = []
        self.received: list[bytes] = []

    def send(self, message: bytes) -> None:
        self.sent.append(message)
        self._connection.send(message)

    def recv(self) -> bytes:
        self.received.append(self._connection.recv())
        return self.received[-1]


def elsewhere(run: OneClient, server: Connection) -> tuple[Update, Trained, Counted]:
    """Train one client; each side is given its own arrays alone."""
    rest = {n: t.numpy() for n, t in run.arrays.items() if n not in run.device_names}
    settings, streams = dict(run.task.settings), run.task.streams
    server.send(Asked(run.overrides, settings, streams, run.task.num_examples, rest))
    invitation = server.recv()
    try:
        with dialled(invitation) as connection:
            counted = Counted(connection)
            update = run.elsewhere(RemoteHalf(counted, invitation.ticket))
    finally:
        server.send("done")
        trained = server.recv()
    return update, trained, counted


def payload(frames: list[bytes]) -> int:
    """Bytes of what is no framing, read anew from the bytes: kind, headers and their lengths."""
    total = 0
    for data in frames:
        begin = 1 + LENGTH_BYTES
        end = begin + int.from_bytes(data[1:begin], "little")
        sizes, place = json.loads(data[begin:end])["sizes"], end
        for size in sizes:
            total += size - LENGTH_BYTES - int.from_bytes(data[place : place + 4], "little")
            place += size
        assert place == len(data)
    return total


def assert_same_elsewhere(run: OneClient, server: Connection) -> Counted:
    plain = run.beside()
    update, trained, counted = elsewhere(run, server)
    found = update.arrays | {n: torch.from_numpy(array) for n, array in trained.arrays.items()}
    assert update.arrays.keys() == run.device_names
    assert found.keys() == plain.arrays.keys()
    for name, tensor in plain.arrays.items():
        assert torch.equal(found[name], tensor), name
    assert any(not torch.equal(found[n], run.arrays[n]) for n in trained.arrays)
    assert (update.loss, update.metrics) == (plain.loss, plain.metrics)
    assert plain.bytes_up == update.bytes_up == trained.bytes_up == payload(counted.sent)
    assert plain.bytes_down == trained.bytes_down == payload(counted.received)
    return counted


METHODS = (
    ("strategy=split",),
    ("strategy=splitfed_v1",),
    ("strategy=splitfed_v2", "train.server_lr=0.5", "train.momentum=0.9"),
    ("strategy=splitfed_v3", "quant.bits=4"),
    ("strategy=ushaped",),
    ("strategy=hierarchical",),
    ("strategy=binarized_split", "strategy.binarize=both", "privacy.epsilon=5", "train.lr=5"),
    ("strategy=deprune", "quant.bits=4"),
    ("strategy=prune", "strategy.base=split"),
)
LINKS = (
    LinkSettings(),
    LinkSettings("int8", "int8", rounding="stochastic"),
    LinkSettings("topk", "topk"),
    LinkSettings("sign", "sign"),
)
NETWORKS = {
    "batch norm": ("model=cnn", "model.norm=batch", "split.cut=stage2"),
    "group norm": ("model=cnn", "split.cut=stage1.conv"),
}
SAMPLE = {  # in the default run
    "strategy=splitfed_v1": "group norm",
    "strategy=ushaped": "batch norm",
    "strategy=hierarchical": "group norm",
    "strategy=deprune": "batch norm",
}
CASES = [
    pytest.param(
        (*method, *network),
        id=f"{method[0]}-{name}",
        marks=() if SAMPLE.get(method[0]) == name else pytest.mark.long,
    )
    for method in METHODS
    for name, network in NETWORKS.items()
]


@pytest.mark.parametrize("chosen", CASES)
def test_every_method_and_codec_trains_the_same_bits(
    chosen: tuple[str, ...], server: Connection
) -> None:
    run = OneClient(*chosen)
    for link in LINKS:
        run.task = replace(run.task, settings={**run.task.settings, **pack_settings(link=link)})
        assert_same_elsewhere(run, server)


OTHERS = (
    ("strategy=splitfed_v1", "model._target_=tests.test_identities.Residual"),  # draws
    ("strategy=hierarchical", "model._target_=tests.test_identities.Residual"),
    ("strategy=splitfed_v3", "model._target_=tests.strategies.test_split_methods.FrozenStem"),
    ("strategy=splitfed_v1", "link.up=randtopk", "link.down=int4", "link.per_channel=true"),
)


@pytest.mark.parametrize("chosen", OTHERS, ids=lambda chosen: " ".join(chosen))
def test_so_do_dropout_frozen_parts_and_codecs_that_draw(
    chosen: tuple[str, ...], server: Connection
) -> None:
    assert_same_elsewhere(OneClient(*chosen), server)


def test_memory_formats_cross(server: Connection) -> None:
    """Activations of the built-in networks are in channels_last; indices and (B, k) have none."""
    for codec, count in (("fp32", 6), ("topk", 3)):
        run = OneClient("strategy=splitfed_v1", "model=cnn", f"link.up={codec}")
        counted = assert_same_elsewhere(run, server)
        packets = [
            Frame.from_bytes(data).packets[-1:] for data in (*counted.sent, *counted.received)
        ]
        assert sum(packet.channels_last for found in packets for packet in found) == count


def test_a_half_that_diverges_leaves_nothing(server: Connection) -> None:
    """It says so to the device, before that could have kept anything; and serves the next."""
    rates = ("train.server_lr=1e30", "train.weight_decay=1e10", "train.max_batches=1")
    run = OneClient("strategy=splitfed_v1", *rates)
    with pytest.raises(HalfError, match=r"^FloatingPointError: training diverged: a weight of"):
        elsewhere(run, server)
    assert_same_elsewhere(OneClient("strategy=splitfed_v1"), server)
