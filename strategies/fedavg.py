"""FedAvg (McMahan et al. 2017, arXiv 1602.05629): the fp32 baseline of every other method.

Each round the chosen clients start from the global model, train on their own data for some epochs,
and send their weights; the server takes w = Σ (nᵢ/Σn)·wᵢ.
"""

from collections.abc import Mapping
from typing import Unpack

from torch import Tensor, nn

from models.state import state_of
from strategies.client.training import LocalTraining, load_arrays, train_epochs
from strategies.contract import ClientData, ServerHalf, Settings, Task, Update
from strategies.messages import objective_of, proximal_mu, unpack_settings
from strategies.server.aggregation import Averaging, AveragingSettings
from strategies.server.loop import FederatedStrategy
from strategies.server.method import Method, RoundArguments
from strategies.server.networks import Whole
from strategies.server.schedules import PARALLEL
from strategies.server.wires import Latent


class FedAvgClient:
    """A `ClientHalf` that trains the network as it is, on the client's own data."""

    def prepare(self, model: nn.Module, settings: Settings) -> nn.Module:
        """The network."""
        return model

    def train(
        self,
        model: nn.Module,
        arrays: Mapping[str, Tensor],
        data: ClientData,
        task: Task,
        server: ServerHalf | None,
    ) -> Update:
        """Load the global model, train, send everything back."""
        load_arrays(model, arrays)
        settings = unpack_settings(task.settings, "train", LocalTraining)
        mu, loss_of = proximal_mu(task.settings), objective_of(task.settings).loss
        loss = train_epochs(model, data, settings, task.streams, mu, loss_of)
        return Update(arrays=state_of(model), num_examples=len(data), loss=loss)

    def colocated(
        self, model: nn.Module, arrays: Mapping[str, Tensor], task: Task, packed: bool = False
    ) -> None:
        """Nothing is cut."""


class FedAvg(FederatedStrategy):
    """The whole network on every client, in parallel, averaged.

    Args:
        averaging: how clients are averaged, FedProx's μ, and a server optimizer.
        rounds: as `RoundSettings`.
    """

    client = FedAvgClient()

    def __init__(
        self, *, averaging: AveragingSettings | None = None, **rounds: Unpack[RoundArguments]
    ) -> None:
        averaging = averaging or AveragingSettings()
        aggregate = Averaging.of(averaging)
        method = Method(
            network=Whole(),
            schedule=PARALLEL,
            wire=Latent(),
            aggregate=aggregate,
            settings=averaging.client_settings(),
            needs_prepare=aggregate.needs_prepare,
        )
        super().__init__(method, **rounds)
