"""What `python main.py --help` prints: every key with its default and its line of help.

All of it comes from the dataclasses that hold the settings, and from the files of conf/.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from itertools import groupby
from typing import Any

from app.config import methods
from app.config.schema import CONF, MODEL_HELP, Config, walk

EXAMPLES = """\
CutBit: federated and split learning experiments with quantized models, on Flower.

python main.py                                             the default experiment
python main.py strategy=fedavg data=fashion_mnist          another method and data set
python main.py -m strategy=oqfl quant.bits=2,3,4,8         a sweep: one run per value
python main.py experiment=oqfl                             the preset of a paper
python main.py -m sweep=bits                               a prepared sweep
python main.py strategy=oqfl quant.bits=4 --cfg job        print the configuration, run nothing
python -m tracking.report runs/<sweep>                     print and write a sweep's report again
"""
HIDDEN = ("hydra",)  # a group of conf/ that is no choice
KEY, WIDTH = 30, 100


def help_text() -> str:
    """Return the whole page."""
    groups = [path for path in sorted(CONF.iterdir()) if path.is_dir() and path.name not in HIDDEN]
    options = {path.name: ", ".join(sorted(f.stem for f in path.glob("*.yaml"))) for path in groups}
    lines = ["Groups (group=option):", ""]
    lines += [line for name, text in options.items() for line in _entry(name, text)]
    lines += ["", "Settings (key=value; [default]):"]
    for _, keys in groupby(keys_with_help().items(), key=lambda item: item[0].split(".")[0]):
        entries = list(keys)
        if "." in entries[0][0] or lines[-1].endswith("):"):
            lines.append("")
        lines += [line for key, text in entries for line in _entry(key, text)]
    lines += ["", "Hydra's own flags: --hydra-help."]
    return EXAMPLES + "\n" + "\n".join(lines) + "\n"


def keys_with_help() -> Mapping[str, str]:
    """Every key that can be given, with its default and its help."""
    found: dict[str, str] = {}
    for key, one in walk(Config):
        if key == "strategy":
            found |= {f"strategy.{name}": text for name, text in _of_methods()}
        elif key == "model":
            found |= MODEL_HELP
        elif "help" in one.metadata:
            found[key] = _text(one)
    return found


def _of_methods() -> Iterator[tuple[str, str]]:
    """Keys of the group strategy, with the methods that take them where not all do."""
    takers: dict[str, list[str]] = {}
    of: dict[str, Field[Any]] = {}
    for method, kind in methods.methods().items():
        for settings in methods.strategy_groups(kind).values():
            for one in fields(settings):
                takers.setdefault(one.name, []).append(method)
                of.setdefault(one.name, one)
    for name, one in of.items():
        is_all = len(takers[name]) == len(methods.methods())
        yield name, _text(one) + ("" if is_all else f" ({', '.join(takers[name])})")


def _text(one: "Field[Any]") -> str:
    default = one.default_factory() if one.default_factory is not MISSING else one.default
    shown = json.dumps(default) if default is None or isinstance(default, bool) else default
    return f"[{shown}] {one.metadata.get('help', '')}"


def _entry(key: str, text: str) -> list[str]:
    """Lines of a key: its name, and its text beside it."""
    wrapped = textwrap.wrap(text, WIDTH - KEY - 4) or [""]
    name = f"  {key:<{KEY}}  "
    first = [name + wrapped[0]] if len(key) <= KEY else [f"  {key}", " " * len(name) + wrapped[0]]
    return [*first, *(" " * (KEY + 4) + line for line in wrapped[1:])]
