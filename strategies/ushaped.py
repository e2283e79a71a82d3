"""U-shaped split learning with labels on the device, as in SplitEasy (arXiv 2011.04232).

The network is cut twice: its first and its last part are on the device, and so are inputs and
labels. Clients train in parallel; all parts are averaged as in SplitFed V1.
"""

from typing import Unpack

from quant.codec import LinkSettings
from quant.settings import QuantSettings
from strategies.client.split_loop import SplitClient
from strategies.server.aggregation import AverageSettings, Averaging
from strategies.server.cutting import READS, Cut, SplitSettings
from strategies.server.loop import FederatedStrategy
from strategies.server.method import Method, RoundArguments
from strategies.server.schedules import PARALLEL
from strategies.server.wires import Latent, device_part


class UShaped(FederatedStrategy):
    """Cut twice: labels stay on the device.

    Args:
        split: where the network is cut.
        link: codecs at the cut.
        quant: bit widths, and of which part.
        averaging: how clients are averaged.
        objective: what ``split.cut=auto`` makes least.
        rounds: as `RoundSettings`.
    """

    client = SplitClient()
    reads = (*READS, "split.tail")
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
            network=Cut.of(split, link, quant, objective, is_u_shaped=True),
            schedule=PARALLEL,
            wire=Latent(device_part),
            aggregate=Averaging.over_a_cut(averaging),
            needs_prepare="a network that is cut",
        )
        super().__init__(method, **rounds)
