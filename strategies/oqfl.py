"""OQFL: federated averaging with quantizers whose steps are learned with the weights.

Kim and Hong, APNOMS 2020, doi 10.23919/APNOMS50412.2020.9236949. Only its abstract was at hand: the
quantizer is LSQ (arXiv 1902.08153; `quant.functional` has the formulas), and local training and
averaging are FedAvg's, over weights and steps alike. `oqfl.md` lists the deviations.

    client   ŵ = Q(w; s_w),  x̂ = Q(x; s_x);  SGD on w, s_w, s_x by the task loss
    server   w, s = Σ (nᵢ/Σn)·(wᵢ, sᵢ)

What crosses (`wire`):
    latent       w and s as fp32
    codes        up: each weight as packed b-bit codes with its step, stochastically rounded; the
                 server averages the dequantized weights in fp32
    codes_both   down too: the server sends codes of its fp32 average, stochastically rounded
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from fleet.seeds import derive_seed
from quant.functional import initial_step
from quant.layers import QuantSpec, quantize, weight_quantizers
from quant.packing import pack, packed_bytes, unpack
from strategies import messages
from strategies.client.training import LocalTraining, load_arrays, train_epochs
from strategies.contract import ClientData, ServerHalf, Settings, Task, Update
from strategies.messages import proximal_mu, unpack_settings
from strategies.server.checkpoint import Arrays
from strategies.server.loop import QUANTIZERS, FederatedStrategy

WIRES = ("latent", "codes", "codes_both")


@dataclass(frozen=True)
class Wire:
    """How weights cross: ``latent``, ``codes`` or ``codes_both``."""

    name: str = "latent"

    def __post_init__(self) -> None:
        if self.name not in WIRES:
            raise ValueError(f"quant.wire={self.name}: takes {', '.join(WIRES)}")


class OQFLClient:
    """A `ClientHalf` that trains weights and quantizers' steps, and sends them or their codes."""

    def prepare(self, model: nn.Module, settings: Settings) -> nn.Module:
        """The quantized network."""
        return quantize(model, unpack_settings(settings, "quant", QuantSpec))

    def train(
        self,
        model: nn.Module,
        arrays: Mapping[str, Tensor],
        data: ClientData,
        task: Task,
        server: ServerHalf | None,
    ) -> Update:
        """Load the global model, train weights and steps, send them or their codes."""
        wire = unpack_settings(task.settings, "wire", Wire).name
        load_arrays(model, decode_weights(arrays, model) if wire == "codes_both" else arrays)
        settings = unpack_settings(task.settings, "train", LocalTraining)
        loss = train_epochs(model, data, settings, task.streams, proximal_mu(task.settings))
        if wire == "latent":
            sent = model.state_dict()
        else:
            sent = encode_weights(model, task.streams.generator("wire"))
        return Update(arrays=sent, num_examples=len(data), loss=loss)

    def colocated(
        self, model: nn.Module, arrays: Mapping[str, Tensor], task: Task, packed: bool = False
    ) -> None:
        """Nothing is cut."""


class OQFL(FederatedStrategy):
    """Server half.

    Args:
        spec: bit widths and kind of quantizers.
        wire: how weights cross.
        common: arguments of `FederatedStrategy`.
    """

    client = OQFLClient()
    reads: ClassVar[tuple[str, ...]] = (*QUANTIZERS, "quant.wire")
    default_bits: ClassVar[int] = 4

    def __init__(
        self, *, spec: QuantSpec | None = None, wire: str = "latent", **common: object
    ) -> None:
        super().__init__(**common)  # type: ignore[arg-type]
        self.spec = spec or QuantSpec()
        self.wire = Wire(wire)

    def state(self) -> Arrays:
        """None: weights and steps are the global model."""
        return {}

    def load_state(self, state: Arrays) -> None:
        """Nothing to take back."""

    def prepare(self, model: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
        """Return the quantized network."""
        return super().prepare(quantize(model, self.spec), input_shape)

    def model_bytes(self, partition: int) -> tuple[int, int]:
        """Less what packing saves, in the directions in which the wire has codes."""
        down, up = super().model_bytes(partition)
        state, saved = self.whole_model().state_dict(), 0
        for name, quantizer in weight_quantizers(self.whole_model()).items():
            count = state[name].numel()
            saved += 4 * count - packed_bytes(count, quantizer.bits)
        down_saved = saved if self.wire.name == "codes_both" else 0
        return down - down_saved, up - (saved if self.wire.name != "latent" else 0)

    def describe(self) -> dict[str, float]:
        """Bit widths."""
        return {"weight_bits": self.spec.weight_bits, "act_bits": self.spec.act_bits}

    def client_config(self) -> dict[str, bool | int | float | str]:
        """Training settings, bit widths and the wire."""
        settings = messages.pack_settings(quant=self.spec, wire=self.wire)
        return super().client_config() | settings

    def encode(self, server_round: int, arrays: ArrayRecord, partition: int) -> ArrayRecord:
        """Codes of the global weights where the wire is ``codes_both``."""
        if self.wire.name == "latent":
            return arrays
        model = self.whole_model()  # says before the first round if prepare() is missing
        if self.wire.name == "codes":
            return arrays
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "wire.down", server_round))
        load_arrays(model, messages.to_tensors(arrays))
        return messages.to_record(encode_weights(model, generator))

    def decode(self, update: Update) -> Arrays:
        """Dequantize each client's codes with the client's own steps."""
        if self.wire.name == "latent":
            return super().decode(update)
        tensors = decode_weights(update.arrays, self.whole_model())
        return {name: tensor.numpy() for name, tensor in tensors.items()}


def encode_weights(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """State of ``model`` with each quantized weight as packed codes, stochastically rounded."""
    state = dict(model.state_dict())  # shares memory with the model, its steps too
    for name, quantizer in weight_quantizers(model).items():
        if not quantizer.initialised:  # a weight that was all zeros when the step was to be set
            quantizer.initialise(initial_step(state[name], quantizer.qp, quantizer.channel_axis))
        noise = torch.rand(state[name].shape, generator=generator)
        state[name] = pack(quantizer.codes(state[name], noise) - quantizer.qn, quantizer.bits)
    return state


def decode_weights(arrays: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Inverse of `encode_weights` up to rounding, with the steps that came beside the codes."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    state = dict(arrays)
    for name, quantizer in weight_quantizers(model).items():
        codes = unpack(state[name], quantizer.bits, shapes[name].numel()) + quantizer.qn
        step = state[name.removesuffix("weight") + "weight_quantizer.step"]
        state[name] = codes.reshape(shapes[name]).to(step.dtype) * step
    return state
