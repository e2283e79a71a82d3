"""What of CutBit works with networks that it has never seen: the table of docs/NETWORKS.md.

    python -m benchmarks.networks [--onnx] [name ...]

The networks are those of tests/models/zoo, with some of timm and transformers where these are
installed, each settled as `model._target_=` settles it. A row says
how many cut points were found, at how many of them a cut trains as the whole does in every bit, why
not at the others, what was kept whole, and whether a training step of the whole is finite; then of
the network at 4 bits, how much of its multiply-adds have two operands of few bits, whether a step
is finite, whether the packed file and onnxruntime (``--onnx``) give its outputs, and whether
torch's profiler counts as many operations as `models.cost`.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.table import table
from models.cost import cost
from models.inputs import InputSpec, remember
from models.settle import settled
from models.split import cut, cut_points
from models.split import kept_whole as kept_inside
from models.trace import trace
from quant.export import Network, load_packed, save_packed
from quant.layers import QuantSpec, quantize
from quant.onnx_export import load_onnx, save_onnx
from tests.models.zoo.entry import CLASSES, Entry
from tests.models.zoo.networks import ZOO
from tests.models.zoo.packages import installed

ONNX = "--onnx"
SPEC = QuantSpec()


@dataclass(frozen=True)
class Subject:
    """A network as the project has it.

    Attributes:
        model: settled.
        spec: of its input.
    """

    model: nn.Module
    spec: InputSpec


def subject(entry: Entry) -> Subject:
    torch.manual_seed(0)
    model = settled(entry.make(), entry.spec, CLASSES)
    remember(model, entry.spec)
    return Subject(model, entry.spec)


def cuts(one: Subject) -> tuple[str, str]:
    """How many cuts are exact of how many there are, and why not at the others, or why none."""
    try:
        names = [point.name for point in cut_points(one.model, one.spec)]
        if not names:
            kept_inside(one.model, one.spec)  # raises, and says why there are none
    except ValueError as error:
        refused = "has no cut points" not in str(error)
        return "refused" if refused else "0 of 0", str(error)
    faults = []
    for name in names:
        try:
            cut(one.model, name, one.spec)
        except ValueError as error:
            faults.append(str(error))
    return f"{len(names) - len(faults)} of {len(names)}", "; ".join(faults)


def kept_whole(one: Subject) -> str:
    """Submodules that are one step each, though they are none of torch's own layers."""
    try:
        kept = trace(one.model, training=True).kept_whole
    except ValueError:
        return ""
    return "; ".join(f"{path}: {why}" for path, why in kept.items())


def finite_step(one: Subject) -> str:
    """Whether loss and gradients of a training step are finite."""
    y = torch.arange(4) % CLASSES
    loss = F.cross_entropy(one.model.train()(one.spec.example(4)), y)
    loss.backward()
    gradients = [p.grad for p in one.model.parameters() if p.grad is not None]
    finite = loss.isfinite() and all(g.isfinite().all() for g in gradients)
    return "yes" if finite and gradients else "no"


@dataclass(frozen=True)
class FewBits:
    """A network at 4 bits, after a training step.

    Attributes:
        model: it, in evaluation.
        share: of its multiply-adds that have two operands of few bits.
        is_finite: whether the step was.
    """

    model: nn.Module
    share: float
    is_finite: bool


def few_bits(one: Subject) -> FewBits:
    model = quantize(one.model, SPEC)
    is_finite = finite_step(Subject(model, one.spec)) == "yes"
    found = cost(model, one.spec.shape, dtype=one.spec.dtype)
    return FewBits(model.eval(), found.quantized_share, is_finite)


@torch.no_grad()
def packed_equal(one: Subject, few: FewBits) -> str:
    """Whether the packed file gives the same outputs, bit for bit."""
    x, dtype = one.spec.example(8), str(one.spec.dtype).removeprefix("torch.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "packed.safetensors"
        save_packed(few.model, path, Network("", {}, one.spec.shape, CLASSES, dtype), SPEC)
        return "yes" if torch.equal(load_packed(path, one.model)(x), few.model(x)) else "no"


@torch.no_grad()
def onnx_equal(one: Subject, few: FewBits) -> str:
    """Whether onnxruntime answers the same, and how far its outputs are off at most."""
    x = one.spec.example(8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        try:
            save_onnx(few.model, path, one.spec.example(2))
            found, expected = load_onnx(path)(x), few.model(x)
        except ValueError as error:
            return str(error).partition(": ")[2]
    same = int((found.argmax(1) == expected.argmax(1)).sum())
    return f"{same} of {len(x)}, {float((found - expected).abs().max()):.0e}"


COUNTED = ("aten::conv2d", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
NOT_COUNTED = (
    "conv1d", "conv3d", "conv_transpose", "mkldnn_rnn", "bilinear", "aten::mv", "aten::dot",
    "aten::_scaled_dot_product", "aten::convolution_overrideable", "quantized",
)  # fmt: skip


@torch.no_grad()
def counted_alike(one: Subject) -> str:
    """Whether torch's profiler, which knows 2-D convolutions and matrices, counts the same."""
    model, x = one.model.eval(), one.spec.example(2)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # errors; else it writes two lines a network
    with torch.profiler.profile(with_flops=True) as profile:
        model(x)
    events = profile.key_averages()
    if any(kind in event.key for event in events for kind in NOT_COUNTED):
        return "–"
    counted = sum(event.flops for event in events if event.key in COUNTED)
    expected = 2 * cost(model, one.spec.shape, dtype=one.spec.dtype).macs * len(x)
    return "yes" if counted == expected else f"{counted} and {expected}"


def row(name: str, entry: Entry, with_onnx: bool = False) -> dict[str, object]:
    try:
        one = subject(entry)
    except ValueError as error:
        return {
            "network": name, "kind": entry.kind, "exact cuts": "refused", "not exact": str(error),
            "kept whole": "", "step finite": "", "quantized": "", "4-bit step finite": "",
            "packed equal": "", "operations": "",
        }  # fmt: skip
    exact, why = cuts(one)
    few = few_bits(one)
    found: dict[str, object] = {
        "network": name,
        "kind": entry.kind,
        "exact cuts": exact,
        "not exact": why,
        "kept whole": kept_whole(one),
        "step finite": finite_step(one),
        "quantized": f"{few.share:.1%}",
        "4-bit step finite": "yes" if few.is_finite else "no",
        "packed equal": packed_equal(one, few),
        "operations": counted_alike(one),
    }
    return found | ({"ONNX": onnx_equal(one, few)} if with_onnx else {})


def main(arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    names = [name for name in arguments if name != ONNX]
    everything = {**ZOO, **installed()}
    chosen = {name: everything[name] for name in names or everything}
    rows = [row(name, entry, ONNX in arguments) for name, entry in chosen.items()]
    columns = list(dict.fromkeys(column for one in rows for column in one))
    print(table(columns, ([_cell(one.get(column, "")) for column in columns] for one in rows)))


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|")


if __name__ == "__main__":
    main(sys.argv[1:])
