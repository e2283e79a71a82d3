"""Whether a command line asks for a search; what takes one is refused where it does not."""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import IntervalSweep

from app.config.composition import compose, parsed
from app.search.settings import SearchSettings

EXAMPLE = "train.lr='tag(log, interval(0.001, 0.3))'"


def asked(overrides: Sequence[str], is_sweep: bool) -> SearchSettings | None:
    """Return the settings of the search that a command line asks for; None for another sweep.

    Raises:
        ValueError: they cannot be, or nothing would run it; names the key.
    """
    own, sets = list[str](), False
    for one in parsed(overrides):
        key = one.key_or_group
        if key == "sweep" or key.startswith("sweep.search"):
            if one.is_sweep_override():
                raise ValueError(f"{one.input_line}: takes one value; a list is [a,b]")
            sets = True
            own.append(str(one.input_line))
        elif key == "hydra.searchpath":
            own.append(str(one.input_line))
    settings = compose(own).sweep.search if sets else None
    if settings is None or settings.trials is None:
        refuse_intervals(overrides)
        return None
    if not is_sweep:
        raise ValueError("sweep=search: runs several jobs; takes -m beside it")
    return settings


def refuse_intervals(overrides: Sequence[str]) -> None:
    """Refuse ranges that only a search draws from.

    Raises:
        ValueError: names the key.
    """
    for one in parsed(overrides):
        value: Any = one.value() if one.is_sweep_override() else None
        if isinstance(value, IntervalSweep):
            raise ValueError(
                f"{one.input_line}: has no end of values; takes sweep=search, which draws some "
                "(docs/SWEEPS.md), or values such as 0.01,0.1"
            )
