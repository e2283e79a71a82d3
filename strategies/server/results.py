"""The result of a client in a round, an update or an error, and the records of both."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fleet.plan import Member, RoundPlan
from strategies.blocks import Block, Form, layout_of
from strategies.contract import Update
from strategies.server.method import Arrays, Result
from tracking.record import ClientRecord, RoundRecord
from tracking.text import last_message, shortened

log = logging.getLogger(__name__)


class AllClientsFailedError(RuntimeError):
    """No client of a round returned anything."""


def check_shapes(arrays: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse arrays that do not have the names and shapes that they must have.

    Raises:
        ValueError: names or shapes differ; names the first.
    """
    found = {name: tuple(array.shape) for name, array in arrays.items()}
    _compare(found, {name: tuple(shape) for name, shape in shapes.items()})


def forms(arrays: Arrays) -> Mapping[str, Form]:
    """Say of each array what its like must be."""
    if isinstance(arrays, Block):
        return arrays.layout.forms
    return layout_of(tuple((n, array.dtype, array.shape) for n, array in arrays.items())).forms


def check_forms(arrays: Arrays, expected: Mapping[str, Form]) -> None:
    """Refuse arrays that do not have the names, types and shapes that they must have.

    Args:
        arrays: a client's, in the names of the global model.
        expected: what `forms` says of the global model.

    Raises:
        ValueError: names, types or shapes differ; names the first.
    """
    _compare(forms(arrays), expected)


def _compare(found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    if found is expected or found == expected:
        return
    for name in sorted(found.keys() | expected.keys()):
        got, wanted = found.get(name, "absent"), expected.get(name, "absent")
        if got != wanted:
            raise ValueError(f"array {name} is {got}, expected {wanted}")


def all_failed(server_round: int, results: Sequence[Result]) -> AllClientsFailedError:
    """Return the error that ends a run of whose clients none is left."""
    return AllClientsFailedError(
        f"round {server_round}: all {len(results)} clients failed; {reason(results[0].error)}"
    )


def report_failures(server_round: int, results: Sequence[Result]) -> None:
    """Log each distinct failure once, with its traceback and everyone it happened to."""
    by_reason: dict[str, list[Result]] = {}
    for result in results:
        if result.error is not None:
            by_reason.setdefault(reason(result.error), []).append(result)
    for alike in by_reason.values():
        who = ", ".join(str(result.partition) for result in alike[:10])
        more = f" and {len(alike) - 10} more" if len(alike) > 10 else ""
        log.warning("round %d: client %s%s failed:\n%s", server_round, who, more, alike[0].error)


def round_record(
    server_round: int,
    results: Sequence[Result],
    metrics: Mapping[str, float],
    report: Mapping[str, float],
    wall_s: float,
    plan: RoundPlan | None = None,
) -> RoundRecord:
    """Sum up a round.

    Args:
        server_round: from 1.
        results: of the clients that were to train.
        metrics: of the evaluation, empty if there was none.
        report: what the method adds.
        wall_s: how long it took.
        plan: the fleet's, if there is one.
    """
    updates = [result.update for result in results if result.update is not None]
    extra = {name: float(value) for name, value in metrics.items()}
    lost = () if plan is None else plan.members  # the members of others say nothing of bytes
    return RoundRecord(
        round=server_round,
        accuracy=extra.pop("accuracy", None),
        loss=extra.pop("loss", None),
        train_loss=train_loss(updates) if updates else None,
        num_clients=len(updates),
        num_failed=len(results) - len(updates),
        num_dropped=0 if plan is None else len(plan.members) - len(plan.participants),
        bytes_up=sum(r.bytes_up for r in results) + sum(m.bytes_up for m in lost),
        bytes_down=sum(r.bytes_down for r in results) + sum(m.bytes_down for m in lost),
        sim_s=None if plan is None else plan.sim_s,
        energy_j=None if plan is None else plan.energy_j,
        wall_s=wall_s,
        extra={**extra, **report},
    )


def client_records(
    server_round: int,
    results: Sequence[Result],
    plan: RoundPlan | None,
    accuracies: Mapping[int, float] | None = None,
) -> list[ClientRecord]:
    """Sum up each client's round, those too that were asked and did not train.

    Args:
        server_round: from 1.
        results: of the clients that were to train.
        plan: the fleet's, if there is one.
        accuracies: by partition, of the clients that were tested after the round.
    """
    members = {m.partition: m for m in plan.members} if plan is not None else {}
    trained = {result.partition: result for result in results}
    rows = [
        client_record(server_round, trained[p], members.get(p))
        if p in trained
        else _dropped_record(server_round, members[p])
        for p in sorted(trained.keys() | members.keys())
    ]
    if not accuracies:
        return rows
    return [replace(row, accuracy=accuracies.get(row.partition)) for row in rows]


def _dropped_record(server_round: int, member: Member) -> ClientRecord:
    return ClientRecord(
        round=server_round,
        partition=member.partition,
        device=member.device,
        status=member.status,
        num_examples=0,
        loss=None,
        bytes_up=member.bytes_up,
        bytes_down=member.bytes_down,
        sim_s=member.sim_s,
        energy_j=member.energy_j,
        reason=member.reason,
        begin_s=member.begin_s,
        end_s=member.end_s,
    )


def client_record(server_round: int, result: Result, member: Member | None = None) -> ClientRecord:
    """Sum up the round of a client that trained, or failed to."""
    update = result.update
    return ClientRecord(
        round=server_round,
        partition=result.partition,
        device=member.device if member else None,
        status="failed" if update is None else member.status if member else "ok",
        num_examples=result.num_examples,
        loss=None if update is None else update.loss,
        bytes_up=result.bytes_up,
        bytes_down=result.bytes_down,
        sim_s=member.sim_s if member else None,
        energy_j=member.energy_j if member else None,
        reason=reason(result.error) if update is None else member.reason if member else None,
        begin_s=member.begin_s if member else None,
        end_s=member.end_s if member else None,
    )


def train_loss(updates: Sequence[Update]) -> float:
    """Mean training loss, weighted by samples."""
    total = sum(update.num_examples for update in updates)
    return sum(update.loss * update.num_examples for update in updates) / total


def reason(error: str | None) -> str:
    """What the last error of a traceback says, in one line of about 500 characters."""
    said = " ".join(last_message(error or "").split())
    return shortened(said, 500) or "no reason given"
