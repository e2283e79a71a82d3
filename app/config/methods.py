"""What a method's constructor says it takes: the keys of the group strategy, and its arguments.

The parameter ``averaging`` names, by its annotation, the dataclass with the keys of averaging;
``settings`` the one with the method's own. So a method brings settings of its own, from wherever
its ``_target_`` is imported, and nothing here knows it.
"""

import functools
import inspect
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore

from app.config.errors import unknown
from app.config.schema import CONF
from strategies.server.aggregation import AverageSettings
from strategies.server.loop import FederatedStrategy
from strategies.server.method import RoundArguments
from targets import locate, short_name, shown

GROUPS = ("averaging", "settings")  # parameters whose dataclasses hold the group strategy
OURS = ("_target_", "name")


def method_class(target: str) -> type[FederatedStrategy]:
    """Return the method's class.

    Raises:
        ValueError: it cannot be imported, or is no method.
    """
    key, expected = "strategy._target_", "a subclass of FederatedStrategy"
    found = locate(target, key, expected)
    if not (isinstance(found, type) and issubclass(found, FederatedStrategy)):
        raise ValueError(f"{key}={shown(target)}: expected {expected}")
    return found


def parameters(kind: type[Any]) -> dict[str, Any]:
    """Names that a constructor takes, with their annotations.

    ``**rounds`` takes what its TypedDict says, without one what `FederatedStrategy` does.
    """
    hints = typing.get_type_hints(kind.__init__)
    found: dict[str, Any] = {}
    for parameter in list(inspect.signature(kind.__init__).parameters.values())[1:]:
        hint = hints.get(parameter.name)
        if parameter.kind is not parameter.VAR_KEYWORD:
            found[parameter.name] = hint
        else:
            is_typed = typing.get_origin(hint) is typing.Unpack
            found |= typing.get_type_hints(typing.get_args(hint)[0] if is_typed else RoundArguments)
    return found


def strategy_groups(kind: type[Any]) -> dict[str, type[Any]]:
    """The dataclasses that hold a method's keys of the group strategy, by parameter."""
    taken = parameters(kind)
    found = {name: _dataclass(taken[name]) for name in GROUPS if name in taken}
    return {name: one for name, one in found.items() if one is not None}


def _dataclass(hint: Any) -> type[Any] | None:
    """The dataclass of an annotation such as ``Settings | None``."""
    options = (hint, *typing.get_args(hint))
    return next((one for one in options if isinstance(one, type) and is_dataclass(one)), None)


def defaults(kind: type[Any]) -> dict[str, Any]:
    """A method's keys of the group strategy, with their defaults."""
    groups = strategy_groups(kind).values()
    return {
        f.name: getattr(made, f.name) for made in (one() for one in groups) for f in fields(made)
    }


def completed(strategy: Mapping[str, Any]) -> dict[str, Any]:
    """Return the group strategy with all keys that its method takes.

    Where ``strategy._target_`` alone was given, the defaults of the method that was there go.

    Raises:
        ValueError: the method does not take a key, or there is no such method.
    """
    if "_target_" not in strategy:
        raise ValueError("strategy: needs strategy._target_, the class of a method")
    target = str(strategy["_target_"])
    kind = method_class(target)
    found = defaults(kind)
    named = methods().get(strategy.get("name", ""), kind)
    if named is not kind:
        left = defaults(named)
        strategy = {k: v for k, v in strategy.items() if k in found or left.get(k, ...) != v}
    for key in strategy:
        if key not in (*OURS, *found):
            raise ValueError(unknown(f"strategy.{key}"))
    return {"name": short_name(target)} | found | dict(strategy)


def settings_of(strategy: Mapping[str, Any]) -> dict[str, Any]:
    """The dataclasses of the group strategy, by the parameter that takes each.

    Raises:
        ValueError: a value is not accepted; names the key.
    """
    found = {}
    for name, one in strategy_groups(method_class(str(strategy["_target_"]))).items():
        given = {f.name: strategy[f.name] for f in fields(one)}
        try:
            found[name] = one(**given)
        except TypeError as error:  # a list where a check looks a word up
            odd = [f"strategy.{k}={v}" for k, v in given.items() if isinstance(v, list | dict)]
            raise ValueError(f"{', '.join(odd) or 'strategy'}: {error}") from error
    return found


def unread(strategy: Mapping[str, Any]) -> Iterable[str]:
    """Keys of the group strategy that change nothing, given the others."""
    for settings in settings_of(strategy).values():
        if isinstance(settings, AverageSettings):
            yield from settings.unread()


@functools.cache
def methods() -> Mapping[str, type[FederatedStrategy]]:
    """Our methods by the names of their files in conf/strategy."""
    files = sorted((CONF / "strategy").glob("*.yaml"))
    targets = {file.stem: yaml.safe_load(file.read_text("utf-8"))["_target_"] for file in files}
    return {name: method_class(target) for name, target in targets.items()}


@functools.cache
def register() -> None:
    """Give Hydra the defaults of our methods, so that they are in what it shows and stores."""
    for name, kind in methods().items():
        ConfigStore.instance().store(name, defaults(kind), group="strategy_defaults")
