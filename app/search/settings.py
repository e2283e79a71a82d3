"""The keys of a search, and what of a run can be its objective."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SAMPLERS = ("tpe", "gp", "nsga2", "random")
VALIDATION = ("best_validation_accuracy", "final_validation_accuracy")
PRUNABLE = VALIDATION  # what the accuracy after a round says something about
MOST_TRIALS = 10_000
MOST_SEED = 2**63
# Numbers of summary.json; a method's and a task's own begin with the prefixes.
PREFIXES = ("final_", "best_")
NAMES = (
    *VALIDATION, "final_accuracy", "best_accuracy", "best_round", "rounds",
    "total_bytes_up", "total_bytes_down", "total_sim_s", "total_energy_j", "total_wall_s",
    "rounds_to_target", "bytes_up_to_target", "bytes_down_to_target", "sim_s_to_target",
    "energy_j_to_target", "client_params", "client_model_bytes", "client_flops_per_sample",
    "client_bops_per_sample", "client_peak_train_bytes", "network_params",
    "network_flops_per_sample", "network_peak_train_bytes", "mean_weight_bits", "mean_act_bits",
)  # fmt: skip


@dataclass(frozen=True)
class SearchSettings:
    """The group sweep.search of the configuration."""

    trials: int | None = field(
        default=None,
        metadata={"help": "trials of a search (sweep=search: 50); null: none (docs/SWEEPS.md)"},
    )
    maximize: Any = field(
        default=VALIDATION[0],
        metadata={"help": "numbers of summary.json to maximise: a name, [a,b] or []"},
    )
    minimize: Any = field(
        default_factory=list,
        metadata={"help": "numbers of summary.json to minimise: [total_bytes_up], …"},
    )
    sampler: str | None = field(
        default=None,
        metadata={"help": "tpe, gp, nsga2, random; null: tpe for one objective, gp for several"},
    )
    prune: bool = field(
        default=False,
        metadata={"help": "end a trial below the median of those before it (docs/SWEEPS.md)"},
    )
    seed: int = field(default=0, metadata={"help": "seed of the sampler"})
    prune_content: Any = None  # accuracies by round below which the run ends; found, not given

    def __post_init__(self) -> None:
        if self.trials is not None and not 1 <= self.trials <= MOST_TRIALS:
            raise ValueError(f"sweep.search.trials={self.trials}: takes 1 to {MOST_TRIALS}")
        if self.sampler not in (None, *SAMPLERS):
            raise ValueError(
                f"sweep.search.sampler={self.sampler}: takes {', '.join(SAMPLERS)}; every "
                "combination of values is a sweep without sweep=search"
            )
        if not 0 <= self.seed < MOST_SEED:
            raise ValueError(f"sweep.search.seed={self.seed}: takes 0 or more, below 2^63")
        for key in ("maximize", "minimize"):
            for name in _names(getattr(self, key), key):
                _check_name(name, key)
        names = self.names
        if not names:
            raise ValueError("sweep.search.maximize=[]: takes a name, or one in minimize")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"sweep.search: {', '.join(twice)}: is an objective twice")
        if self.prune and (len(names) > 1 or self.maximized[:1] not in [(n,) for n in PRUNABLE]):
            raise ValueError(
                "sweep.search.prune=true: takes one objective, of the accuracy after each round: "
                f"sweep.search.maximize={' or '.join(PRUNABLE)}, and no sweep.search.minimize"
            )

    @property
    def maximized(self) -> tuple[str, ...]:
        """Names of what is to be large."""
        return _names(self.maximize, "maximize")

    @property
    def minimized(self) -> tuple[str, ...]:
        """Names of what is to be small."""
        return _names(self.minimize, "minimize")

    @property
    def names(self) -> tuple[str, ...]:
        """Of all objectives, in the order of their values."""
        return self.maximized + self.minimized

    @property
    def sampled_by(self) -> str:
        """The sampler."""
        return self.sampler or ("tpe" if len(self.names) == 1 else "gp")


def _names(given: Any, key: str) -> tuple[str, ...]:
    found = (given,) if isinstance(given, str) else given
    if not isinstance(found, Sequence) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"sweep.search.{key}={given}: takes names of summary.json: [a,b]")
    return tuple(found)


def _check_name(name: str, key: str) -> None:
    """Refuse what no summary.json can have, and what is all but the name of a number in it."""
    is_own = name.startswith(PREFIXES) and not difflib.get_close_matches(name, NAMES, cutoff=0.9)
    if name not in NAMES and not is_own:
        close = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "such as total_bytes_up"
        raise ValueError(
            f"sweep.search.{key}={name}: takes numbers of summary.json, as docs/SWEEPS.md lists "
            f"them; {hint}"
        )
