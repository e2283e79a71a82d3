"""Removed keys: what to use instead, and the value that they now have.

Their values are constants now, and stay in config.json and in config_hash, so that an experiment is
the one that it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Retired:
    """A key that is no setting any more.

    Attributes:
        value: what it stands at.
        beside: a key that is part of an experiment wherever this one was.
        instead: what to use.
    """

    value: Any
    beside: str
    instead: str


RETIRED: Mapping[str, Retired] = {
    "prune.frozen": Retired(
        False, "prune.ratio", "encoder and decoder always train; train.lr=0 holds everything"
    ),
    "strategy.estimator": Retired(
        "clip", "strategy.binarize", "gradients of signs are those of clip; quant.binary has others"
    ),
    "strategy.scale": Retired(
        False, "strategy.binarize", "channels are not scaled; model.norm=batch scales them"
    ),
    "link.alpha": Retired(
        0.1, "link.k", "randtopk draws with a chance of 0.1; link.up=topk draws nothing"
    ),
    "fleet.by_id": Retired(
        False, "fleet.link", "a trace's clients are drawn by seed; another seed draws others"
    ),
    "privacy.attack": Retired(
        True, "privacy.dcor_weight", "each evaluation attacks; evaluate.every says how often"
    ),
}


def retired_message(key: str) -> str:
    """One line for a key of the table."""
    return f"{key}: was removed; {RETIRED[key].instead}"
