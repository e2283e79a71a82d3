"""The server's halves in a process of their own: the service itself, on this machine.

    python -m tests.strategies.half_process FD

On the pipe of that descriptor come clients' rounds, one after another, each `Asked`; an invitation
goes back, and when the other side says that the client is done, what came of it.
"""

import functools
import sys
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import experiment
from app.config.composition import compose
from quant.codec import LinkSettings
from strategies.contract import Streams, Task
from strategies.messages import unpack_settings
from strategies.server.cuts import CutNetwork
from strategies.server.elsewhere import Elsewhere
from strategies.server.half_service import HalfService, HalfSettings


@dataclass(frozen=True)
class Asked:
    """One client's round."""

    overrides: tuple[str, ...]
    settings: dict[str, Any]
    streams: Streams
    num_examples: int
    arrays: dict[str, NDArray[Any]]  # the server's alone


@functools.lru_cache(maxsize=1)
def prepared(service: HalfService, overrides: tuple[str, ...]) -> tuple[Elsewhere, CutNetwork]:
    config = experiment.resolve(compose(overrides))
    strategy = experiment.strategy(config)
    experiment.prepare(config, strategy)
    network = strategy.prepared().in_round(1)
    assert isinstance(network, CutNetwork)
    return Elsewhere(service, strategy.client, experiment.network(config)), network


def main(descriptor: int) -> None:
    with Connection(descriptor) as pipe, HalfService(HalfSettings("127.0.0.1:0")) as service:
        while (asked := pipe.recv()) is not None:
            task = Task(asked.settings, asked.streams, asked.num_examples)
            elsewhere, network = prepared(service, asked.overrides)
            network = replace(network, link=unpack_settings(task.settings, "link", LinkSettings))
            turn = elsewhere.turn(network, asked.arrays, task)
            with service.open_round([turn]) as (halves, invitations):
                pipe.send(invitations[turn.partition])
                pipe.recv()
                try:
                    trained = halves.take(turn.partition)
                except ValueError as error:
                    pipe.send(error)
                else:
                    arrays = {n: np.array(tensor) for n, tensor in trained.arrays.items()}
                    pipe.send(replace(trained, arrays=arrays))


if __name__ == "__main__":
    main(int(sys.argv[1]))
