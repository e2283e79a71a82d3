"""What each cut, width and slice costs on each device: seconds, joules, bytes, memory of a batch.

    python -m app.plan model=resnet18 data=cifar10 fleet=mobile fleet.objective=joules link.up=int8

    python -m app.plan model=resnet18 data=cifar10 plan=auto plan.floor=0.5
    python -m app.plan strategy=heterofl plan=auto

Takes the same overrides as main.py; model, data, train, quant, submodel, link, plan and fleet
matter (fleet=mobile if none is given). One table for each link of the fleet; for each cut point,
and each width where quant.bits is a mapping or auto, the memory that the client half needs and the
bytes that cross, and for each device a batch of split learning over that link, the server to
itself. The last row of a width is the whole network on the device, without a server; with heterofl
and fjord there are slices of it in place of cuts, with splitfed_v1 cuts with slices of the device's
part. – does not fit the device's memory; * is what
takes least, with plan=auto of what has plan.floor of the capacity, of slices without a plan the
largest. The model's own way down and up, once a round, is not in it. docs/FLEET.md says how it is
computed.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from app import experiment
from app.config.composition import compose, is_under
from app.config.errors import explain
from app.experiment import Experiment
from fleet.cost import cost, least
from fleet.devices import Device, Link, Population, tables
from fleet.per_client import DEFAULT
from fleet.settings import FleetSettings
from fleet.work import ClientWork
from models.cost import joined
from models.slices import Channels
from quant.layers import FULL_PRECISION, QuantSpec, quantize
from strategies.server.cuts import PartCosts
from strategies.server.cutting import costs_of_shares
from strategies.server.kinds import SubmodelSettings, Widths, bits_name, share_name, sliceable
from strategies.server.planning import Planning, PlanSettings
from strategies.server.workload import Pieces, cost_at, local_round, split_round
from tracking.text import line

WHOLE = "(no cut)"


@dataclass(frozen=True)
class Row:
    """One cut point, `WHOLE` or a slice, and one batch of training there.

    Attributes:
        name: of it.
        work: of the batch.
        capacity: bit operations, as a share of those of the row with the most.
        is_choice: whether a client could have it; not the whole network beside its cuts.
    """

    name: str
    work: ClientWork
    capacity: float = 1.0
    is_choice: bool = True


def rows(chosen: Experiment) -> list[Row]:
    """Return one row per width and cut point, in execution order, the whole network last.

    Of methods of slices one row per width and share.

    Raises:
        ValueError: a network that does not take the data; one line.
    """
    experiment.check_network(chosen)
    kind = experiment.method_class(chosen)
    specs = Widths(chosen.quant, FULL_PRECISION).specs()
    is_sliced, is_cut = (is_under(key, kind.reads) for key in ("submodel.share", "split.cut"))
    make = _slices if is_sliced and not is_cut else _cuts
    found = [
        (f"{name} {bits_name(spec)}" if len(specs) > 1 else name, work, bops, name != WHOLE)
        for spec in specs
        for name, work, bops in make(chosen, spec)
    ]
    most = max(bops for _, _, bops, _ in found)
    return [Row(name, work, bops / most, is_choice) for name, work, bops, is_choice in found]


def _cuts(chosen: Experiment, spec: QuantSpec) -> Iterator[tuple[str, ClientWork, int]]:
    """Each cut point and the whole, with the work of a batch and the network's bit operations.

    Of splitfed_v1 each cut point with each share of the channels that a client may have.
    """
    network, inputs = experiment.network(chosen), chosen.network.inputs
    pieces = Pieces.of(quantize(network, spec), inputs)
    train = replace(chosen.train, epochs=1, max_batches=None)
    link, batch = chosen.link, train.batch_size
    labels_of = chosen.task.objective().label_bytes
    whole = joined(pieces.costs)
    has_shares = is_under("submodel.share", experiment.method_class(chosen).reads)
    submodel = chosen.submodel if has_shares else SubmodelSettings()
    submodel, channels = sliceable(submodel, network, inputs)
    shares = submodel.stated_shares()

    def costs_of(narrow: nn.Module) -> dict[str, PartCosts]:
        own = pieces if narrow is network else Pieces.of(quantize(narrow, spec), inputs)
        return {name: own.at(name) for name in own.names}

    found = costs_of_shares(network, shares, channels, costs_of)
    for name in pieces.names:
        for share in shares:
            if name not in found[share]:
                continue
            device, server = found[share][name]
            work = split_round(device, server, batch, train, link, (0, 0), labels_of)
            row = name if shares == [1.0] else f"{name} {share_name(share)}"
            yield row, work, sum(part.bops for part in [*device, server])
    yield WHOLE, local_round(whole, batch, train, (0, 0)), whole.bops


def _slices(chosen: Experiment, spec: QuantSpec) -> Iterator[tuple[str, ClientWork, int]]:
    """Each share of the channels that a client may have."""
    channels = Channels.of(experiment.network(chosen))
    train = replace(chosen.train, epochs=1, max_batches=None)
    for share in chosen.submodel.stated_shares():
        found = cost_at(quantize(channels.sliced(share)[0], spec), chosen.network.inputs)
        yield (
            share_name(share),
            local_round(found, train.batch_size, train, (0, 0)),
            found.bops,
        )


def population(fleet: FleetSettings) -> Population:
    """Return the fleet's devices and links.

    Raises:
        ValueError: the fleet is a trace, which has no classes.
    """
    if fleet.population is None:
        raise ValueError(f"fleet={fleet.name}: app.plan takes one of tables, not a trace")
    return tables().population(fleet.population)


def table(
    found: Sequence[Row], chosen: Population, planning: Planning, link: Link, server: Device
) -> Table:
    """One link's table."""
    devices = [tables().device(name) for name in chosen.devices]
    printed = Table(title=f"{link.name}: {link.down_mbps:g} Mbit/s down, {link.up_mbps:g} up")
    printed.add_column("cut" if any(not row.is_choice for row in found) else "slice")
    printed.add_column("MiB", justify="right")
    printed.add_column("kB", justify="right")
    for device in devices:
        printed.add_column(f"{device.name}\ns", justify="right")
        printed.add_column("\nJ", justify="right")
    best = [chosen_row(found, device, link, server, planning) for device in devices]
    for row in found:
        total = row.work.total()
        size = (total.bytes_up + total.bytes_down) / 1000
        cells: list[Text | str] = [
            Text(line(row.name)), f"{row.work.peak_bytes / 2**20:,.1f}", f"{size:,.1f}",
        ]  # fmt: skip
        for device, best_row in zip(devices, best, strict=True):
            price = cost(row.work, device, link, server)
            mark = "*" if row is best_row else ""
            figures = [f"{mark}{price.seconds:.3g}", f"{price.joules:.3g}"]
            cells += figures if price.fits else ["–", "–"]
        printed.add_row(*cells)
    return printed


def chosen_row(
    found: Sequence[Row], device: Device, link: Link, server: Device, planning: Planning
) -> Row | None:
    """What takes a device least, by the plan; None if nothing fits its memory."""
    rows = sorted((row for row in found if row.is_choice), key=lambda row: row.capacity)
    costs = [cost(row.work, device, link, server) for row in rows]
    if not any(one.fits for one in costs):
        return None
    capacities = [row.capacity for row in rows]
    if len(rows) < len(found) and not planning.settings.is_auto:  # of cuts the one of least
        return rows[least(costs, capacities, planning.objective, floor=0.0)]
    return rows[planning.choose(costs, capacities, None, device.name)]


def of_devices(settings: PlanSettings | None) -> PlanSettings | None:
    """The plan where there are devices and no clients: one that its floors do not name has none."""
    if settings is None or not isinstance(settings.floor, Mapping):
        return settings
    return replace(settings, floor={DEFAULT: 0.0, **settings.floor})


def main(overrides: Sequence[str]) -> int:
    """Print the tables."""
    if any(text in ("-h", "--help") for text in overrides):
        print(__doc__)
        return 0
    try:
        has_fleet = any(text.startswith("fleet=") for text in overrides)
        config = compose([*([] if has_fleet else ["fleet=mobile"]), *overrides])
        chosen, found = population(config.fleet), rows(experiment.resolve(config))
        planning = Planning.of(of_devices(config.plan), config.fleet.objective)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {explain(error)}\n")
        return 1
    server = tables().device(chosen.server)
    console = Console()
    if not console.is_terminal:
        width = max(len(row.name) for row in found) + 40 * len(chosen.devices)
        console = Console(width=width + 40)
    for name in chosen.links:
        console.print(table(found, chosen, planning, tables().link(name), server))
    return 0
