"""FjORD: each client trains all slices up to its own, a random one in each batch.

Horváth et al., NeurIPS 2021, arXiv 2102.13451. Ordered dropout: a client of share sᵢ draws in each
batch one of the shares up to sᵢ, all as likely, and trains the first ⌈s·C⌉ channels of each layer
(`models.slices`); what the slice does not have gets no gradient. Entries are averaged over their
holders, as HeteroFL has it. With distillation the largest slice learns from labels in each batch,
and the drawn one from its outputs as well:

    L = CE(f_max(x), y) + (1 − α)·CE(f_s(x), y) + α·KL(f_max(x) ‖ f_s(x))

Clients may have bits of their own beside; steps are those of all slices. `fjord.md` lists the
deviations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from models.slices import Channels, Kept, part_of, within
from quant.layers import FULL_PRECISION, QuantSpec, quantize
from quant.settings import QUANTIZERS, QuantSettings
from strategies.client.training import (
    LocalTraining,
    begin_training,
    end_training,
    make_optimizer,
    mean_of,
    samples,
    train_epochs,
)
from strategies.codes import load_as_told, sent_as_told, wire_of
from strategies.contract import ClientData, MeanLoss, ServerHalf, Settings, Task, Update
from strategies.messages import SHARE, SHARES, objective_of, unpack_settings
from strategies.server.aggregation import Averaging, AveragingSettings
from strategies.server.kinds import SubmodelSettings, is_share, kept_of, varied
from strategies.server.loop import FederatedStrategy
from strategies.server.method import Method, RoundArguments
from strategies.server.planning import Planning, PlanSettings
from strategies.server.schedules import PARALLEL


@dataclass(frozen=True)
class FjORDSettings:
    """The method's own keys of the group strategy."""

    shares: Any = field(
        default=None,
        metadata={"help": "fjord: shares that are drawn, up to a client's own; null: the clients'"},
    )
    distillation: float = field(
        default=0.0,
        metadata={"help": "fjord: weight of what a slice learns from the largest; 0: none"},
    )

    def __post_init__(self) -> None:
        given = self.shares
        is_list = isinstance(given, Sequence) and not isinstance(given, str) and len(given) > 0
        if given is not None and not (is_list and all(is_share(one) for one in given)):
            raise ValueError(f"strategy.shares={given}: takes a list of shares in (0, 1], or null")
        if not 0 <= self.distillation <= 1:
            raise ValueError(f"strategy.distillation={self.distillation}: takes a weight in [0, 1]")

    def told(self) -> Settings:
        """What clients need of it."""
        drawn = {} if self.shares is None else {DRAWN: " ".join(f"{s:g}" for s in self.shares)}
        return {**drawn, DISTILLATION: self.distillation}


DRAWN, DISTILLATION = "fjord.shares", "fjord.distillation"


# A client -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Slice:
    """A slice of a client's network, which runs on the client's own parameters.

    Attributes:
        model: its code and shapes.
        kept: what of each of the client's arrays it is, where that is not all.
    """

    model: nn.Module
    kept: Mapping[str, Kept]

    def run(self, own: nn.Module, x: Tensor) -> Tensor:
        """Run it on ``x`` (B, …); gradients and running statistics are ``own``'s."""
        parameters, buffers = dict(own.named_parameters()), dict(own.named_buffers())
        part = {
            name: part_of(tensor, self.kept[name]) if name in self.kept else tensor
            for name, tensor in {**parameters, **buffers}.items()
        }
        output: Tensor = functional_call(self.model, part, (x,))
        with torch.no_grad():
            for name, buffer in buffers.items():
                if name in self.kept:
                    buffer[_index(buffer, self.kept[name])] = part[name]
        return output


def _index(tensor: Tensor, kept: Kept) -> tuple[Tensor, ...]:
    axes = [
        torch.arange(size) if axis is None else torch.from_numpy(axis)
        for size, axis in zip(tensor.shape, kept, strict=True)
    ]
    return torch.meshgrid(*axes, indexing="ij")


@dataclass(frozen=True, eq=False)
class Nested:
    """A client's network, and the smaller slices in it.

    Attributes:
        model: the client's network.
        smaller: slices of it, from the smallest.
    """

    model: nn.Module
    smaller: tuple[Slice, ...]


class FjORDClient:
    """A `ClientHalf` that trains a random slice of its network in each batch."""

    def prepare(self, model: nn.Module, settings: Settings) -> Nested:
        """The client's slice of the network, quantized, and those within it."""
        own, spec = float(settings.get(SHARE, 1.0)), unpack_settings(settings, "quant", QuantSpec)
        told = str(settings.get(DRAWN, settings.get(SHARES, "")))
        less = sorted({float(share) for share in told.split() if float(share) < own})
        if not less and own == 1:
            return Nested(quantize(model, spec), ())
        channels = Channels.of(model)
        largest, held = channels.sliced(own)
        whole = quantize(largest, spec)
        held = kept_of(whole, held)
        smaller = []
        for share in less:
            narrow, kept = channels.sliced(share)
            quantized = quantize(narrow, spec)
            smaller.append(Slice(quantized, within(held, kept_of(quantized, kept))))
        return Nested(whole, tuple(smaller))

    def train(
        self,
        model: Nested,
        arrays: Mapping[str, Tensor],
        data: ClientData,
        task: Task,
        server: ServerHalf | None,
    ) -> Update:
        """Load the client's part of the global model, train it, send it or its codes."""
        began = load_as_told(model.model, arrays, task.settings)
        loss = train_nested(model, data, task)
        return Update(sent_as_told(model.model, began, task), len(data), loss)

    def colocated(
        self, model: Nested, arrays: Mapping[str, Tensor], task: Task, packed: bool = False
    ) -> None:
        """Nothing is cut."""


def train_nested(nested: Nested, data: ClientData, task: Task) -> float:
    """Train a client's network in place, in each batch a slice of it; return the mean loss.

    Raises:
        ValueError: the data have several inputs.
        FloatingPointError: the loss or a weight is no finite number any more.
    """
    settings = unpack_settings(task.settings, "train", LocalTraining)
    loss_of, model = objective_of(task.settings).loss, nested.model
    if not nested.smaller:
        return train_epochs(model, data, settings, task.streams, loss_of=loss_of)
    alpha = float(task.settings.get(DISTILLATION, 0.0))
    task.streams.seed_dropout()
    begin_training([model, *(one.model for one in nested.smaller)], len(data))
    optimizer = make_optimizer([model], settings)
    draw = task.streams.generator("fjord.share")
    losses: list[MeanLoss] = []
    counts: list[int] = []
    for x, y in samples(data, settings, task.streams):
        index = int(torch.randint(len(nested.smaller) + 1, (), generator=draw))
        chosen = nested.smaller[index] if index < len(nested.smaller) else None
        if chosen is None:
            loss = loss_of(model(x), y)
        elif not alpha:
            loss = loss_of(chosen.run(model, x), y)
        else:
            student, teacher = chosen.run(model, x), model(x)
            loss = loss_of(teacher, y) + (1 - alpha) * loss_of(student, y)
            loss = loss + alpha * distance(teacher.detach(), student)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        counts.append(len(y))
    mean = mean_of(losses, counts)
    end_training([model], mean, settings)
    return mean


def distance(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher ‖ student) of the classes that logits (B, C) stand for, mean over the batch."""
    one, other = (F.log_softmax(x, 1, dtype=torch.float32) for x in (student, teacher))
    return F.kl_div(one, other, reduction="batchmean", log_target=True)


class FjORD(FederatedStrategy):
    """FedAvg, or OQFL, in which each client trains random slices up to its own.

    Args:
        submodel: the largest slice of each client.
        quant: bit widths, kind of quantizers, and how weights cross.
        settings: the method's own.
        averaging: as FedAvg's; what it says is done entry by entry. Takes no proximal term.
        plan: what decides where a share or bits are ``auto``.
        objective: what a plan makes least.
        rounds: as `RoundSettings`.
    """

    client = FjORDClient()
    reads = (*QUANTIZERS, "quant.wire", "submodel", "plan")

    def __init__(
        self,
        *,
        submodel: SubmodelSettings | None = None,
        quant: QuantSettings | None = None,
        settings: FjORDSettings | None = None,
        averaging: AveragingSettings | None = None,
        plan: PlanSettings | None = None,
        objective: str = "seconds",
        **rounds: Unpack[RoundArguments],
    ) -> None:
        quant, averaging = quant or QuantSettings(), averaging or AveragingSettings()
        settings, wire = settings or FjORDSettings(), wire_of(quant.wire)
        if averaging.proximal_mu:
            raise ValueError(
                f"strategy.proximal_mu={averaging.proximal_mu}: fjord takes 0: it trains slices"
            )
        task = rounds.get("task")
        if settings.distillation and task is not None and task.objective().name != "classification":
            raise ValueError(
                f"strategy.distillation={settings.distillation}: takes task=classification"
            )
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
            settings=settings.told(),
            needs_prepare="a network in slices",
        )
        super().__init__(method, **rounds)
