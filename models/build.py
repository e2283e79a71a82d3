"""Build a model from its name, give it the data's sizes, and check that it takes them."""

import copy
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from models.blocks import by
from models.inputs import InputSpec, remember, remembered
from models.settle import settled
from models.trace import preserved_randomness, seed_all
from targets import locate, shown

EXPECTED = "a class of torch.nn.Module, or a function that returns one"


def build(
    target: str,
    options: Mapping[str, Any],
    input_shape: tuple[int, ...],
    num_classes: int,
    seed: int,
    spec: InputSpec | None = None,
) -> nn.Module:
    """Build the model at ``target`` with initial weights drawn by ``seed``.

    ``in_channels``, ``num_classes`` and ``input_shape`` are passed where the signature takes them,
    so that a network written for one data set can be used as it is. The global random state is
    left as it was.

    Args:
        target: a class or function, such as ``models.cnn.CNN`` or ``nets/mine.py:MyNet``.
        options: its other arguments.
        input_shape: shape of one sample, such as (1, 28, 28).
        num_classes: number of classes.
        seed: draws the initial weights, from torch's, Python's or NumPy's random numbers.
        spec: what inputs look like where they are no float32 numbers.

    Raises:
        ValueError: no such thing, arguments it does not take, or no model; names the key.
    """
    factory = _locate(target)
    sizes = {
        "in_channels": input_shape[0],
        "num_classes": num_classes,
        "input_shape": input_shape,
    }
    try:
        signature = inspect.signature(factory)
    except ValueError as error:
        raise ValueError(f"model._target_={shown(target)}: {error}") from error
    parameters = signature.parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    arguments: dict[str, Any] = {name: size for name, size in sizes.items() if name in parameters}
    unknown = [name for name in options if name not in parameters and not takes_any]
    if unknown:
        accepted = ", ".join(name for name in parameters if name not in sizes) or "no options"
        raise ValueError(
            f"model.{unknown[0]}: {shown(target)} does not take it; it takes {accepted}"
        )
    arguments |= options
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(f"model.<option> of {shown(target)}: {error}") from error
    spec = spec or InputSpec(input_shape)
    with preserved_randomness():
        seed_all(seed)
        model = factory(**arguments)
        if not isinstance(model, nn.Module):
            got = f"is not a torch.nn.Module, but returns {type(model).__name__}"
            raise ValueError(f"model._target_={shown(target)}: {got}; expected {EXPECTED}")
        try:
            model = settled(model, spec, num_classes)
        except ValueError as error:
            raise ValueError(f"model._target_={shown(target)}: {error}") from error
    remember(model, spec)
    return model


def check(model: nn.Module, input_shape: tuple[int, ...], num_classes: int) -> None:
    """Run two empty samples through ``model``.

    Raises:
        ValueError: the model cannot take the input, or its output is not (B, num_classes).
    """
    shape = by(input_shape)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = copy.deepcopy(model).eval()(_zeros(model, 2, input_shape))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ValueError(f"it cannot take an input of {shape}: {_reason(error)}") from error
    if not isinstance(output, torch.Tensor) or output.shape != (2, num_classes):
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"two samples of {shape} give {got}, not (2, {num_classes}) logits")


def check_batch_of_one(model: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Run one empty sample through ``model`` in training.

    Raises:
        ValueError: the model cannot train on one sample; batch normalisation of 1×1 maps cannot.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy.deepcopy(model).train()(_zeros(model, 1, input_shape))
    except (RuntimeError, ValueError) as error:
        reason = _reason(error)
        raise ValueError(f"train.batch_size=1: the model takes 2 or more: {reason}") from error


def smallest_input(
    target: str, options: Mapping[str, Any], input_shape: tuple[int, ...], num_classes: int
) -> int | None:
    """Smallest side of a square (or length) that the model takes, or None if none up to 512 does.

    Found by bisection over models on the meta device, where nothing is computed.
    """

    def takes(size: int) -> bool:
        shape = (input_shape[0], *[size] * (len(input_shape) - 1))
        try:
            with torch.device("meta"):
                check(build(target, options, shape, num_classes, 0), shape, num_classes)
        except Exception:  # any failure of somebody else's constructor means: not this size
            return False
        return True

    low, high = 0, 512
    if not takes(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if takes(middle) else (middle, high)
    return high


def _zeros(model: nn.Module, batch: int, input_shape: tuple[int, ...]) -> torch.Tensor:
    """Empty samples of the type that ``model`` was built for."""
    spec = remembered(model)
    return torch.zeros(batch, *input_shape, dtype=spec.dtype if spec else torch.float32)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _locate(target: str) -> Callable[..., Any]:
    """What makes the model; shown to be a network's class, or a function, before it is called."""
    found = locate(target, "model._target_", EXPECTED)
    if not _is_network(found):
        raise ValueError(
            f"model._target_={shown(target)}: is not a torch.nn.Module; expected {EXPECTED}"
        )
    return found  # type: ignore[no-any-return]


def _is_network(found: Any) -> bool:
    """Whether ``found`` is a class of networks, or a function that may return one.

    No function of Python itself does, nor one that says that it returns something else.
    """
    if isinstance(found, type):
        return issubclass(found, nn.Module)
    if not (inspect.isfunction(found) or inspect.ismethod(found)):
        return False
    if found.__module__.partition(".")[0] in sys.stdlib_module_names:
        return False
    returned = found.__annotations__.get("return", nn.Module)
    return not isinstance(returned, type) or issubclass(returned, nn.Module)
