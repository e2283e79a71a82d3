"""Values that are text, taken as they were typed.

Hydra's grammar reads ``1_1_1`` as the number 111, and refuses brackets, a tilde and letters beyond
ASCII unless they are quoted a second time, within the shell's quotes. Where a key takes text there
is nothing to tell apart: what Hydra would not read as that text is quoted here.
"""

import functools
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from app.config.schema import Config, walk

# Beside those of the schema: folders of Hydra's, and groups whose keys are open, of which only
# what cannot be read is quoted.
TEXTS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "model.weights")
OPEN = ("data.options.", "model.", "strategy.")
MOST_NESTED = 100  # brackets in an override; Hydra follows some hundreds
_DIVIDES_MORE = re.compile(r"['\"\[({]")  # than commas do
_OVERRIDE = re.compile(r"(?P<key>[+~]{0,2}[\w.@/-]+)=(?P<value>.+)", re.S)


def as_typed(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with quotes around text that Hydra would read as something else."""
    return [_as_typed(text) for text in overrides]


def _as_typed(text: str) -> str:
    found = _OVERRIDE.fullmatch(text)
    if not found or sum(map(text.count, "[{(")) > MOST_NESTED:
        return text
    key, value, name = found["key"], found["value"], found["key"].lstrip("+~")
    is_text = name in text_keys()
    if not is_text and not name.startswith(OPEN):
        return text
    override = _read(text)
    if override is None:
        # Commas divide a sweep's values, but not within brackets, which a sweep's have not.
        parts = [value] if _DIVIDES_MORE.search(value) else value.split(",")
    elif not is_text:
        return text
    elif override.is_sweep_override():
        sweep = override.value()
        if not (isinstance(sweep, ChoiceSweep) and sweep.simple_form):
            return text
        if _DIVIDES_MORE.search(value):
            return text
        parts = value.split(",")
    else:
        parts = [value]
    return f"{key}={','.join(_literal(part, is_text) for part in parts)}"


def _literal(part: str, is_text: bool) -> str:
    """Return one value, quoted where Hydra does not read it, or reads a number."""
    override = _read(f"key={part}")
    if override is None:
        return quoted(part)
    return quoted(part) if is_text and isinstance(override.value(), int | float) else part


def _read(text: str) -> Override | None:
    """Return what Hydra reads, or None where it cannot."""
    try:
        (override,) = OverridesParser.create().parse_overrides([text])
    except (HydraException, ValueError):
        return None
    return override


def quoted(text: str) -> str:
    """Return text as Hydra's grammar takes it, whatever is in it."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


@functools.cache
def text_keys() -> frozenset[str]:
    """The keys that take text and nothing else."""
    found = (key for key, field in walk(Config) if field.type in (str, str | None))
    return frozenset([*found, *TEXTS])
