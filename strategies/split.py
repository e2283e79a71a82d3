"""Sequential split learning (Gupta and Raskar 2018, arXiv 1810.06060).

Clients train in turn. The server's half is one and the same; the device's half is relayed from
each client to the next, through the server.
"""

from fleet.clock import Rule, sequential
from strategies.split_base import Chain
from strategies.split_learning import prepare, train

__all__ = ["Split", "prepare", "train"]


class Split(Chain):
    """Server half: both halves are handed on, in the order of partition ids."""

    def rule(self) -> Rule:
        """One after another."""
        return sequential
