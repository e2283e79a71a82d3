"""Methods that change what happens at the cut, on top of any that says who trains when."""

from dataclasses import dataclass, field

from strategies.server.cuts import SplitStrategy
from strategies.split import Split
from strategies.splitfed_v1 import SplitFedV1
from strategies.splitfed_v2 import SplitFedV2

BASES: dict[str, type[SplitStrategy]] = {
    "split": Split,
    "splitfed_v1": SplitFedV1,
    "splitfed_v2": SplitFedV2,
}


@dataclass(frozen=True)
class BaseSettings:
    """What the strategy group holds of who trains when, for methods at the cut."""

    base: str = field(
        default="splitfed_v1",
        metadata={"help": "split, splitfed_v1, splitfed_v2: who trains when, and what is averaged"},
    )

    def __post_init__(self) -> None:
        if self.base not in BASES:
            given = "null" if self.base is None else self.base
            raise ValueError(f"strategy.base={given}: takes {', '.join(BASES)}")


def on_base(method: type[SplitStrategy], base: str) -> type[SplitStrategy]:
    """Return ``method`` with clients that train and are averaged as those of ``base``.

    The class has both as parents; what ``method`` calls by ``super()`` is ``base``.

    Raises:
        ValueError: there is no such base.
    """
    if base not in BASES:
        raise ValueError(f"strategy.base={base}: takes {', '.join(BASES)}")
    return type(method.__name__, (method, BASES[base]), {})
