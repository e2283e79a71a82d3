"""Local training, as every client half of this folder does it."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models import eager
from models.inputs import call
from models.objective import Loss
from models.state import modules_of, parameters_of, state_of
from quant.at_once import at_once
from quant.functional import MIN_STEP
from quant.quantizer import is_step
from strategies.client.proximal import Proximal
from strategies.client.steps import begin_momentum, bound_steps, step_group
from strategies.contract import ClientData, MeanLoss, Streams

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine")
LEAST_SHARE = 1e-9  # of the rates at the end of a schedule: a rate of 0 is none
AUGMENTS = ("none", "crop_flip")


MOST_EPOCHS = 100_000  # of one round


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains in one round: the group train of the configuration."""

    epochs: int = field(default=5, metadata={"help": "local epochs per round"})
    batch_size: int = field(default=32, metadata={"help": "batch size"})
    lr: float = field(
        default=0.1, metadata={"help": "learning rate of the clients in the first round"}
    )
    optimizer: str = field(
        default="sgd", metadata={"help": "sgd, adam, adamw; its state is reset in each round"}
    )
    momentum: float = field(default=0.9, metadata={"help": "momentum of sgd"})
    nesterov: bool = field(default=False, metadata={"help": "Nesterov momentum of sgd"})
    weight_decay: float = field(
        default=0.0, metadata={"help": "weight decay; not applied to quantizer steps"}
    )
    max_batches: int | None = field(
        default=None, metadata={"help": "maximum batches per client and round; null: no limit"}
    )
    server_lr: float | None = field(
        default=None, metadata={"help": "learning rate of the server model; null: train.lr"}
    )
    lr_decay: float = field(
        default=1.0, metadata={"help": "factor applied to the learning rates after each round"}
    )
    schedule: str = field(
        default="constant",
        metadata={
            "help": "learning rates over the rounds: constant, cosine (half a cosine towards 0)"
        },
    )
    decay_rounds: int | None = field(
        default=None,
        metadata={"help": "cosine: the round after which the rates are 0; null: the last"},
    )
    warmup_rounds: int = field(
        default=0,
        metadata={"help": "rounds in which the rates rise by equal steps, before the schedule"},
    )
    clip_norm: float | None = field(
        default=None,
        metadata={
            "help": "largest norm of the gradient of a step, over all that trains on one side of "
            "the cut; null: no limit"
        },
    )
    augment: str = field(
        default="none", metadata={"help": "none, crop_flip: random crop and horizontal flip"}
    )

    @property
    def optimizer_slots(self) -> int:
        """Tensors that the optimizer keeps for each parameter."""
        return (1 if self.momentum else 0) if self.optimizer == "sgd" else 2

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"train.optimizer={self.optimizer}: takes {', '.join(OPTIMIZERS)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"train.schedule={self.schedule}: takes {', '.join(SCHEDULES)}")
        if self.augment not in AUGMENTS:
            raise ValueError(f"train.augment={self.augment}: takes {', '.join(AUGMENTS)}")
        for name in ("epochs", "batch_size", "max_batches", "decay_rounds"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"train.{name}={value}: takes 1 or more")
        if self.epochs > MOST_EPOCHS:
            raise ValueError(f"train.epochs={self.epochs}: takes {MOST_EPOCHS} or fewer")
        if self.server_lr == 0:
            raise ValueError("train.server_lr=0: takes a positive number, or null for train.lr")
        for name in ("lr", "server_lr", "momentum", "weight_decay"):
            if not 0 <= (value := getattr(self, name) or 0) < math.inf:
                raise ValueError(f"train.{name}={value}: takes 0 or more, and finite")
        if not 0 < self.lr_decay <= 1:
            raise ValueError(f"train.lr_decay={self.lr_decay}: takes a number in (0, 1]")
        if self.warmup_rounds < 0:
            raise ValueError(f"train.warmup_rounds={self.warmup_rounds}: takes 0 or more")
        if self.decay_rounds is not None and self.decay_rounds < self.warmup_rounds:
            raise ValueError(
                f"train.warmup_rounds={self.warmup_rounds}: takes at most the "
                f"{self.decay_rounds} rounds of train.decay_rounds"
            )
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            raise ValueError("train.nesterov=true: takes train.momentum above 0")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(f"train.clip_norm={self.clip_norm}: takes a finite number above 0")

    def of_server(self) -> "LocalTraining":
        """Return the same as the server's part of a cut network trains."""
        return replace(self, lr=self.lr if self.server_lr is None else self.server_lr)

    def resolved(self, rounds: int) -> "LocalTraining":
        """Return the same with a number in place of null, in an experiment of ``rounds`` rounds.

        Raises:
            ValueError: warm-up takes more; names train.warmup_rounds.
        """
        if self.schedule == "constant" or self.decay_rounds is not None:
            return self
        return replace(self, decay_rounds=rounds)

    def in_round(self, server_round: int) -> "LocalTraining":
        """Return the same with the learning rates of a round, counted from 1.

        Raises:
            ValueError: the schedule has no end.
        """
        factor = self.lr_decay ** (server_round - 1) * self.share_of_rate(server_round)
        server_lr = None if self.server_lr is None else self.server_lr * factor
        return replace(self, lr=self.lr * factor, server_lr=server_lr)

    def share_of_rate(self, server_round: int) -> float:
        """Return what warm-up and schedule leave of the rates in a round, in (0, 1].

        In w rounds of warm-up r/(w + 1); then of n rounds that are left, in the i-th from 0,
        (1 + cos(πi/n))/2, which is torch's CosineAnnealingLR, and next to nothing thereafter.
        """
        if server_round <= self.warmup_rounds:
            return server_round / (self.warmup_rounds + 1)
        if self.schedule == "constant":
            return 1.0
        if self.decay_rounds is None:
            raise ValueError("train.decay_rounds=null: takes the number of rounds")
        left, done = self.decay_rounds - self.warmup_rounds, server_round - 1 - self.warmup_rounds
        share = (1 + math.cos(math.pi * min(1.0, done / max(1, left)))) / 2
        return max(LEAST_SHARE, share)


def load_arrays(model: nn.Module, arrays: Mapping[str, Tensor]) -> None:
    """Copy ``arrays`` into the parameters and buffers of ``model``, which keeps none of them.

    Raises:
        ValueError: the names or shapes are not those of the model.
    """
    load_state(state_of(model), arrays)


def load_state(state: Mapping[str, Tensor], arrays: Mapping[str, Tensor]) -> None:
    """The same for what `state_of` returned of a model.

    Raises:
        ValueError: the names or shapes are not those of the model.
    """
    if state.keys() != arrays.keys():
        odd = sorted(state.keys() ^ arrays.keys())
        raise ValueError(f"the arrays are not those of the model: {', '.join(odd[:5])}")
    given = [arrays[name] for name in state]
    for (name, tensor), array in zip(state.items(), given, strict=True):
        if tensor.shape != array.shape:
            shapes = f"{tuple(array.shape)}, not {tuple(tensor.shape)}"
            raise ValueError(f"the arrays are not those of the model: {name} is {shapes}")
    if given:
        torch._foreach_copy_(list(state.values()), given)


def batches(rows: Tensor, settings: LocalTraining, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the rows of each batch of a round, shuffled anew in each epoch.

    A last batch of a single sample joins the batch before it, because batch normalisation cannot
    normalise one value.
    """
    sizes = epoch_sizes(len(rows), settings.batch_size)
    remaining = settings.max_batches or math.inf
    for _ in range(settings.epochs):
        order = rows[torch.randperm(len(rows), generator=generator)]
        for chunk in order.split(sizes):
            if remaining <= 0:
                return
            remaining -= 1
            yield chunk


def batch_sizes(num_examples: int, settings: LocalTraining) -> list[int]:
    """Return the sizes of the batches of a round, as `batches` yields them."""
    sizes = epoch_sizes(num_examples, settings.batch_size) * settings.epochs
    return sizes[: settings.max_batches or None]


def epoch_sizes(num_examples: int, batch_size: int) -> list[int]:
    """Return the sizes of the batches of one pass: a rest of one joins the batch before it."""
    full, rest = divmod(num_examples, batch_size)
    if rest == 1 < batch_size and full:
        return [*[batch_size] * (full - 1), batch_size + 1]
    return [batch_size] * full + [rest] * (rest > 0)


def samples(
    data: ClientData, settings: LocalTraining, streams: Streams
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a round: inputs (B, …) and labels (B, …).

    Raises:
        ValueError: the data have several inputs.
    """
    generator = None if settings.augment == "none" else streams.generator("augment")
    inputs = data.x
    if not isinstance(inputs, Tensor):
        raise ValueError(f"takes one input, the data have {len(inputs)}")
    for rows in batches(data.rows, settings, streams.generator("batches")):
        rows = rows.to(inputs.device, non_blocking=True)
        x = inputs[rows]
        yield x if generator is None else crop_flip(x, generator), data.y[rows]


def samples_of_several(
    data: ClientData, settings: LocalTraining, streams: Streams
) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Yield the same where a sample has several inputs."""
    for rows in batches(data.rows, settings, streams.generator("batches")):
        rows = rows.to(data.y.device, non_blocking=True)
        yield tuple(x[rows] for x in data.x), data.y[rows]


def crop_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image of (B, C, H, W) at random and mirror half of them, as is usual for CIFAR.

    An eighth of the side is added around (4 pixels around 32×32), of zeros, which are the mean
    colour of standardised images; a window of the old size is cut out of it, each as likely.

    Raises:
        ValueError: ``x`` are no images.
    """
    if x.dim() != 4:
        raise ValueError(f"train.augment=crop_flip: takes images, got samples of {x.shape[1:]}")
    count, channels, height, width = x.shape
    top, left = height // 8, width // 8
    padded = F.pad(x, (left, left, top, top))
    down = torch.randint(2 * top + 1, (count, 1), generator=generator)
    right = torch.randint(2 * left + 1, (count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    across = torch.arange(width)
    rows = down + torch.arange(height)  # (B, H)
    columns = right + torch.where(mirrored, across.flip(0), across)  # (B, W)
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (B, H, W)
    pixels = pixels.reshape(count, 1, -1).to(x.device).expand(-1, channels, -1)
    return padded.reshape(count, channels, -1).gather(2, pixels).reshape(x.shape)


def make_optimizer(models: Iterable[nn.Module], settings: LocalTraining) -> torch.optim.Optimizer:
    """Return a new optimizer over what trains in ``models``; steps get no weight decay.

    A parameter that gets no gradient in a step, be it the first, stays as it is in that step. Steps
    train as `strategies.client.steps` has it.

    Args:
        models: parts of one network.
        settings: kind of optimizer and its settings.
    """
    named = [(name, p) for m in models for name, p in parameters_of(m) if p.requires_grad]
    steps = [p for name, p in named if is_step(name)]
    others = [p for name, p in named if not is_step(name)]
    groups = [{"params": others}]
    if steps:
        options = step_group(settings.optimizer, settings.lr, settings.momentum)
        groups.append({"params": steps, **options})  # type: ignore[dict-item]
    decay, lr = settings.weight_decay, settings.lr
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "sgd":
        optimizer = eager.SGD(
            groups,
            lr,
            momentum=settings.momentum,
            weight_decay=decay,
            nesterov=settings.nesterov,
            fused=True,
        )
        begin_momentum(optimizer)
    else:
        kind = eager.Adam if settings.optimizer == "adam" else eager.AdamW
        optimizer = kind(groups, lr, weight_decay=decay, fused=True)
    if steps:
        bound_steps(optimizer, steps)
    if settings.clip_norm is not None:
        _clip(optimizer, [*others, *steps], settings.clip_norm)
    return optimizer


def _clip(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], norm: float) -> None:
    """Scale the gradients of each step so that their norm, of all together, is at most ``norm``.

    The norm is over what this optimizer trains: the whole network, or one side of a cut, where
    the other side's gradients are not known. So a cut network does not train as the whole one.
    """

    def clip(*_: object) -> None:
        nn.utils.clip_grad_norm_(parameters, norm)

    optimizer.register_step_pre_hook(clip)


def train_epochs(
    model: nn.Module,
    data: ClientData,
    settings: LocalTraining,
    streams: Streams,
    proximal_mu: float = 0.0,
    loss_of: Loss = F.cross_entropy,
) -> float:
    """Train ``model`` in place on one client's data; return the mean loss per sample.

    Args:
        model: the network; a sample's inputs, where there are several, are its arguments.
        data: the client's.
        settings: how it trains.
        streams: its randomness.
        proximal_mu: adds FedProx's term to what is minimised, not to what is returned.
        loss_of: the mean loss of outputs and labels (B, …).

    Raises:
        FloatingPointError: the loss or a weight is no finite number any more.
    """
    streams.seed_dropout()
    begin_training([model], len(data))
    optimizer = make_optimizer([model], settings)
    proximal = Proximal(model, proximal_mu) if proximal_mu > 0 else None
    losses: list[MeanLoss] = []
    counts: list[int] = []
    forward: Callable[..., Any] = at_once(model)
    if isinstance(data.x, Tensor):
        found: Iterable[tuple[Any, Tensor]] = samples(data, settings, streams)
    else:
        found = samples_of_several(data, settings, streams)
        forward = functools.partial(call, forward)
    for x, y in found:
        loss = loss_of(forward(x), y)
        optimizer.zero_grad()
        loss.backward()
        if proximal is not None:
            proximal.add_gradient()
        optimizer.step()
        losses.append(loss.detach())
        counts.append(len(y))
    mean = mean_of(losses, counts)
    end_training([model], mean, settings)
    return mean


def mean_of(losses: Sequence[MeanLoss], counts: Sequence[int]) -> float:
    """Mean loss per sample of batches of ``counts`` samples.

    Losses that lie on a device are fetched together: one by one, each batch would wait for it.
    """
    values: Sequence[Any] = losses
    if losses and isinstance(losses[0], Tensor) and not losses[0].is_cpu:
        values = torch.stack([loss for loss in losses if isinstance(loss, Tensor)]).tolist()
    total = 0.0
    for value, count in zip(values, counts, strict=True):
        total += float(value) * count
    return total / sum(counts)


def begin_training(models: Iterable[nn.Module], num_examples: int) -> None:
    """Put parts of a network into training mode, at the start of a client's round.

    Of one sample batch normalisation has no statistics: it takes the running ones.
    """
    for model in models:
        held = modules_of(model)
        if not all(module.training for module in held):  # which is told faster than done
            model.train()
        if num_examples == 1:
            for module in held:
                if isinstance(module, _BatchNorm):
                    module.eval()


def end_training(models: Sequence[nn.Module], loss: float | None, settings: LocalTraining) -> None:
    """Keep quantizers' steps from 0, and refuse what is no finite number any more.

    Args:
        models: parts of a network at the end of a client's round.
        loss: their mean loss; None is not looked at.
        settings: how they trained.

    Raises:
        FloatingPointError: the loss or a weight; names the rates of this round.
    """
    named = [one for model in models for one in parameters_of(model)]
    for name, parameter in named:
        if is_step(name):
            parameter.data.clamp_(min=MIN_STEP)
    if not (loss is None or math.isfinite(loss)) or not _are_finite([one for _, one in named]):
        what = "a weight of the server model is not finite" if loss is None else f"loss {loss}"
        rates = f"train.lr={settings.lr}"
        if settings.server_lr:
            rates += f", train.server_lr={settings.server_lr}"
        raise FloatingPointError(
            f"training diverged: {what} with {rates}, train.optimizer={settings.optimizer}"
        )


@torch.no_grad()
def _are_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all values are finite numbers, in one operation for those of float32."""
    usual = [tensor for tensor in tensors if tensor.dtype == torch.float32]
    if usual and not all(math.isfinite(float(norm)) for norm in torch._foreach_norm(usual)):
        return all(bool(tensor.isfinite().all()) for tensor in tensors)  # the norm may overflow
    others = (tensor for tensor in tensors if tensor.dtype != torch.float32)
    return all(bool(torch.isfinite(tensor.sum())) for tensor in others)
