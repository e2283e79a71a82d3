"""Evaluation on samples that each client holds out: the global model as each of them sees it.

The server has all of them in a simulation, and tests them in one pass in the driver. A client with
a half of its own is tested with that one, so there is a pass for each.
"""

import math
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from app import experiment
from app.device import Where
from app.evaluation import HERE, passes
from app.experiment import Experiment
from data.dataset import Inputs, rows_of
from models.metrics import Kept, Metrics
from models.objective import Objective
from strategies.server.method import ServerState, Test
from strategies.server.watch import Evaluating

CLIENT = "client/"  # before a partition, where a test says a client's accuracy
WORST = 10  # the worst decile is one of so many parts


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What clients hold out, one client's samples after another's.

    Attributes:
        x: (N, …) inputs.
        y: (N, …) labels.
        places: where each client's are; clients without any are not there.
    """

    x: Inputs
    y: Tensor
    places: Mapping[int, slice]


@dataclass
class Pass:
    """What one or several networks made of samples.

    Attributes:
        sums: of each client, as the task has them.
        kept: of each batch, for metrics.
        size: of the last axis of outputs.
    """

    sums: dict[int, Counter[str]] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)
    size: int = 0


def held_out(chosen: Experiment) -> HeldOut:
    """Return what the clients of an experiment hold out."""
    data, places, end = experiment.dataset(chosen), dict[int, slice](), 0
    rows = experiment.held_out(chosen)
    for partition, own in enumerate(rows):
        if len(own):
            places[partition] = slice(end, end + len(own))
            end += len(own)
    whole = torch.cat(rows)
    return HeldOut(rows_of(data.train_x, whole), data.train_y[whole], places)


@dataclass(frozen=True, eq=False)
class ClientTest:
    """Tests a state on what clients hold out.

    Attributes:
        held: their samples.
        objective: the task.
        metrics: of all samples together.
        is_alone: whether nothing else is tested: then the values over all samples are the round's.
        where: networks run, and in which precision.
    """

    held: HeldOut
    objective: Objective
    metrics: Metrics
    is_alone: bool
    where: Where = HERE

    def __call__(
        self, federation: Evaluating, state: ServerState, detailed: bool = False
    ) -> tuple[dict[str, float], dict[int, float]]:
        """Return what a round's record says, and each client's accuracy by its partition."""
        made: list[Pass] = []

        def test_of(partitions: Sequence[int]) -> Test:
            def test(network: nn.Module) -> dict[str, float]:
                made.append(self.run(network, partitions))
                return self.values(made[-1], detailed)

            return test

        found = federation.evaluate_each(state, list(self.held.places), test_of)
        whole = found[0] if len(found) == 1 else self.values(_together(made), detailed)
        own = {
            int(name.removeprefix(CLIENT)): value
            for name, value in whole.items()
            if name.startswith(CLIENT) and math.isfinite(value)
        }
        devices = {partition: federation.clients.device(partition) for partition in own}
        said = spread(own, devices, len(federation.clients.num_examples) - len(own))
        if self.is_alone:
            said = {n: value for n, value in whole.items() if CLIENT not in n} | said
        return said, own

    def run(self, network: nn.Module, partitions: Sequence[int]) -> Pass:
        """Run a network over the samples of some clients, of all or of one."""
        slices = [self.held.places[partition] for partition in partitions]
        span = slice(slices[0].start, slices[-1].stop)
        one = Pass({partition: Counter() for partition in partitions})
        x = rows_of(self.held.x, span)
        for rows, outputs in passes(network, x, int(span.stop - span.start), where=self.where):
            labels = self.held.y[span][rows]
            one.size = outputs.shape[-1]
            if self.metrics.names:
                one.kept.append(self.metrics.kept(outputs, labels))
            for partition, part in _shares(partitions, slices, span.start, rows):
                one.sums[partition].update(self.objective.sums(outputs[part], labels[part]))
        return one

    def values(self, one: Pass, detailed: bool) -> dict[str, float]:
        """What a test says: of all samples, and ``client/<partition>`` for the accuracy of each."""
        total: Counter[str] = Counter()
        found: dict[str, float] = {}
        for partition, sums in one.sums.items():
            total.update(sums)
            labels = self.held.y[self.held.places[partition]]
            found[f"{CLIENT}{partition}"] = self.objective.metrics(sums, labels)["accuracy"]
        where = [self.held.places[partition] for partition in one.sums]
        labels = self.held.y[where[0].start : where[-1].stop]
        found |= self.objective.metrics(total, labels) | self.metrics.values(one.kept, one.size)
        return found | self.metrics.details(one.kept, one.size) if detailed else found


def client_test(chosen: Experiment, where: Where = HERE) -> ClientTest | None:
    """Return what tests on clients' samples; None where evaluate.on=server."""
    if not chosen.data.held_out:
        return None
    is_alone = chosen.evaluate.on == "clients"
    objective = chosen.task.objective()
    return ClientTest(held_out(chosen), objective, chosen.metrics, is_alone, where)


def spread(
    accuracies: Mapping[int, float], devices: Mapping[int, str], num_untested: int
) -> dict[str, float]:
    """Return mean, standard deviation and worst decile of clients' accuracies, and by device class.

    Args:
        accuracies: by partition, each client counting alike.
        devices: of the same clients; empty without a fleet.
        num_untested: clients that have no accuracy.
    """
    counted = {"clients_tested": float(len(accuracies)), "clients_untested": float(num_untested)}
    if not accuracies:
        return counted
    worst = sorted(accuracies.values())[: math.ceil(len(accuracies) / WORST)]
    by_device: dict[str, list[float]] = {}
    for partition, accuracy in accuracies.items():
        by_device.setdefault(devices[partition], []).append(accuracy)
    return {
        "clients_accuracy": statistics.fmean(accuracies.values()),
        "clients_accuracy_sd": statistics.pstdev(accuracies.values()),
        "clients_accuracy_worst": statistics.fmean(worst),
        **{
            f"clients_accuracy_{device}": statistics.fmean(values)
            for device, values in sorted(by_device.items())
            if device
        },
        **counted,
    }


def _shares(
    partitions: Sequence[int], slices: Sequence[slice], begin: int, batch: slice
) -> Iterator[tuple[int, slice]]:
    """Which part of a batch is whose: the batch counts from ``begin``, and its parts from it."""
    first = bisect_right(slices, begin + batch.start, key=lambda place: place.start) - 1
    for partition, place in islice(zip(partitions, slices, strict=True), first, None):
        start = max(place.start - begin, batch.start)
        stop = min(place.stop - begin, batch.stop)
        if start >= stop:
            return
        yield partition, slice(start - batch.start, stop - batch.start)


def _together(made: Sequence[Pass]) -> Pass:
    """Passes over different clients as one."""
    sums = {partition: sums for one in made for partition, sums in one.sums.items()}
    return Pass(sums, [kept for one in made for kept in one.kept], made[-1].size)
