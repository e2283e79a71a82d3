"""One line for every configuration error: the key, the value, and what is accepted."""

import difflib
import re

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from app.config.retired import RETIRED, retired_message
from app.config.schema import known_keys
from tracking.text import line

QUOTING = """text with other signs than letters, digits and ._-/: is quoted twice, 'key="a, b"'"""


def explain(error: BaseException) -> str:
    """Return one line for an error of Hydra, OmegaConf or our own."""
    return line(_reason(error))


def _reason(error: BaseException) -> str:
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return _first_line(error)
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    text = "\n".join(str(link) for link in chain)
    if isinstance(chain[-1], OverrideParseException):
        override, reason = str(chain[-1].override), _first_line(chain[-1])
        why = "" if override in reason else f": {reason}"
        return f"{override}: cannot be read{why}; {QUOTING}"
    if found := re.search(r"Ambiguous value for argument '(.*)'", text):
        return f"{found[1]}: several values are swept with -m; a list is [a,b]; {QUOTING}"
    if found := re.search(
        r"Could not find '([^']+)/([^'/]+)'\s+Available options in[^:]+:(.*)", text, re.S
    ):
        group, option, options = found.groups()
        return (
            f"{group}={option}: takes {', '.join(options.split('Config search path')[0].split())}"
        )
    assigned = re.search(r"Invalid type assigned: \w+ is not a subclass of \w+\. value: (.*)", text)
    group = re.search(r"(?:full_key: |Could not override ')([\w.]+)", text)
    if assigned and group:
        keys = ", ".join(_keys_in(group[1]))
        return f"{group[1]}={assigned[1]}: is a group of keys; set {keys}"
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found[1]
        if not re.search(r"is not in struct|not in '", text):
            return f"{key}: {_first_line(chain[-1])}"
        return unknown(key)
    if found := re.search(r"Key '([^']+)' (?:is )?not in '?\w+'?\s+full_key: (\S+)", text):
        return unknown(found[2])
    if found := re.search(
        r"Value '(.*?)' .*could not be converted to (\w+)\s+full_key: (\S+)", text
    ):
        return f"{found[3]}={found[1]}: takes {_KINDS.get(found[2], found[2])}"
    if found := re.search(r"Value '(.*?)' is not a valid (\w+).*full_key: (\S+)", text, re.S):
        return f"{found[3]}={found[1]}: takes {_KINDS.get(found[2], found[2])}"
    if found := re.search(r"field '(\S+)' is not Optional", text):
        return f"{found[1]}=null: takes a value; without the key it has its default"
    if found := re.search(r"full_key: (\S+)", text):
        return f"{found[1]}: {_first_line(chain[-1])}"
    return _first_line(chain[-1])


_KINDS = {
    "Integer": "an integer",
    "Float": "a number",
    "Boolean": "true or false",
    "bool": "true or false",
}


def _keys_in(group: str) -> list[str]:
    """Keys of a group."""
    own = [key for key in known_keys() if key.startswith(f"{group}.")]
    return [key for key in own if not key.endswith("_content")]  # found, not given


def unknown(key: str) -> str:
    """Return one line for a key that there is not, or not any more."""
    return retired_message(key) if key in RETIRED else f"{key}: unknown key{nearest(key)}"


def nearest(key: str) -> str:
    """Return a hint with the nearest existing keys, or nothing."""
    from app.config.methods import defaults, methods  # which import all methods

    known = list(known_keys())
    taken = dict.fromkeys(name for kind in methods().values() for name in defaults(kind))
    known += [f"strategy.{name}" for name in taken]
    if key in known:
        return "; other methods take it, this one does not"
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    close += [k for k in known if k.split(".")[-1] == key.split(".")[-1] and k not in close]
    return f"; did you mean {', '.join(close[:3])}?" if close else ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
