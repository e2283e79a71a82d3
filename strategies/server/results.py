"""What comes of a client in a round: the update or the error, and the records of both."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import MetricRecord

from fleet.plan import Member, RoundPlan
from strategies.contract import Update
from strategies.server.checkpoint import Arrays
from tracking.record import ClientRecord, RoundRecord

log = logging.getLogger(__name__)


class AllClientsFailedError(RuntimeError):
    """No client of a round returned anything."""


@dataclass(frozen=True)
class Outcome:
    """What came of one client in one round: an update and its state, or the text of an error."""

    partition: int
    num_examples: int
    bytes_down: int
    update: Update | None = None
    state: Arrays = field(default_factory=dict)
    error: str | None = None


def check_shapes(state: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a client's state that is not one of the global model.

    Raises:
        ValueError: names or shapes differ; names the first.
    """
    for name in sorted(state.keys() | shapes.keys()):
        got = tuple(state[name].shape) if name in state else "absent"
        wanted = tuple(shapes[name]) if name in shapes else "absent"
        if got != wanted:
            raise ValueError(f"array {name} is {got}, in the global model {wanted}")


def all_failed(server_round: int, outcomes: Sequence[Outcome]) -> AllClientsFailedError:
    """Return the error that ends a run of whose clients none is left."""
    return AllClientsFailedError(
        f"round {server_round}: all {len(outcomes)} clients failed; {last_line(outcomes[0].error)}"
    )


def report_failures(server_round: int, outcomes: Sequence[Outcome]) -> None:
    """Log each distinct failure once, with its traceback and everyone it happened to."""
    by_reason: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.error is not None:
            by_reason.setdefault(last_line(outcome.error), []).append(outcome)
    for alike in by_reason.values():
        who = ", ".join(str(outcome.partition) for outcome in alike[:10])
        more = f" and {len(alike) - 10} more" if len(alike) > 10 else ""
        log.warning("round %d: client %s%s failed:\n%s", server_round, who, more, alike[0].error)


def round_record(
    server_round: int,
    outcomes: Sequence[Outcome],
    metrics: MetricRecord | None,
    wall_s: float,
    plan: RoundPlan | None = None,
) -> RoundRecord:
    """Sum up a round."""
    updates = [outcome.update for outcome in outcomes if outcome.update is not None]
    evaluated = dict(metrics or {})
    extra = {name: float(value) for name, value in evaluated.items()}  # type: ignore[arg-type]
    return RoundRecord(
        round=server_round,
        accuracy=extra.pop("accuracy", None),
        loss=extra.pop("loss", None),
        train_loss=train_loss(updates) if updates else None,
        num_clients=len(updates),
        num_failed=len(outcomes) - len(updates),
        num_dropped=0 if plan is None else len(plan.members) - len(plan.participants),
        bytes_up=sum(update.bytes_up for update in updates),
        bytes_down=sum(outcome.bytes_down for outcome in outcomes),
        sim_s=None if plan is None else plan.sim_s,
        energy_j=None if plan is None else plan.energy_j,
        wall_s=wall_s,
        extra=extra,
    )


def client_records(
    server_round: int, outcomes: Sequence[Outcome], plan: RoundPlan | None
) -> list[ClientRecord]:
    """Sum up each client's round, those too that were asked and did not train."""
    members = {m.partition: m for m in plan.members} if plan is not None else {}
    trained = {outcome.partition: outcome for outcome in outcomes}
    return [
        client_record(server_round, trained[p], members.get(p))
        if p in trained
        else _dropped_record(server_round, members[p])
        for p in sorted(trained.keys() | members.keys())
    ]


def _dropped_record(server_round: int, member: Member) -> ClientRecord:
    return ClientRecord(
        round=server_round,
        partition=member.partition,
        device=member.device,
        status=member.status,
        num_examples=0,
        loss=None,
        bytes_up=0,
        bytes_down=0,
        sim_s=None,
        energy_j=None,
        reason=member.reason,
    )


def client_record(
    server_round: int, outcome: Outcome, member: Member | None = None
) -> ClientRecord:
    """Sum up the round of a client that trained, or failed to."""
    update = outcome.update
    return ClientRecord(
        round=server_round,
        partition=outcome.partition,
        device=member.device if member else None,
        status="failed" if update is None else member.status if member else "ok",
        num_examples=outcome.num_examples,
        loss=None if update is None else update.loss,
        bytes_up=0 if update is None else update.bytes_up,
        bytes_down=outcome.bytes_down,
        sim_s=member.sim_s if member else None,
        energy_j=member.energy_j if member else None,
        reason=member.reason if member else None,
    )


def train_loss(updates: Sequence[Update]) -> float:
    """Mean training loss, weighted by samples."""
    total = sum(update.num_examples for update in updates)
    return sum(update.loss * update.num_examples for update in updates) / total


def last_line(error: str | None) -> str:
    """What a traceback ends with."""
    lines = (error or "").strip().splitlines()
    return lines[-1] if lines else "no reason given"
