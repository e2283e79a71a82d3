"""SplitFed V2 (Thapa et al. 2020, arXiv 2004.12088).

There is one server's half, which the clients' activations train client after client in a random
order of the round's own; the devices' halves all begin as the round did and are averaged.
"""

from collections.abc import Sequence

from fleet.clock import Rule, queued
from strategies.client.split_loop import SplitClient
from strategies.server.cuts import Chain, shuffled


class SplitFedV2(Chain):
    """Server half: its own half is handed on.

    A client that fails in mid-chain leaves it as that client found it.
    """

    client = SplitClient()

    def rule(self) -> Rule:
        """Devices at once, the server one client after another."""
        return queued

    def order(self, chosen: Sequence[int], server_round: int) -> list[int]:
        """A random order, drawn by seed and round."""
        return shuffled(chosen, self.seed, server_round)

    def handed_on(self, name: str) -> bool:
        """The server's half is; there is one cut for all clients."""
        return name not in self.device_names()
