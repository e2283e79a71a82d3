"""OQFL: federated averaging with quantizers whose steps are learned with the weights.

Kim and Hong, APNOMS 2020, doi 10.23919/APNOMS50412.2020.9236949. Only its abstract was available:
the quantizer is LSQ (arXiv 1902.08153; `quant.functional` has the formulas), and local training and
averaging are FedAvg's, over weights and steps alike. `oqfl.md` lists the deviations.

    client   ŵ = Q(w; s_w),  x̂ = Q(x; s_x);  SGD on w, s_w, s_x by the task loss
    server   w, s = Σ (nᵢ/Σn)·(wᵢ, sᵢ)

What crosses (`wire`):
    latent       w and s as fp32
    codes        up: each weight as packed b-bit codes with its step, stochastically rounded; the
                 server averages the dequantized weights in fp32
    codes_both   down too: the server sends codes of its fp32 average, stochastically rounded

Clients may have bits of their own (`strategies.server.varied`): weights are shared, steps are those
of a width, and so are codes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Unpack

import torch
from torch import Tensor, nn

from fleet.seeds import derive_seed
from quant.functional import initial_step
from quant.layers import QuantSpec, quantize, weight_quantizer_paths, weight_quantizers
from quant.packing import pack, packed_bytes, unpack
from quant.settings import QUANTIZERS, WIRES, QuantSettings
from strategies import messages
from strategies.client.training import LocalTraining, load_arrays, train_epochs
from strategies.contract import ClientData, ServerHalf, Settings, Task, Update
from strategies.messages import objective_of, proximal_mu, unpack_settings
from strategies.server.aggregation import Averaging, AveragingSettings
from strategies.server.kinds import SubmodelSettings, varied
from strategies.server.loop import FederatedStrategy
from strategies.server.method import (
    Arrays,
    Masks,
    Method,
    Network,
    RoundArguments,
    Wire,
)
from strategies.server.planning import Planning, PlanSettings
from strategies.server.schedules import PARALLEL
from strategies.server.wires import Latent, state_bytes

DEFAULT_BITS = 4


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
        load_as_told(model, arrays, task.settings)
        settings = unpack_settings(task.settings, "train", LocalTraining)
        mu, loss_of = proximal_mu(task.settings), objective_of(task.settings).loss
        loss = train_epochs(model, data, settings, task.streams, mu, loss_of)
        return Update(arrays=sent_as_told(model, task), num_examples=len(data), loss=loss)

    def colocated(
        self, model: nn.Module, arrays: Mapping[str, Tensor], task: Task, packed: bool = False
    ) -> None:
        """Nothing is cut."""


def load_as_told(model: nn.Module, arrays: Mapping[str, Tensor], settings: Settings) -> None:
    """Load what came to a client, codes where the wire has them."""
    wire = unpack_settings(settings, "wire", WireSettings).name
    load_arrays(model, decode_weights(arrays, model) if wire == "codes_both" else arrays)


def sent_as_told(model: nn.Module, task: Task) -> dict[str, Tensor]:
    """Return what a client sends of a trained model: its state, or codes of it."""
    if unpack_settings(task.settings, "wire", WireSettings).name == "latent":
        return model.state_dict()
    return encode_weights(model, task.streams.generator("wire"))


class OQFL(FederatedStrategy):
    """FedAvg of a network with quantizers, weights and steps alike.

    Args:
        quant: bit widths, kind of quantizers, and how weights cross.
        averaging: as FedAvg's.
        submodel: whether each width has running statistics of its own; all train all channels.
        plan: what decides where ``quant.bits`` is ``auto``.
        objective: what a plan makes least.
        rounds: as `RoundSettings`.
    """

    client = OQFLClient()
    reads = (*QUANTIZERS, "quant.wire", "submodel.statistics", "plan")
    default_bits = DEFAULT_BITS

    def __init__(
        self,
        *,
        quant: QuantSettings | None = None,
        averaging: AveragingSettings | None = None,
        submodel: SubmodelSettings | None = None,
        plan: PlanSettings | None = None,
        objective: str = "seconds",
        **rounds: Unpack[RoundArguments],
    ) -> None:
        quant, averaging = quant or QuantSettings(), averaging or AveragingSettings()
        submodel = replace(submodel or SubmodelSettings(), share=1.0)
        aggregate, wire = Averaging.of(averaging), wire_of(quant.wire)
        is_plain = quant.wire == "latent" and not quant.is_per_client
        method = Method(
            network=varied(
                quant, DEFAULT_BITS, submodel, wire.num_bytes, Planning.of(plan, objective)
            ),
            schedule=PARALLEL,
            wire=wire,
            aggregate=aggregate,
            settings=averaging.client_settings(),
            needs_prepare=aggregate.needs_prepare or ("" if is_plain else "OQFL"),
        )
        super().__init__(method, **rounds)


# What crosses -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WireSettings:
    """How weights cross: ``latent``, ``codes`` or ``codes_both``."""

    name: str = "latent"

    def __post_init__(self) -> None:
        if self.name not in WIRES:
            raise ValueError(f"quant.wire={self.name}: takes {', '.join(WIRES)}")


def wire_of(name: str) -> Wire:
    """Return the wire that quant.wire names."""
    chosen = WireSettings(name)
    if name == "latent":
        return Latent(settings=messages.pack_settings(wire=chosen))
    return Codes(both_ways=name == "codes_both")


@dataclass(frozen=True)
class Codes:
    """Each quantized weight crosses as packed codes beside its step.

    Attributes:
        both_ways: whether the server sends codes, too.
    """

    both_ways: bool

    @property
    def settings(self) -> Settings:
        """The wire's name."""
        name = "codes_both" if self.both_ways else "codes"
        return messages.pack_settings(wire=WireSettings(name))

    def names(self, network: Network | None, partition: int) -> None:
        """All arrays cross."""

    def encode(
        self, network: Network | None, arrays: Arrays, partition: int, server_round: int, seed: int
    ) -> Arrays:
        """What the client holds, as codes where the server sends codes."""
        assert network is not None, "codes need prepare()"
        view = network.view(partition)
        own = view.of(arrays)
        if not self.both_ways:
            return own
        generator = torch.Generator().manual_seed(derive_seed(seed, "wire.down", server_round))
        load_arrays(view.model, {n: torch.from_numpy(array) for n, array in own.items()})
        encoded = encode_weights(view.model, generator)
        return {name: tensor.detach().numpy() for name, tensor in encoded.items()}

    def decode(
        self, network: Network | None, arrays: Mapping[str, Tensor], partition: int
    ) -> tuple[Arrays, Masks]:
        """Each client's codes, dequantized with the client's own steps."""
        assert network is not None, "encode() comes first"
        view = network.view(partition)
        return view.back(decode_weights(arrays, view.model))

    def num_bytes(self, network: Network, partition: int) -> tuple[int, int]:
        """Less what packing saves, in the directions that have codes."""
        model = network.view(partition).model
        whole, coded = state_bytes(model, None), coded_bytes(model)
        return (coded if self.both_ways else whole), coded


def coded_bytes(model: nn.Module) -> int:
    """Bytes of what `encode_weights` returns, from shapes alone."""
    state, quantizers = model.state_dict(), weight_quantizers(model)
    return sum(
        packed_bytes(tensor.numel(), quantizers[name].bits)
        if name in quantizers
        else tensor.numel() * tensor.element_size()
        for name, tensor in state.items()
    )


def encode_weights(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """State of ``model`` with each quantized weight as packed codes, stochastically rounded."""
    state = dict(model.state_dict())  # shares memory with the model, its steps too
    for name, quantizer in weight_quantizers(model).items():
        if not quantizer.initialised:  # a weight that was all zeros when the step was to be set
            quantizer.initialise(initial_step(state[name], quantizer.qp, quantizer.channel_axis))
        noise = torch.rand(state[name].shape, generator=generator).to(state[name].device)
        state[name] = pack(quantizer.codes(state[name], noise) - quantizer.qn, quantizer.bits)
    return state


def decode_weights(arrays: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Inverse of `encode_weights` up to rounding, with the steps that came beside the codes."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    state = dict(arrays)
    paths = weight_quantizer_paths(model)
    for name, quantizer in weight_quantizers(model).items():
        codes = unpack(state[name], quantizer.bits, shapes[name].numel()) + quantizer.qn
        step = state[f"{paths[name]}.step"]
        state[name] = codes.reshape(shapes[name]).to(step.dtype) * step
    return state
