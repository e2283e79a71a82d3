"""What `python -m app.export` does with a network: packed integers, and ONNX.

Writes packed.safetensors (`quant.export`) and, where asked for, model.onnx (`quant.onnx_export`).
Each file is read back and evaluated on the test set before it gets its name: the packed one must
give the run's outputs exactly, onnxruntime its accuracy to 0.1 points.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from app import experiment
from app.evaluation import EVALUATION_BATCH
from app.experiment import Experiment
from app.run_folder import MODEL, fill, load_weights, refuse_private
from quant.export import Network, SizeReport, is_ours, load_packed, save_packed, size_report
from quant.layers import FULL_PRECISION, QuantSpec, quantize
from quant.onnx_export import load_onnx, save_onnx
from tracking.text import line

PACKED, ONNX = "packed.safetensors", "model.onnx"
MOST_POINTS = 0.1
"""Points of accuracy by which onnxruntime may differ: it adds up in another order than torch."""


@dataclass(frozen=True)
class Form:
    """What a run's model did on the test set, in one of its forms.

    Attributes:
        path: its file.
        num_bytes: of the file.
        num_correct: samples that it puts into the right class.
        num_changed: samples that the run's own model puts into another class.
    """

    path: Path
    num_bytes: int
    num_correct: int
    num_changed: int


@dataclass(frozen=True)
class Export:
    """A run's model as it was, and as it was written.

    Attributes:
        spec: bit widths; 32 where the run has no quantizers.
        sizes: what the packed file holds.
        forms: ``run``, ``packed``, and where asked for ``onnx``.
        num_samples: samples of the test set.
        summary_accuracy: what the run's summary says.
        tested_through: keys of what that accuracy has between the network's parts, and the model
            alone has not; empty for nothing.
    """

    spec: QuantSpec
    sizes: SizeReport
    forms: dict[str, Form]
    num_samples: int
    summary_accuracy: float
    tested_through: str = ""

    def accuracy(self, form: str) -> float:
        """Share of right answers."""
        return self.forms[form].num_correct / self.num_samples


def export_network(
    run: Path, chosen: Experiment, out: Path, with_onnx: bool = False, overwrite: bool = False
) -> Export:
    """Write a run's model to ``out``, read it back, and compare.

    Args:
        run: folder of a finished run.
        chosen: what it stored.
        out: folder of the files, which is made where it is not there.
        with_onnx: write ONNX, too.
        overwrite: replace files that are there.

    Raises:
        ValueError: the run is not finished, its model is no quantized network, a file is there
            already, or what was read back differs; one line. Then there is no new file.
        OSError: data or folders that cannot be read or written.
    """
    names = [PACKED, ONNX] if with_onnx else [PACKED]
    for name in names:
        if (out / name).exists() and not overwrite:
            raise ValueError(f"{out / name}: is there already; --overwrite replaces it")
    summary_accuracy = _summary_accuracy(run)
    model, spec = load_model(run, chosen)
    data, test_x = experiment.test_inputs(chosen, "app.export")
    expected = outputs(model, test_x)

    def compare(file: Path, folder: Path, got: Tensor) -> Form:
        answers = got.argmax(1)
        correct, changed = answers == data.test_y, answers != expected.argmax(1)
        path, size = folder / file.name, file.stat().st_size
        return Form(path, size, int(correct.sum()), int(changed.sum()))

    forms = {"run": compare(run / MODEL, run, expected)}
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as temporary:
        folder = Path(temporary)
        network = describe_network(chosen)
        save_packed(model, folder / PACKED, network, spec)
        own = None if is_ours(network) else experiment.network(chosen)
        loaded = load_packed(folder / PACKED, own)
        got = outputs(loaded, test_x)
        if not torch.equal(got, expected):
            raise ValueError(f"{run}: the packed file does not give the run's outputs")
        forms["packed"] = compare(folder / PACKED, out, got)
        sizes = size_report(folder / PACKED, loaded)
        if with_onnx:
            save_onnx(loaded, folder / ONNX, network.zeros())
            got = outputs(load_onnx(folder / ONNX), test_x)
            forms["onnx"] = compare(folder / ONNX, out, got)
        exported = Export(
            spec, sizes, forms, len(data.test_y), summary_accuracy, tested_through(chosen)
        )
        if with_onnx:
            check_onnx(exported)
        for name in names:
            (folder / name).replace(out / name)
    return exported


def check_onnx(exported: Export) -> None:
    """Refuse an ONNX file that onnxruntime runs with another accuracy.

    Raises:
        ValueError: both accuracies.
    """
    forms = exported.forms
    difference = abs(forms["onnx"].num_correct - forms["run"].num_correct)
    if difference > exported.num_samples * MOST_POINTS / 100:
        raise ValueError(
            f"{forms['onnx'].path}: onnxruntime gives accuracy {exported.accuracy('onnx'):.4f}, "
            f"the run's model {exported.accuracy('run'):.4f}, more than {MOST_POINTS} points apart"
        )


def load_model(run: Path, chosen: Experiment) -> tuple[nn.Module, QuantSpec]:
    """Return a run's final model and what it was quantized by.

    Raises:
        ValueError: the file is damaged, or holds no network that `quantize` makes, or each client
            has a half of its own.
    """
    refuse_private(chosen, run)
    kind = experiment.method_class(chosen)
    spec = QuantSpec(FULL_PRECISION, FULL_PRECISION)
    if "quant.bits" in kind.reads:
        spec = chosen.quant.spec(kind.default_bits)
    if not spec.is_identity and "quant.side" in kind.reads and chosen.quant.side != "both":
        raise ValueError(f"{run}: quant.side={chosen.quant.side}: takes a network quantized whole")
    model = quantize(experiment.network(chosen), spec)
    return fill(model, load_weights(run), run), spec


def tested_through(chosen: Experiment) -> str:
    """Return the keys that change what crosses the cut when a run is tested, or what is tested."""
    kind = experiment.method_class(chosen)
    given: dict[str, Any] = {}
    if "link" in kind.reads:
        codecs = {"link.up": chosen.link.up}
        if "split.tail" in kind.reads:  # else only gradients go down
            codecs["link.down"] = chosen.link.down
        given |= {key: codec for key, codec in codecs.items() if codec != "fp32"}
    if "privacy" in kind.reads and chosen.privacy.epsilon:
        given["privacy.epsilon"] = chosen.privacy.epsilon
    if chosen.evaluate.on == "clients":  # not of the test set at all
        given["evaluate.on"] = chosen.evaluate.on
    return " ".join(f"{key}={value}" for key, value in given.items())


def describe_network(chosen: Experiment) -> Network:
    """Return how a run's network is built, without its quantizers."""
    return Network(
        target=chosen.network.target,
        options=dict(chosen.network.options),
        input_shape=chosen.network.input_shape,
        num_classes=chosen.network.num_classes,
    )


@torch.no_grad()
def outputs(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Outputs (N, classes) for inputs (N, …), in the batches that the server evaluates in."""
    return torch.cat([model(batch) for batch in x.split(EVALUATION_BATCH)])


def _summary_accuracy(run: Path) -> float:
    path = run / "summary.json"
    try:
        return float(json.loads(path.read_text("utf-8"))["final_accuracy"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is damaged: it states no final_accuracy") from error


def size_table(sizes: SizeReport) -> Table:
    """What the packed file is made of, and bit operations."""
    table = Table("part", title=PACKED)
    for heading in ("bytes", "fp32 bytes", "ratio"):
        table.add_column(heading, justify="right")
    for part in sizes.parts:
        ratio = _ratio(part.fp32_bytes, part.num_bytes) if part.fp32_bytes else ""
        table.add_row(Text(line(part.name)), f"{part.num_bytes:,}", f"{part.fp32_bytes:,}", ratio)
    total = (f"{sizes.num_bytes:,}", f"{sizes.fp32_bytes:,}", f"{sizes.ratio:.2f}")
    table.add_row("file", *total, end_section=True)
    bops = (f"{sizes.bops:,}", f"{sizes.fp32_bops:,}", _ratio(sizes.fp32_bops, sizes.bops))
    table.add_row("bit operations a sample", *bops)
    return table


def form_table(exported: Export) -> Table:
    """Accuracy and size of each form of the model."""
    table = Table("model")
    for heading in ("accuracy", "changed answers", "bytes", "ratio"):
        table.add_column(heading, justify="right")
    table.add_column("path")
    for name, form in exported.forms.items():
        changed = f"{form.num_changed:,} of {exported.num_samples:,}"
        ratio = _ratio(exported.sizes.fp32_bytes, form.num_bytes)
        row = (f"{exported.accuracy(name):.4f}", changed, f"{form.num_bytes:,}", ratio)
        table.add_row(name, *row, Text(line(form.path), overflow="fold"))
    return table


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.2f}" if after else ""
