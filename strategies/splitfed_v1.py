"""SplitFed V1 (Thapa et al. 2020, arXiv 2004.12088).

Clients train in parallel, each with a copy of the server's half; both halves are averaged, by the
clients' samples. With exact links this is FedAvg bit for bit, wherever each client is cut.
"""

from typing import ClassVar

from strategies.client.split_loop import SplitClient
from strategies.server.cuts import SplitStrategy


class SplitFedV1(SplitStrategy):
    """Server half; averages by name, so that clients may be cut at different places."""

    client = SplitClient()
    takes_mapping: ClassVar[bool] = True
