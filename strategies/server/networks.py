"""Networks that are on the device as a whole: as the user chose them, or quantized."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from fleet.clock import Rule
from fleet.work import ClientWork
from models.cost import Cost
from models.inputs import Inputs
from quant.layers import QuantSpec, quantize
from strategies import messages
from strategies.client.training import LocalTraining, load_arrays
from strategies.contract import Settings
from strategies.server.method import (
    Clients,
    RoundSettings,
    ServerState,
    Sizes,
    Test,
    TestOf,
    Variant,
    View,
    measured,
)
from strategies.server.views import Everything
from strategies.server.workload import cost_at, local_round


@dataclass(frozen=True, eq=False)
class WholeNetwork:
    """A network all of which every client trains.

    Attributes:
        model: the global model.
        input_shape: of one sample.
        clients: who there is.
        settings: what a client needs to build the same from the user's network.
        described: what summary.json says of it.
        counted: what it costs, once that was asked for.
    """

    model: nn.Module
    input_shape: Inputs
    clients: Clients
    settings: Settings = field(default_factory=dict)
    described: Mapping[str, float] = field(default_factory=dict)
    counted: list[Cost] = field(default_factory=list, repr=False)

    def variant(self, partition: int) -> Variant:
        """Nothing: all train the same."""
        return ()

    def view(self, partition: int) -> View:
        """All of it."""
        return Everything(self.model)

    def on_device(self, partition: int) -> frozenset[str] | None:
        """All arrays."""
        return None

    def importance(self, partition: int) -> float:
        """The same for all."""
        return 1.0

    def works(self, train: LocalTraining, sent: Sizes) -> dict[int, ClientWork]:
        """A round without a cut; clients with as many samples share one."""
        work = functools.cache(
            lambda samples, sizes: local_round(self.cost(), samples, train, sizes)
        )
        samples = self.clients.num_examples
        return {p: work(samples[p], sent(p)) for p in self.clients.with_data()}

    def alone_works(self, train: LocalTraining) -> dict[int, ClientWork]:
        """None: without a network a client takes no part."""
        return {}

    def evaluate(self, arrays: Mapping[str, Tensor], test: Test) -> dict[str, float]:
        """Accuracy, loss and what the task adds, of the global model."""
        load_arrays(self.model, arrays)
        return measured(test, self.model)

    def evaluate_each(
        self, arrays: Mapping[str, Tensor], partitions: Sequence[int], test_of: TestOf
    ) -> list[dict[str, float]]:
        """All together, as they have one network."""
        return [self.evaluate(arrays, test_of(partitions))]

    def device_costs(self) -> list[Cost]:
        """Of the one part there is."""
        return [self.cost()]

    def cost(self) -> Cost:
        """Of the network, counted once, whoever the clients are."""
        if not self.counted:
            self.counted.append(cost_at(self.model, self.input_shape))
        return self.counted[0]

    def describe(self, train: LocalTraining) -> dict[str, float]:
        """Bit widths, where it is quantized."""
        return dict(self.described)

    def for_clients(self, clients: Clients) -> "WholeNetwork":
        """The same network."""
        return replace(self, clients=clients)

    def in_round(self, server_round: int) -> "WholeNetwork":
        """The same in all rounds."""
        return self

    def enter(self, state: ServerState, server_round: int) -> ServerState:
        """As the round before left it."""
        return state


@dataclass(frozen=True)
class Whole:
    """The user's network as it is."""

    def check(self, rounds: RoundSettings) -> None:
        """Any rounds will do."""

    def prepare(
        self,
        model: nn.Module,
        input_shape: Inputs,
        clients: Clients,
        rounds: RoundSettings,
        rule: Rule,
    ) -> WholeNetwork:
        """Return it."""
        return WholeNetwork(model, input_shape, clients)


@dataclass(frozen=True)
class Quantized:
    """The user's network with quantizers on weights and inputs of its layers."""

    spec: QuantSpec

    def check(self, rounds: RoundSettings) -> None:
        """Any rounds will do."""

    def prepare(
        self,
        model: nn.Module,
        input_shape: Inputs,
        clients: Clients,
        rounds: RoundSettings,
        rule: Rule,
    ) -> WholeNetwork:
        """Quantize it."""
        described = {"weight_bits": self.spec.weight_bits, "act_bits": self.spec.act_bits}
        settings = messages.pack_settings(quant=self.spec)
        return WholeNetwork(quantize(model, self.spec), input_shape, clients, settings, described)
