"""What each cut costs on each device: seconds, joules and memory of one training batch.

    python -m app.plan model=resnet18 data=cifar10 fleet=mobile fleet.objective=joules link.up=int8

Takes the same overrides as main.py; model, data, train, quant, link and fleet matter (fleet=mobile
if none is given). One table for each link of the fleet; for each cut point the memory that the
client half needs, and for each device a batch of split learning over that link, the server to
itself. The last row is the whole network on the device, without a server. – does not fit the
device's memory; * is the best cut for the device. The model's own way down and up, once a round, is
not in it. docs/FLEET.md says how it is computed.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app import experiment
from app.config.composition import compose
from app.config.errors import explain
from app.experiment import Experiment
from fleet.cost import choose_cut, cost
from fleet.devices import Device, Link, Population, tables
from fleet.settings import FleetSettings
from fleet.work import ClientWork
from models.cost import joined
from quant.layers import quantize
from strategies.server.workload import Pieces, local_round, split_round
from tracking.text import line

WHOLE = "(no cut)"


@dataclass(frozen=True)
class Row:
    """One cut point, or `WHOLE`, and one batch of training there."""

    name: str
    work: ClientWork


def rows(chosen: Experiment) -> list[Row]:
    """Return one row per cut point, in execution order, and the whole network last.

    Raises:
        ValueError: a network that does not take the data; one line.
    """
    experiment.check_network(chosen)
    model = quantize(experiment.network(chosen), chosen.quant.spec())
    pieces = Pieces.of(model, chosen.network.inputs)
    train = replace(chosen.train, epochs=1, max_batches=None)
    link, batch = chosen.link, train.batch_size
    labels_of = chosen.task.objective().label_bytes
    found = [
        Row(name, split_round(*pieces.at(name), batch, train, link, (0, 0), labels_of))
        for name in pieces.names
    ]
    return [*found, Row(WHOLE, local_round(joined(pieces.costs), batch, train, (0, 0)))]


def population(fleet: FleetSettings) -> Population:
    """Return the fleet's devices and links.

    Raises:
        ValueError: the fleet is a trace, which has no classes.
    """
    if fleet.population is None:
        raise ValueError(f"fleet={fleet.name}: app.plan takes one of tables, not a trace")
    return tables().population(fleet.population)


def table(
    found: Sequence[Row], chosen: Population, objective: str, link: Link, server: Device
) -> Table:
    """One link's table."""
    devices = [tables().device(name) for name in chosen.devices]
    printed = Table(title=f"{link.name}: {link.down_mbps:g} Mbit/s down, {link.up_mbps:g} up")
    printed.add_column("cut")
    printed.add_column("MiB", justify="right")
    for device in devices:
        printed.add_column(f"{device.name}\ns", justify="right")
        printed.add_column("\nJ", justify="right")
    works = [row.work for row in found if row.name != WHOLE]
    best = [choose_cut(works, device, link, server, objective) for device in devices]
    for index, row in enumerate(found):
        cells: list[Text | str] = [Text(line(row.name)), f"{row.work.peak_bytes / 2**20:,.1f}"]
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
        has_fleet = any(text.startswith("fleet=") for text in overrides)
        config = compose([*([] if has_fleet else ["fleet=mobile"]), *overrides])
        chosen, found = population(config.fleet), rows(experiment.resolve(config))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {explain(error)}\n")
        return 1
    server = tables().device(chosen.server)
    console = Console()
    if not console.is_terminal:
        width = max(len(row.name) for row in found) + 40 * len(chosen.devices)
        console = Console(width=width + 40)
    for name in chosen.links:
        console.print(table(found, chosen, config.fleet.objective, tables().link(name), server))
    return 0
