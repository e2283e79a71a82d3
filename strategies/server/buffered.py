"""Asynchronous learning: the server takes a step with every few updates, and waits for nobody.

After FedBuff (Nguyen et al. 2022, arXiv 2106.06639) and FedAsync (Xie et al. 2019, arXiv
1903.03934), which is a buffer of 1. A client begins from the model of step t and arrives in step
t + k. Its change, damped by s(k), is added to the model as it is now:

    Δᵢ = wᵢ − w(t)       w(t+k+1) = Σ (nᵢ/Σn)·(w(t+k) + s(k)·Δᵢ)

over the updates of a buffer. For k = 0 the bracket is wᵢ itself, so where everybody is as fast and
the buffer takes all, this is the synchronous method, bit for bit. What does not train (the
statistics of batch normalisation, counters) has no change to add and counts as it came; a
quantizer's step is a size, and changes by a factor.

Who arrives when follows from shapes (`fleet.flights`). So a client trains in the step in which it
arrives, together with the others that do, from the model with which it began; who never arrives
does not train at all. The models that are still trained from are in the state, and so in
checkpoints.

Where the server has one part for all (SplitFed V2), it serves clients in the order in which they
arrive (`fleet.service`): they train one after another, and each has the server's part as the one
before left it, in this step or an earlier one. That part is never stale, and is not averaged. All
the above is of the device's part.
"""

import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.clock import Rule
from fleet.flights import Flight, Service, Step, StepPlan
from fleet.seeds import derive_seed
from fleet.selection import UNIFORM
from quant.functional import MIN_STEP
from quant.quantizer import initialised_flag, is_step
from strategies.server.method import (
    Arrays,
    Chosen,
    Drawing,
    Exchange,
    Network,
    Prepared,
    Result,
    ServerState,
    Start,
    handed_on,
)
from strategies.server.schedule_settings import ScheduleSettings
from strategies.server.server_optimizer import log_step

PREFIX = "flights/"
TABLE = "table"  # (m, 7) float64: the fields of a Flight, one row for each client at work


@dataclass(frozen=True)
class Buffered:
    """A `Schedule` whose rounds are server steps.

    Attributes:
        rule: of the clock in rounds, for what a client takes alone.
        settings: how many are at work, how many make a step, what late updates count.
        service: of the clock: how the server serves those at work.
        hands_on: whether the server has one part, which goes from client to client.
    """

    rule: Rule
    settings: ScheduleSettings
    service: Service
    hands_on: bool = False

    def order(self, chosen: Sequence[int], seed: int, server_round: int) -> list[int]:
        """As they arrive."""
        return list(chosen)

    def choose(self, drawing: Drawing, network: Prepared | None, state: ServerState) -> Chosen:
        """Those that arrive in the next step."""
        fleet = drawing.clients.fleet
        assert network is not None, "schedule=buffered needs prepare()"
        assert fleet is not None, "schedule=buffered needs a fleet"
        number, flights, everybody = state.round + 1, flights_of(state), drawing.with_data
        at_work = self.settings.at_work(drawing.rounds.clients_per_round, len(everybody))
        arrivals, current = self.settings.arrivals(at_work), network.in_round(number)

        def is_stale(began: int) -> bool:
            limit = self.settings.max_staleness
            is_late = limit is not None and number - began > limit
            return is_late or network.in_round(began) is not current

        step = Step(
            fleet,
            self.service,
            lambda began: drawing.phases(network.in_round(began)),
            number,
            state.now_s,
            at_work,
            arrivals,
            is_stale,
        )
        idle = idle_clients(everybody, {flight.partition for flight in flights})
        generator = random.Random(derive_seed(drawing.rounds.seed, "selection in a step", number))
        # Those that begin at once, and with a selection of its own those that take their places.
        count = at_work - len(flights) + (0 if fleet.selection == UNIFORM else arrivals)
        first = drawing.select(current, state, idle, count)
        plan = step.plan(flights, in_turn(idle, first, generator))
        members = tuple(
            drawing.counted(network.in_round(member.began or number), member)
            for member in plan.members
        )
        late = [number - flight.began for flight in plan.arrived]
        report = {
            "staleness_mean": sum(late) / len(late) if late else 0.0,
            "staleness_max": float(max(late, default=0)),
            "in_flight": float(len(plan.flights)),
            "left": float(sum(member.status == "left" for member in members)),
            "stale": float(sum(member.status == "stale" for member in members)),
        }
        # As many as are at work may fail in a row.
        before = state.records[-math.ceil(at_work / arrivals) :]
        may_fail = len(before) * arrivals < at_work or any(one.num_clients for one in before)
        linked = [flight.partition for flight in plan.arrived]
        plan = replace(plan, members=members)
        return Chosen(linked, [], plan, report=report, may_fail=may_fail)

    def run(
        self, state: ServerState, network: Network | None, chosen: Chosen, exchange: Exchange
    ) -> tuple[ServerState, list[Result]]:
        """Have those that arrive train, each from the model with which it began."""
        plan, number = chosen.plan, state.round + 1
        assert isinstance(plan, StepPlan)
        began = sorted({flight.began for flight in (*plan.arrived, *plan.flights)})
        bases = {step: base(state, step) for step in began}
        if self.hands_on:
            assert network is not None, "a network that is cut needs prepare()"
            bases = device_parts(network, (*plan.arrived, *plan.flights), bases)
            found = exchange(one_by_one(state.arrays, plan.arrived, bases))
            current, found = handed_on(network, found, state.arrays)
            state = state.with_arrays(current)
        else:
            found = exchange(all_at_once(plan.arrived, bases))
        step_of = {flight.partition: flight.began for flight in plan.arrived}
        results = []
        for result in found:
            step = step_of[result.partition]
            if step != number:
                damping = self.settings.damping(number - step)
                result = replace(result, base=bases[step], damping=damping)
            results.append(result)
        return keeping(state, plan.flights, bases), results


def all_at_once(arrived: Sequence[Flight], bases: Mapping[int, Arrays]) -> list[Start]:
    """Each from the model with which it began."""
    clients_of: dict[int, list[int]] = {}
    for flight in arrived:
        clients_of.setdefault(flight.began, []).append(flight.partition)
    return [Start(bases[step], clients_of[step], step) for step in sorted(clients_of)]


def one_by_one(now: Arrays, arrived: Sequence[Flight], bases: Mapping[int, Arrays]) -> list[Start]:
    """Each from the device's part with which it began, and the server's as the one before left it.

    Args:
        now: the present model, with the server's part for the first of them.
        arrived: in the order in which they are served.
        bases: by step, the devices' parts with which clients began.
    """
    return [
        Start({**now, **bases[one.began]}, [one.partition], one.began, in_turn=True)
        for one in arrived
    ]


def device_parts(
    network: Network, flights: Sequence[Flight], bases: Mapping[int, Arrays]
) -> dict[int, Arrays]:
    """Return what is on the device of the models with which clients began."""
    names = {one.began: network.on_device(one.partition) or frozenset() for one in flights}
    return {
        step: {name: array for name, array in bases[step].items() if name in own}
        for step, own in names.items()
    }


def idle_clients(everybody: Sequence[int], busy: Collection[int]) -> Sequence[int]:
    """Those that are not at work."""
    return [p for p in everybody if p not in busy] if busy else everybody


def in_turn(idle: Sequence[int], first: Sequence[int], generator: random.Random) -> Iterator[int]:
    """Yield ``first``, then the other clients in a random order.

    One after another, as few are asked of many.
    """
    yield from first
    asked = set(first)
    while len(asked) * 2 < len(idle):
        if (partition := idle[generator.randrange(len(idle))]) not in asked:
            asked.add(partition)
            yield partition
    rest = [partition for partition in idle if partition not in asked]
    generator.shuffle(rest)
    yield from rest


# In the state -------------------------------------------------------------------------------------


def flights_of(state: ServerState) -> tuple[Flight, ...]:
    """Who is at work as the next step begins."""
    table = state.extra.get(PREFIX + TABLE)
    if table is None:
        return ()
    return tuple(
        Flight(int(partition), int(began), begins, ends, needs, int(sharers), share)
        for partition, began, begins, ends, needs, sharers, share in table.tolist()
    )


def base(state: ServerState, step: int) -> Arrays:
    """The model with which a step began, from which somebody at work trains."""
    if step == state.round + 1:
        return state.arrays
    prefix = f"{PREFIX}{step}/"
    found = {name: state.extra.get(prefix + name) for name in state.arrays}
    return {name: array for name, array in found.items() if array is not None}


def keeping(
    state: ServerState, flights: Sequence[Flight], bases: Mapping[int, Arrays]
) -> ServerState:
    """Return the state with who is at work and what they train from."""
    if not flights:
        return state.keeping(PREFIX, {})
    rows = [
        (f.partition, f.began, f.begins_in_s, f.ends_in_s, f.needs_s, f.sharers, f.share)
        for f in flights
    ]
    kept: dict[str, NDArray[Any]] = {TABLE: np.array(rows, dtype=np.float64)}
    for step in {flight.began for flight in flights}:
        kept |= {f"{step}/{name}": array for name, array in bases[step].items()}
    return state.keeping(PREFIX, kept)


# From an old model to the present one -------------------------------------------------------------


def brought_up(
    results: Sequence[Result], now: Arrays, trained: Collection[str] | None
) -> list[Result]:
    """Return the results as if they had begun from the present model.

    Args:
        results: of clients that may have begun from another.
        now: the present one.
        trained: names of what trains; None for all that is floating.
    """
    return [
        result
        if result.base is None
        else replace(
            result,
            arrays=BroughtUp(result.arrays, result.base, now, result.damping, trained),
            base=None,
        )
        for result in results
    ]


@dataclass(frozen=True)
class BroughtUp(Mapping[str, NDArray[Any]]):
    """A client's arrays on the present model; each is made when it is asked for.

    Attributes:
        arrays: the client's.
        base: from which it began.
        now: the present model.
        damping: what its change is multiplied by.
        trained: names of what trains; None for all that is floating.
    """

    arrays: Arrays
    base: Arrays
    now: Arrays
    damping: float
    trained: Collection[str] | None

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return now + damping · change."""
        array = self.arrays[name]
        is_trained = self.trained is None or name in self.trained
        if array.dtype.kind != "f" or not is_trained:
            return array
        before, now = self.base[name], self.now[name]
        if not is_step(name):
            return (now + self.damping * (array - before)).astype(array.dtype)
        flag = initialised_flag(name)
        if not (bool(self.base[flag]) and bool(self.now[flag])):
            return array  # there is nothing yet that it could change
        moved = log_step(now) + self.damping * (log_step(array) - log_step(before))
        return np.maximum(np.exp(moved), MIN_STEP).astype(array.dtype)

    def __iter__(self) -> Iterator[str]:
        """Names, in their order."""
        return iter(self.arrays)

    def __len__(self) -> int:
        """How many arrays there are."""
        return len(self.arrays)
