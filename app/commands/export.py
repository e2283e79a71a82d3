"""Export a finished run's model: packed integers, and ONNX.

    python -m app.export runs/<name>/<time> [--onnx] [--out DIR] [--overwrite] [--trust]

Writes packed.safetensors and, with --onnx, model.onnx into the run's folder or DIR
(`app.commands.export_network`); of a run with a binarized half, that half in its bits
(`app.commands.export_half`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.text import Text

from app.commands.export_half import HalfExport, export_half, half_table, has_binary_half
from app.commands.export_network import ONNX, Export, export_network, form_table, size_table
from app.config.errors import explain
from app.config.stored import TRUST
from app.run_folder import load_experiment
from quant.onnx_export import check_packages
from tracking.text import line


def export(
    run: Path,
    out: Path,
    with_onnx: bool = False,
    overwrite: bool = False,
    trust: bool = False,
) -> Export | HalfExport:
    """Write what a run's method trained: the network, or the device's binarized half.

    Args:
        run: folder of a finished run.
        out: folder of the files, which is made where it is not there.
        with_onnx: write ONNX, too.
        overwrite: replace files that are there.
        trust: run code that the run's folder names.

    Raises:
        ValueError: there is no finished run, it names code, a package is missing, a file is there
            already, there is no such form of its model, or what was read back differs; one line.
            Then there is no new file.
        OSError: data or folders that cannot be read or written.
    """
    torch.set_num_threads(1)
    if with_onnx:
        check_packages()
    chosen = load_experiment(run, trust)
    if not has_binary_half(chosen):
        return export_network(run, chosen, out, with_onnx, overwrite)
    if with_onnx:
        raise ValueError(f"{run}: --onnx: ONNX has no form for weights of one bit")
    return export_half(run, chosen, out, overwrite)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export one run and print what came of it."""
    parser = argparse.ArgumentParser(
        "python -m app.export", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--onnx", action="store_true", help=f"also write {ONNX}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the run's folder")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    chosen = parser.parse_args(arguments)
    try:
        out = chosen.out or chosen.run
        exported = export(chosen.run, out, chosen.onnx, chosen.overwrite, chosen.trust)
    except (OmegaConfBaseException, OSError, ValueError) as error:
        sys.stderr.write(f"error: {explain(error)}\n")
        return 1
    if isinstance(exported, HalfExport):
        Console().print(half_table(exported), Text(line(exported.path), overflow="fold"))
    else:
        show(exported)
    return 0


def show(exported: Export) -> None:
    """Print the tables of a network's forms, and what is odd about them."""
    if exported.spec.is_identity:
        sys.stdout.write("This run has no quantizers: nothing to pack, the weights stay fp32.\n")
    if exported.summary_accuracy != exported.accuracy("run"):
        through = exported.tested_through
        which = "the model alone" if through else "on this machine the run's model"
        sys.stderr.write(
            f"note: summary.json states accuracy {exported.summary_accuracy:.4f}"
            f"{f' through {through}' if through else ''}; {which} has "
            f"{exported.accuracy('run'):.4f}\n"
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(len(str(f.path)) for f in exported.forms.values()) + 80)
    console.print(size_table(exported.sizes))
    console.print(form_table(exported))
