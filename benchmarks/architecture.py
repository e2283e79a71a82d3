"""The picture and the numbers of docs/ARCHITECTURE.md, made from the code.

python -m benchmarks.architecture                    write docs/architecture.svg, print the numbers
python -m benchmarks.architecture --way train.lr     trace a setting through a small run

The picture shows which folder imports which. The trace runs one round in this process and lists the
files in which a function has the setting's value: alone, or within an object that it is handed.
"""

import argparse
import ast
import contextlib
import dataclasses
import inspect
import io
import os
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
# From the top down; a folder may import those of the layers below, and of its own.
LAYERS = (
    ("app",),
    ("strategies",),
    ("models", "quant", "privacy", "fleet", "tracking", "data"),
)
FOLDERS = tuple(name for layer in LAYERS for name in layer)
CONTRACTS = ("contract", "messages")  # of strategies: files that are no methods


# What the code says -------------------------------------------------------------------------------


def imports(folder: str) -> dict[str, set[str]]:
    """Other folders of ours that each file of a folder imports, wherever in the file."""
    found = {}
    for path in files(folder):
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
        found[str(path.relative_to(ROOT))] = names & set(FOLDERS) - {folder}
    return found


def arrows() -> dict[tuple[str, str], int]:
    """(importing folder, imported folder) → number of files that do."""
    found: dict[tuple[str, str], int] = {}
    for folder in FOLDERS:
        for names in imports(folder).values():
            for name in names:
                found[folder, name] = found.get((folder, name), 0) + 1
    return dict(sorted(found.items(), key=lambda item: [FOLDERS.index(name) for name in item[0]]))


def files(folder: str) -> list[Path]:
    """Modules below a folder, in order."""
    return sorted(path for path in (ROOT / folder).rglob("*.py"))


def layer(folder: str) -> int:
    """Of a folder, counted from the top."""
    return next(number for number, names in enumerate(LAYERS) if folder in names)


def classes_above(kind: type[Any]) -> list[str]:
    """Our classes that a class inherits, nearest first."""
    return [one.__name__ for one in kind.__mro__[1:] if one.__module__.split(".")[0] in FOLDERS]


def longest_classes(number: int = 3) -> list[tuple[int, str, str]]:
    """Lines, name and file of the longest classes."""
    found = [
        ((node.end_lineno or 0) - node.lineno + 1, node.name, str(path.relative_to(ROOT)))
        for folder in FOLDERS
        for path in files(folder)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    return sorted(found, reverse=True)[:number]


# The way of a setting -----------------------------------------------------------------------------

# A value that nothing else has, and a method that reads the key.
TRACED = {
    "train.lr": (0.0123457, "oqfl"),
    "prune.ratio": (0.7371237, "deprune"),
}
SMALL = (
    "engine=serial", "rounds=1", "clients.total=2", "data.max_train=64", "train.epochs=1",
    "train.max_batches=1", "data.max_test=20", "tracker.wandb.mode=disabled",
)  # fmt: skip


LOOKS = 40  # at one function; what it is handed later is like what it was handed before


def way(key: str) -> dict[str, str]:
    """Files that a setting enters in a run, in order, each with the function that had it first.

    Raises:
        ValueError: this key is not prepared.
    """
    if key not in TRACED:
        raise ValueError(f"--way {key}: expected one of {', '.join(TRACED)}")
    value, method = TRACED[key]
    import main

    trace = Trace(value)
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["main.py", f"strategy={method}", f"{key}={value}", *SMALL,
                    f"hydra.run.dir={folder}"]  # fmt: skip
        said = io.StringIO()
        sys.setprofile(trace)
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                failed = main.main()
        finally:
            sys.setprofile(None)
    if failed:
        raise RuntimeError(said.getvalue())
    return trace.entered


class Trace:
    """A profile function that notes files whose functions see a value.

    Args:
        value: what to look for, itself or as text within a command line.
    """

    def __init__(self, value: float) -> None:
        self.value, self.text = value, str(value)
        self.entered: dict[str, str] = {}
        self.looked: dict[Any, int] = {}

    def __call__(self, frame: FrameType, event: str, given: Any) -> None:
        path = frame.f_code.co_filename
        if event not in ("call", "return") or not path.startswith(f"{ROOT}{os.sep}"):
            return
        name = os.path.relpath(path, ROOT)
        inner = Path(name).parts[0]
        if name in self.entered or (inner not in FOLDERS and name != "main.py"):
            return
        looked = self.looked[frame.f_code] = self.looked.get(frame.f_code, 0) + 1
        if looked > LOOKS:
            return
        if any(self.holds(one, 4) for one in (*frame.f_locals.values(), given)):
            self.entered[name] = frame.f_code.co_name

    def holds(self, given: Any, depth: int) -> bool:
        """Whether the value is in what is given, at most ``depth`` objects down."""
        if isinstance(given, float):
            return given == self.value
        if isinstance(given, str):
            return self.text in given
        if depth == 0:
            return False
        inner: Iterable[Any] = ()
        if isinstance(given, Mapping):
            with contextlib.suppress(Exception):  # what Hydra has not resolved yet
                inner = list(given.values())[:200]
        elif isinstance(given, list | tuple):
            inner = given[:8]
        elif dataclasses.is_dataclass(given) or type(given).__module__.split(".")[0] in FOLDERS:
            inner = list(getattr(given, "__dict__", {}).values())
        return any(self.holds(one, depth - 1) for one in inner)


# The picture --------------------------------------------------------------------------------------

WIDTH, EDGE, GAP = 1240, 24, 34
COLUMN = (WIDTH - 2 * EDGE - 5 * GAP) / 6
INK, FAINT, UP = "#1f2733", "#5b6675", "#d92d20"
# Of each layer: what fills a folder, its frame and its arrows.
COLORS = (("#e9f1ff", "#2f66c4"), ("#fdf1e2", "#b8640b"), ("#eef6ee", "#3f7d44"))
SANS = "font-family='Helvetica Neue,Helvetica,Arial,Liberation Sans,sans-serif'"
MONO = "font-family='SFMono-Regular,Menlo,Consolas,Liberation Mono,monospace'"


@dataclass(frozen=True)
class Box:
    """Where a folder is drawn."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height


@dataclass
class Drawing:
    """Elements of an SVG, in the order in which they are painted."""

    parts: list[str] = field(default_factory=list)

    def box(self, box: Box, fill: str, stroke: str, radius: int = 10, name: str = "") -> None:
        known = f" data-folder='{name}'" if name else ""
        self.parts.append(
            f"<rect{known} x='{box.x:.0f}' y='{box.y:.0f}' width='{box.width:.0f}' "
            f"height='{box.height:.0f}' rx='{radius}' fill='{fill}' stroke='{stroke}' "
            "stroke-width='1.5'/>"
        )

    def text(self, x: float, y: float, text: str, size: int, color: str = INK, *,
             font: str = SANS, bold: bool = False, anchor: str = "start") -> None:  # fmt: skip
        weight = " font-weight='700'" if bold else ""
        self.parts.append(
            f"<text x='{x:.0f}' y='{y:.0f}' {font} font-size='{size}'{weight} fill='{color}' "
            f"text-anchor='{anchor}'>{escape(text)}</text>"
        )

    def arrow(self, edge: tuple[str, str], points: list[tuple[float, float]], color: str,
              label: str, at: tuple[float, float]) -> None:  # fmt: skip
        path = "M" + " L".join(f"{x:.0f} {y:.0f}" for x, y in points)
        self.parts.append(  # a white rim lets lines cross
            f"<path d='{path}' fill='none' stroke='white' stroke-width='6'/>"
            f"<path data-arrow='{edge[0]} {edge[1]}' d='{path}' fill='none' stroke='{color}' "
            f"stroke-width='2' stroke-linejoin='round' marker-end='url(#{color[1:]})'/>"
        )
        self.text(*at, label, 14, color, bold=True)


def picture() -> str:
    """Return the SVG."""
    drawing, boxes = Drawing(), {}
    y = 20.0
    for number, names in enumerate(LAYERS):
        if number == 0:
            places = [Box(EDGE, y, WIDTH - 2 * EDGE, 0)]
        elif number == 1:  # leaves the last column free for the arrows that pass by
            places = [Box(EDGE, y, 5 * COLUMN + 4 * GAP, 0)]
        else:
            places = [Box(EDGE + i * (COLUMN + GAP), y, COLUMN, 0) for i in range(len(names))]
        height = max(inside(Drawing(), name, box) for name, box in zip(names, places, strict=True))
        for name, box in zip(names, places, strict=True):
            boxes[name] = Box(box.x, box.y, box.width, height)
            fill, stroke = COLORS[number]
            drawing.box(boxes[name], fill, stroke, name=name)
            inside(drawing, name, boxes[name])
        y += height + (64 if number == 0 else 92)
    draw_arrows(drawing, boxes)
    below = Box(EDGE, max(box.bottom for box in boxes.values()) + 24, WIDTH - 2 * EDGE, 40)
    drawing.box(below, "#f4f5f7", "#8a94a3")
    drawing.text(below.x + 14, below.y + 26, "targets.py", 16, bold=True, font=MONO)
    said = "Loads the user's own code, by dotted path or by file. Imports none of ours."
    drawing.text(below.x + 130, below.y + 26, said, 15, FAINT)
    height = int(below.bottom + 52)
    note = (
        "Arrow: imports. Number: files that do. No arrow points up; any folder may use targets.py."
    )
    drawing.text(EDGE, height - 18, note, 15, FAINT)
    colors = [color for _, color in COLORS] + [UP]
    heads = "".join(
        f"<marker id='{c[1:]}' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='8' "
        f"markerHeight='8' orient='auto'><path d='M0 0 L10 5 L0 10 z' fill='{c}'/></marker>"
        for c in colors
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' "
        f"width='{WIDTH}' height='{height}'>\n<defs>{heads}</defs>\n"
        f"<rect width='{WIDTH}' height='{height}' rx='12' fill='white'/>\n"
        + "\n".join(drawing.parts)
        + "\n</svg>\n"
    )


def draw_arrows(drawing: Drawing, boxes: Mapping[str, Box]) -> None:
    """Straight down where nothing is between; app's pass strategies by and run along a rail."""
    rail = boxes["strategies"].bottom + 40
    trunk = boxes[LAYERS[2][-1]].middle + 30
    found = sorted(arrows().items(), key=lambda item: (layer(item[0][0]), boxes[item[0][1]].x))
    for edge, count in found:
        upper, lower = (boxes[name] for name in edge)
        color, label = COLORS[layer(edge[0])][1], str(count)
        if layer(edge[0]) == layer(edge[1]):
            y, is_left = upper.bottom - 30, upper.x < lower.x
            start = upper.x + upper.width if is_left else upper.x
            end = lower.x - 2 if is_left else lower.x + lower.width + 2
            points, at = [(start, y), (end, y)], ((start + end) / 2 - 4, y - 9)
        elif layer(edge[0]) > layer(edge[1]):
            color, points = UP, [(upper.middle, upper.y), (lower.middle, lower.bottom)]
            at = (upper.middle, upper.y - 8)
        elif edge == ("app", "strategies"):
            x = lower.middle
            points, at = [(x, upper.bottom), (x, lower.y - 2)], (x + 10, lower.y - 24)
        elif edge[0] == "strategies":
            x = lower.middle - 30
            points = [(x, upper.bottom), (x, lower.y - 2)]
            at = (x - 11 - 9 * len(label), lower.y - 14)
        else:
            x = lower.middle + 30
            points = [(trunk, upper.bottom), (trunk, rail), (x, rail), (x, lower.y - 2)]
            at = (x + 11, lower.y - 14)
        drawing.arrow(edge, points, color, label, at)


def inside(drawing: Drawing, folder: str, box: Box) -> float:
    """Draw what a folder says of itself and its files; return its height."""
    is_wide = box.width > 2 * COLUMN
    drawing.text(box.x + 14, box.y + 28, f"{folder}/", 20, bold=True, font=MONO)
    summary = docstring(ROOT / folder / "__init__.py")
    if is_wide:
        drawing.text(box.x + 32 + 12.1 * len(f"{folder}/"), box.y + 28, summary, 15, FAINT)
        top = box.y + 44
        panels = rooms(folder)
        shares = [max(40, sum(len(n) + 2 for n in names)) ** 0.6 for names in panels.values()]
        room = box.width - 28 - 10 * (len(panels) - 1)
        x, lowest = box.x + 14, top
        for (name, modules), share in zip(panels.items(), shares, strict=True):
            width = room * share / sum(shares)
            lines = wrapped(modules, width - 20)
            panel = Box(x, top, width, 34 + 19 * len(lines))
            lowest = max(lowest, panel.bottom)
            drawing.text(x + 10, top + 20, name, 15, bold=True)
            for i, line in enumerate(lines):
                drawing.text(x + 10, top + 41 + 19 * i, line, 14, font=MONO, color=FAINT)
            x += width + 10
        for number, _ in enumerate(panels):  # frames of one height, once that is known
            width = room * shares[number] / sum(shares)
            left = box.x + 14 + sum(room * s / sum(shares) + 10 for s in shares[:number])
            frame = Box(left, top, width, lowest - top)
            drawing.box(frame, "none", COLORS[layer(folder)][1] + "66", 6)
        return lowest - box.y + 14
    y = box.y + 50
    for line in textwrap.wrap(summary, int((box.width - 24) / 6.9)):
        drawing.text(box.x + 14, y, line, 14)
        y += 18
    y += 8
    for line in wrapped([name for names in rooms(folder).values() for name in names],
                        box.width - 24):  # fmt: skip
        drawing.text(box.x + 14, y, line, 13, font=MONO, color=FAINT)
        y += 18
    return y - box.y + 2


def rooms(folder: str) -> dict[str, list[str]]:
    """Names of the modules of a folder, by the folder within it; of strategies, methods apart."""
    found: dict[str, list[str]] = {}
    below = {path.stem for path in files(folder) if path.parent != ROOT / folder}
    for path in files(folder):
        if path.stem == "__init__":
            continue
        within = path.parent.relative_to(ROOT / folder)
        if within == Path():
            if folder == "strategies":
                name = "the contract" if path.stem in CONTRACTS else "methods"
            else:
                name = "the runtime"
            if path.stem in below:  # `python -m app.cuts`, which is in commands/
                continue
        else:
            name = f"{within}/"
        found.setdefault(name, []).append(path.stem)
    return dict(sorted(found.items(), key=lambda item: item[0].endswith("/")))


def wrapped(names: list[str], width: float) -> list[str]:
    """Names in lines of a width, in pixels."""
    lines = textwrap.wrap(" ".join(names), max(12, int(width / 9)), break_long_words=False)
    return [line.replace(" ", "\u00a0\u00a0") for line in lines]


def docstring(path: Path) -> str:
    """First sentences of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


# The command --------------------------------------------------------------------------------------


def numbers() -> Iterator[str]:
    """Lines that docs/ARCHITECTURE.md quotes."""
    from strategies.deprune import Deprune
    from strategies.oqfl import OQFL

    for (upper, lower), count in arrows().items():
        yield f"{upper} → {lower}: {count} files"
    for kind in (OQFL, Deprune):
        above = classes_above(kind)
        lines = len(inspect.getsource(kind).splitlines())
        yield f"{kind.__name__}: {len(above)} classes above it ({', '.join(above)}), {lines} lines"
    for lines, name, path in longest_classes():
        yield f"{name} in {path}: {lines} lines"


def main(arguments: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--way", metavar="KEY", help=f"one of {', '.join(TRACED)}")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where to write it")
    flags = parser.parse_args(arguments)
    if flags.way:
        entered = way(flags.way)
        print(f"{flags.way}: {len(entered)} files")
        print("\n".join(f"{path}  {function}" for path, function in entered.items()))
        return 0
    flags.picture.write_text(picture())
    print("\n".join(numbers()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
