"""Sequential split learning (Gupta and Raskar 2018, arXiv 1810.06060).

Clients train in turn. The server's half is one and the same; the device's half is relayed from
each client to the next, through the server.
"""

from fleet.clock import Rule, sequential
from strategies.client.split_loop import SplitClient
from strategies.server.cuts import Chain


class Split(Chain):
    """Server half: both halves are handed on, in the order of partition ids."""

    client = SplitClient()

    def rule(self) -> Rule:
        """One after another."""
        return sequential
