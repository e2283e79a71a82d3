"""Selects the clients of a round from shapes alone, before any client trains."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from fleet.phases import Phases
from fleet.plan import RoundPlan, num_asked
from fleet.selection import num_selected, select
from strategies.server.method import Clients, Method, Network, RoundSettings, Variant


@dataclass(frozen=True)
class Chosen:
    """The clients of a round.

    Attributes:
        linked: who trains with the server, in the order of training.
        alone: who trains without a network, by partition id.
        plan: what becomes of everybody who was asked, and how long it lasts; None without a fleet.
    """

    linked: Sequence[int]
    alone: Sequence[int]
    plan: RoundPlan | None = None


@dataclass(frozen=True, eq=False)
class Planner:
    """Draws the clients of each round: with a fleet those that are there, fit and end in time.

    Attributes:
        method: its schedule orders them and says how they take turns.
        rounds: how many are wanted.
        clients: who there is.
        made: phases of each network, and of its clients alone, so that shapes are read once.
    """

    method: Method
    rounds: RoundSettings
    clients: Clients
    made: dict[tuple[Network, bool], Mapping[int, Phases]] = field(default_factory=dict, repr=False)

    def choose(
        self,
        network: Network | None,
        server_round: int,
        now_s: float,
        busy: Collection[int] = (),
    ) -> Chosen:
        """Draw a round's clients.

        Args:
            network: of this round.
            server_round: from 1.
            now_s: simulated seconds since the experiment began.
            busy: clients that cannot be drawn, as they are at an earlier task.
        """
        idle, seed = [p for p in self.clients.with_data() if p not in busy], self.rounds.seed
        fleet, order = self.clients.fleet, self.method.schedule.order
        if not idle:
            return Chosen([], [], None if fleet is None else RoundPlan((), 0.0))
        if fleet is None:
            drawn = select(idle, self.rounds.clients_per_round, seed, server_round)
            outage = self.method.outage
            is_out = outage is not None and outage.is_now(seed, server_round)
            ordered = order(drawn, seed, server_round)
            return Chosen([], ordered) if is_out else Chosen(ordered, [])
        wanted = num_selected(self.rounds.clients_per_round, len(idle))
        count = num_asked(wanted, self.rounds.over_select, len(idle))
        asked = order(select(idle, count, seed, server_round), seed, server_round)
        assert network is not None, "a fleet needs prepare()"
        plan = fleet.plan(
            asked, self.phases(network), self.method.schedule.rule, server_round, now_s, wanted,
            self.alone_phases(network),
        )  # fmt: skip
        alone = sorted(plan.alone)
        return Chosen([p for p in plan.participants if p not in alone], alone, plan)

    def check(self, network: Network) -> None:
        """Refuse a fleet in which no client could ever take part.

        Raises:
            ValueError: all lack memory, or no client can meet the deadline; names the key.
        """
        if self.clients.fleet is not None:
            self.clients.fleet.check(self.phases(network), self.method.schedule.rule)

    def phases(self, network: Network) -> Mapping[int, Phases]:
        """Each client's round on its device and link; made once for each network."""
        assert self.clients.fleet is not None
        if (network, False) not in self.made:
            sizes: dict[Variant, tuple[int, int]] = {}  # alike for all that train the same

            def sent(partition: int) -> tuple[int, int]:
                variant = network.variant(partition)
                if variant not in sizes:
                    sizes[variant] = self.method.wire.num_bytes(network, partition)
                return sizes[variant]

            works = network.works(self.rounds.train, sent)
            self.made[network, False] = self.clients.fleet.phases(works)
        return self.made[network, False]

    def alone_phases(self, network: Network) -> Mapping[int, Phases]:
        """The same of those that train without a network."""
        assert self.clients.fleet is not None
        if (network, True) not in self.made:
            works = network.alone_works(self.rounds.train)
            self.made[network, True] = self.clients.fleet.phases(works)
        return self.made[network, True]
