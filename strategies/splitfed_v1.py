"""SplitFed V1 (Thapa et al. 2020, arXiv 2004.12088).

Clients train in parallel, each with a copy of the server model; client and server models are
averaged, weighted by samples. With fp32 links this is FedAvg bit for bit, wherever the cuts are.
"""

from typing import Unpack

from quant.codec import LinkSettings
from quant.settings import QuantSettings
from strategies.client.split_loop import SplitClient
from strategies.server.aggregation import AverageSettings, Averaging
from strategies.server.cutting import READS, Cut, SplitSettings
from strategies.server.kinds import SubmodelSettings
from strategies.server.loop import FederatedStrategy
from strategies.server.method import Method, RoundArguments
from strategies.server.planning import Planning, PlanSettings
from strategies.server.schedules import PARALLEL
from strategies.server.wires import Latent, device_part


class SplitFedV1(FederatedStrategy):
    """Averaged by name, so that clients may be cut at different places.

    Args:
        split: where the network is cut.
        link: codecs at the cut.
        quant: bit widths, and of which part.
        submodel: which share of their channels a client's layers on the device have, and what
            clients count for.
        averaging: how clients are averaged.
        objective: what ``split.cut=auto`` makes least.
        plan: what decides where cuts, bits or shares are ``auto``.
        rounds: as `RoundSettings`.
    """

    client = SplitClient()
    reads = (*READS, "submodel.share", "submodel.weighting", "plan")
    has_server_half = True

    def __init__(
        self,
        *,
        split: SplitSettings | None = None,
        link: LinkSettings | None = None,
        quant: QuantSettings | None = None,
        submodel: SubmodelSettings | None = None,
        averaging: AverageSettings | None = None,
        objective: str = "seconds",
        plan: PlanSettings | None = None,
        **rounds: Unpack[RoundArguments],
    ) -> None:
        method = Method(
            network=Cut.of(
                split,
                link,
                quant,
                objective,
                takes_widths=True,
                takes_mapping=True,
                submodel=submodel or SubmodelSettings(),
                plan=Planning.of(plan, objective),
            ),
            schedule=PARALLEL,
            wire=Latent(device_part),
            aggregate=Averaging.over_a_cut(averaging),
            needs_prepare="a network that is cut",
        )
        super().__init__(method, **rounds)
