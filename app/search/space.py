"""What a search draws from: Hydra's sweeps of the command line as Optuna's distributions.

| command line | drawn |
|---|---|
| a,b,c  choice(a,b)  glob(*) | one of them |
| range(1, 10, 2) | one of 1, 3, 5, 7, 9: without its end, as in Hydra |
| interval(0.001, 0.3) | a number between them |
| int(interval(1, 8)) | an integer, both ends included |
| tag(log, …) around the last three | the same evenly by orders of magnitude |
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from app.config.composition import NOT_HASHED, is_under, parsed
from app.config.quoting import as_typed
from app.config.schema import CONF
from app.search.asked import EXAMPLE

LOG = "log"
MOST_CHOICES = 1000  # of one key
DIGITS = 6  # of a drawn number: more make no difference, and fill the tables
# What trials are compared on, and what tells none from another.
COMPARED_ON = ("data", "data.validation", "evaluate", "task", "experiment", "stop_at_target")


@dataclass(frozen=True)
class Space:
    """What the trials of a search have in common, and what is drawn for each.

    Attributes:
        fixed: overrides that all of them have.
        drawn: what is drawn, by the key as the command line has it (with its ``+``).
    """

    fixed: Sequence[str]
    drawn: Mapping[str, BaseDistribution]

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """Return the overrides of a trial."""
        return [*self.fixed, *self.own(values)]

    def own(self, values: Mapping[str, Any]) -> list[str]:
        """Return the overrides that tell a trial from the others."""
        return as_typed([f"{key}={_text(values[key], of)}" for key, of in self.drawn.items()])


def space(overrides: Sequence[str]) -> Space:
    """Read the ranges of a command line.

    Raises:
        ValueError: a range cannot be drawn from, a key cannot be searched over, or there is
            none; names the key.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()  # which glob(*) asks what there is
        found = parsed(overrides, config_loader=loader)
        keys = [one.key_or_group for one in found]
        fixed, drawn = list[str](), dict[str, BaseDistribution]()
        for one in found:
            text = str(one.input_line)
            if not one.is_sweep_override():
                fixed.append(text)
                continue
            key = one.key_or_group
            if keys.count(key) > 1:
                raise ValueError(f"{key}: is given twice; a search takes one range for it")
            _check_key(key)
            try:
                drawn[text.partition("=")[0]] = _distribution(one)
            except (ValueError, HydraException) as error:
                raise ValueError(f"{text}: {error}") from error
    if not drawn:
        raise ValueError(f"sweep=search: takes a range beside it, such as {EXAMPLE}")
    return Space(fixed, drawn)


def _check_key(key: str) -> None:
    """Refuse to choose what does not change a run, or changes what runs are compared on."""
    if key == "seed":
        why = "a search would take the luckiest seed"
    elif is_under(key, (*NOT_HASHED, "hydra")) or key.startswith("hydra/"):
        why = "it does not change what a run finds"
    elif is_under(key, COMPARED_ON[1:]) or key == COMPARED_ON[0]:
        why = "trials are compared on it"
    else:
        return
    raise ValueError(f"{key}: takes one value in a search: {why}")


def _distribution(one: Override) -> BaseDistribution:
    sweep: Any = one.value()
    tags = set(getattr(sweep, "tags", ()))
    if tags - {LOG}:
        raise ValueError(f"the tag {', '.join(sorted(tags - {LOG}))} is unknown; takes {LOG}")
    is_log = LOG in tags
    if isinstance(sweep, IntervalSweep):
        return _between(sweep.start, sweep.end, is_log)
    if isinstance(sweep, RangeSweep):
        return _range(sweep, is_log)
    if is_log:
        raise ValueError(f"the tag {LOG} is of numbers: takes interval or range")
    texts = list(one.sweep_iterator(Transformer.encode))
    if not 1 <= len(texts) <= MOST_CHOICES:
        raise ValueError(f"has {len(texts)} values; takes 1 to {MOST_CHOICES}")
    return CategoricalDistribution(list(dict.fromkeys(map(str, texts))))


def _between(low: Any, high: Any, is_log: bool) -> BaseDistribution:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError("takes a lower end and an upper end")
    _check_log(low, is_log)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=is_log)
    return FloatDistribution(float(low), float(high), log=is_log)


def _range(sweep: RangeSweep, is_log: bool) -> BaseDistribution:
    numbers = (sweep.start, sweep.stop, sweep.step)
    if not all(number is not None and math.isfinite(number) for number in numbers):
        raise ValueError("takes finite numbers")
    start, stop, step = (Decimal(str(number)) for number in numbers)
    num = math.ceil((stop - start) / step) if step else 0
    if num < 1:
        raise ValueError("holds no value; a range is without its end")
    low, high = sorted((start, start + (num - 1) * step))
    _check_log(float(low), is_log)
    if is_log and abs(step) != 1:
        raise ValueError(f"with the tag {LOG} takes a step of 1, or interval")
    if all(isinstance(number, int) for number in numbers):
        return IntDistribution(int(low), int(high), log=is_log, step=int(abs(step)))
    if is_log:
        raise ValueError(f"with the tag {LOG} takes integers, or interval")
    with warnings.catch_warnings():  # of a step that the last digits of a float do not fit
        warnings.simplefilter("ignore", UserWarning)
        return FloatDistribution(float(low), float(high), step=float(abs(step)))


def _check_log(low: float, is_log: bool) -> None:
    if is_log and low <= 0:
        raise ValueError(f"with the tag {LOG} takes a lower end above 0")


def ends(of: BaseDistribution) -> list[Any]:
    """Return the values at the ends of what is drawn from, of choices all."""
    if isinstance(of, CategoricalDistribution):
        return list(of.choices)
    assert isinstance(of, IntDistribution | FloatDistribution)
    return [of.low, of.high]


def _text(value: Any, of: BaseDistribution) -> str:
    """A value as the command line takes it: of a number six digits, within its range."""
    if not isinstance(of, FloatDistribution):
        return str(value)
    text = f"{value:.{DIGITS}g}"
    return text if of.low <= float(text) <= of.high else repr(value)


def shown(of: BaseDistribution) -> str:
    """Return what is drawn from in words."""
    if isinstance(of, CategoricalDistribution):
        return ", ".join(map(str, of.choices))
    assert isinstance(of, IntDistribution | FloatDistribution)
    kind = "integers" if isinstance(of, IntDistribution) else "numbers"
    step = f" by {of.step:g}" if of.step is not None and of.step != 1 else ""
    return f"{kind} from {of.low:g} to {of.high:g}{step}" + (" (log)" if of.log else "")
