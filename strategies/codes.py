"""How quantized weights cross: as fp32, as packed codes, or as packed codes of what changed.

``quant.wire`` names the way, of each weight with a quantizer of b bits; all else crosses as it is:

    latent        fp32
    codes         up: b-bit codes on the grid of the client's quantizer, stochastically rounded; the
                  server averages the dequantized weights in fp32
    codes_both    down too: the server sends codes of its fp32 average, stochastically rounded
    updates       up: b-bit codes of what training changed, w − w₀, with a step of their own; the
                  server averages w₀ + the dequantized change in fp32

The step of an update is its largest change / Qp, so that none is clipped, and rounding is without
bias. A change is small beside its weight, and so is what rounding costs: an average of updates is
nearer to the clients' than one of as many bytes of codes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fleet.seeds import derive_seed
from models.state import state_of
from quant.functional import codes, initial_step, minmax_step
from quant.layers import weight_quantizer_paths, weight_quantizers
from quant.packing import pack, packed_bytes, unpack
from quant.quantizer import Quantizer
from quant.settings import WIRES
from strategies import messages
from strategies.client.training import load_arrays
from strategies.contract import Settings, Task
from strategies.messages import unpack_settings
from strategies.server.method import Arrays, Masks, Network, Wire
from strategies.server.wires import Latent, state_bytes

STEP = ".update_step"  # of a weight's name: the step of its update's codes


@dataclass(frozen=True)
class WireSettings:
    """How weights cross: one of `quant.settings.WIRES`."""

    name: str = "latent"

    def __post_init__(self) -> None:
        if self.name not in WIRES:
            raise ValueError(f"quant.wire={self.name}: takes {', '.join(WIRES)}")

    @property
    def is_coded_down(self) -> bool:
        """Whether the server sends codes."""
        return self.name == "codes_both"

    @property
    def is_of_updates(self) -> bool:
        """Whether clients send what changed."""
        return self.name == "updates"


def wire_of(name: str) -> Wire:
    """Return the wire that quant.wire names."""
    chosen = WireSettings(name)
    if name == "latent":
        return Latent(settings=messages.pack_settings(wire=chosen))
    return Codes(chosen)


# On the client ------------------------------------------------------------------------------------


def load_as_told(
    model: nn.Module, arrays: Mapping[str, Tensor], settings: Settings
) -> Mapping[str, Tensor]:
    """Load what came to a client, decoded, and return it."""
    wire = unpack_settings(settings, "wire", WireSettings)
    began = decode_weights(arrays, model) if wire.is_coded_down else arrays
    load_arrays(model, began)
    return began


def sent_as_told(model: nn.Module, began: Mapping[str, Tensor], task: Task) -> dict[str, Tensor]:
    """Return what a client sends of a model that it trained from ``began``."""
    wire = unpack_settings(task.settings, "wire", WireSettings)
    if wire.name == "latent":
        return state_of(model)
    generator = task.streams.generator("wire")
    if wire.is_of_updates:
        return encode_updates(model, began, generator)
    return encode_weights(model, generator)


# On the server ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Codes:
    """Each quantized weight crosses as packed codes.

    Attributes:
        wire: of what, and which ways.
    """

    wire: WireSettings

    @property
    def settings(self) -> Settings:
        """The wire's name."""
        return messages.pack_settings(wire=self.wire)

    def names(self, network: Network | None, partition: int) -> None:
        """All arrays cross."""

    def encode(
        self, network: Network | None, arrays: Arrays, partition: int, server_round: int, seed: int
    ) -> Arrays:
        """What the client holds, as codes where the server sends codes."""
        assert network is not None, "codes need prepare()"
        view = network.view(partition)
        own = view.of(arrays)
        if not self.wire.is_coded_down:
            return own
        generator = torch.Generator().manual_seed(derive_seed(seed, "wire.down", server_round))
        load_arrays(view.model, {n: torch.from_numpy(array) for n, array in own.items()})
        encoded = encode_weights(view.model, generator)
        return {name: tensor.detach().numpy() for name, tensor in encoded.items()}

    def decode(
        self,
        network: Network | None,
        arrays: Mapping[str, Tensor],
        partition: int,
        began: Arrays,
    ) -> tuple[Arrays, Masks]:
        """Each client's weights: of its codes and steps, or of where it began and what changed."""
        assert network is not None, "encode() comes first"
        view = network.view(partition)
        if not self.wire.is_of_updates:
            return view.back(decode_weights(arrays, view.model))
        own = {name: torch.from_numpy(array) for name, array in view.of(began).items()}
        return view.back(decode_updates(arrays, own, view.model))

    def num_bytes(self, network: Network, partition: int) -> tuple[int, int]:
        """Less what packing saves, in the directions that have codes."""
        model = network.view(partition).model
        whole, coded = state_bytes(model, None), coded_bytes(model)
        steps = update_step_bytes(model) if self.wire.is_of_updates else 0
        return (coded if self.wire.is_coded_down else whole), coded + steps


# Codes of weights ---------------------------------------------------------------------------------


def coded_bytes(model: nn.Module) -> int:
    """Bytes of what `encode_weights` returns, from shapes alone."""
    state, quantizers = state_of(model), weight_quantizers(model)
    return sum(
        packed_bytes(tensor.numel(), quantizers[name].bits)
        if name in quantizers
        else tensor.numel() * tensor.element_size()
        for name, tensor in state.items()
    )


def encode_weights(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """State of ``model`` with each quantized weight as packed codes, stochastically rounded."""
    state = state_of(model)  # shares memory with the model, its steps too
    for name, quantizer in weight_quantizers(model).items():
        if not quantizer.initialised:  # a weight that was all zeros when the step was to be set
            quantizer.initialise(initial_step(state[name], quantizer.qp, quantizer.channel_axis))
        step = quantizer.step.detach()
        state[name] = _packed(state[name], step, quantizer.qn, quantizer, generator)
    return state


def decode_weights(arrays: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Inverse of `encode_weights` up to rounding, with the steps that came beside the codes."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    state = dict(arrays)
    paths = weight_quantizer_paths(model)
    for name, quantizer in weight_quantizers(model).items():
        step = _checked(state[f"{paths[name]}.step"], quantizer, name)
        state[name] = _unpacked(state[name], step, quantizer.qn, quantizer, shapes[name])
    return state


# Codes of updates ---------------------------------------------------------------------------------


def update_step_bytes(model: nn.Module) -> int:
    """Bytes of the steps that `encode_updates` adds, from shapes alone: as many as weights have."""
    return sum(
        quantizer.step.numel() * quantizer.step.element_size()
        for quantizer in weight_quantizers(model).values()
    )


def encode_updates(
    model: nn.Module, began: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """State of ``model`` with each quantized weight as packed codes of what changed, and a step.

    Args:
        model: as it was trained.
        began: the state from which it was.
        generator: of the stochastic rounding.
    """
    state = state_of(model)
    for name, quantizer in weight_quantizers(model).items():
        change = state[name].detach() - began[name].to(state[name].device)
        step = minmax_step(change, quantizer.qp, quantizer.channel_axis)
        step = torch.where(step > 0, step, torch.ones_like(step))  # nothing changed
        # As many codes below 0 as above.
        state[name] = _packed(change, step, -quantizer.qp, quantizer, generator)
        state[f"{name}{STEP}"] = step
    return state


def decode_updates(
    arrays: Mapping[str, Tensor], began: Mapping[str, Tensor], model: nn.Module
) -> dict[str, Tensor]:
    """Inverse of `encode_updates` up to rounding; the changes are added to those of ``began``."""
    state = dict(arrays)
    for name, quantizer in weight_quantizers(model).items():
        start, step = began[name], _checked(state.pop(f"{name}{STEP}"), quantizer, name)
        change = _unpacked(state[name], step, -quantizer.qp, quantizer, start.shape)
        state[name] = start + change
    return state


# Packed codes of either ---------------------------------------------------------------------------


def _packed(
    x: Tensor, step: Tensor, lowest: int, quantizer: Quantizer, generator: torch.Generator
) -> Tensor:
    """Stochastically rounded codes of ``x``, from ``lowest`` to the quantizer's largest."""
    noise = torch.rand(x.shape, generator=generator).to(x.device)
    return pack(codes(x, step, lowest, quantizer.qp, noise) - lowest, quantizer.bits)


def _unpacked(
    packed: Tensor, step: Tensor, lowest: int, quantizer: Quantizer, shape: torch.Size
) -> Tensor:
    """Inverse of `_packed` up to rounding."""
    integers = unpack(packed, quantizer.bits, shape.numel()) + lowest
    return integers.reshape(shape).to(step.dtype) * step


def _checked(step: Tensor, quantizer: Quantizer, name: str) -> Tensor:
    """Return a step that came with codes, which multiplies as many values as they are.

    Raises:
        ValueError: it is of another shape, and might make any number of values of them.
    """
    if step.shape != quantizer.step.shape:
        shape, takes = tuple(step.shape), tuple(quantizer.step.shape)
        raise ValueError(f"the step of {name} has shape {shape}: takes {takes}")
    return step
