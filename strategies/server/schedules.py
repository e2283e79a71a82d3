"""Who trains when, and what one client hands on to the next.

    parallel   all at once from the same arrays; each has a copy of the server's part. With
               schedule=semi who would be late does what it can by the deadline
    chain      one after another, in one of two kinds:
               `sequential`  both parts are handed on, in the order of partition ids
               `queued`      the server's part is handed on, in a random order of the round's own;
                             the devices' parts all begin as the round did

A client that fails in a chain hands on what it was given. Those that wait for nobody, all at once
or queued in the order in which they arrive, are in `strategies.server.buffered`.
"""

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from fleet import clock
from fleet.clock import AtOnce, Pace, Rule
from fleet.outages import Outage
from fleet.seeds import derive_seed
from fleet.service import Queue, Shared
from strategies.server.buffered import Buffered
from strategies.server.method import (
    Chosen,
    Drawing,
    Exchange,
    Network,
    Prepared,
    Result,
    RoundSettings,
    Schedule,
    ServerState,
    Start,
    handed_on,
)
from strategies.server.schedule_settings import BUFFERED, SEMI, SYNC


@dataclass(frozen=True)
class Parallel:
    """All clients at once.

    Attributes:
        rule: of the simulated clock.
    """

    rule: Rule = clock.parallel

    def busy(self, state: ServerState) -> Collection[int]:
        """Clients at a task of an earlier round, which are not drawn: nobody, as a round ends."""
        return ()

    def order(self, chosen: Sequence[int], seed: int, server_round: int) -> list[int]:
        """As they were drawn: by partition id."""
        return list(chosen)

    def choose(self, drawing: Drawing, network: Prepared | None, state: ServerState) -> Chosen:
        """Those of a round, but for who is still busy."""
        return draw(drawing, network, state, self.busy(state))

    def run(
        self, state: ServerState, network: Network | None, chosen: Chosen, exchange: Exchange
    ) -> tuple[ServerState, list[Result]]:
        """Nothing is handed on."""
        return state, exchange([Start(state.arrays, chosen.linked, told=chosen.told)])


@dataclass(frozen=True)
class ByDeadline(Parallel):
    """All clients at once, each for as many batches as it can do by the deadline.

    What it did counts by the samples that it has seen: a client's weight is nᵢ times the share of
    its round. With no deadline, or where all meet it, this is `Parallel`, bit for bit.
    """

    def choose(self, drawing: Drawing, network: Prepared | None, state: ServerState) -> Chosen:
        """Those of a round; who would be late is told how many batches to train."""
        assert isinstance(self.rule, AtOnce)
        chosen = draw(drawing, network, state, pace=self.rule.pace)
        return replace(chosen, report={**chosen.report, "cut_short": float(len(chosen.told))})

    def run(
        self, state: ServerState, network: Network | None, chosen: Chosen, exchange: Exchange
    ) -> tuple[ServerState, list[Result]]:
        """Nothing is handed on; shorter rounds weigh less."""
        state, results = super().run(state, network, chosen, exchange)
        members = () if chosen.plan is None else chosen.plan.members
        shares = {member.partition: member.share for member in members}
        return state, [
            replace(one, discount=one.discount * shares[one.partition]) for one in results
        ]


@dataclass(frozen=True)
class Chain:
    """One client after another.

    Attributes:
        rule: of the simulated clock.
        relays_device: whether the device's part is handed on as well as the server's.
        is_shuffled: whether the order is random, drawn by seed and round, or by partition id.
    """

    rule: Rule
    relays_device: bool
    is_shuffled: bool

    def order(self, chosen: Sequence[int], seed: int, server_round: int) -> list[int]:
        """The order in which they hand on."""
        return shuffled(chosen, seed, server_round) if self.is_shuffled else list(chosen)

    def choose(self, drawing: Drawing, network: Prepared | None, state: ServerState) -> Chosen:
        """Those of a round."""
        return draw(drawing, network, state)

    def run(
        self, state: ServerState, network: Network | None, chosen: Chosen, exchange: Exchange
    ) -> tuple[ServerState, list[Result]]:
        """What is handed on is left out of the results: there is nothing to average."""
        if not self.relays_device:
            assert network is not None, "a network that is cut needs prepare()"
            found = exchange([Start(state.arrays, chosen.linked, in_turn=True)])
            current, left = handed_on(network, found, state.arrays)
            return state.with_arrays(current), left
        current, left = dict(state.arrays), list[Result]()
        for partition in chosen.linked:
            (result,) = exchange([Start(current, [partition])])
            current |= result.arrays
            left.append(replace(result, arrays={}))
        return state.with_arrays(current), left


def draw(
    drawing: Drawing,
    network: Prepared | None,
    state: ServerState,
    busy: Collection[int] = (),
    pace: Pace | None = None,
) -> Chosen:
    """Return the clients of a round that all begin together."""
    in_round = None if network is None else network.in_round(state.round + 1)
    return drawing.choose(in_round, state, busy, pace)


def shuffled(chosen: Sequence[int], seed: int, server_round: int) -> list[int]:
    """Return the clients in a random order of the round's own."""
    generator = random.Random(derive_seed(seed, "order", server_round))
    return generator.sample(sorted(chosen), len(chosen))


def scheduled(own: Schedule, rounds: RoundSettings, outage: Outage | None) -> Schedule:
    """Return a method's schedule as the group schedule of the configuration has it.

    Args:
        own: the method's.
        rounds: how rounds go.
        outage: when clients are without a network, where they then train on.

    Raises:
        ValueError: the two do not go together; names the key.
    """
    settings = rounds.schedule
    key = f"schedule={settings.name}"
    if settings.name == SYNC:
        return own
    if reason := refusal(own, settings.name):
        queued = ", or wait in a queue: splitfed_v2, others with strategy.base=splitfed_v2"
        raise ValueError(
            f"{key}: this method's clients {reason}; takes those whose clients train at once: "
            "fedavg, oqfl, splitfed_v1, splitfed_v3, ushaped, others with "
            "strategy.base=splitfed_v1, hierarchical with strategy.server_half=replicated"
            f"{queued if settings.name == BUFFERED else ''}"
        )
    if rounds.fleet is None:
        raise ValueError(f"{key}: takes a fleet, whose clock says who arrives when")
    if settings.name == SEMI:
        if math.isinf(rounds.fleet.deadline_s):
            raise ValueError(f"{key}: takes fleet.deadline_s, by which its clients end")
        return ByDeadline(own.rule)
    if rounds.over_select != 1:
        raise ValueError(
            f"fleet.over_select={rounds.over_select}: takes 1 with {key}, which waits for nobody"
        )
    if outage is not None and outage.happens:
        raise ValueError(
            f"{key}: takes clients that have a network while they train: strategy.outage=0 and "
            "fleet.availability=always"
        )
    if rounds.num_clients is not None:
        settings.check(rounds.clients_per_round, rounds.num_clients)
    if isinstance(own.rule, AtOnce):
        return Buffered(own.rule, settings, Shared(own.rule.pace))
    return Buffered(own.rule, settings, Queue(), hands_on=True)


def refusal(own: Schedule, name: str) -> str:
    """Return what of a method's clients rules out one of the group; empty where nothing does."""
    if type(own) is Parallel and isinstance(own.rule, AtOnce):
        return ""
    if not isinstance(own, Chain):
        return "have a schedule of their own"
    in_turn = "train one after another"
    if own.relays_device:
        return f"{in_turn} from both parts, so that none can begin while another is at work"
    if own.rule is not clock.queued:
        return f"{in_turn}, but share the cloud on the clock, where none comes before another"
    if name == SEMI:
        return f"{in_turn}, and those served first would leave the others no time"
    return ""


PARALLEL = Parallel()
SEQUENTIAL = Chain(clock.sequential, relays_device=True, is_shuffled=False)
QUEUED = Chain(clock.queued, relays_device=False, is_shuffled=True)
# Those of split learning's methods, for methods that change what happens at the cut.
BASES: dict[str, Schedule] = {
    "split": SEQUENTIAL,
    "splitfed_v1": PARALLEL,
    "splitfed_v2": QUEUED,
}


@dataclass(frozen=True)
class BaseSettings:
    """What the strategy group holds of who trains when, for methods at the cut."""

    base: str = field(
        default="splitfed_v1",
        metadata={"help": "schedule: split, splitfed_v1, splitfed_v2"},
    )

    def __post_init__(self) -> None:
        if self.base not in BASES:
            given = "null" if self.base is None else self.base
            raise ValueError(f"strategy.base={given}: takes {', '.join(BASES)}")

    @property
    def schedule(self) -> Schedule:
        """That of the base."""
        return BASES[self.base]
