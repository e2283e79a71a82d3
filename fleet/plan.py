"""Who takes part in a round, and how long it lasts: decided from shapes, before anybody trains."""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fleet.availability import Always, Availability, Traced
from fleet.clock import Pace, Rule, Turn
from fleet.cost import check_objective
from fleet.devices import Device
from fleet.phases import Phases, phases
from fleet.population import Client, jitter, stays
from fleet.selection import UNIFORM, check_selection
from fleet.work import ClientWork

LOST = ("left", "stale")  # of those that begin, whose work nothing comes of


@dataclass(frozen=True)
class Member:
    """What becomes of one client that was asked.

    Attributes:
        partition: the client's id.
        device: name of its device; None if it has none.
        status: ``ok`` takes part; ``alone`` is not there, and trains without network; ``absent`` is
            not there; ``unfit`` lacks memory; ``late`` would end after the deadline; ``surplus``
            would end after enough others have; ``left`` began and leaves before its end; ``stale``
            ends when its update is of no use any more.
        reason: why it takes no part, or not with the server; None if it does.
        sim_s: simulated seconds from its begin to its end; None if it does not begin.
        energy_j: simulated joules of its device and radio; None if it does not begin.
        begin_s: when it begins, in simulated seconds since the experiment began; None if it does
            not.
        end_s: when it ends or leaves; None if it does not begin.
        began: the round whose model it trains, where that is not the round in which it ends; 0 for
            none.
        share: of its work that it does.
        batches: that it trains; 0 stands for all.
        bytes_up: that it sent although nothing comes of it; what others sent is counted as it is.
        bytes_down: that it was sent, in the same way.
    """

    partition: int
    device: str | None
    status: str
    reason: str | None = None
    sim_s: float | None = None
    energy_j: float | None = None
    begin_s: float | None = None
    end_s: float | None = None
    began: int = 0
    share: float = 1.0
    batches: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True)
class RoundPlan:
    """A round before it happens.

    Attributes:
        members: everybody that was asked, in the order asked.
        sim_s: how long the round lasts: until its last participant ends, or until the deadline if
            anybody is late or nobody takes part.
    """

    members: tuple[Member, ...]
    sim_s: float

    @property
    def participants(self) -> list[int]:
        """Partitions that train, in the order asked; empty if nobody can."""
        return [member.partition for member in self.members if member.status in ("ok", "alone")]

    @property
    def alone(self) -> list[int]:
        """Those of them that train without network."""
        return [member.partition for member in self.members if member.status == "alone"]

    @property
    def energy_j(self) -> float:
        """Simulated joules of all that began."""
        return sum(member.energy_j or 0.0 for member in self.members)


@dataclass(frozen=True)
class Shorter:
    """Rounds of fewer batches, for those who would be late with all of them.

    Attributes:
        pace: seconds of a client while n share the server.
        num_batches: of a client's whole round.
        phases: of a client's round of some batches.
        share: of a client's samples that are in its first batches.
    """

    pace: Pace
    num_batches: Callable[[int], int]
    phases: Callable[[int, int], Phases]
    share: Callable[[int, int], float]


@dataclass(frozen=True)
class Fleet:
    """The clients' devices and what governs a round.

    Attributes:
        clients: what each partition runs on; one that is missing is always absent.
        server: what runs the server halves.
        seed: of the experiment.
        availability: who is there when.
        deadline_s: when a round ends at the latest.
        jitter: how much speeds vary from round to round; sigma of `population.jitter`.
        tails: whether to count the energy of radios' tails.
        dropout: probability that a client that began leaves before its end.
        selection: which clients are asked; one of `selection.SELECTIONS`.
        candidates: power_of_choice: how many are drawn for each that is asked.
        kinds: names of devices that clients could have been drawn, beside those that they were.
    """

    clients: Mapping[int, Client]
    server: Device
    seed: int = 0
    availability: Availability = field(default_factory=Always)
    deadline_s: float = math.inf
    jitter: float = 0.0
    tails: bool = False
    dropout: float = 0.0
    selection: str = UNIFORM
    candidates: float = 2.0
    kinds: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.deadline_s > 0:
            raise ValueError(f"fleet.deadline_s={self.deadline_s}: takes a positive number or null")
        if isinstance(self.availability, Traced) and math.isinf(self.deadline_s):
            raise ValueError(
                "fleet.deadline_s=null: takes a number where availability is a trace; a round that "
                "nobody attends would last no time, and the next would find nobody again"
            )
        jitter(self.jitter, 0, 0, 0)  # checks itself
        stays(self.dropout, 0, 0, 0)  # checks itself
        check_selection(self.selection, self.candidates)

    def device_names(self) -> list[str]:
        """Devices that its clients have or could have had."""
        return sorted(self.kinds | {client.device.name for client in self.clients.values()})

    def phases(self, works: Mapping[int, ClientWork]) -> dict[int, Phases]:
        """Return each client's phases; they stay the same while the shapes do."""
        return {
            partition: phases(work, client.device, client.link, self.server, tails=self.tails)
            for partition, work in works.items()
            if (client := self.clients.get(partition)) is not None
        }

    def check(
        self, parts: Mapping[int, Phases], rule: Rule, least: Mapping[int, Phases] | None = None
    ) -> None:
        """Refuse clients of which none could ever take part.

        Args:
            parts: each client's phases.
            rule: how clients and server take turns.
            least: the same of the least that a client may do; None takes the whole.

        Raises:
            ValueError: all lack memory, or no client can meet the deadline; names the key.
        """
        fitting = [own for own in parts.values() if own.fits]
        if parts and not fitting:
            smallest = _mib(min(own.peak_bytes for own in parts.values()))
            most = _mib(max(own.memory_bytes for own in parts.values()))
            raise ValueError(
                f"fleet: training needs {smallest} MiB, and no client has more than {most}"
            )
        shortest = [own for p, own in (least or parts).items() if parts[p].fits]
        turns = [rule([own], math.inf)[0] for own in shortest]
        fastest = min((turn.end_s for turn in turns if turn is not None), default=0.0)
        if fastest > self.deadline_s and self.jitter == 0:
            raise ValueError(
                f"fleet.deadline_s={self.deadline_s:g}: no client can meet the "
                f"deadline; the fastest needs {fastest:.3g} s"
            )

    def best(self, choices: Sequence[Mapping[int, ClientWork]], rule: Rule, objective: str) -> int:
        """Return the index of the choice that costs least where all clients must have the same.

        That for which most clients have the memory; of those the one whose round is over first, or
        takes the least energy.

        Args:
            choices: each client's round, for each choice.
            rule: how clients and server take turns.
            objective: ``seconds`` or ``joules``.

        Raises:
            ValueError: no such objective.
        """
        check_objective(objective)

        def rank(works: Mapping[int, ClientWork]) -> tuple[int, float]:
            parts = list(self.phases(works).values())
            fitting = [part for part in parts if part.fits]
            turns = [turn for turn in rule(fitting, math.inf) if turn is not None]
            if objective == "seconds":
                price = max((turn.end_s for turn in turns), default=0.0)
            else:
                price = sum(
                    part.joules(turn.end_s - turn.begin_s)
                    for part, turn in zip(fitting, turns, strict=True)
                )
            return len(parts) - len(fitting), price

        ranks = [rank(works) for works in choices]
        return ranks.index(min(ranks))

    def plan(
        self,
        asked: Sequence[int],
        parts: Mapping[int, Phases],
        rule: Rule,
        server_round: int,
        now_s: float,
        wanted: int | None = None,
        alone: Mapping[int, Phases] | None = None,
        shorter: Shorter | None = None,
    ) -> RoundPlan:
        """Decide a round.

        Args:
            asked: partitions, in the order in which they would train.
            parts: each client's phases, from `phases`.
            rule: how clients and server take turns; one of `fleet.clock`.
            server_round: from 1.
            now_s: simulated seconds since the experiment began.
            wanted: how many ends the round waits for, where more were asked; None waits for all.
            alone: phases of a round without network, for those that train then: they are not
                absent, use no server, do not count to ``wanted``, and the round lasts for them too.
            shorter: has those who would be late do as many batches as they can by the deadline; one
                at least, else they are late.
        """
        members = {p: self.refused(p, parts, server_round, now_s) for p in asked}
        for p, member in members.items():
            if alone and p in alone and member is not None and member.status == "absent":
                members[p] = self._by_itself(member, alone[p], rule, server_round, now_s)
        starting = [p for p, member in members.items() if member is None]
        paced = [self.paced(parts[p], server_round, p) for p in starting]
        turns = rule(paced, self.deadline_s)
        began = {p: Begun(p, o, t) for p, o, t in zip(starting, paced, turns, strict=True)}
        if shorter is not None:
            n = len(starting)
            late = [p for p, one in began.items() if one.turn is None]
            began |= {p: self._cut_short(p, shorter, server_round, n) for p in late}
        staying = {p: self.stays(p, server_round) for p in starting}
        ends = sorted(
            (one.turn.end_s, p) for p, one in began.items() if one.turn and staying[p] == 1
        )
        kept = {p: end for end, p in ends[:wanted]}
        over_s = max(kept.values()) if len(kept) == wanted else math.inf
        for p, one in began.items():
            if one.turn is None:
                members[p] = self.late(p)
                continue
            member = members[p] = self._began(one, staying[p], now_s)
            end_s = one.turn.begin_s + (member.sim_s or 0.0)
            if end_s > over_s or (member.status == "ok" and p not in kept):
                reason = f"would end at {end_s:g} s, after {wanted} others"
                members[p] = Member(p, member.device, "surplus", reason)
        done = tuple(member for member in members.values() if member is not None)
        lasts = [*kept.values()]
        lasts += [m.sim_s or 0.0 for m in done if m.status == "alone"]
        lasts += [(m.end_s or 0.0) - now_s for m in done if m.status == "left"]
        last_s = max(lasts, default=None)
        return RoundPlan(done, self._length(done, last_s, wanted))

    def _cut_short(self, partition: int, shorter: Shorter, server_round: int, n: int) -> "Begun":
        """A client that does as many batches as it can by the deadline, while n are at it."""

        def phases_of(count: int) -> Phases:
            return self.paced(shorter.phases(partition, count), server_round, partition)

        whole = shorter.num_batches(partition)
        count = bisect_right(
            range(1, whole), self.deadline_s, key=lambda count: shorter.pace(phases_of(count), n)
        )
        if not count:
            return Begun(partition, phases_of(1), None)
        own, reason = phases_of(count), f"{count} of {whole} batches by the deadline"
        turn, share = Turn(0.0, shorter.pace(own, n)), shorter.share(partition, count)
        return Begun(partition, own, turn, reason, count, share)

    def _began(self, one: "Begun", stays: float, now_s: float) -> Member:
        """What becomes of a client that begins, and stays for a share of its turn."""
        assert one.turn is not None
        seconds = one.turn.end_s - one.turn.begin_s
        return Member(
            one.partition,
            self.clients[one.partition].device.name,
            "ok" if stays == 1 else "left",
            one.reason if stays == 1 else left_after(stays),
            stays * seconds,
            stays * one.phases.joules(seconds),
            begin_s=now_s + one.turn.begin_s,
            end_s=now_s + one.turn.begin_s + stays * seconds,
            share=stays * one.share,
            batches=one.batches,
        )

    def refused(
        self, partition: int, parts: Mapping[int, Phases], server_round: int, now_s: float
    ) -> Member | None:
        """Who cannot begin, and why."""
        if (client := self.clients.get(partition)) is None:
            return Member(partition, None, "absent", "the trace has no such client")
        device = client.device.name
        if reason := self.availability.absence(partition, server_round, now_s, self.seed):
            return Member(partition, device, "absent", reason)
        own = parts[partition]
        return None if own.fits else _unfit(partition, device, own)

    def _by_itself(
        self, absent: Member, own: Phases, rule: Rule, server_round: int, now_s: float
    ) -> Member:
        """What becomes of a client without network that trains all the same."""
        partition, device = absent.partition, absent.device
        if not own.fits:
            return _unfit(partition, device, own)
        paced = self.paced(own, server_round, partition)
        (turn,) = rule([paced], self.deadline_s)
        if turn is None:
            return self.late(partition)
        seconds = turn.end_s - turn.begin_s
        return Member(
            partition,
            device,
            "alone",
            absent.reason,
            seconds,
            paced.joules(seconds),
            begin_s=now_s + turn.begin_s,
            end_s=now_s + turn.end_s,
        )

    def late(self, partition: int) -> Member:
        """A client that cannot end in time."""
        reason = f"would end after the deadline of {self.deadline_s:g} s"
        return Member(partition, self.clients[partition].device.name, "late", reason)

    def stays(self, partition: int, server_round: int) -> float:
        """The share of its work after which a client leaves; 1 where it stays to the end."""
        return stays(self.dropout, self.seed, server_round, partition)

    def paced(self, own: Phases, server_round: int, partition: int) -> Phases:
        """A client's phases at the speed that it has in a round."""
        if self.jitter == 0:
            return own
        device, link = jitter(self.jitter, self.seed, server_round, partition)
        return own.slowed(device=device, link=link)

    def _length(self, members: Sequence[Member], last_s: float | None, wanted: int | None) -> float:
        """Whoever waits for somebody late waits until the deadline."""
        num_ok = sum(member.status == "ok" for member in members)
        waits = any(member.status == "late" for member in members) and num_ok != wanted
        if waits or last_s is None:
            return self.deadline_s if math.isfinite(self.deadline_s) else 0.0
        return last_s


@dataclass(frozen=True)
class Begun:
    """A client that could begin, and its turn; None if it cannot end in time.

    Attributes:
        reason: why it does not do all of its work.
        batches: that it does then; 0 stands for all.
        share: of its work.
    """

    partition: int
    phases: Phases
    turn: Turn | None
    reason: str | None = None
    batches: int = 0
    share: float = 1.0


def num_asked(wanted: int, over_select: float, num_clients: int) -> int:
    """How many clients a round asks so that ``wanted`` may end in time.

    Args:
        wanted: how many the round waits for.
        over_select: factor, 1.3 in Bonawitz et al. 2019, arXiv 1902.01046.
        num_clients: how many there are.

    Raises:
        ValueError: the factor is below 1.
    """
    if not 1 <= over_select < math.inf:
        raise ValueError(f"fleet.over_select={over_select}: takes a factor of 1 or more")
    return min(num_clients, math.ceil(round(wanted * over_select, 9)))


def left_after(share: float) -> str:
    """Why a client that left after a share of its work takes no part."""
    return f"left after {share:.0%} of its work"


def _unfit(partition: int, device: str | None, own: Phases) -> Member:
    reason = f"needs {_mib(own.peak_bytes)} MiB, {device} has {_mib(own.memory_bytes)}"
    return Member(partition, device, "unfit", reason)


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:,.1f}"
