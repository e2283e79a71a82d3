"""What onnxruntime makes of an exported network is what torch does."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data import digits
from models.build import build
from quant.layers import QuantSpec, quantize, quantized_layers

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from quant.onnx_export import INPUT, OUTPUT, load_onnx, save_onnx

NETWORKS = {
    "models.cnn.CNN": (1, 8, 8),
    "models.lenet5.LeNet5": (1, 28, 28),
    "models.resnet.resnet8": (3, 32, 32),
    "models.resnet.resnet18": (3, 32, 32),
    "models.mobilenetv2.mobilenetv2": (3, 32, 32),
    "models.ecg1d.ecg1d": (1, 128),
}


def network(target: str, spec: QuantSpec) -> nn.Module:
    """A quantized network after two random batches."""
    shape = NETWORKS[target]
    torch.manual_seed(0)
    model = quantize(build(target, {}, shape, 10, 0), spec).train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, *shape))
    return model.eval()


def types(path: Path, op: str) -> list[int]:
    """Element types of the integers of each node ``op`` that has a zero point."""
    graph = onnx.load(path).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return [kinds[node.input[2]] for node in graph.node if node.op_type == op]


@pytest.mark.parametrize("bits", [pytest.param(2, marks=pytest.mark.long), 4])
def test_trained_on_digits(bits: int, tmp_path: Path) -> None:
    data = digits.load(tmp_path)
    torch.manual_seed(0)
    model = quantize(
        build("models.cnn.CNN", {}, data.input_shape, 10, 0),
        QuantSpec(bits, bits, per_channel=True),
    ).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(2):
        for x, y in zip(data.train_x.split(32), data.train_y.split(32), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    save_onnx(model.eval(), tmp_path / "a.onnx", torch.zeros(2, *data.input_shape))
    with torch.no_grad():
        expected = model(data.test_x)
    got = load_onnx(tmp_path / "a.onnx")(data.test_x)
    assert float((expected.argmax(1) == data.test_y).float().mean()) > 0.7
    assert torch.equal(got.argmax(1), expected.argmax(1))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    for size in (1, 7):  # any batch
        assert load_onnx(tmp_path / "a.onnx")(data.test_x[:size]).shape == (size, 10)
    narrow = onnx.TensorProto.INT4
    first, *inner, last = [
        kind for kind in types(tmp_path / "a.onnx", "DequantizeLinear") if kind != 2
    ]
    assert narrow in inner
    assert onnx.TensorProto.INT8 in (first, last)


def test_biases_are_not_rounded_and_narrow_inputs_saturate(tmp_path: Path) -> None:
    """LeNet-5 at 2 bits: its biases would show, and inputs far outside the range are clipped."""
    model = network("models.lenet5.LeNet5", QuantSpec(2, 3, edge_bits=5))
    with torch.no_grad():
        for _, layer in quantized_layers(model):
            layer.bias.uniform_(-1, 1)
    save_onnx(model, tmp_path / "a.onnx", torch.zeros(2, 1, 28, 28))
    x = torch.randn(50, 1, 28, 28) * torch.logspace(-2, 4, 50).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(
            load_onnx(tmp_path / "a.onnx")(x), model(x), rtol=1e-5, atol=1e-5
        )
    graph = onnx.load(tmp_path / "a.onnx").graph
    assert [tensor.name for tensor in (*graph.input, *graph.output)] == [INPUT, OUTPUT]
    assert not any(node.metadata_props for node in graph.node)  # paths of this machine
    assert [len(node.input) for node in graph.node if node.op_type == "Conv"] == [2, 2]


def test_unset_steps_and_32_bits_let_values_pass(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    unset = quantize(model, QuantSpec(4, 4)).eval()
    x = torch.randn(9, 2, 4)
    for number, kind in enumerate((model, unset)):
        path = tmp_path / f"{number}.onnx"
        save_onnx(kind, path, torch.zeros(2, 2, 4))
        assert types(path, "QuantizeLinear") == []
        with torch.no_grad():
            torch.testing.assert_close(load_onnx(path)(x), kind(x))


class Untraceable(nn.Module):
    """Does something else with other values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if float(x.sum()) > 1 else self.layer(-x)


def test_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="ONNX: torch cannot export the network") as raised:
        save_onnx(Untraceable(), tmp_path / "a.onnx", torch.zeros(2, 4))
    assert "\n" not in str(raised.value)
    (tmp_path / "b.onnx").write_text("something else")
    with pytest.raises(ValueError, match="onnxruntime does not take it"):
        load_onnx(tmp_path / "b.onnx")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "onnx" else find(name, *a)
    )
    with pytest.raises(ValueError, match=r"^ONNX needs onnx: pip install onnx$"):
        save_onnx(nn.Linear(4, 3), tmp_path / "c.onnx", torch.zeros(2, 4))


@pytest.mark.long
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 32])
@pytest.mark.parametrize("target", NETWORKS)
def test_every_network_at_every_width(
    target: str, bits: int, per_channel: bool, tmp_path: Path
) -> None:
    """A last bit of a sum puts a value at the border of two codes on its other side; the deeper a
    network of random weights, the more of its outputs that moves by a step or two."""
    model = network(target, QuantSpec(bits, bits, per_channel=per_channel))
    save_onnx(model, tmp_path / "a.onnx", torch.zeros(2, *NETWORKS[target]))
    x = torch.randn(64, *NETWORKS[target], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
    difference = (load_onnx(tmp_path / "a.onnx")(x) - expected).abs().amax(1)
    scale: Any = expected.abs().max()
    assert float((difference <= 1e-4 * scale).float().mean()) >= 0.3
    assert float(difference.max()) <= scale
