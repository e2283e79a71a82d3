"""Selects the clients of a round from shapes alone, before any client trains."""

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fleet.clock import Pace
from fleet.phases import Phases
from fleet.plan import LOST, Member, RoundPlan, Shorter, num_asked
from fleet.selection import num_selected, select
from fleet.work import ClientWork
from strategies import messages
from strategies.client.training import batch_sizes
from strategies.server.method import (
    Chosen,
    Clients,
    Method,
    Network,
    RoundSettings,
    Sizes,
    Variant,
)


@dataclass(frozen=True, eq=False)
class Planner:
    """Draws the clients of each round: with a fleet those that are there, fit and end in time.

    Attributes:
        method: its schedule orders them and says how they take turns.
        rounds: how many are wanted.
        clients: who there is.
        made: work and phases of each network, and of its clients alone, so that shapes are read
            once.
        fewer: the same of rounds of fewer batches.
    """

    method: Method
    rounds: RoundSettings
    clients: Clients
    made: dict[tuple[Network, bool], "Made"] = field(default_factory=dict, repr=False)
    fewer: dict[Network, Shorter] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def with_data(self) -> Sequence[int]:
        """The clients that have samples."""
        return self.clients.with_data()

    def choose(
        self,
        network: Network | None,
        server_round: int,
        now_s: float,
        busy: Collection[int] = (),
        pace: Pace | None = None,
    ) -> Chosen:
        """Draw a round's clients.

        Args:
            network: of this round.
            server_round: from 1.
            now_s: simulated seconds since the experiment began.
            busy: clients that cannot be drawn, as they are at an earlier task.
            pace: has those who would be late do what they can by the deadline, at this pace.
        """
        idle, seed = [p for p in self.with_data if p not in busy], self.rounds.seed
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
            self.alone_phases(network), None if pace is None else self._shorter(network, pace),
        )  # fmt: skip
        alone = sorted(plan.alone)
        linked = [p for p in plan.participants if p not in alone]
        members = tuple(self.counted(network, member) for member in plan.members)
        left = sum(member.status == "left" for member in members)
        report = {"left": float(left)} if fleet.dropout else {}
        told = {m.partition: messages.limit_batches(m.batches) for m in members if m.batches}
        return Chosen(linked, alone, replace(plan, members=members), told, report)

    def check(self, network: Network) -> None:
        """Refuse a fleet in which no client could ever take part.

        Raises:
            ValueError: all lack memory, or no client can meet the deadline; names the key.
        """
        if self.clients.fleet is not None:
            self.clients.fleet.check(self.phases(network), self.method.schedule.rule)

    def phases(self, network: Network) -> Mapping[int, Phases]:
        """Each client's round on its device and link; made once for each network."""
        return self._made(network).phases

    def alone_phases(self, network: Network) -> Mapping[int, Phases]:
        """The same of those that train without a network."""
        assert self.clients.fleet is not None
        if (network, True) not in self.made:
            works = network.alone_works(self.rounds.train)
            self.made[network, True] = Made(works, self.clients.fleet.phases(works))
        return self.made[network, True].phases

    def counted(self, network: Network, member: Member) -> Member:
        """A client of whose work nothing comes, with the bytes that crossed all the same."""
        if member.status not in LOST:
            return member
        up, down = crossed(self._made(network).works[member.partition], member.share)
        return replace(member, bytes_up=up, bytes_down=down)

    def _made(self, network: Network) -> "Made":
        assert self.clients.fleet is not None
        if (network, False) not in self.made:
            works = network.works(self.rounds.train, self._sizes(network))
            self.made[network, False] = Made(works, self.clients.fleet.phases(works))
        return self.made[network, False]

    def _sizes(self, network: Network) -> Sizes:
        """Bytes of the arrays that cross to a client and back; alike for all of a variant."""
        sizes: dict[Variant, tuple[int, int]] = {}

        def sent(partition: int) -> tuple[int, int]:
            variant = network.variant(partition)
            if variant not in sizes:
                sizes[variant] = self.method.wire.num_bytes(network, partition)
            return sizes[variant]

        return sent

    def _shorter(self, network: Network, pace: Pace) -> Shorter:
        """Rounds of fewer batches; made once for each network and number of them."""
        if network in self.fewer:
            return self.fewer[network]
        fleet, train, sent = self.clients.fleet, self.rounds.train, self._sizes(network)
        assert fleet is not None

        @functools.cache
        def works(count: int) -> Mapping[int, ClientWork]:
            return network.works(replace(train, max_batches=count), sent)

        @functools.cache
        def phases(partition: int, count: int) -> Phases:
            return fleet.phases({partition: works(count)[partition]})[partition]

        def sizes(partition: int) -> list[int]:
            return batch_sizes(self.clients.num_examples[partition], train)

        self.fewer[network] = Shorter(
            pace,
            lambda partition: len(sizes(partition)),
            phases,
            lambda partition, count: sum(sizes(partition)[:count]) / sum(sizes(partition)),
        )
        return self.fewer[network]


@dataclass(frozen=True)
class Made:
    """What a round takes each client, in operations and bytes, and on its device and link."""

    works: Mapping[int, ClientWork]
    phases: Mapping[int, Phases]


def crossed(work: ClientWork, share: float) -> tuple[int, int]:
    """Bytes up and down of a client that does a share of its work.

    The model comes down first and goes up last; what crosses a cut is spread over the time between.
    """
    total = work.total()
    up = math.floor(share * (total.bytes_up - work.bytes_up))
    down = math.floor(share * (total.bytes_down - work.bytes_down))
    return up + (work.bytes_up if share == 1 else 0), down + work.bytes_down
