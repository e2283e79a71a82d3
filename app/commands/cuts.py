"""Where a network can be cut, and what each cut costs.

    python -m app.cuts model=resnet18 data=cifar10

Takes the same overrides as main.py; only model and data matter. For each cut point: the shape of
the activation that crosses, its bytes per sample at 32, 8 and 1 bits, and parameters and forward
FLOPs (a multiply-add counts as two) on either side. Below it are the parts of the network that are
kept whole, inside of which there are no cut points, and why.
"""

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app import experiment
from app.config.composition import compose
from app.config.errors import explain
from models.blocks import by
from models.cost import cost
from models.inputs import example_of
from models.split import cut_many, cut_points, kept_whole
from strategies.server.workload import cost_at
from tracking.text import line

BITS = (32, 8, 1)


@dataclass(frozen=True)
class Cuts:
    """A network's cut points.

    Attributes:
        rows: in execution order.
        kept_whole: path of each submodule without cut points inside → why.
    """

    rows: list["Row"]
    kept_whole: dict[str, str]


@dataclass(frozen=True)
class Row:
    """One cut point.

    Attributes:
        name: what ``split.cut`` will take.
        shape: of one sample's activation.
        client_params: parameters before the cut.
        server_params: parameters after it.
        client_flops: forward operations per sample before the cut.
        server_flops: forward operations per sample after it.
    """

    name: str
    shape: tuple[int, ...]
    client_params: int
    server_params: int
    client_flops: int
    server_flops: int

    def num_bytes(self, bits: int) -> int:
        """Bytes of one sample's activation at ``bits`` per value."""
        return math.ceil(math.prod(self.shape) * bits / 8)


def find(overrides: Sequence[str]) -> Cuts:
    """Return a row per cut point, in execution order, and what has none inside.

    Raises:
        ValueError: wrong overrides, or a network that cannot be cut; one line.
    """
    chosen = experiment.resolve(compose(overrides))
    experiment.check_network(chosen)
    model, inputs = experiment.network(chosen), chosen.network.inputs
    example = example_of(inputs)
    try:
        whole = kept_whole(model, example)
    except ValueError as error:
        raise ValueError(f"model={chosen.network.name}: {error}") from error
    points = cut_points(model, example)
    # Cut everywhere at once: what is before a cut is the sum of the pieces before it.
    names = [point.name for point in points]
    first, *rest = cut_many(model, names, example, check=False)
    shapes = [point.shape for point in points]
    costs = [cost_at(first, inputs), *(cost(*pair) for pair in zip(rest, shapes, strict=True))]
    params = list(itertools.accumulate(piece.params for piece in costs))
    flops = list(itertools.accumulate(piece.flops_forward for piece in costs))
    rows = [
        Row(p.name, p.shape, params[i], params[-1] - params[i], flops[i], flops[-1] - flops[i])
        for i, p in enumerate(points)
    ]
    return Cuts(rows, whole)


def main(overrides: Sequence[str]) -> int:
    """Print the table."""
    if any(text in ("-h", "--help") for text in overrides):
        print(__doc__)
        return 0
    try:
        found = find(overrides)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {explain(error)}\n")
        return 1
    table = Table()
    table.add_column("cut")
    columns = [f"B at {bits} bits" if bits > 1 else "B at 1 bit" for bits in BITS]
    sides = ["client params", "server params", "client MFLOPs", "server MFLOPs"]
    for heading in ["activation", *columns, *sides]:
        table.add_column(heading, justify="right")
    for row in found.rows:
        table.add_row(
            Text(line(row.name)),
            by(row.shape),
            *(f"{row.num_bytes(bits):,}" for bits in BITS),
            f"{row.client_params:,}",
            f"{row.server_params:,}",
            f"{row.client_flops / 1e6:,.2f}",
            f"{row.server_flops / 1e6:,.2f}",
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(len(row.name) for row in found.rows) + 140)
    console.print(table)
    for path, why in found.kept_whole.items():
        console.print(Text(line(f"{path} is kept whole: {why}")), soft_wrap=True)
    return 0
