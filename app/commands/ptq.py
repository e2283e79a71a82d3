"""Post-training quantization of a finished run: what the same bits cost without learning steps.

    python -m app.ptq runs/<name>/<time> [--bits 2 3 4 8] [--per-channel] [--batches 8] [--trust]

Loads the run's fp32 model, sets every step by the largest |value| (weights from the weights, inputs
from training batches), and evaluates on the test set. Prints a table and writes ptq.json into the
run's folder. First and last layer have the run's quant.edge_bits.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from app import experiment
from app.commands.export_half import has_binary_half
from app.config.errors import explain
from app.config.stored import TRUST
from app.evaluation import measure
from app.run_folder import fill, load_experiment, load_weights, refuse_private, write_json
from data.dataset import Inputs
from quant.layers import QuantSpec, calibrate_minmax, quantize
from tracking.text import line

CALIBRATION_BATCH = 250


def accuracies(
    run: Path,
    bits: Sequence[int],
    per_channel: bool = False,
    num_batches: int = 8,
    trust: bool = False,
) -> dict[int, float]:
    """Accuracy of the run's model after post-training quantization, by bit width.

    Args:
        run: folder of a finished run with an fp32 model.
        bits: widths of weights and activations; 32 is the model as it is.
        per_channel: one step per output channel of each weight.
        num_batches: training batches of 250 samples that calibrate the inputs.
        trust: run code that the run's folder names.

    Raises:
        ValueError: there is no finished run, it names code, or its model is quantized, private or
            another network.
    """
    torch.set_num_threads(1)
    chosen = load_experiment(run, trust)
    refuse_private(chosen, run)
    if has_binary_half(chosen):
        raise ValueError(f"{run}: its model is binary already; takes a run of real weights")
    weights = load_weights(run)
    if any("_quantizer." in name for name in weights):
        raise ValueError(f"{run}: its model is quantized; take a run of fedavg or of quant.bits=32")
    model = fill(experiment.network(chosen), weights, run)
    data, objective = experiment.dataset(chosen), chosen.task.objective()
    found = {}
    for width in bits:
        spec = QuantSpec(width, width, chosen.quant.edge_bits, per_channel=per_channel)
        quantized = calibrated(model, spec, data.train_x, num_batches, run)
        found[width] = measure(quantized, data.test_x, data.test_y, objective)["accuracy"]
    return found


def calibrated(
    model: nn.Module, spec: QuantSpec, x: Inputs, num_batches: int, run: Path
) -> nn.Module:
    """Return ``model`` quantized by ``spec``, its steps set by the largest value of each.

    Args:
        model: of real numbers, trained.
        spec: bit widths and kind of quantizers.
        x: (N, …) training inputs, of which ``num_batches`` of 250 calibrate the inputs.
        num_batches: how many.
        run: its folder, for messages.

    Raises:
        ValueError: the network takes several inputs.
    """
    if not isinstance(x, torch.Tensor):
        raise ValueError(f"{run}: takes a network of one input to calibrate")
    quantized = quantize(model, spec)
    calibrate_minmax(quantized, itertools.islice(x.split(CALIBRATION_BATCH), num_batches))
    return quantized


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of one or more runs."""
    parser = argparse.ArgumentParser(
        "python -m app.ptq", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished fp32 runs")
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 3, 4, 8])
    parser.add_argument("--per-channel", action="store_true")
    parser.add_argument("--batches", type=int, default=8, help="of 250 samples, for calibration")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    chosen = parser.parse_args(arguments)
    table = Table("run", *(f"{width} bits" for width in chosen.bits))
    try:
        for run in chosen.runs:
            found = accuracies(run, chosen.bits, chosen.per_channel, chosen.batches, chosen.trust)
            write_json(run / "ptq.json", {str(width): value for width, value in found.items()})
            table.add_row(Text(line(run)), *(f"{value:.4f}" for value in found.values()))
    except (OmegaConfBaseException, OSError, ValueError) as error:
        sys.stderr.write(f"error: {explain(error)}\n")
        return 1
    Console().print(table)
    return 0
