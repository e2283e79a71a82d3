"""What `python -m app.export` does with a binarized run: the device's half in its bits.

Writes packed_half.safetensors (`quant.binary_export`) into the run's folder or DIR. It is read back
and its bits at the cut are compared with the network's own, on the whole test set, before it gets
its name.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from safetensors.torch import save_file
from torch import nn

from app import experiment
from app.evaluation import EVALUATION_BATCH
from app.experiment import Experiment
from app.run_folder import fill, load_weights
from models.split import cut
from quant.binary_export import load_packed, pack_half, save_packed
from strategies.binarized_split import BinarizedSplit
from strategies.server.cuts import CutNetwork

PACKED_HALF = "packed_half.safetensors"


@dataclass(frozen=True)
class HalfExport:
    """What the file holds.

    Attributes:
        path: the file.
        weight_bytes: of the packed weights, one bit each.
        plain_weight_bytes: of the same weights at fp32.
        file_bytes: of the file, thresholds and header included.
        plain_file_bytes: of a safetensors file with the real-valued half.
        num_bits: bits at the cut that were compared, of the whole test set.
    """

    path: Path
    weight_bytes: int
    plain_weight_bytes: int
    file_bytes: int
    plain_file_bytes: int
    num_bits: int


def has_binary_half(chosen: Experiment) -> bool:
    """Whether a run's device had a half of one bit."""
    is_ours = issubclass(experiment.method_class(chosen), BinarizedSplit)
    return is_ours and chosen.own["settings"].binarize != "none"


def export_half(run: Path, chosen: Experiment, out: Path, overwrite: bool = False) -> HalfExport:
    """Write the device's half to ``out``, read it back, and compare.

    Args:
        run: folder of a finished run for which `has_binary_half` says yes.
        chosen: what it stored.
        out: folder of the file, which is made where it is not there.
        overwrite: replace a file that is there.

    Raises:
        ValueError: a file is there already, the model is damaged or does not fold into bits, or
            what was read back differs; one line. Then there is no new file.
    """
    path = out / PACKED_HALF
    if path.exists() and not overwrite:
        raise ValueError(f"{path}: is there already; --overwrite replaces it")
    half, name = device_half(run, chosen)
    try:
        packed = pack_half(half)
    except ValueError as error:
        raise ValueError(f"{run}: split.cut={name}: {error}") from error
    _, x = experiment.test_inputs(chosen, "app.export")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as temporary:
        written, plain = Path(temporary) / PACKED_HALF, Path(temporary) / "plain"
        save_packed(packed, written)
        loaded = load_packed(written)
        num_bits = num_different = 0
        for batch in x.split(EVALUATION_BATCH):
            with torch.no_grad():
                own = half(batch)
            num_bits += own.numel()
            num_different += int((loaded(batch) != own).sum())
        if num_different:
            raise ValueError(f"{run}: {num_different} of the packed half's bits are not the run's")
        first, _ = cut(experiment.network(chosen), name)
        save_file({n: t.contiguous() for n, t in first.state_dict().items()}, plain)
        sizes = written.stat().st_size, plain.stat().st_size
        written.replace(path)
    num_weights = sum(layer.geometry.num_weights for layer in packed.layers)
    return HalfExport(path, packed.weight_bytes(), 4 * num_weights, *sizes, num_bits)


def device_half(run: Path, chosen: Experiment) -> tuple[nn.Module, str]:
    """Return the device's trained half in evaluation mode, and where it was cut.

    Raises:
        ValueError: the file is damaged, or of another network.
    """
    strategy = experiment.strategy(chosen)
    assert isinstance(strategy, BinarizedSplit)
    experiment.prepare(chosen, strategy)
    network = strategy.prepared().in_round(1)
    assert isinstance(network, CutNetwork)
    split, half = network.only().split, network.only().parts.device[0]
    weights = {n: w for n, w in load_weights(run).items() if n in half.state_dict()}
    return fill(half, weights, run), split.cut


def half_table(exported: HalfExport) -> Table:
    """Sizes beside those of the real-valued half."""
    table = Table("device's half", title=f"{exported.num_bits:,} bits at the cut, none differs")
    for heading in ("bytes", "fp32 bytes", "ratio"):
        table.add_column(heading, justify="right")
    for part, size, plain in (
        ("weights", exported.weight_bytes, exported.plain_weight_bytes),
        ("file", exported.file_bytes, exported.plain_file_bytes),
    ):
        table.add_row(part, f"{size:,}", f"{plain:,}", f"{plain / size:.2f}")
    return table
