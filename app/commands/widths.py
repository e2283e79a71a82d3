"""A finished run's model at any bit width: with the steps that were learned, else calibrated.

    python -m app.widths runs/<name>/<time> [--bits 2 3 4 5 6 7 8 32] [--batches 8] [--trust]

Takes runs whose model is a whole network, of one width or of one per client, also over a cut. A
width that clients trained has steps of its own, with which all channels are tested; for the others
every step is set by the largest |value|, as `app.ptq` does it. Prints accuracy on the test set, and
writes widths.json into the run's folder.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from app import experiment
from app.commands.ptq import calibrated
from app.config.errors import explain
from app.config.stored import TRUST
from app.evaluation import measure
from app.experiment import Experiment
from app.run_folder import fill, load_experiment, load_weights, refuse_private, write_json
from app.summary import kinds_of
from quant.layers import QuantSpec, quantize
from strategies.client.training import load_arrays
from strategies.server.cuts import CutNetwork
from strategies.server.kinds import mark_of
from strategies.server.varied import VariedNetwork
from tracking.text import line

BITS = (2, 3, 4, 5, 6, 7, 8, 32)


@dataclass(frozen=True)
class AtWidth:
    """A model at one width.

    Attributes:
        accuracy: on the test set.
        steps: ``learned``, ``calibrated``, or ``none`` at 32 bits.
    """

    accuracy: float
    steps: str


def accuracies(
    run: Path, bits: Sequence[int] = BITS, num_batches: int = 8, trust: bool = False
) -> dict[int, AtWidth]:
    """Accuracy of the run's model at each of ``bits``.

    Args:
        run: folder of a finished run.
        bits: widths of weights and activations.
        num_batches: training batches of 250 samples that calibrate inputs without a learned step.
        trust: run code that the run's folder names.

    Raises:
        ValueError: there is no finished run, it names code, or its model is no whole network.
    """
    torch.set_num_threads(1)
    chosen = load_experiment(run, trust)
    refuse_private(chosen, run)
    plain, learned = models(chosen, run)
    data, objective = experiment.dataset(chosen), chosen.task.objective()
    found = {}
    for width in bits:
        spec = QuantSpec(width, width, chosen.quant.edge_bits, per_channel=chosen.quant.per_channel)
        steps = "none" if spec.is_identity else "learned" if width in learned else "calibrated"
        model = learned.get(width)
        if model is None:
            model = calibrated(plain, spec, data.train_x, num_batches, run)
        accuracy = measure(model, data.test_x, data.test_y, objective)["accuracy"]
        found[width] = AtWidth(accuracy, steps)
    return found


def models(chosen: Experiment, run: Path) -> tuple[nn.Module, dict[int, nn.Module]]:
    """Return a run's network of real weights, and by width those with the steps it learned.

    Raises:
        ValueError: its model is of another kind.
    """
    method, weights = experiment.strategy(chosen), load_weights(run)
    model = experiment.network(chosen)
    experiment.prepare(chosen, method)
    network = method.prepared().in_round(1)
    learned: dict[int, nn.Module] = {}
    if kinds := sorted(kinds_of(network), key=lambda kind: kind.share):
        assert isinstance(network, VariedNetwork | CutNetwork)
        if network.model.state_dict().keys() != weights.keys():
            raise ValueError(f"{run}: not the model of this run's configuration")
        for kind in kinds:
            spec, view = kind.spec, kind.view
            if chosen.submodel.statistics == "shared":  # else no other network has any
                view = network.fresh.get(mark_of(spec), view)
            if kind.has_begun(weights) and spec.weight_bits == spec.act_bits:
                learned[spec.weight_bits] = view.loaded(weights)
        load_arrays(model, {name: weights[name] for name in model.state_dict()})
        return model, learned
    if not any("_quantizer." in name for name in weights):
        return fill(model, weights, run), learned
    spec = chosen.quant.spec(experiment.method_class(chosen).default_bits)
    whole = fill(quantize(model, spec), weights, run)
    if spec.weight_bits == spec.act_bits:
        learned[spec.weight_bits] = whole
    load_arrays(model, {name: weights[name] for name in model.state_dict()})
    return model, learned


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of one or more runs."""
    parser = argparse.ArgumentParser(
        "python -m app.widths", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--bits", nargs="+", type=int, default=list(BITS))
    parser.add_argument("--batches", type=int, default=8, help="of 250 samples, for calibration")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    chosen = parser.parse_args(arguments)
    table = Table("run", *(f"{width} bits" for width in chosen.bits))
    try:
        for run in chosen.runs:
            found = accuracies(run, chosen.bits, chosen.batches, chosen.trust)
            said = {str(w): {"accuracy": a.accuracy, "steps": a.steps} for w, a in found.items()}
            write_json(run / "widths.json", said)
            marks = {"learned": " learned", "calibrated": "", "none": ""}
            cells = [f"{one.accuracy:.4f}{marks[one.steps]}" for one in found.values()]
            table.add_row(Text(line(run)), *cells)
    except (OmegaConfBaseException, OSError, ValueError) as error:
        sys.stderr.write(f"error: {explain(error)}\n")
        return 1
    Console().print(table)
    return 0
