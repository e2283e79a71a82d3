"""Sequential split learning (Gupta and Raskar 2018, arXiv 1810.06060).

Clients train in turn. There is a single server model; the client model is handed on from each
client to the next, through the server.
"""

from typing import Unpack

from quant.codec import LinkSettings
from quant.settings import QuantSettings
from strategies.client.split_loop import SplitClient
from strategies.server.aggregation import AverageSettings, Averaging
from strategies.server.cutting import READS, Cut, SplitSettings
from strategies.server.loop import FederatedStrategy
from strategies.server.method import Method, RoundArguments
from strategies.server.schedules import SEQUENTIAL
from strategies.server.wires import Latent, device_part


class Split(FederatedStrategy):
    """Both parts handed on from client to client, in the order of partition ids.

    Args:
        split: where the network is cut.
        link: codecs at the cut.
        quant: bit widths, and of which part.
        averaging: not needed: there is nothing to average.
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
            schedule=SEQUENTIAL,
            wire=Latent(device_part),
            aggregate=Averaging.over_a_cut(averaging),
            needs_prepare="a network that is cut",
        )
        super().__init__(method, **rounds)
