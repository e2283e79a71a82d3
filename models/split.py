"""Cut any network that torch.fx can trace into parts that train as the whole does, bit for bit.

A cut point is a place in a network's execution where exactly one float tensor is alive: everything
after it needs that tensor and the parameters, and nothing else. Its name is the outermost module
whose final output the tensor is (``layer2.0``, ``stage1``), else the last such module and the
operations since (``conv1+relu+max_pool2d``); modules called more than once count as operations.

    client, server = cut(model, "layer2", example)
    z = client(x)
    received = z.detach().requires_grad_()
    loss(server(received), y).backward()
    z.backward(received.grad)

Autograd gives ``received.grad`` the strides of ``received``. Where the gradient itself has others
(behind a transpose, or with channels_last on one side only) sums may then differ from the whole in
their last bits; a hook on ``received`` gets the gradient as it is.

No cut points are: the input and the output; places with no parameter before them (nothing would
train there, and nothing needs their gradient); tensors that are overwritten in place later; places
with one parameter, buffer or self-changing module on both sides. What is computed from parameters
and constants alone does not cross: the part that uses it computes it.

`models.trace` says what is followed and what is kept whole, `models.cut_points` finds the cut
points, `models.subnetwork` is what comes out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.cut_points import Place, Survey, flops_until
from models.inputs import InputSpec, remembered
from models.subnetwork import Part, build_parts, check_parts

__all__ = [
    "CutPoint", "InputSpec", "Part", "at_fraction", "before", "cut", "cut_many", "cut_points",
    "kept_whole", "last_layer",
]  # fmt: skip

Example = Tensor | InputSpec | tuple[int, ...]


@dataclass(frozen=True)
class CutPoint:
    """A place where a network can be cut.

    Attributes:
        name: what `cut` takes.
        aliases: inner modules that end at the same place; `cut` takes them too.
        shape: shape of the tensor that crosses, without the batch.
        position: index of the operation that makes it, in the network's execution in training.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    position: int


@torch.inference_mode(False)
def cut_points(model: nn.Module, example: Example) -> list[CutPoint]:
    """Every place where ``model`` can be cut, in execution order.

    Args:
        model: the network; left as it is.
        example: an input (B, ...) of at least two samples, or what one looks like (its shape alone
            for float32 numbers), from which two random ones are made. A copy of the network is run
            on it, for shapes.

    Raises:
        ValueError: the network cannot be traced or cannot take the example; says where and why.
    """
    survey = Survey.of(model, _as_example(model, example))
    return [_cut_point(place) for place in survey.valid]


@torch.inference_mode(False)
def kept_whole(model: nn.Module, example: Example) -> dict[str, str]:
    """Path of each submodule in which ``model`` cannot be cut, being one step → why.

    Arguments and errors as for `cut_points`, and a ValueError where there are none at all.
    """
    survey = Survey.of(model, _as_example(model, example))
    if not survey.valid:
        raise ValueError(survey.without_cuts())
    return survey.kept_whole


def cut(
    model: nn.Module,
    at: str,
    example: Example | None = None,
    *,
    check: bool = True,
) -> tuple[Part, Part]:
    """Cut ``model`` in two, client and server.

    Args:
        model: the network; left as it is.
        at: name or alias of a cut point.
        example: as for `cut_points`. Without it nothing is run, and a few impossible cuts go
            unnoticed until the parts run.
        check: with an example, train copies of the parts and the whole for two steps and refuse
            unless outputs, gradients and buffers are equal in every bit.

    Returns:
        Two modules that own copies of the model's parameters and buffers, each of them in one of
        the two, under the names it has in the model.

    Raises:
        ValueError: no such cut point, and why; or the parts would not compute what the whole does.
    """
    client, server = cut_many(model, [at], example, check=check)
    return client, server


@torch.inference_mode(False)
def cut_many(
    model: nn.Module,
    at: Sequence[str],
    example: Example | None = None,
    *,
    check: bool = True,
) -> tuple[Part, ...]:
    """Cut ``model`` at several places in execution order: two for U-shaped learning.

    Arguments and errors as for `cut`; ``len(at) + 1`` parts.
    """
    if isinstance(at, str) or not at:
        raise ValueError(f"cut_many takes a list of cut points, got {at!r}")
    tensor = None if example is None else _as_example(model, example)
    survey = Survey.of(model, tensor)
    places = [survey.find(name) for name in at]
    counterparts = [survey.counterparts[place.names[0]] for place in places]
    for index in range(1, len(at)):
        earlier, later = places[index - 1].position, places[index].position
        if earlier >= later:
            relation = "is the same place as" if earlier == later else "comes after"
            raise ValueError(
                f"cut {at[index - 1]!r} {relation} {at[index]!r}: give cuts in execution order"
            )
    cuts = " and ".join(repr(name) for name in at)
    try:
        parts = build_parts(
            model,
            [
                (survey.training, [(place.node, place.last) for place in places]),
                (survey.evaluation, [(place.node, place.last) for place in counterparts]),
            ],
        )
        if check and tensor is not None and not _is_meta(model):
            check_parts(model, parts, tensor)
    except ValueError as error:
        raise ValueError(f"{type(model).__name__} cannot be cut at {cuts}: {error}") from error
    return tuple(parts)


@torch.inference_mode(False)
def at_fraction(model: nn.Module, example: Example, fraction: float) -> CutPoint:
    """The cut point whose client half has nearest to ``fraction`` of the forward FLOPs.

    On a tie the one where the least crosses, and of those the last: after the pooling that ends a
    stage, not before it.

    Args:
        model: the network; left as it is.
        example: as for `cut_points`.
        fraction: in (0, 1).

    Raises:
        ValueError: no such fraction, no cut points, no FLOPs, or as for `cut_points`.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"a cut at a fraction of the FLOPs takes one in (0, 1), got {fraction}")
    tensor = _as_example(model, example)
    survey = Survey.of(model, tensor)
    flops = flops_until(survey.evaluation, tensor)
    total = max(flops.values(), default=0)
    if not survey.valid:
        raise ValueError(survey.without_cuts())
    if not total:
        lacks = "convolutions or matrix products to count FLOPs of"
        raise ValueError(f"{type(model).__name__} has no {lacks}")

    def rank(place: Place) -> tuple[float, int, int]:
        share = flops[survey.counterparts[place.names[0]].node] / total
        return abs(share - fraction), math.prod(place.shape), -place.position

    return _cut_point(min(survey.valid, key=rank))


@torch.inference_mode(False)
def before(model: nn.Module, module: str, example: Example) -> CutPoint:
    """The last cut point before the module of that path begins.

    Args:
        model: the network; left as it is.
        module: path of a submodule.
        example: as for `cut_points`.

    Raises:
        ValueError: no such module, or no cut point before it.
    """
    survey = Survey.of(model, _as_example(model, example))
    begin = min(
        (place.position for place in survey.places if place.is_within(module)), default=None
    )
    if begin is None:
        raise ValueError(f"{type(model).__name__} has no module {module!r} among its steps")
    earlier = [place for place in survey.valid if place.position < begin]
    if not earlier:
        raise ValueError(f"{type(model).__name__} has no cut point before {module!r}")
    return _cut_point(earlier[-1])


def last_layer(model: nn.Module) -> str:
    """Path of the last module with parameters that the network calls.

    Raises:
        ValueError: there is none, or the network cannot be traced.
    """
    survey = Survey.of(model, None)
    for place in reversed(survey.places):
        path = str(place.node.target)
        if place.node.op == "call_module" and list(model.get_submodule(path).parameters()):
            return path
    raise ValueError(f"{type(model).__name__} calls no module with parameters")


def _cut_point(place: Place) -> CutPoint:
    return CutPoint(place.names[0], place.names[1:], place.shape, place.position)


def _as_example(model: nn.Module, example: Example) -> Tensor:
    """``example`` itself, or two random samples of that kind where the model is."""
    if isinstance(example, Tensor):
        if example.dim() < 1 or len(example) < 2:
            raise ValueError(f"the example needs at least 2 samples, got {tuple(example.shape)}")
        return example.detach()
    if not isinstance(example, InputSpec):
        spec = remembered(model)
        example = spec if spec and spec.shape == tuple(example) else InputSpec(tuple(example))
    values = example.example()
    first = next((p for p in model.parameters() if p.is_floating_point()), values)
    return values.to(first.device, first.dtype if values.is_floating_point() else values.dtype)


def _is_meta(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())
