"""A method's constructor says what it takes, and nothing in app/ knows the method."""

from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack

import pytest
from conftest import small

from app import experiment
from app.config.composition import compose
from quant.settings import QuantSettings
from strategies.client.training import LocalTraining
from strategies.fedavg import FedAvg
from strategies.server.aggregation import AveragingSettings

TARGET = "strategy._target_=tests.app.test_methods.Own"


class Rounds(TypedDict, total=False):
    """Arguments that go through."""

    train: LocalTraining
    clients_per_round: int | float
    seed: int


@dataclass(frozen=True)
class OwnSettings:
    """Keys of the group strategy that this method alone takes."""

    patience: int = field(default=3, metadata={"help": "rounds"})

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"strategy.patience={self.patience}: takes 1 or more")


class Own(FedAvg):
    """A method from outside: its settings are its own."""

    def __init__(
        self,
        *,
        quant: QuantSettings | None = None,
        averaging: AveragingSettings | None = None,
        settings: OwnSettings | None = None,
        **rounds: Unpack[Rounds],
    ) -> None:
        super().__init__(**rounds)
        self.given: dict[str, Any] = {
            "quant": quant, "averaging": averaging, "settings": settings, **rounds,
        }  # fmt: skip


def test_arguments_go_by_the_names_of_parameters() -> None:
    chosen = small(TARGET, "strategy.patience=5", "strategy.average=median", "quant.bits=3")
    made = experiment.strategy(chosen)
    assert isinstance(made, experiment.method_class(chosen))
    given = made.given  # type: ignore[attr-defined]
    assert given.keys() == {"quant", "averaging", "settings", "train", "clients_per_round", "seed"}
    assert given["settings"].patience == 5
    assert given["averaging"].average == "median"
    assert given["quant"].bits == 3
    assert given["train"].batch_size == 16
    assert chosen.identity["strategy.patience"] == 5
    assert chosen.hash != small(TARGET).hash


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strategy.patience=0", r"^strategy\.patience=0: takes 1 or more"),
        ("strategy.patient=4", r"^strategy\.patient: unknown key"),
        ("strategy._target_=nowhere.Own", r"^strategy\._target_=nowhere\.Own: cannot be imported"),
        (
            "strategy._target_=models.cnn.CNN",
            r"^strategy\._target_=models\.cnn\.CNN: expected a sub",
        ),
    ],
)
def test_what_a_method_does_not_take(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose([TARGET, override])
