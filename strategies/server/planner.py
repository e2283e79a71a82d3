"""Selects the clients of a round from shapes alone, before any client trains."""

import functools
import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fleet.clock import AtOnce, Pace
from fleet.phases import Phases
from fleet.plan import LOST, Member, RoundPlan, Shorter, num_asked
from fleet.seeds import derive_seed
from fleet.selection import SELECTIONS, UNIFORM, Known, num_selected, select
from fleet.work import ClientWork
from strategies import messages
from strategies.client.training import batch_sizes
from strategies.server.losses import known_losses
from strategies.server.method import (
    Chosen,
    Clients,
    Method,
    Network,
    RoundSettings,
    ServerState,
    Sizes,
    Variant,
)
from strategies.server.schedule_settings import SEMI


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
        state: ServerState,
        busy: Collection[int] = (),
        pace: Pace | None = None,
    ) -> Chosen:
        """Draw a round's clients.

        Args:
            network: of this round.
            state: with which the round begins.
            busy: clients that cannot be drawn, as they are at an earlier task.
            pace: has those who would be late do what they can by the deadline, at this pace.
        """
        idle, seed = [p for p in self.with_data if p not in busy], self.rounds.seed
        server_round = state.round + 1
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
        assert network is not None, "a fleet needs prepare()"
        asked = order(sorted(self.select(network, state, idle, count)), seed, server_round)
        plan = fleet.plan(
            asked, self.phases(network), self.method.schedule.rule, server_round, state.now_s,
            wanted, self.alone_phases(network),
            None if pace is None else self._shorter(network, pace),
        )  # fmt: skip
        alone = sorted(plan.alone)
        linked = [p for p in plan.participants if p not in alone]
        members = tuple(self.counted(network, member) for member in plan.members)
        left = sum(member.status == "left" for member in members)
        report = {"left": float(left)} if fleet.dropout else {}
        cut_short = [m for m in members if m.batches and m.status == "ok"]
        told = {m.partition: messages.limit_batches(m.batches) for m in cut_short}
        return Chosen(linked, alone, replace(plan, members=members), told, report)

    def select(
        self, network: Network, state: ServerState, idle: Sequence[int], count: int
    ) -> list[int]:
        """Draw ``count`` of the clients, or all where there are fewer, as the fleet selects."""
        fleet, number = self.clients.fleet, state.round + 1
        assert fleet is not None
        count = min(count, len(idle))
        if not count or fleet.selection == UNIFORM:
            return select(idle, count, self.rounds.seed, number) if count else []
        losses, rounds = known_losses(state)
        seconds = self._seconds(network)
        known = Known(
            number, self.clients.num_examples, seconds.__getitem__, losses, rounds,
            fleet.candidates,
        )  # fmt: skip
        purpose = f"selection {fleet.selection}"
        generator = random.Random(derive_seed(self.rounds.seed, purpose, number))
        return SELECTIONS[fleet.selection](idle, count, known, generator)

    def _seconds(self, network: Network) -> Mapping[int, float]:
        """Of each client's round, alone with the server; made once for each network."""
        made = self._made(network)
        if not made.seconds:
            rule = self.method.schedule.rule
            for partition, own in made.phases.items():
                (turn,) = rule([own], math.inf)
                made.seconds[partition] = math.inf if turn is None else turn.end_s
        return made.seconds

    def check(self, network: Network) -> None:
        """Refuse a fleet in which no client could ever take part.

        Raises:
            ValueError: all lack memory, or no client can meet the deadline; names the key.
        """
        if self.clients.fleet is None:
            return
        parts, rule, least = self.phases(network), self.method.schedule.rule, None
        if self.rounds.schedule.name == SEMI and isinstance(rule, AtOnce):
            shorter = self._shorter(network, rule.pace)
            least = {partition: shorter.phases(partition, 1) for partition in parts}
        self.clients.fleet.check(parts, rule, least)

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
    """What a round takes each client, in operations and bytes, and on its device and link.

    Attributes:
        seconds: alone with the server, once somebody asked.
    """

    works: Mapping[int, ClientWork]
    phases: Mapping[int, Phases]
    seconds: dict[int, float] = field(default_factory=dict)


def crossed(work: ClientWork, share: float) -> tuple[int, int]:
    """Bytes up and down of a client that does a share of its work.

    The model comes down first and goes up last; what crosses a cut is spread over the time between.
    """
    total = work.total()
    up = math.floor(share * (total.bytes_up - work.bytes_up))
    down = math.floor(share * (total.bytes_down - work.bytes_down))
    return up + (work.bytes_up if share == 1 else 0), down + work.bytes_down
