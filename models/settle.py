"""Make of a user's network what the rest of the project takes, whatever it was written like.

- Lazy modules get their shapes from an example.
- Convolutions run fastest in channels_last (models/memory_format.py). A network that does not take
  it, such as one that calls ``view()`` on a convolution's output, keeps its layout.
- A network that gives a dict, a dataclass or a tuple gives its logits alone: what is called
  ``logits``, ``out`` or ``output``, else the first (B, num_classes) tensor. Names of parameters
  stay.

Which of these a network needs is seen by running it on two random samples in either mode.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from models.inputs import Inputs, examples_of
from models.memory_format import in_best_format, say_once
from models.trace import first_line, preserved_randomness

LOGITS = ("logits", "out", "output")
"""What logits are called where a network gives several results."""

Keys = tuple[str | int, ...]


def settled(model: nn.Module, inputs: Inputs, num_classes: int) -> nn.Module:
    """Return ``model``, changed in place where it has to be.

    A network that cannot run on two samples stays as it is: `models.build.check` says why.

    Raises:
        ValueError: it gives several tensors, none of which can be the logits; or what trains in it
            is compiled by torch.jit.
    """
    own = type(model).__module__.partition(".")[0] == __name__.partition(".")[0]
    if own:
        return in_best_format(model)  # known to take it, and to give logits
    _refuse_compiled(model)
    _materialise(model, inputs)
    if any(parameter.is_meta for parameter in model.parameters()):
        return in_best_format(model)
    try:
        fast = in_best_format(copy.deepcopy(model))
    except Exception:  # it cannot be copied, as cuts and quantizers would have it
        return in_best_format(model)
    outputs = _outputs(fast, inputs)
    if isinstance(outputs, Exception):
        plain = _outputs(copy.deepcopy(model), inputs)
        if isinstance(plain, Exception):
            return in_best_format(model)
        name, reason = type(model).__name__, first_line(outputs)
        say_once(f"{name} keeps its memory format: channels_last does not suit it: {reason}")
        outputs = plain
    else:
        model = in_best_format(model)
    keys = {mode: _logits(output, num_classes) for mode, output in outputs.items()}
    if any(keys.values()):
        model.__class__ = _giving_logits(type(model))
        vars(model)["_logits_at"] = keys
    return model


def _refuse_compiled(model: nn.Module) -> None:
    """Refuse what torch.jit compiled: in a deep copy of it (torch 2.13) nothing trains any more."""
    for name, module in model.named_modules():
        compiled = isinstance(module, torch.jit.ScriptModule)
        if compiled and any(p.requires_grad for p in module.parameters()):
            raise ValueError(
                f"{name or 'the network'} is compiled by torch.jit, and copies of it do not train: "
                "take the module that was compiled, or freeze it"
            )


def _materialise(model: nn.Module, inputs: Inputs) -> None:
    """Give lazy parameters their shapes and first values."""
    lazy = (UninitializedParameter, UninitializedBuffer)
    if any(isinstance(tensor, lazy) for tensor in (*model.parameters(), *model.buffers())):
        training = model.training
        with torch.no_grad():
            model.eval()(*examples_of(inputs))
        model.train(training)


def _outputs(model: nn.Module, inputs: Inputs) -> dict[bool, Any] | Exception:
    """What ``model``, which is used up, gives in training and in evaluation, or why nothing."""
    try:
        with torch.no_grad(), preserved_randomness():
            return {mode: model.train(mode)(*examples_of(inputs)) for mode in (True, False)}
    except Exception as error:  # whatever somebody else's forward raises
        return error


def _items(output: Any) -> Iterator[tuple[str | int, Any]]:
    """The results that ``output`` holds, with what `_item` takes."""
    if isinstance(output, Mapping):
        yield from output.items()
    elif isinstance(output, tuple | list):
        yield from enumerate(output)
    elif hasattr(output, "__dict__") and not isinstance(output, Tensor):
        yield from vars(output).items()


def _item(output: Any, key: str | int) -> Any:
    if isinstance(key, str) and not isinstance(output, Mapping):
        return getattr(output, key)
    return output[key]


def _logits(output: Any, num_classes: int) -> Keys:
    """Where the logits lie in ``output``; () where it is a tensor.

    Raises:
        ValueError: nothing in it can be the logits; says what it holds.
    """
    if isinstance(output, Tensor):
        return ()
    found = list(_tensors(output, ()))
    for name in LOGITS:
        for keys, _ in found:
            if keys[-1] == name:
                return keys
    for keys, tensor in found:
        if tensor.dim() == 2 and tensor.shape[1] == num_classes:
            return keys
    held = ", ".join(f"{'.'.join(map(str, keys))} {tuple(t.shape)}" for keys, t in found)
    raise ValueError(
        f"the network gives a {type(output).__name__} with {held or 'no tensor'}; expected logits "
        f"(B, {num_classes}), alone, first in a tuple, or called {', '.join(LOGITS)}"
    )


def _tensors(output: Any, keys: Keys) -> Iterator[tuple[Keys, Tensor]]:
    for key, value in _items(output):
        if isinstance(value, Tensor):
            yield (*keys, key), value
        elif isinstance(value, Mapping | tuple | list):
            yield from _tensors(value, (*keys, key))


class GivesLogits(nn.Module):
    """Mixed in before a network's class: of its results it gives the logits alone."""

    _logits_at: dict[bool, Keys]

    def forward(self, x: Any) -> Any:
        """Inputs (B, …) → logits (B, num_classes)."""
        output = super().forward(x)
        for key in self._logits_at[self.training]:
            output = _item(output, key)
        return output


def _giving_logits(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (GivesLogits, kind), {"__module__": kind.__module__})
