"""What of CutBit works with networks that it has never seen: the table of docs/NETWORKS.md.

    python -m benchmarks.networks [name ...]

The networks are those of tests/models/zoo, with some of timm and transformers where these are
installed, each settled as `model._target_=` settles it. A row says
how many cut points were found, at how many of them a cut trains as the whole does in every bit, why
not at the others, what was kept whole, and whether a training step of the whole is finite.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.table import table
from models.inputs import InputSpec, remember
from models.settle import settled
from models.split import cut, cut_points
from models.split import kept_whole as kept_inside
from models.trace import trace
from tests.models.zoo.entry import CLASSES, Entry
from tests.models.zoo.networks import ZOO
from tests.models.zoo.packages import installed


@dataclass(frozen=True)
class Subject:
    """A network as the project has it.

    Attributes:
        model: settled.
        spec: of its input.
    """

    model: nn.Module
    spec: InputSpec


def subject(entry: Entry) -> Subject:
    torch.manual_seed(0)
    model = settled(entry.make(), entry.spec, CLASSES)
    remember(model, entry.spec)
    return Subject(model, entry.spec)


def cuts(one: Subject) -> tuple[str, str]:
    """How many cuts are exact of how many there are, and why not at the others, or why none."""
    try:
        names = [point.name for point in cut_points(one.model, one.spec)]
        if not names:
            kept_inside(one.model, one.spec)  # raises, and says why there are none
    except ValueError as error:
        refused = "has no cut points" not in str(error)
        return "refused" if refused else "0 of 0", str(error)
    faults = []
    for name in names:
        try:
            cut(one.model, name, one.spec)
        except ValueError as error:
            faults.append(str(error))
    return f"{len(names) - len(faults)} of {len(names)}", "; ".join(faults)


def kept_whole(one: Subject) -> str:
    """Submodules that are one step each, though they are none of torch's own layers."""
    try:
        kept = trace(one.model, training=True).kept_whole
    except ValueError:
        return ""
    return "; ".join(f"{path}: {why}" for path, why in kept.items())


def finite_step(one: Subject) -> str:
    """Whether loss and gradients of a training step are finite."""
    y = torch.arange(4) % CLASSES
    loss = F.cross_entropy(one.model.train()(one.spec.example(4)), y)
    loss.backward()
    gradients = [p.grad for p in one.model.parameters() if p.grad is not None]
    finite = loss.isfinite() and all(g.isfinite().all() for g in gradients)
    return "yes" if finite and gradients else "no"


def row(name: str, entry: Entry) -> dict[str, object]:
    try:
        one = subject(entry)
    except ValueError as error:
        return {
            "network": name, "kind": entry.kind, "exact cuts": "refused", "not exact": str(error),
            "kept whole": "", "step finite": "",
        }  # fmt: skip
    exact, why = cuts(one)
    # A further column is one more entry here.
    return {
        "network": name,
        "kind": entry.kind,
        "exact cuts": exact,
        "not exact": why,
        "kept whole": kept_whole(one),
        "step finite": finite_step(one),
    }


def main(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    everything = {**ZOO, **installed()}
    chosen = {name: everything[name] for name in names or everything}
    rows = [row(name, entry) for name, entry in chosen.items()]
    print(table(list(rows[0]), ([_cell(value) for value in one.values()] for one in rows)))


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|")


if __name__ == "__main__":
    main(sys.argv[1:])
