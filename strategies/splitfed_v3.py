"""SplitFed V3 (Gawali et al. 2020, arXiv 2012.12591).

Each client has a private client model, which is never averaged and never leaves it; the copies of
the server model are averaged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import torch

from fleet.selection import select
from quant.codec import LinkSettings
from quant.settings import QuantSettings
from strategies.client.split_loop import SplitClient
from strategies.server.aggregation import AverageSettings, Averaging
from strategies.server.cuts import CutNetwork
from strategies.server.cutting import READS, Cut, SplitSettings
from strategies.server.loop import FederatedStrategy
from strategies.server.method import (
    Arrays,
    Clients,
    Method,
    Network,
    Result,
    RoundArguments,
    ServerState,
    Test,
    TestOf,
)
from strategies.server.private_halves import device_names, half_of, keep_halves, replaced
from strategies.server.schedules import PARALLEL
from strategies.server.wires import Latent, nothing

INITIAL = "initial"


class SplitFedV3(FederatedStrategy):
    """Private device parts, averaged server parts.

    Args:
        split: where the network is cut.
        link: codecs at the cut.
        quant: bit widths, and of which part.
        averaging: how clients are averaged.
        objective: what ``split.cut=auto`` makes least.
        evaluate_clients: how many clients' parts are tested with the global server's part.
        rounds: as `RoundSettings`.
    """

    client = SplitClient()
    reads = (*READS, "evaluate.clients")
    has_server_half = True
    is_private = True

    def __init__(
        self,
        *,
        split: SplitSettings | None = None,
        link: LinkSettings | None = None,
        quant: QuantSettings | None = None,
        averaging: AverageSettings | None = None,
        objective: str = "seconds",
        evaluate_clients: int = 10,
        **rounds: Unpack[RoundArguments],
    ) -> None:
        method = Method(
            network=Cut.of(split, link, quant, objective, takes_mapping=True, relays_part=False),
            schedule=PARALLEL,
            wire=Latent(nothing),
            aggregate=Averaging.over_a_cut(averaging),
            private=OwnParts(evaluate_clients),
            needs_prepare="a network that is cut",
        )
        super().__init__(method, **rounds)


@dataclass(frozen=True)
class OwnParts:
    """Each client has a device part of its own, the initial one until it has taken part.

    In the global model the device's part is the average of the round's clients, from which nobody
    trains but the newcomers of the first round.

    Attributes:
        evaluate_clients: how many clients' parts are tested.
    """

    evaluate_clients: int

    def begin(self, state: ServerState) -> ServerState:
        """Note what newcomers begin with."""
        if half_of(state, INITIAL, state.arrays):
            return state
        return state.keeping(f"{INITIAL}/", state.arrays)

    def own(self, state: ServerState, network: Network, partition: int) -> Arrays:
        """The client's part; the initial one where it has not taken part yet."""
        names = device_names(network, partition)
        return half_of(state, partition, names) or half_of(state, INITIAL, names)

    def keep(
        self, state: ServerState, network: Network, results: Sequence[Result], alone: Sequence[int]
    ) -> ServerState:
        """The parts that came back."""
        return keep_halves(state, network, results, {result.partition for result in results})

    def shared(
        self, network: Network, clients: Clients, results: Sequence[Result]
    ) -> Sequence[Result]:
        """Each array counts for the clients whose server part it is in.

        What is on every device counts for all, as nobody trains from it. What is on the devices of
        all clients of this round, and with the server of others, stays as it was.
        """
        everywhere = {device_names(network, p) for p in clients.with_data()}
        always = frozenset.intersection(*everywhere)
        return [
            replace(result, masks=dict.fromkeys(names - always, False))
            for result in results
            for names in [device_names(network, result.partition)]
        ]

    def evaluate(
        self,
        state: ServerState,
        network: Network,
        clients: Clients,
        alone: Sequence[int],
        seed: int,
        test: Test,
    ) -> dict[str, float]:
        """Mean over some clients' parts, the same in each round, with the global server's."""
        chosen = select(clients.with_data(), self.evaluate_clients, seed, 0)
        found = self.evaluate_each(state, network, chosen, lambda _: test)
        return {name: sum(one[name] for one in found) / len(found) for name in found[0]}

    def evaluate_each(
        self, state: ServerState, network: Network, partitions: Sequence[int], test_of: TestOf
    ) -> list[dict[str, float]]:
        """Each with its own part and the global server's."""
        assert isinstance(network, CutNetwork)
        arrays = {name: torch.from_numpy(array) for name, array in state.arrays.items()}
        found = []
        for partition in partitions:
            own, place = self.own(state, network, partition), network.place(partition)
            tested = network.tested(network, place, replaced(arrays, own), test_of([partition]))
            found.append(tested)
        return found
