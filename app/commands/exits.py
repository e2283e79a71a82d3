"""Answers by confidence, of a finished run of strategy=hierarchical: at the edge or from the cloud.

    python -m app.exits runs/<name>/<time> [--device phone_mid] [--link 4g] [--thresholds 0.5 0.9]

The device answers where its exit is at least as sure as the threshold, and else sends what crosses
the cut, one sample at a time, through the run's link. For each threshold: the share it answers
itself, accuracy on the test set, payload bytes (up, and the class down) and simulated seconds per
sample on a device and a link of fleet/tables. Prints a table and writes exits.json, and the curve
over all thresholds as exits.html, into the run's folder. Threshold 0 never asks the cloud; `always`
asks for every sample.
"""

import argparse
import html
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from app import experiment
from app.commands.confidence import Point, Price, by_confidence
from app.config.errors import explain
from app.config.stored import TRUST
from app.evaluation import EVALUATION_BATCH
from app.run_folder import load_experiment, load_weights, write_json
from fleet.devices import tables
from fleet.phases import compute_seconds, transfer_seconds
from models.objective import label_bytes
from quant.codec import LinkSettings
from strategies.client.tiers import Tiers
from strategies.hierarchical import Hierarchical, tiers_in
from strategies.server.cuts import CutNetwork
from strategies.server.workload import forward
from tracking.figure import COLORS, plain, write_figure
from tracking.text import line

THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
ALWAYS = 2.0
"""No softmax reaches it."""
GRID = [k / 100 for k in range(100)] + [0.995, 0.999, 1.0]


def curve(
    run: Path, thresholds: Sequence[float], device: str, link: str, trust: bool = False
) -> list[Point]:
    """Return what each threshold gives, and last what asking for every sample gives.

    Args:
        run: folder of a finished run of strategy=hierarchical.
        thresholds: of confidence.
        device: a row of fleet/tables/devices.yaml.
        link: a row of fleet/tables/links.yaml.
        trust: run code that the run's folder names.

    Raises:
        ValueError: there is no such run, device or link, or the run names code.
    """
    torch.set_num_threads(1)
    chosen = load_experiment(run, trust)
    method = experiment.strategy(chosen)
    if not isinstance(method, Hierarchical):
        raise ValueError(f"{run}: takes a run of strategy=hierarchical, it is one of "
                         f"strategy={chosen.method}")  # fmt: skip
    experiment.prepare(chosen, method)
    network = method.prepared().in_round(chosen.rounds)
    assert isinstance(network, CutNetwork)
    tiers = tiers_in(network, load_weights(run))
    data, test_x = experiment.test_inputs(chosen, "app.exits")
    edge, cloud = logits(tiers, network.link, test_x)
    cost_of = price(network, device, link)
    return by_confidence(edge, cloud, data.test_y, [*thresholds, ALWAYS], cost_of)


@torch.no_grad()
def logits(tiers: Tiers, link: LinkSettings, x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, classes) logits of exit and cloud; each sample crosses as a packet of its own."""
    (codec, _), (device, server) = link.codecs(), tiers.halves.parts
    for part in (device, server, tiers.exit):
        part.eval()
    edge, cloud = [], []
    for inputs in x.split(EVALUATION_BATCH):
        z = device(inputs)
        edge.append(tiers.exit(z))
        sent = torch.cat([codec.transmit(sample, None)[0] for sample in z.split(1)])
        cloud.append(server(sent))
    return torch.cat(edge), torch.cat(cloud)


def price(network: CutNetwork, device: str, link: str) -> Price:
    """What one sample takes on a device and a link of the fleet's tables.

    Raises:
        ValueError: there is no such device or link.
    """
    on, over, server = tables().device(device), tables().link(link), tables().device("server")
    (part, head), rest = network.only().costs
    codec, _ = network.link.codecs()
    up, down = codec.num_bytes((1, *part.output_shape)), label_bytes(rest.output_shape[-1])
    return Price(
        edge_s=compute_seconds(forward(part, 1) + forward(head, 1), on),
        cloud_s=transfer_seconds(up, over.up_mbps, over.latency_s)
        + compute_seconds(forward(rest, 1), server)
        + transfer_seconds(down, over.down_mbps, over.latency_s),
        bytes_up=up,
        bytes_down=down,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each run."""
    parser = argparse.ArgumentParser(
        "python -m app.exits", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished hierarchical runs")
    parser.add_argument("--thresholds", nargs="+", type=float, default=list(THRESHOLDS))
    parser.add_argument("--device", default="phone_mid", help="of fleet/tables/devices.yaml")
    parser.add_argument("--link", default="4g", help="of fleet/tables/links.yaml")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    chosen = parser.parse_args(arguments)
    for run in chosen.runs:
        try:
            thresholds = [*chosen.thresholds, *GRID]
            *everywhere, always = curve(run, thresholds, chosen.device, chosen.link, chosen.trust)
            points = [*everywhere[: len(chosen.thresholds)], always]
            title = line(f"{run} on {chosen.device}, {chosen.link}")
            write_figure(run / "exits.html", figure([*everywhere[-len(GRID) :], always], title))
            found = {"device": chosen.device, "link": chosen.link}
            write_json(run / "exits.json", found | {"points": [asdict(p) for p in points]})
        except (OmegaConfBaseException, OSError, ValueError) as error:
            sys.stderr.write(f"error: {explain(error)}\n")
            return 1
        Console().print(table(points, title))
    return 0


def table(points: Sequence[Point], title: str) -> Table:
    """One run's table."""
    printed = Table(title=Text(title))
    for heading in ("threshold", "at the edge", "accuracy", "of its own", "B/sample", "ms/sample"):
        printed.add_column(heading, justify="right")
    for point in points:
        printed.add_row(
            "always" if point.threshold >= ALWAYS else f"{point.threshold:g}",
            f"{point.edge_share:.1%}",
            f"{point.accuracy:.4f}",
            "–" if point.edge_accuracy is None else f"{point.edge_accuracy:.4f}",
            f"{point.bytes:,.1f}",
            f"{1000 * point.seconds:,.2f}",
        )
    return printed


def figure(points: Sequence[Point], title: str) -> Any:
    """The curve over the thresholds; the last point is asking for every sample.

    Args:
        points: in the order of their thresholds.
        title: stands above, as text.
    """
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    *points, always = points
    thresholds = [point.threshold for point in points]
    own = [None if p.edge_accuracy is None else 100 * p.edge_accuracy for p in points]
    panels: dict[str, dict[str, list[Any]]] = {
        "accuracy, %": {
            "all answers": [100 * point.accuracy for point in points],
            "the device's own answers": own,
            "cloud alone": [100 * always.accuracy] * len(points),
            "device alone": [100 * points[0].accuracy] * len(points),
        },
        "answered on the device, %": {"share": [100 * point.edge_share for point in points]},
        "bytes per sample": {"bytes": [point.bytes for point in points]},
        "simulated ms per sample": {"ms": [1000 * point.seconds for point in points]},
    }
    drawn = make_subplots(rows=2, cols=2, subplot_titles=list(panels), vertical_spacing=0.14)
    for index, lines in enumerate(panels.values()):
        for (name, values), color in zip(lines.items(), COLORS, strict=False):
            line = Scatter(
                x=thresholds, y=values, name=name, mode="lines", showlegend=index == 0,
                line={"color": color, "width": 2, "dash": "dot" if "alone" in name else "solid"},
                hovertemplate="%{x:.3g}: %{y:.4g}",
            )  # fmt: skip
            drawn.add_trace(line, row=index // 2 + 1, col=index % 2 + 1)
    drawn.update_xaxes(title="threshold", row=2)
    plain(drawn, html.escape(title))
    return drawn
