"""What a method is: a frozen value that names its parts, and the state that rounds pass on.

    network     what is trained, and which of its arrays live on the device
    schedule    who trains when, what one client hands on to the next, and the clock's rule for it;
                the group schedule of the configuration may have it otherwise
    wire        which arrays cross the network each way, and in how many bytes
    aggregate   from the clients' results to the next global model
    private     what a client keeps for itself between rounds, where it does
    outage      which clients are without a network, where they then train on

The client's side is the method class's attribute `client`. A round is a function: from a
`ServerState` and the clients' results to the next `ServerState`, which is also what a checkpoint
holds. Parts are handed values, not the loop that calls them.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypedDict

from numpy.typing import NDArray
from torch import Tensor, nn

from fleet.clock import Pace, Rule
from fleet.outages import Outage
from fleet.phases import Phases
from fleet.plan import Fleet, Member, RoundPlan
from fleet.work import ClientWork
from models.cost import Cost
from models.inputs import Inputs
from models.objective import TaskSettings
from strategies.client.training import LocalTraining
from strategies.contract import Settings, Update
from strategies.server.schedule_settings import ScheduleSettings
from tracking.record import RoundRecord

Arrays = Mapping[str, NDArray[Any]]
# What a client holds of an array: absent, all of it; False, nothing; else True where it does.
Masks = Mapping[str, bool | NDArray[Any]]
Scalar = bool | int | float | str
# Settings of one client's own; clients with the same ones get one message.
Variant = tuple[tuple[str, Scalar], ...]
# Accuracy and mean loss of a network on the held-out test set, or these and more by their names.
Test = Callable[[nn.Module], tuple[float, float] | Mapping[str, float]]


def measured(test: Test, network: nn.Module) -> dict[str, float]:
    """Return what ``test`` finds, by name: ``accuracy``, ``loss`` and what the task adds."""
    found = test(network)
    if isinstance(found, Mapping):
        return dict(found)
    accuracy, loss = found
    return {"accuracy": accuracy, "loss": loss}


@dataclass(frozen=True)
class Clients:
    """Who there is.

    Attributes:
        num_examples: samples of each partition.
        fleet: devices, links and availability; None where nothing is simulated.
    """

    num_examples: Mapping[int, int] = field(default_factory=dict)
    fleet: Fleet | None = None

    def with_data(self) -> list[int]:
        """Partitions that are not empty."""
        return [p for p, count in self.num_examples.items() if count > 0]

    def device(self, partition: int) -> str:
        """Name of a client's device; empty where it has none."""
        client = self.fleet.clients.get(partition) if self.fleet else None
        return client.device.name if client else ""


@dataclass(frozen=True)
class RoundSettings:
    """What every method is told of its rounds.

    Attributes:
        train: how clients train.
        clients_per_round: an integer counts clients, a float in (0, 1] is a share.
        seed: of the experiment.
        evaluate_every: rounds between two evaluations; the last round always is evaluated.
        num_clients: nodes to wait for before the first round; None takes those that are there.
        fleet: the clients' devices, links and availability: who takes part, simulated seconds and
            joules; None has everybody take part and counts neither. Needs ``prepare``.
        over_select: with a fleet, how many times the clients wanted are asked.
        schedule: whether rounds wait for their clients.
        task: what the network's outputs are for.
    """

    train: LocalTraining = field(default_factory=LocalTraining)
    clients_per_round: int | float = 1.0
    seed: int = 0
    evaluate_every: int = 1
    num_clients: int | None = None
    fleet: Fleet | None = None
    over_select: float = 1.0
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    task: TaskSettings = field(default_factory=TaskSettings)


class RoundArguments(TypedDict, total=False):
    """`RoundSettings` as keyword arguments of a method's constructor."""

    train: LocalTraining
    clients_per_round: int | float
    seed: int
    evaluate_every: int
    num_clients: int | None
    fleet: Fleet | None
    over_select: float
    schedule: ScheduleSettings
    task: TaskSettings


@dataclass(frozen=True)
class ServerState:
    """All that the server knows after a round; a checkpoint holds one.

    Attributes:
        round: the last finished round, 0 before the first.
        arrays: the global model.
        extra: what parts keep between rounds, under names of their own.
        records: one per finished round.
    """

    round: int = 0
    arrays: Arrays = field(default_factory=dict)
    extra: Arrays = field(default_factory=dict)
    records: tuple[RoundRecord, ...] = ()

    @property
    def now_s(self) -> float:
        """Simulated seconds since the experiment began."""
        return sum(record.sim_s or 0.0 for record in self.records)

    @property
    def accuracies(self) -> list[float | None]:
        """Of the rounds from the first on; None where one was not evaluated."""
        return [record.accuracy for record in self.records]

    def with_arrays(self, arrays: Arrays) -> "ServerState":
        """Return the same with another global model."""
        return replace(self, arrays=arrays)

    def keeping(self, prefix: str, kept: Arrays) -> "ServerState":
        """Return the same with ``kept`` as all of ``extra`` whose names begin with ``prefix``."""
        others = {name: a for name, a in self.extra.items() if not name.startswith(prefix)}
        return replace(self, extra=others | {prefix + name: a for name, a in kept.items()})

    def kept(self, prefix: str) -> dict[str, NDArray[Any]]:
        """Inverse of `keeping`."""
        found = {name: a for name, a in self.extra.items() if name.startswith(prefix)}
        return {name.removeprefix(prefix): array for name, array in found.items()}


@dataclass(frozen=True)
class Result:
    """What came of one client in one round: an update and its arrays, or the text of an error.

    Attributes:
        partition: the client.
        num_examples: samples it has.
        bytes_up: payload bytes that it sent.
        bytes_down: payload bytes that it was sent.
        update: what its client half returned, without its arrays.
        arrays: its model in the names and shapes of the global one, maybe on disk: each array is
            read when it is asked for.
        masks: what of these arrays the client holds, where that is not all.
        error: why there is no update.
        discount: what its weight in an average is multiplied by.
        base: the model that it began from, where the global one has changed since; what it changed
            is then added to the present one.
        damping: what that change is multiplied by.
    """

    partition: int
    num_examples: int
    bytes_up: int = 0
    bytes_down: int = 0
    update: Update | None = None
    arrays: Arrays = field(default_factory=dict)
    masks: Masks = field(default_factory=dict)
    error: str | None = None
    discount: float = 1.0
    base: Arrays | None = None
    damping: float = 1.0

    @property
    def weight(self) -> float:
        """What it counts in an average: the samples that it trained on, discounted."""
        samples = self.num_examples if self.update is None else self.update.num_examples
        return samples * self.discount


def parted(network: "Network", result: Result) -> tuple[Arrays, Arrays]:
    """Return the arrays of a result's device part, and those of its server part."""
    names = network.on_device(result.partition) or frozenset()
    device = {n: a for n, a in result.arrays.items() if n in names}
    return device, {n: a for n, a in result.arrays.items() if n not in device}


def handed_on(
    network: "Network", results: Iterable[Result], now: Arrays
) -> tuple[dict[str, NDArray[Any]], list[Result]]:
    """Return ``now`` with the server's part as clients in turn left it, and their results without.

    Args:
        network: of the round.
        results: of the clients, in their order.
        now: the model's arrays as they were.
    """
    current, left = dict(now), list[Result]()
    for result in results:
        device, server = parted(network, result)
        current |= server
        left.append(replace(result, arrays=device))
    return current, left


@dataclass(frozen=True)
class Start:
    """Clients that train from the same arrays.

    Attributes:
        arrays: of the global model.
        partitions: who begins from them.
        server_round: the round that they train for; None is the present one.
        told: by partition, what a client is told beside what its network's variant says.
        in_turn: whether the server's part goes from one to the next, in the order of
            ``partitions`` and then to the next start's; the very last one's result then also holds
            what it has become.
    """

    arrays: Arrays
    partitions: Sequence[int]
    server_round: int | None = None
    told: Mapping[int, Variant] = field(default_factory=dict)
    in_turn: bool = False


# Have the clients of these train, all at once where nothing goes from one to the next; what came of
# each, in their order.
Exchange = Callable[[Sequence[Start]], list[Result]]


@dataclass(frozen=True)
class Chosen:
    """The clients of a round.

    Attributes:
        linked: who trains with the server, in the order of training.
        alone: who trains without a network, by partition id.
        plan: what becomes of everybody who was asked, and how long it lasts; None without a fleet.
        told: by partition, what a client is told beside the others.
        report: what the round's record says of it.
        may_fail: whether nothing may come of them all without that ending the run.
    """

    linked: Sequence[int]
    alone: Sequence[int]
    plan: RoundPlan | None = None
    told: Mapping[int, Variant] = field(default_factory=dict)
    report: Mapping[str, float] = field(default_factory=dict)
    may_fail: bool = False


class Prepared(Protocol):
    """What is trained in the rounds of a run. Immutable, as the networks of its rounds are."""

    def for_clients(self, clients: Clients) -> "Prepared":
        """The same with other clients."""

    def in_round(self, server_round: int) -> "Network":
        """The network of a round; the same object in all rounds of the same shapes."""

    def enter(self, state: ServerState, server_round: int) -> ServerState:
        """The state with which a round begins, where shapes change between rounds."""


class View(Protocol):
    """What of the global model one client holds: the classes of `strategies.server.views`."""

    @property
    def model(self) -> nn.Module:
        """The client's: the names, shapes and initial values of what it trains."""

    def of(self, arrays: Arrays) -> Arrays:
        """The client's part of the global model's arrays."""

    def back(self, arrays: Mapping[str, Tensor]) -> tuple[Arrays, Masks]:
        """A client's arrays in the global model's names and shapes, and what of them it holds."""


class Network(Protocol):
    """What is trained in a round."""

    @property
    def model(self) -> nn.Module:
        """The global model: the names, shapes and initial values of what rounds train."""

    @property
    def clients(self) -> Clients:
        """Who there is, as far as the network knows."""

    @property
    def settings(self) -> Settings:
        """What a client needs to build its network from the user's."""

    def variant(self, partition: int) -> Variant:
        """What a client needs beside that and others do not."""

    def view(self, partition: int) -> View:
        """What of the global model a client holds; the same for all of a variant."""

    def on_device(self, partition: int) -> frozenset[str] | None:
        """Names of the arrays that live on the client's device; None for all."""

    def importance(self, partition: int) -> float:
        """What a sample of the client counts for in an average, beside others'."""

    def works(self, train: LocalTraining, sent: "Sizes") -> dict[int, ClientWork]:
        """What a round takes each client that has data, from shapes alone."""

    def alone_works(self, train: LocalTraining) -> dict[int, ClientWork]:
        """The same without a network; empty where a client then takes no part."""

    def evaluate(self, arrays: Mapping[str, Tensor], test: Test) -> dict[str, float]:
        """Accuracy, loss and what a method adds, of the global model's arrays."""

    def evaluate_each(
        self, arrays: Mapping[str, Tensor], partitions: Sequence[int], test_of: "TestOf"
    ) -> list[dict[str, float]]:
        """Test clients on their own samples, in order: together where they have one network."""

    def device_costs(self) -> list[Cost]:
        """What the parts of the network that are on the device cost, in order."""

    def cost(self) -> Cost:
        """What the whole network costs."""

    def describe(self, train: LocalTraining) -> dict[str, float]:
        """What summary.json says of the network."""


# Bytes of the arrays that cross to a client and back.
Sizes = Callable[[int], tuple[int, int]]


class Recipe(Protocol):
    """How a network becomes what a method trains."""

    def check(self, rounds: RoundSettings) -> None:
        """Refuse settings that cannot be, as far as they tell without a network.

        Raises:
            ValueError: names the key.
        """

    def prepare(
        self,
        model: nn.Module,
        input_shape: Inputs,
        clients: Clients,
        rounds: RoundSettings,
        rule: Rule,
    ) -> Prepared:
        """Prepare the user's network.

        Args:
            model: the network that the user chose.
            input_shape: of one sample, such as (1, 28, 28), or what `models.inputs` says of
                tokens and of several inputs.
            clients: who there is, as far as it is known.
            rounds: how rounds go.
            rule: how clients and server take turns on the clock.

        Raises:
            ValueError: the method cannot train this network; names the key.
        """


class Wire(Protocol):
    """What crosses beside the cut, each way; records, clock and fleet count what it says."""

    @property
    def settings(self) -> Settings:
        """What a client needs to send what the server expects."""

    def names(self, network: Network | None, partition: int) -> frozenset[str] | None:
        """Names of the arrays that cross; None for all. The others are the simulation's."""

    def encode(
        self, network: Network | None, arrays: Arrays, partition: int, server_round: int, seed: int
    ) -> Arrays:
        """What is sent to a client, and to all of its variant."""

    def decode(
        self,
        network: Network | None,
        arrays: Mapping[str, Tensor],
        partition: int,
        began: Arrays,
    ) -> tuple[Arrays, Masks]:
        """A client's arrays in the global model's names and shapes, and what of them it holds.

        Args:
            network: of the client's round.
            arrays: as they came.
            partition: the client.
            began: the global model from which it began, as it was before `encode`.
        """

    def num_bytes(self, network: Network, partition: int) -> tuple[int, int]:
        """Bytes of what crosses, to a client and back, from shapes alone."""


class Drawing(Protocol):
    """What a schedule draws a round's clients with: `planner.Planner`."""

    @property
    def rounds(self) -> RoundSettings:
        """How rounds go."""

    @property
    def clients(self) -> Clients:
        """Who there is."""

    @property
    def with_data(self) -> Sequence[int]:
        """Those of them that have samples."""

    def choose(
        self,
        network: Network | None,
        state: ServerState,
        busy: Collection[int] = (),
        pace: Pace | None = None,
    ) -> Chosen:
        """Draw the clients of a round in which all begin together.

        With a pace, those who would be late do what they can by the deadline.
        """

    def select(
        self, network: Network, state: ServerState, idle: Sequence[int], count: int
    ) -> list[int]:
        """Draw ``count`` of the clients, or all where there are fewer, as the fleet selects."""

    def phases(self, network: Network) -> Mapping[int, Phases]:
        """Each client's round on its device and link."""

    def counted(self, network: Network, member: Member) -> Member:
        """A client of whose work nothing comes, with the bytes that crossed all the same."""


class Schedule(Protocol):
    """Who trains when, and what is handed on."""

    @property
    def rule(self) -> Rule:
        """How clients and server take turns, for the simulated clock."""

    def order(self, chosen: Sequence[int], seed: int, server_round: int) -> list[int]:
        """The clients of a round in the order in which they train."""

    def choose(self, drawing: Drawing, network: Prepared | None, state: ServerState) -> Chosen:
        """Draw the clients of the next round.

        Args:
            drawing: knows the clients, and what a round takes them.
            network: of all rounds; None where the caller did not prepare it.
            state: with which the round begins.
        """

    def run(
        self, state: ServerState, network: Network | None, chosen: Chosen, exchange: Exchange
    ) -> tuple[ServerState, list[Result]]:
        """Have clients train.

        Args:
            state: with which the round began.
            network: of this round.
            chosen: who trains, in `order`.
            exchange: sends arrays to clients.

        Returns:
            the state with what was handed on, and what is left to aggregate.
        """


class Aggregate(Protocol):
    """From the clients' results to the next global model."""

    def __call__(
        self, state: ServerState, results: Sequence[Result], trained: Sequence[str] | None
    ) -> ServerState:
        """Aggregate.

        Args:
            state: of the round before, with what was handed on in this one.
            results: with updates, in the order of partition ids; none where nobody came back.
            trained: names of the trainable parameters; None where the method is not prepared.
        """


class Private(Protocol):
    """What clients keep for themselves between rounds. In simulation the server's state has it."""

    def begin(self, state: ServerState) -> ServerState:
        """The state with which a round begins."""

    def own(self, state: ServerState, network: Network, partition: int) -> Arrays:
        """What a client begins with in place of the global model's arrays."""

    def keep(
        self, state: ServerState, network: Network, results: Sequence[Result], alone: Sequence[int]
    ) -> ServerState:
        """The state with what the clients of a round keep; ``alone`` are those without network."""

    def shared(
        self, network: Network, clients: Clients, results: Sequence[Result]
    ) -> Sequence[Result]:
        """The results with masks over what must not be averaged."""

    def evaluate(
        self,
        state: ServerState,
        network: Network,
        clients: Clients,
        alone: Sequence[int],
        seed: int,
        test: Test,
    ) -> dict[str, float]:
        """What `Network.evaluate` says, with the clients' own parts."""

    def evaluate_each(
        self, state: ServerState, network: Network, partitions: Sequence[int], test_of: "TestOf"
    ) -> list[dict[str, float]]:
        """Test clients on their own samples, in order: together where they have one network."""


# From clients to what tests a network on their samples.
TestOf = Callable[[Sequence[int]], Test]
# What every round's record says beside the common fields: of the round's network and results, and
# of the clients among them that had no network.
Report = Callable[[Network | None, Sequence[Result], Sequence[int]], dict[str, float]]


def no_report(
    network: Network | None, results: Sequence[Result], alone: Sequence[int]
) -> dict[str, float]:
    """A report of nothing."""
    return {}


@dataclass(frozen=True)
class Method:
    """A method's parts; the module's docstring says what each is.

    Attributes:
        settings: of the method's own, for its client half.
        report: what rounds' records say beside the common fields.
        needs_prepare: what cannot go without `prepare`; empty where the caller's arrays will do.
    """

    network: Recipe
    schedule: Schedule
    wire: Wire
    aggregate: Aggregate
    private: Private | None = None
    outage: Outage | None = None
    settings: Settings = field(default_factory=dict)
    report: Report = no_report
    needs_prepare: str = ""
