"""What each cut costs on each device: seconds, joules and memory of one training batch.

    python -m app.plan model=resnet18 data=cifar10 fleet=mobile fleet.objective=joules

Takes the same overrides as main.py; model, data, train and fleet matter. One table for each link of
the fleet; for each cut point the memory that the client half needs, and for each device a batch of
split learning with fp32 activations, the server to itself. The last row is the whole network on the
device, without a server. – does not fit the device's memory; * is the best cut for the device. The
model's own way down and up, once a round, is not in it. docs/FLEET.md says how it is computed.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app import experiment
from app.config import Config, compose
from fleet.cost import OBJECTIVES, choose_cut, cost
from fleet.devices import Device, Link, Population, tables
from fleet.work import BatchWork, ClientWork, Compute, Exchange, traffic_bytes
from models import cost as model_cost
from models.split import cut_many, cut_points

WHOLE = "(no cut)"


@dataclass(frozen=True)
class Row:
    """One cut point, or `WHOLE`, and one batch of training there."""

    name: str
    work: ClientWork


@dataclass(frozen=True)
class Choice:
    """What to plan for."""

    population: Population
    objective: str


def rows(config: Config) -> list[Row]:
    """Return one row per cut point, in execution order, and the whole network last.

    Raises:
        ValueError: a network that does not take the data; one line.
    """
    experiment.check_network(config)
    model, shape = experiment.network(config), tuple(config.data.shape)
    points = cut_points(model, shape)
    # Cut everywhere at once: what is before a cut is the sum of the pieces before it.
    names = [point.name for point in points]
    pieces = cut_many(model, names, shape, check=False) if points else (model,)
    shapes = [shape, *(point.shape for point in points)]
    costs = [
        model_cost.cost(piece, size, input_grad=index > 0)
        for index, (piece, size) in enumerate(zip(pieces, shapes, strict=True))
    ]
    slots = {"sgd": int(config.train.momentum > 0)}.get(config.train.optimizer, 2)
    batch = config.train.batch_size
    peaks = [piece.peak_train_bytes(batch, slots) for piece in costs]
    label_bytes = 1 if config.data.num_classes <= 2**8 else 2
    found = []
    for index, point in enumerate(points, start=1):
        values = batch * math.prod(point.shape)
        device, server = costs[:index], costs[index:]
        exchange = Exchange(
            device=_forward(device, batch),
            bytes_up=4 * values + label_bytes * batch,
            server=_forward(server, batch) + _backward(server, batch),
            bytes_down=4 * values,
        )
        split = BatchWork((exchange,), _backward(device, batch))
        work = ClientWork(batches=(split,), peak_bytes=sum(peaks[:index]))
        found.append(Row(point.name, work))
    whole = _forward(costs, batch) + _backward(costs, batch)
    return [*found, Row(WHOLE, ClientWork(local=whole, peak_bytes=sum(peaks)))]


def _forward(costs: Sequence[model_cost.Cost], batch: int) -> Compute:
    flops = batch * sum(piece.flops_forward for piece in costs)
    return Compute({"fp32": flops}, _traffic(costs, batch))


def _backward(costs: Sequence[model_cost.Cost], batch: int) -> Compute:
    flops = batch * sum(piece.flops_backward for piece in costs)
    return Compute({"fp32": flops}, 2 * _traffic(costs, batch))


def _traffic(costs: Sequence[model_cost.Cost], batch: int) -> float:
    kept = sum(piece.fixed_activation_bytes + batch * piece.activation_bytes for piece in costs)
    return traffic_bytes(kept, sum(piece.model_bytes for piece in costs))


def choice(overrides: Sequence[str]) -> tuple[Choice, list[str]]:
    """Take ``fleet=`` and ``fleet.objective=`` out of the overrides; return them and the rest.

    Raises:
        ValueError: no such fleet, objective or key.
    """
    population, objective, rest = "mobile", OBJECTIVES[0], []
    for text in overrides:
        key, _, value = text.partition("=")
        if key == "fleet":
            population = value
        elif key == "fleet.objective":
            objective = value
        elif key.startswith("fleet."):
            raise ValueError(f"{key}: has no meaning here; app.plan reads fleet, fleet.objective")
        else:
            rest.append(text)
    if objective not in OBJECTIVES:
        raise ValueError(f"fleet.objective={objective}: takes {', '.join(OBJECTIVES)}")
    return Choice(tables().population(population), objective), rest


def table(found: Sequence[Row], chosen: Choice, link: Link, server: Device) -> Table:
    """One link's table."""
    devices = [tables().device(name) for name in chosen.population.devices]
    printed = Table(title=f"{link.name}: {link.down_mbps:g} Mbit/s down, {link.up_mbps:g} up")
    printed.add_column("cut")
    printed.add_column("MiB", justify="right")
    for device in devices:
        printed.add_column(f"{device.name}\ns", justify="right")
        printed.add_column("\nJ", justify="right")
    works = [row.work for row in found if row.name != WHOLE]
    best = [choose_cut(works, device, link, server, chosen.objective) for device in devices]
    for index, row in enumerate(found):
        cells: list[Text | str] = [Text(row.name), f"{row.work.peak_bytes / 2**20:,.1f}"]
        for device, best_index in zip(devices, best, strict=True):
            price = cost(row.work, device, link, server)
            mark = "*" if index == best_index else ""
            figures = [f"{mark}{price.seconds:.3g}", f"{price.joules:.3g}"]
            cells += figures if price.fits else ["–", "–"]
        printed.add_row(*cells)
    return printed


def main(overrides: Sequence[str]) -> int:
    """Print the tables."""
    if any(text in ("-h", "--help") for text in overrides):
        print(__doc__)
        return 0
    try:
        chosen, rest = choice(overrides)
        config = compose(rest)
        found = rows(config)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    server = tables().device(chosen.population.server)
    console = Console()
    if not console.is_terminal:
        width = max(len(row.name) for row in found) + 40 * len(chosen.population.devices)
        console = Console(width=width + 40)
    for name in chosen.population.links:
        console.print(table(found, chosen, tables().link(name), server))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
