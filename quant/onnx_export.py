"""A quantized network as an ONNX file with QuantizeLinear and DequantizeLinear (QDQ).

    weight   integer initializer → DequantizeLinear(step)           int4 up to 4 bits, else int8
    input    Clip(qn·s, qp·s) → QuantizeLinear(s) → DequantizeLinear(s)    uint8, signed: int8
    bias     Add after the layer

Zero points are 0. The integers that onnxruntime 1.31 runs throughout have 4 and 8 bits (those of
2 bits fail in linear layers), so other widths are carried by the next wider type, and before an
input's QuantizeLinear, which saturates at the type's bounds, a Clip sets the narrower ones: what it
lets through at qp·s is rounded to the code qp. Both sides divide and round half to even, so that
equal inputs have equal codes.

The bias is not an input of the layer's own node, because onnxruntime would round it to multiples
of weight step × input step, which few-bit networks do not stand: LeNet-5 at 2 bits changed its
answer on 18 of 200 random inputs.

Sums are made in another order than torch's, or in integers, so that values differ in their last
bits, and where such a value lies at the border of two codes, by a step. Whether that matters
`app.commands.export` measures.

torch.export traces the network, in evaluation mode and with a batch of any size.
"""

import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quant.modules import Quantized, Weighted, effective_weight, quantizers
from quant.quantizer import Quantizer

OPSET = 21
"""The first with integers of 4 bits."""

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
INPUT, OUTPUT = "input", "logits"


def check_packages() -> None:
    """Refuse to go on without the packages that ONNX needs.

    Raises:
        ValueError: names what is missing and the command that installs it.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX needs {', '.join(missing)}: pip install {' '.join(missing)}")


def save_onnx(model: nn.Module, path: Path, example: Tensor) -> None:
    """Write ``model`` to ``path``; a file that is there is replaced.

    Input ``input`` is (B, …), output ``logits`` (B, classes). A quantizer whose step
    has not been set lets values pass, here as in the model; a model without quantizers becomes an
    ordinary float32 file.

    Args:
        model: float32; quantized or not; stays as it is.
        path: the file.
        example: two samples, of whatever values.

    Raises:
        ValueError: a package is missing, or torch.export cannot trace the model; one line.
    """
    check_packages()
    import onnx

    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            program = torch.onnx.export(
                _for_onnx(model),
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamic_shapes=({0: batch},),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # whatever torch.export raises at somebody else's forward
        raise ValueError(f"ONNX: torch cannot export the network: {_reason(error)}") from error
    assert program is not None
    graph_model = program.model_proto
    _name_types(graph_model, _narrow_weights(model))
    _drop_sources(graph_model)
    onnx.checker.check_model(graph_model, full_check=True)
    path.write_bytes(graph_model.SerializeToString())


def load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the function (B, …) → (B, classes) that onnxruntime runs on one CPU thread.

    Raises:
        ValueError: a package is missing, or onnxruntime does not take the file; one line.
    """
    check_packages()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own kinds have no common class but this
        raise ValueError(f"{path}: onnxruntime does not take it: {_reason(error)}") from error

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: x.contiguous().numpy()})[0])

    return run


# The network that is traced -----------------------------------------------------------------------


class _OnnxWeight(nn.Module):
    """In a weight quantizer's place: codes and DequantizeLinear, whatever weight it is given."""

    codes: Tensor
    step: Tensor

    def __init__(self, quantizer: Quantizer, weight: Tensor) -> None:
        super().__init__()
        step = quantizer.step.detach()
        self.axis: dict[str, Any] = (
            {} if quantizer.channel_axis is None else {"axis": quantizer.channel_axis}
        )
        self.register_buffer("codes", quantizer.codes(weight).to(torch.int8).contiguous())
        self.register_buffer("step", step.reshape(-1).clone() if self.axis else step.clone())

    def forward(self, _: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            "DequantizeLinear",
            (self.codes, self.step),
            self.axis,
            dtype=self.step.dtype,
            shape=self.codes.shape,
        )


class _OnnxInput(nn.Module):
    """In an input quantizer's place: Clip, QuantizeLinear, DequantizeLinear."""

    step: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        step = quantizer.step.detach()
        dtype = torch.int8 if quantizer.signed else torch.uint8
        # Rounded to float32, as the products are that these bounds are compared with.
        ends = [float(code * step) for code in (quantizer.qn, quantizer.qp)]
        self.ends = None if quantizer.bits == 8 else ends
        self.register_buffer("step", step.clone())
        self.register_buffer("zero_point", torch.zeros((), dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        if self.ends is not None:
            x = x.clamp(*self.ends)
        onnx_op = torch.onnx.ops.symbolic
        parameters = (self.step, self.zero_point)
        dtype = self.zero_point.dtype
        codes = onnx_op("QuantizeLinear", (x, *parameters), dtype=dtype, shape=x.shape)
        return onnx_op("DequantizeLinear", (codes, *parameters), dtype=x.dtype, shape=x.shape)


def _for_onnx(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with nodes of ONNX in its quantizers' places."""
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        if not isinstance(module, Quantized):
            continue
        weights = {child: name for name, child in module.quantized_weights().items()}
        for name, quantizer in list(module.named_children()):
            if not isinstance(quantizer, Quantizer):
                continue
            node: nn.Module | None = None
            if quantizer.initialised and name in weights:
                node = _OnnxWeight(quantizer, getattr(module, weights[name]).detach())
            elif quantizer.initialised and name == "weight_quantizer":
                node = _OnnxWeight(quantizer, effective_weight(module))
            elif quantizer.initialised:
                node = _OnnxInput(quantizer)
            setattr(module, name, node)
        bias = module._parameters.get("bias")
        if isinstance(module, Weighted) and bias is not None:
            shape = (-1, *[1] * (effective_weight(module).dim() - 2))
            module.register_buffer("added_bias", bias.detach().reshape(shape))
            module.register_parameter("bias", None)
            module.register_forward_hook(_add_bias, prepend=True)  # before hooks of the user's
    return model


def _add_bias(layer: nn.Module, _: object, output: Tensor) -> Tensor:
    bias = layer.added_bias
    assert isinstance(bias, Tensor)
    return output + bias


# The graph that comes of it -----------------------------------------------------------------------


def _narrow_weights(model: nn.Module) -> set[str]:
    """Names of the codes that fit into 4 bits."""
    return {f"{path}.codes" for path, quantizer in quantizers(model) if quantizer.bits <= 4}


def _name_types(model: Any, narrow: set[str]) -> None:
    """Give weights their types and their DequantizeLinear a zero point of that type, in place.

    torch has no integers of 4 bits, so codes arrive here as int8.
    """
    import ml_dtypes
    import numpy as np
    from onnx import numpy_helper

    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        codes = initializers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if codes is None:
            continue
        dtype = ml_dtypes.int4 if codes.name in narrow else np.int8
        array = numpy_helper.to_array(codes).astype(dtype)
        steps = numpy_helper.to_array(initializers[node.input[1]])
        zero_point = f"{codes.name.removesuffix('codes')}zero_point"
        if zero_point not in initializers:
            zeros = numpy_helper.from_array(np.zeros(steps.shape, dtype), zero_point)
            initializers[zero_point] = graph.initializer.add()
            initializers[zero_point].CopyFrom(zeros)
            codes.CopyFrom(numpy_helper.from_array(array, codes.name))
        node.input.append(zero_point)
    # Shapes and types that were inferred before.
    del graph.value_info[:]


def _drop_sources(model: Any) -> None:
    """Take out where in whose files each node came from."""
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del item.metadata_props[:]
    model.doc_string = graph.doc_string = ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that are not there and on torch's own code."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _reason(error: BaseException) -> str:
    """The first line of the error that others are about."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
