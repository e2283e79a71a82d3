"""A network's modules, parameters and buffers, in a fraction of the time that torch takes for them.

torch makes names as it goes, and asks each module for hooks and for what its class replaced. A
client of few samples trains for less long than that takes.
"""

import functools

from torch import Tensor, nn


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return what ``model.state_dict()`` has, in its order; it shares the model's memory."""
    found = dict[str, Tensor]()
    return found if _collect(model, "", found) else dict(model.state_dict())


def _collect(module: nn.Module, prefix: str, found: dict[str, Tensor]) -> bool:
    """Add what a module and those within hold; whether none of them keeps more, or otherwise."""
    own = module.__dict__
    usual = _is_usual(type(module))  # type: ignore[arg-type]  # a class is hashable
    if not usual or own["_state_dict_hooks"] or own["_state_dict_pre_hooks"]:
        return False
    for name, parameter in own["_parameters"].items():
        if parameter is not None:
            found[prefix + name] = parameter.detach()
    if buffers := own["_buffers"]:
        passing = own["_non_persistent_buffers_set"]
        for name, buffer in buffers.items():
            if buffer is not None and name not in passing:
                found[prefix + name] = buffer.detach()
    for name, inner in own["_modules"].items():
        if inner is not None and not _collect(inner, f"{prefix}{name}.", found):
            return False
    return True


@functools.cache
def _is_usual(kind: type[nn.Module]) -> bool:
    """Whether modules of a class keep their state as torch's own do."""
    names = ("state_dict", "_save_to_state_dict", "get_extra_state")
    return all(getattr(kind, name) is getattr(nn.Module, name) for name in names)


def modules_of(whole: nn.Module) -> list[nn.Module]:
    """Return a module and those that it holds, each once."""
    found = {id(whole): whole}
    for one in (queue := [whole]):
        for inner in one.__dict__["_modules"].values():
            if inner is not None and id(inner) not in found:
                found[id(inner)] = inner
                queue.append(inner)
    return queue


def parameters_of(whole: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return what ``whole.named_parameters()`` gives, each parameter once, in its order."""
    found = dict[int, tuple[str, nn.Parameter]]()
    _collect_parameters(whole, "", found, set())
    return list(found.values())


def _collect_parameters(
    module: nn.Module, prefix: str, found: dict[int, tuple[str, nn.Parameter]], seen: set[int]
) -> None:
    seen.add(id(module))
    own = module.__dict__
    for name, parameter in own["_parameters"].items():
        if parameter is not None and id(parameter) not in found:
            found[id(parameter)] = (prefix + name, parameter)
    for name, inner in own["_modules"].items():
        if inner is not None and id(inner) not in seen:
            _collect_parameters(inner, f"{prefix}{name}.", found, seen)
