"""HeteroFL: each client trains a slice of each layer, and slices are averaged over their holders.

Diao, Ding and Tarokh, ICLR 2021, arXiv 2010.01264. Client i holds the first ⌈sᵢ·C⌉ of the C
channels of every layer (`models.slices`); the server averages each entry of each array over those
who hold it, and leaves alone what nobody holds:

    w[e] = Σ (nᵢ/Σn)·wᵢ[e]   over i with e in the slice of sᵢ

What a layer of a slice puts out is divided by sᵢ while it trains (the paper's scaler), as inverted
dropout does it, so that slices and the whole network agree on the size of activations. Clients may
have bits of their own beside: a slice is then quantized as OQFL does it. `heterofl.md` lists the
deviations.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Unpack

from torch import Tensor, nn

from models.slices import Channels
from quant.layers import FULL_PRECISION, QuantSpec, quantize
from quant.settings import QUANTIZERS, QuantSettings
from strategies import messages
from strategies.codes import wire_of
from strategies.contract import Settings
from strategies.messages import SHARE, unpack_settings
from strategies.oqfl import OQFLClient
from strategies.server.aggregation import Averaging, AveragingSettings
from strategies.server.kinds import SubmodelSettings, varied
from strategies.server.loop import FederatedStrategy
from strategies.server.method import Method, RoundArguments
from strategies.server.planning import Planning, PlanSettings
from strategies.server.schedules import PARALLEL


@dataclass(frozen=True)
class HeteroFLSettings:
    """The method's own keys of the group strategy."""

    scaler: bool = field(
        default=True,
        metadata={"help": "heterofl: divide what layers of a slice put out by its share"},
    )


class HeteroFLClient(OQFLClient):
    """A `ClientHalf` that trains the network of its share and bits as OQFL does."""

    def prepare(self, model: nn.Module, settings: Settings) -> nn.Module:
        """The client's slice of the network, quantized."""
        share = float(settings.get(SHARE, 1.0))
        quantized = quantize(sliced(model, share), unpack_settings(settings, "quant", QuantSpec))
        if share < 1 and unpack_settings(settings, "heterofl", HeteroFLSettings).scaler:
            add_scaler(model, quantized, share)
        return quantized


class HeteroFL(FederatedStrategy):
    """FedAvg, or OQFL, in which each client trains a slice of each layer.

    Args:
        submodel: how much of the network each client trains.
        quant: bit widths, kind of quantizers, and how weights cross.
        settings: the method's own.
        averaging: as FedAvg's; what it says is done entry by entry.
        plan: what decides where a share or bits are ``auto``.
        objective: what a plan makes least.
        rounds: as `RoundSettings`.
    """

    client = HeteroFLClient()
    reads = (*QUANTIZERS, "quant.wire", "submodel", "plan")

    def __init__(
        self,
        *,
        submodel: SubmodelSettings | None = None,
        quant: QuantSettings | None = None,
        settings: HeteroFLSettings | None = None,
        averaging: AveragingSettings | None = None,
        plan: PlanSettings | None = None,
        objective: str = "seconds",
        **rounds: Unpack[RoundArguments],
    ) -> None:
        quant, averaging = quant or QuantSettings(), averaging or AveragingSettings()
        wire = wire_of(quant.wire)
        method = Method(
            network=varied(
                quant,
                FULL_PRECISION,
                submodel or SubmodelSettings(),
                wire.num_bytes,
                Planning.of(plan, objective),
            ),
            schedule=PARALLEL,
            wire=wire,
            aggregate=Averaging.of(averaging),
            settings={
                **averaging.client_settings(),
                **messages.pack_settings(heterofl=settings or HeteroFLSettings()),
            },
            needs_prepare="a network in slices",
        )
        super().__init__(method, **rounds)


def sliced(model: nn.Module, share: float) -> nn.Module:
    """Return the slice of ``model`` that a share of its channels is; of all it is the model."""
    return model if share == 1 else Channels.of(model).sliced(share)[0]


def add_scaler(whole: nn.Module, narrow: nn.Module, share: float) -> None:
    """Have each layer of a slice that makes fewer channels divide them by ``share`` in training.

    In front of a normalisation the division changes next to nothing but running statistics.
    """
    modules = dict(whole.named_modules())
    for path, module in narrow.named_modules():
        weight, own = getattr(modules.get(path), "weight", None), getattr(module, "weight", None)
        is_layer = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        if is_layer and weight is not None and len(own) < len(weight):  # type: ignore[arg-type]
            module.register_forward_hook(scaled_by(share))


def scaled_by(share: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Return a hook that divides what a module puts out in training."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output / share if module.training else output

    return hook
