"""OQFL: federated averaging with quantizers whose steps are learned with the weights.

Kim and Hong, APNOMS 2020, doi 10.23919/APNOMS50412.2020.9236949. Only its abstract was available:
the quantizer is LSQ (arXiv 1902.08153; `quant.functional` has the formulas), and local training and
averaging are FedAvg's, over weights and steps alike. `oqfl.md` lists the deviations.

    client   ŵ = Q(w; s_w),  x̂ = Q(x; s_x);  SGD on w, s_w, s_x by the task loss
    server   w, s = Σ (nᵢ/Σn)·(wᵢ, sᵢ)

What crosses is `quant.wire`: w and s as fp32, or packed codes (`strategies.codes`).

Clients may have bits of their own (`strategies.server.varied`): weights are shared, steps are those
of a width, and so are codes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Unpack

from torch import Tensor, nn

from quant.layers import QuantSpec, quantize
from quant.settings import QUANTIZERS, QuantSettings
from strategies.client.training import LocalTraining, train_epochs
from strategies.codes import load_as_told, sent_as_told, wire_of
from strategies.contract import ClientData, ServerHalf, Settings, Task, Update
from strategies.messages import objective_of, proximal_mu, unpack_settings
from strategies.server.aggregation import Averaging, AveragingSettings
from strategies.server.kinds import SubmodelSettings, varied
from strategies.server.loop import FederatedStrategy
from strategies.server.method import Method, RoundArguments
from strategies.server.planning import Planning, PlanSettings
from strategies.server.schedules import PARALLEL

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
        began = load_as_told(model, arrays, task.settings)
        settings = unpack_settings(task.settings, "train", LocalTraining)
        mu, loss_of = proximal_mu(task.settings), objective_of(task.settings).loss
        loss = train_epochs(model, data, settings, task.streams, mu, loss_of)
        return Update(arrays=sent_as_told(model, began, task), num_examples=len(data), loss=loss)

    def colocated(
        self, model: nn.Module, arrays: Mapping[str, Tensor], task: Task, packed: bool = False
    ) -> None:
        """Nothing is cut."""


class OQFL(FederatedStrategy):
    """FedAvg of a network with quantizers, weights and steps alike.

    Args:
        quant: bit widths, kind of quantizers, and how weights cross.
        averaging: as FedAvg's.
        submodel: what widths share, and count for, beside others; all train all channels.
        plan: what decides where ``quant.bits`` is ``auto``.
        objective: what a plan makes least.
        rounds: as `RoundSettings`.
    """

    client = OQFLClient()
    reads = (*QUANTIZERS, "quant.wire", "submodel.statistics", "submodel.weighting", "plan")
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
