"""A method's halves on the server while its clients train on devices elsewhere.

Between the loop, which knows a round's clients, and the service, which knows nothing of methods.

Dropout on both sides of a cut is drawn from one stream in a simulation, which takes turns. Where
the sides are apart they would have to ask each other for each number: each has a stream of its own
then, the run says so, and its numbers are not those of a simulation.
"""

import contextlib
import copy
import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from models.inputs import spec_of
from models.trace import preserved_randomness
from strategies.client.split_loop import CutAt
from strategies.client.tiers import TiersClient
from strategies.client.training import LocalTraining, batch_sizes
from strategies.contract import ClientHalf, ColocatedHalf, Settings, Task
from strategies.messages import of_network, unpack_settings
from strategies.server.cuts import CutNetwork, Place
from strategies.server.half_service import HalfService, Turn
from strategies.server.method import Arrays, Network

MOST_KINDS = 8  # of halves that are kept: of the cuts of a round, the widths of rounds

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Copies:
    """Copies of what a method's `prepare` made, as many as are lent at a time.

    Attributes:
        client: the method's.
        first: what was prepared; it is not lent itself.
    """

    client: ClientHalf[Any]
    first: Any
    _free: list[Any] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def lend(self, arrays: Mapping[str, Tensor], task: Task) -> Iterator[ColocatedHalf]:
        """Lend the server's half of one, with these arrays."""
        with self._lock:
            model = self._free.pop() if self._free else copy.deepcopy(self.first)
        half = self.client.colocated(model, arrays, task, packed=True)
        assert half is not None, "the method has a server's half"
        yield half
        with self._lock:  # not where something went wrong: nobody knows what that left
            self._free.append(model)


@dataclass(eq=False)
class Elsewhere:
    """What makes the halves of a run.

    Attributes:
        service: that devices dial.
        client: the method's, which knows the server's half, too.
        network: the user's, of which halves are made.
    """

    service: HalfService
    client: ClientHalf[Any]
    network: nn.Module
    _copies: dict[tuple[tuple[str, Any], ...], Copies] = field(default_factory=dict)
    _twice: dict[CutAt, bool] = field(default_factory=dict)

    def turn(self, network: Network | None, arrays: Arrays, task: Task) -> Turn:
        """One client's round; while none is open.

        Args:
            network: of the round.
            arrays: of the global model, from which it begins.
            task: what the client is told to do.
        """
        assert isinstance(network, CutNetwork)
        partition = task.streams.partition
        on_device = network.on_device(partition) or frozenset()
        own = network.view(partition).of(arrays)
        if self._draws_twice(network.place(partition)):
            task = replace(task, streams=replace(task.streams, dropout="dropout.server"))
        settings = unpack_settings(task.settings, "train", LocalTraining)
        batches = batch_sizes(task.num_examples, settings)
        shape, most_bytes = network.crossing(partition, max(batches))
        return Turn(
            partition=partition,
            task=task,
            arrays={n: torch.from_numpy(a) for n, a in own.items() if n not in on_device},
            make=self._copies_of(task.settings).lend,
            batches=batches,
            shape=shape,
            most_bytes=most_bytes,
        )

    def _draws_twice(self, place: Place) -> bool:
        """Whether device and server both draw, of the stream that a simulation has for both."""
        if isinstance(self.client, TiersClient):  # whose cloud draws from a stream of its own
            return False
        if place.split not in self._twice:
            self._twice[place.split] = draws_on_both_sides(place)
            if self._twice[place.split]:
                log.warning(
                    "split.cut=%s: dropout on both sides of the cut, each from a stream of its "
                    "own: other numbers than a simulation's",
                    place.split.cut,
                )
        return self._twice[place.split]

    def _copies_of(self, settings: Settings) -> Copies:
        """What is lent to clients with these settings.

        Made here, before the round is opened: cutting traces a network, and meanwhile no other
        thread may run one (models/trace.py).
        """
        own = of_network(settings)
        key = tuple(sorted(own.items()))
        if key not in self._copies:
            made = self.client.prepare(copy.deepcopy(self.network), own)
            self._copies[key] = Copies(self.client, made)
            if len(self._copies) > MOST_KINDS:
                del self._copies[next(iter(self._copies))]
        return self._copies[key]


def draws_on_both_sides(place: Place) -> bool:
    """Whether, in training, parts on the device and the server's part draw random numbers."""
    x, draws = spec_of(place.input_shape).example(), list[bool]()
    with preserved_randomness(), torch.no_grad():
        for part in copy.deepcopy(place.parts).parts:
            before = torch.get_rng_state()
            x = part.train()(x)
            draws.append(not torch.equal(before, torch.get_rng_state()))
    first, server, *last = draws
    return server and (first or any(last))
