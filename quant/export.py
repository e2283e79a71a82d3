"""A quantized network as one file of packed integers, and back with the same outputs.

The file is a safetensors file. A quantized weight w with step s lies in it under its own name as
packed codes (`quant.packing`) of q = round(clip(w / s, qn, qp)), shifted by −qn; everything else
(steps and flags, biases, normalisation, weights without a step) lies there as it is. The metadata's
one entry, ``cutbit``, is JSON: the format's version, how the network is built and quantized, bits
and sign of every quantizer, shapes of the packed weights, and a SHA-256 of all of it.

Loading puts q·s where w was. Its quantizer gives q·s again, bit for bit: with u = 2⁻²⁴ both the
product and the quotient of q·s / s are right to a relative error of u, so that the quotient differs
from q by about |q|·2u ≤ 128 · 2⁻²³ < ½, and rounding and clipping give q. That holds in float32 or
wider while q·s neither overflows nor is subnormal; `save_packed` computes it for every weight and
refuses where it does not hold. What is lost: the latent weight w, hence training from where it
stood, and the sign of zero.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from models.build import build
from models.cost import FULL_PRECISION_BITS, cost
from quant.layers import QuantSpec, quantize, weight_quantizer_paths, weight_quantizers
from quant.modules import evaluating, quantizers
from quant.packing import pack, unpack
from quant.quantizer import Quantizer

FORMAT = 1
METADATA_KEY = "cutbit"
BACKBONES = (
    "cnn", "densenet", "ecg1d", "inception_v3", "lenet5", "mlp", "mobilenetv2", "resnet",
    "transformer", "vgg",
)  # fmt: skip
"""Files of models that networks are built from without being passed. A file is no place to take the
name of code to run from: models.build, for one, would run what its options name."""


@dataclass(frozen=True)
class Network:
    """How the unquantized network is built.

    Attributes:
        target: dotted path of its class or function.
        options: other arguments, of what JSON can hold.
        input_shape: shape of one sample.
        num_classes: number of classes.
        dtype: of the input, torch's name for it.
    """

    target: str
    options: Mapping[str, Any]
    input_shape: tuple[int, ...]
    num_classes: int
    dtype: str = "float32"

    def zeros(self) -> Tensor:
        """Two samples of zeros."""
        return torch.zeros(2, *self.input_shape, dtype=getattr(torch, self.dtype))


@dataclass(frozen=True)
class Description:
    """What a file says of itself beside its tensors.

    Attributes:
        network: how the network is built.
        spec: how it is quantized.
        quantizers: bits and whether signed, by the quantizer's path in the model.
        shapes: of the weights that are packed, by name.
    """

    network: Network
    spec: QuantSpec
    quantizers: Mapping[str, tuple[int, bool]]
    shapes: Mapping[str, tuple[int, ...]]


def is_ours(network: Network) -> bool:
    """Whether `load_packed` builds the network from what the file says of it."""
    module, _, name = network.target.rpartition(".")
    return name != "" and module in [f"models.{backbone}" for backbone in BACKBONES]


def save_packed(model: nn.Module, path: Path, network: Network, spec: QuantSpec) -> None:
    """Write ``model`` to ``path``; a file that is there is replaced.

    A weight whose step has not been set is stored in float32, as are all weights at 32 bits, and
    one that is read elsewhere than by its quantizer, or has two names in the model.

    Args:
        model: what `quantize` made of the network by ``spec``.
        path: the file.
        network: how the network is built, for `load_packed`.
        spec: what ``model`` was quantized by.

    Raises:
        ValueError: a weight or step from whose codes the quantized weight would not come back
            (NaN, a step that is infinite, 0 or denormal), or options that JSON cannot hold.
    """
    tensors = {name: _plain(tensor) for name, tensor in _state(model).items()}
    shapes = {}
    for name, quantizer in _packable(model, network.zeros()):
        weight = tensors[name]
        codes = quantizer.codes(weight)
        restored = codes.to(quantizer.step.dtype) * quantizer.step.detach()
        if not torch.equal(quantizer.fake_quantize(restored), quantizer.fake_quantize(weight)):
            raise ValueError(f"{name}: it or its step is not finite, or the step is too small")
        tensors[name] = pack(codes - quantizer.qn, quantizer.bits)
        shapes[name] = tuple(weight.shape)
    content = _to_json(Description(network, spec, _layout(model), shapes))
    stored = {"content": content, "sha256": _digest(content, tensors)}
    # One entry: safetensors writes several in any order, and equal models shall give equal files.
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(stored)})


def load_packed(path: Path, network: nn.Module | None = None) -> nn.Module:
    """Read a file of `save_packed` into a quantized network, in evaluation mode.

    In evaluation its outputs equal those of the model that was written, bit for bit but for the
    sign of zeros, on the same machine, number of threads, and memory format.

    Args:
        path: the file.
        network: the unquantized network, whose weights do not matter and which stays as it is;
            None builds it as the file says, if it `is_ours`.

    Raises:
        OSError: there is no such file.
        ValueError: no such file of ours, a damaged one, or another network's; one line.
    """
    description, tensors = read(path)
    if network is None:
        network = _build(path, description.network)
    model = quantize(network, description.spec).eval()
    layout, state = _layout(model), _state(model)
    odd = sorted(layout.items() ^ description.quantizers.items())
    if odd or state.keys() != tensors.keys():
        names = [name for name, _ in odd] or sorted(state.keys() ^ tensors.keys())
        raise ValueError(f"{path}: holds another network; they differ in {', '.join(names[:3])}")
    paths = weight_quantizer_paths(model)
    for name, quantizer in weight_quantizers(model).items():
        if name in description.shapes:
            # The step is beside it; the model's own is loaded below.
            step = tensors[f"{paths[name]}.step"]
            shape = description.shapes[name]
            codes = unpack(tensors[name], quantizer.bits, math.prod(shape)) + quantizer.qn
            tensors[name] = codes.reshape(shape).to(step.dtype) * step
    for name, tensor in state.items():
        stored = tensors[name]
        if (stored.shape, stored.dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(
                f"{path}: holds another network; {name} is {tuple(stored.shape)} {stored.dtype} "
                f"there, {tuple(tensor.shape)} {tensor.dtype} in the model"
            )
        with torch.no_grad():
            tensor.copy_(stored)
    return model


def read(path: Path) -> tuple[Description, dict[str, Tensor]]:
    """Return what a file of `save_packed` holds, its weights still packed.

    Raises:
        OSError: there is no such file.
        ValueError: it is none of ours, of another version, or damaged; one line.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path}: no safetensors file, or a truncated one: {reason}") from error
    if METADATA_KEY not in metadata:
        raise ValueError(f"{path}: a safetensors file, but not one of packed weights")
    try:
        stored = json.loads(metadata[METADATA_KEY])
        content, digest = stored["content"], stored["sha256"]
        version = json.loads(content)["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged: its description cannot be read") from error
    if version != FORMAT:
        raise ValueError(f"{path}: is of format {version}; this version reads format {FORMAT}")
    if digest != _digest(content, tensors):
        raise ValueError(f"{path}: damaged: its contents do not have the checksum it states")
    try:
        return _from_json(content), tensors
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: written by another version: {error}") from error


# Sizes --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contents:
    """One kind of contents of a file: its bytes there, and in float32 without quantizers."""

    name: str
    num_bytes: int
    fp32_bytes: int


@dataclass(frozen=True)
class SizeReport:
    """What a packed file takes.

    Attributes:
        parts: kinds of contents; they add up to the file.
        bops: bit operations of a forward pass per sample (`models.cost`).
        fp32_bops: the same without quantizers.
    """

    parts: tuple[Contents, ...]
    bops: int
    fp32_bops: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the file."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def fp32_bytes(self) -> int:
        """Bytes of the tensors of the unquantized network."""
        return sum(part.fp32_bytes for part in self.parts)

    @property
    def ratio(self) -> float:
        """How many times smaller the file is than the unquantized network's tensors."""
        return self.fp32_bytes / self.num_bytes


def size_report(path: Path, model: nn.Module) -> SizeReport:
    """Report on the file at ``path``, of which ``model`` was written or loaded.

    Raises:
        OSError, ValueError: as `read`.
    """
    description, tensors = read(path)
    parts = list(_parts(description, tensors, weight_quantizer_paths(model)))
    inside = sum(part.num_bytes for part in parts)
    parts.append(Contents("header and description", path.stat().st_size - inside, 0))
    network = description.network
    found = cost(model, network.input_shape, dtype=network.zeros().dtype)
    return SizeReport(tuple(parts), found.bops, found.macs * FULL_PRECISION_BITS**2)


def _parts(
    description: Description, tensors: Mapping[str, Tensor], paths: Mapping[str, str]
) -> Iterator[Contents]:
    stored: Counter[str] = Counter()
    plain: Counter[str] = Counter()
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        module = name.rpartition(".")[0]
        if name in description.shapes:
            what = f"weights at {description.quantizers[paths[name]][0]} bits"
            plain[what] += 4 * math.prod(description.shapes[name])
        elif module in description.quantizers:
            what = "steps and flags"
        else:
            what = "the rest, as it is"
            plain[what] += size
        stored[what] += size
    for what in sorted(stored, key=lambda what: (not what.startswith("weights"), what)):
        yield Contents(what, stored[what], plain[what])


# Models -------------------------------------------------------------------------------------------


def _state(model: nn.Module) -> dict[str, Tensor]:
    """What ``state_dict`` has, each tensor once, under the first of its names."""
    seen: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        seen.setdefault(id(tensor), name)
    return {name: state[name] for name in seen.values()}


def _packable(model: nn.Module, example: Tensor) -> Iterator[tuple[str, Quantizer]]:
    """Weights with a step that has been set, which nothing but their quantizer reads."""
    found = weight_quantizers(model)
    state = model.state_dict(keep_vars=True)
    read = _read_elsewhere(model, {name: state[name] for name in found}, example)
    for name, quantizer in found.items():
        if quantizer.initialised and name not in read:
            yield name, quantizer


class _Readers(TorchFunctionMode):
    """Notes which tensors torch's functions are given outside of quantizers."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.depth = 0  # of quantizers that are running
        self._names = names

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.depth and getattr(func, "__name__", "") not in ("__get__", "dim", "size"):
            leaves = pytree.tree_leaves((args, kwargs))
            self.found |= {self._names[id(leaf)] for leaf in leaves if id(leaf) in self._names}
        return func(*args, **kwargs)


def _read_elsewhere(model: nn.Module, weights: Mapping[str, Tensor], example: Tensor) -> set[str]:
    """Names of those ``weights`` that ``model`` reads without their quantizers, in evaluation."""
    readers = _Readers({id(tensor): name for name, tensor in weights.items()})

    def enter(*_: Any) -> None:
        readers.depth += 1

    def leave(*_: Any) -> None:
        readers.depth -= 1

    hooks = []
    for _, quantizer in quantizers(model):
        hooks.append(quantizer.register_forward_pre_hook(enter))
        hooks.append(quantizer.register_forward_hook(leave, always_call=True))
    try:
        with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]), readers:
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return readers.found


def _layout(model: nn.Module) -> dict[str, tuple[int, bool]]:
    return {
        name: (module.bits, module.signed)
        for name, module in model.named_modules()
        if isinstance(module, Quantizer)
    }


def _plain(tensor: Tensor) -> Tensor:
    """A copy in C order: safetensors writes memory as it lies."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _build(path: Path, network: Network) -> nn.Module:
    """Build the network that a file names, if it is one of ours."""
    if not is_ours(network):
        raise ValueError(f"{path}: is of {network.target}, none of models: pass the network itself")
    return build(network.target, network.options, network.input_shape, network.num_classes, seed=0)


# The description ----------------------------------------------------------------------------------


def _to_json(description: Description) -> str:
    try:
        return json.dumps({"format": FORMAT, **asdict(description)}, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"model.<option>: takes what JSON can hold: {error}") from error


def _from_json(content: str) -> Description:
    fields = json.loads(content)
    network = fields["network"] | {"input_shape": tuple(fields["network"]["input_shape"])}
    return Description(
        network=Network(**network),
        spec=QuantSpec(**fields["spec"]),
        quantizers={
            name: (int(bits), bool(signed)) for name, (bits, signed) in fields["quantizers"].items()
        },
        shapes={name: tuple(shape) for name, shape in fields["shapes"].items()},
    )


def _digest(content: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
