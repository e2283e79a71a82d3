"""The settings of what is done against leakage at the cut."""

import math
from dataclasses import dataclass, field

LEAST_EPSILON = 1e-6


@dataclass(frozen=True)
class PrivacySettings:
    """The group privacy of the configuration."""

    dcor_weight: float = field(
        default=0.0, metadata={"help": "binarized_split: weight λ of the leak loss"}
    )
    epsilon: float | None = field(
        default=None, metadata={"help": "binarized_split: ε of the Laplace noise; null: no noise"}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.dcor_weight < math.inf:
            raise ValueError(f"privacy.dcor_weight={self.dcor_weight}: takes 0 or more, and finite")
        if self.epsilon == 0:
            raise ValueError("privacy.epsilon=0.0: takes a positive number, or null for no noise")
        if self.epsilon is not None and not LEAST_EPSILON <= self.epsilon < math.inf:
            raise ValueError(
                f"privacy.epsilon={self.epsilon}: takes a number from {LEAST_EPSILON:g}, or null"
            )
