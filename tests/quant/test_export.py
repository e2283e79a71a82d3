"""Packed files give the same outputs, are small, and damaged ones are refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from models.build import build
from quant.export import (
    METADATA_KEY,
    Network,
    _digest,
    is_ours,
    load_packed,
    read,
    save_packed,
    size_report,
)
from quant.functional import bounds
from quant.layers import (
    BIT_WIDTHS,
    FULL_PRECISION,
    QuantSpec,
    quantize,
    quantized_layers,
    weight_quantizers,
)
from quant.packing import packed_bytes
from quant.quantizer import Quantizer

NARROW = [bits for bits in BIT_WIDTHS if bits != FULL_PRECISION]


class SmallNet(nn.Module):
    """Conv2d with batch norm, Conv1d with a bias, Linear without one; a buffer of integers."""

    shape: ClassVar = (2, 5, 5)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.middle = nn.Conv1d(3, 5, 2)
        self.last = nn.Linear(5 * 8, 7, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x))).flatten(2)
        return self.last(self.middle(x).flatten(1))


HERE = Network("tests.SmallNet", {}, SmallNet.shape, 7)
CNN = Network("models.cnn.CNN", {"norm": "batch"}, (1, 8, 8), 10)


def quantized(spec: QuantSpec, seed: int = 0, trained: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    model = quantize(SmallNet(), spec)
    return calibrated(model, SmallNet.shape) if trained else model.eval()


def calibrated(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """``model`` after two batches, which set the steps of its inputs and its running statistics."""
    model.train()
    for _ in range(2):
        model(torch.randn(4, *shape))
    return model.eval()


def inputs(shape: tuple[int, ...] = SmallNet.shape) -> torch.Tensor:
    return torch.randn(16, *shape, generator=torch.Generator().manual_seed(1))


def cnn(spec: QuantSpec) -> nn.Module:
    torch.manual_seed(0)
    network = build(CNN.target, CNN.options, CNN.input_shape, CNN.num_classes, 0)
    return calibrated(quantize(network, spec), CNN.input_shape)


# Round trips --------------------------------------------------------------------------------------


@given(
    weight_bits=st.sampled_from(BIT_WIDTHS),
    act_bits=st.sampled_from(BIT_WIDTHS),
    edge_bits=st.sampled_from(BIT_WIDTHS),
    per_channel=st.booleans(),
    learn_step=st.booleans(),
    trained=st.booleans(),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None)
def test_what_is_read_computes_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    weight_bits: int, act_bits: int, edge_bits: int, per_channel: bool, learn_step: bool,
    trained: bool, scale: float, seed: int,
) -> None:  # fmt: skip
    spec = QuantSpec(weight_bits, act_bits, edge_bits, learn_step, per_channel)
    model = quantized(spec, seed, trained)
    for name, quantizer in weight_quantizers(model).items():
        with torch.no_grad():
            model.get_parameter(name).mul_(scale)
            quantizer.step.mul_(scale * 0.7).clamp_(min=1e-8)
    folder = tmp_path_factory.mktemp("packed")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_packed(model, folder / "a", HERE, spec)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    loaded = load_packed(folder / "a", SmallNet())
    assert torch.equal(model(inputs()), loaded(inputs()))
    for (name, one), (_, other) in zip(
        quantized_layers(model), quantized_layers(loaded), strict=True
    ):
        for mine, its in zip(one.quantized(inputs()), other.quantized(inputs()), strict=True):
            assert torch.equal(mine, its), name
    others = set(before) - set(weight_quantizers(model))
    assert all(torch.equal(before[name], loaded.state_dict()[name]) for name in others)
    save_packed(loaded, folder / "b", HERE, spec)
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


@given(
    bits=st.sampled_from(NARROW),
    signed=st.booleans(),
    step=st.floats(2.0**-26, 2.0**116, width=32),
)
@settings(deadline=None)
def test_dequantized_codes_are_fixed_points(bits: int, signed: bool, step: float) -> None:
    quantizer = Quantizer(bits, signed)
    quantizer.initialise(torch.tensor(step))
    qn, qp = bounds(bits, signed)
    codes = torch.arange(qn, qp + 1)
    values = codes * quantizer.step.detach()
    assert torch.equal(quantizer.codes(values), codes)
    assert torch.equal(quantizer.eval()(values), values)


@pytest.mark.parametrize("per_channel", [False, True])
def test_our_networks_are_built_from_the_file_alone(per_channel: bool, tmp_path: Path) -> None:
    spec = QuantSpec(3, 4, per_channel=per_channel)
    model = cnn(spec)
    save_packed(model, tmp_path / "a", CNN, spec)
    loaded = load_packed(tmp_path / "a")
    assert not loaded.training
    assert torch.equal(model(inputs(CNN.input_shape)), loaded(inputs(CNN.input_shape)))
    description, _ = read(tmp_path / "a")
    assert description.network == CNN
    assert description.spec == spec


def test_weights_lie_there_in_their_bits(tmp_path: Path) -> None:
    spec = QuantSpec(3, 4, edge_bits=8)
    save_packed(quantized(spec), tmp_path / "a", HERE, spec)
    stored = load_file(tmp_path / "a")
    sizes = {"first": 2 * 3 * 9, "middle": 3 * 5 * 2, "last": 40 * 7}
    bits = {"first": 8, "middle": 3, "last": 8}
    for name, num_codes in sizes.items():
        assert stored[f"{name}.weight"].dtype == torch.uint8
        assert stored[f"{name}.weight"].numel() == packed_bytes(num_codes, bits[name])


def test_a_weight_without_a_step_stays_as_it_is(tmp_path: Path) -> None:
    network = SmallNet()
    nn.init.zeros_(network.middle.weight)
    spec = QuantSpec(2, 2)
    model = quantize(network, spec).eval()
    weight_quantizers(model)["middle.weight"].initialised.fill_(False)
    with torch.no_grad():
        model.middle.weight.normal_()
    save_packed(model, tmp_path / "a", HERE, spec)
    assert load_file(tmp_path / "a")["middle.weight"].dtype == torch.float32
    assert torch.equal(model(inputs()), load_packed(tmp_path / "a", SmallNet())(inputs()))


def test_32_bits_are_a_float32_file(tmp_path: Path) -> None:
    spec = QuantSpec(FULL_PRECISION, FULL_PRECISION)
    model = quantized(spec)
    save_packed(model, tmp_path / "a", HERE, spec)
    stored = load_file(tmp_path / "a")
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model(inputs()), load_packed(tmp_path / "a", SmallNet())(inputs()))
    sizes = size_report(tmp_path / "a", model)
    assert [part.name for part in sizes.parts] == ["the rest, as it is", "header and description"]
    assert sizes.bops == sizes.fp32_bops


class TiedNet(nn.Module):
    """A weight that two layers share, and a layer that is there twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight
        self.again = self.c

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))


def test_shared_weights_are_stored_once_and_as_they_are(tmp_path: Path) -> None:
    spec = QuantSpec(2, 4, edge_bits=4)
    model = calibrated(quantize(TiedNet(), spec), (6,))
    save_packed(model, tmp_path / "a", Network("tests.TiedNet", {}, (6,), 6), spec)
    stored = load_file(tmp_path / "a")
    assert {name for name in stored if name.endswith(".weight")} == {"a.weight", "c.weight"}
    assert stored["a.weight"].dtype == stored["c.weight"].dtype == torch.float32
    x = inputs((6,))
    assert torch.equal(model(x), load_packed(tmp_path / "a", TiedNet())(x))


# Sizes --------------------------------------------------------------------------------------------


def test_resnet18_at_4_bits_is_a_seventh(tmp_path: Path) -> None:
    network = Network("models.resnet.resnet18", {}, (3, 32, 32), 10)
    fp32 = build(network.target, {}, network.input_shape, network.num_classes, 0)
    state = {name: tensor.contiguous() for name, tensor in fp32.state_dict().items()}
    save_file(state, tmp_path / "fp32")
    spec = QuantSpec(4, 4)
    model = quantize(fp32, spec)
    save_packed(model, tmp_path / "packed", network, spec)
    whole, packed = (tmp_path / "fp32").stat().st_size, (tmp_path / "packed").stat().st_size
    assert packed * 7 <= whole
    sizes = size_report(tmp_path / "packed", model)
    assert sizes.num_bytes == packed
    assert sizes.fp32_bytes == sum(t.numel() * t.element_size() for t in state.values())
    edge = 3 * 64 * 9 + 512 * 10
    weights = {part.name: part.num_bytes for part in sizes.parts}
    assert weights["weights at 8 bits"] == edge
    macs = sum(layer.numel() for name, layer in fp32.named_parameters() if "fc.weight" in name)
    assert macs < sizes.bops < sizes.fp32_bops / 60


def test_bit_operations_by_hand(tmp_path: Path) -> None:
    spec = QuantSpec(2, 4, edge_bits=8)
    save_packed(quantized(spec), tmp_path / "a", HERE, spec)
    sizes = size_report(tmp_path / "a", quantized(spec))
    first, middle, last = 9 * 2 * 3 * 9, 8 * 3 * 2 * 5, 40 * 7
    assert sizes.bops == first * 64 + middle * 8 + last * 64
    assert sizes.fp32_bops == (first + middle + last) * 1024
    assert math.isclose(sizes.ratio, sizes.fp32_bytes / (tmp_path / "a").stat().st_size)


# What is refused ----------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    spec = QuantSpec(4, 4)
    save_packed(cnn(spec), tmp_path / "packed", CNN, spec)
    return tmp_path / "packed"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_files_are_refused(packed: Path, share: float) -> None:
    whole = packed.read_bytes()
    packed.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match="no safetensors file, or a truncated one"):
        load_packed(packed)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_changed_byte_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    spec = QuantSpec(4, 4)
    path = tmp_path_factory.getbasetemp() / "changed"
    save_packed(quantized(spec), path, HERE, spec)
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    try:
        loaded = load_packed(path, SmallNet())
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
    else:  # white space of the header, or another spelling of it
        assert torch.equal(loaded(inputs()), quantized(spec)(inputs()))


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("accuracy 0.9\n" * 100)
    with pytest.raises(ValueError, match="no safetensors file"):
        load_packed(path)
    save_file(SmallNet().state_dict(), path)
    with pytest.raises(ValueError, match="not one of packed weights"):
        load_packed(path)
    save_file(SmallNet().state_dict(), path, metadata={METADATA_KEY: "[]"})
    with pytest.raises(ValueError, match="description cannot be read"):
        load_packed(path)
    with pytest.raises(OSError):
        load_packed(tmp_path / "nothing")


def rewritten(path: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    """Change the description of a file and give it the right checksum."""
    with safe_open(path, "pt") as file:
        content = json.loads(json.loads(file.metadata()[METADATA_KEY])["content"])
    change(content)
    text, tensors = json.dumps(content, sort_keys=True), load_file(path)
    stored = json.dumps({"content": text, "sha256": _digest(text, tensors)})
    save_file(tensors, path, metadata={METADATA_KEY: stored})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(format=2), "format 2; this version reads format 1"),
        (lambda content: content.pop("spec"), "written by another version"),
        (lambda content: content["spec"].update(new=1), "written by another version"),
        (lambda content: content["spec"].update(weight_bits=9), "written by another version"),
        (lambda content: content["spec"].update(weight_bits=3), "holds another network"),
        (lambda content: content["network"].update(options={}), "holds another network"),
        (lambda content: content["network"].update(target="os.system"), "none of models"),
        (lambda content: content["network"].update(target="models.build.build"), "none of models"),
        (lambda content: content["network"].update(target="models"), "none of models"),
    ],
)
def test_other_descriptions_are_refused(
    packed: Path, change: Callable[[dict], None], message: str  # type: ignore[type-arg]
) -> None:  # fmt: skip
    rewritten(packed, change)
    with pytest.raises(ValueError, match=message):
        load_packed(packed)


def test_every_network_of_conf_is_built_from_the_file_alone() -> None:
    targets = [
        yaml.safe_load(path.read_text())["_target_"]
        for path in (ROOT / "conf" / "model").glob("*.yaml")
    ]
    assert targets
    assert all(is_ours(Network(target, {}, (1, 8, 8), 10)) for target in targets)


def test_another_network_is_refused(packed: Path) -> None:
    with pytest.raises(ValueError, match="holds another network; they differ in"):
        load_packed(packed, SmallNet())
    wider = build(CNN.target, {**CNN.options, "width": 32}, CNN.input_shape, CNN.num_classes, 0)
    with pytest.raises(ValueError, match=r"holds another network; stage1.conv.weight is"):
        load_packed(packed, wider)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("what", ["weight", "weight_quantizer.step"])
def test_weights_that_codes_cannot_hold_are_refused(
    value: float, what: str, tmp_path: Path
) -> None:
    spec = QuantSpec(4, 4)
    model = quantized(spec)
    with torch.no_grad():
        model.get_parameter(f"middle.{what}").fill_(value)
    if (what, value) in (("weight", 0.0), ("weight", float("inf"))):
        return save_packed(model, tmp_path / "a", HERE, spec)  # both have a code
    with pytest.raises(ValueError, match=r"middle\.weight: it or its step is not finite"):
        save_packed(model, tmp_path / "a", HERE, spec)
    return None


def test_options_that_json_cannot_hold_are_refused(tmp_path: Path) -> None:
    network = Network("models.cnn.CNN", {"norm": object()}, SmallNet.shape, 7)
    with pytest.raises(ValueError, match="what JSON can hold"):
        save_packed(quantized(QuantSpec()), tmp_path / "a", network, QuantSpec())
