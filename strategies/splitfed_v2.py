"""SplitFed V2 (Thapa et al. 2020, arXiv 2004.12088).

A single server model is trained on the clients' activations, one client after another in a random
order; all client models start the round from the same weights and are averaged.
"""

from typing import Unpack

from quant.codec import LinkSettings
from quant.settings import QuantSettings
from strategies.client.split_loop import SplitClient
from strategies.server.aggregation import AverageSettings, Averaging
from strategies.server.cutting import READS, Cut, SplitSettings
from strategies.server.loop import FederatedStrategy
from strategies.server.method import Method, RoundArguments
from strategies.server.schedules import QUEUED
from strategies.server.wires import Latent, device_part


class SplitFedV2(FederatedStrategy):
    """The server's part handed on; a client that fails leaves it as that client found it.

    Args:
        split: where the network is cut.
        link: codecs at the cut.
        quant: bit widths, and of which part.
        averaging: how clients are averaged.
        objective: what ``split.cut=auto`` makes least.
        rounds: as `RoundSettings`.
    """

    client = SplitClient()
    reads = READS
    has_server_half = True

    def __init__(
        self,
        *,
        split: SplitSettings | None = None,
        link: LinkSettings | None = None,
        quant: QuantSettings | None = None,
        averaging: AverageSettings | None = None,
        objective: str = "seconds",
        **rounds: Unpack[RoundArguments],
    ) -> None:
        method = Method(
            network=Cut.of(split, link, quant, objective),
            schedule=QUEUED,
            wire=Latent(device_part),
            aggregate=Averaging.over_a_cut(averaging),
            needs_prepare="a network that is cut",
        )
        super().__init__(method, **rounds)
