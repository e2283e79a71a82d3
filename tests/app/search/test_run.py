"""The order of trials that run several at a time, whichever ends first."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.config.schema import Config
from app.experiment import Experiment, Prepared
from app.run_folder import FolderTakenError
from app.search.plan import Plan, claim_search, newest_search, plan
from app.search.run import Search
from app.search.settings import SearchSettings
from app.search.study import Study

TRIALS = 14  # four more than TPE draws at random


class Beside:
    """Runs ``width`` jobs at a time, which end in an order of their own.

    What one finds is a function of what was drawn for it.
    """

    def __init__(self, folder: Path, width: int, order: int) -> None:
        self.failed: dict[int, str] = {}
        self.folders: dict[int, Path] = {}
        self.width = width
        self.begun: list[int] = []
        self.most = 0
        self._folder = folder
        self._order = random.Random(order)
        self._running: dict[int, float] = {}

    def lock(self, folder: Path) -> None:
        """Nobody else is there."""

    def job(self, node: Any) -> None:
        """Hydra is not there either."""

    def admit(self, overrides: Sequence[str], config: Config, chosen: Experiment, prepared: Prepared) -> None:  # fmt: skip  # noqa: E501
        self._rate = config.train.lr

    def launch(self, number: int, overrides: Sequence[str]) -> None:
        self.begun.append(number)
        self.folders[number + 1] = self._folder / str(number)
        self._running[number + 1] = self._rate
        self.most = max(self.most, len(self._running))

    def wait(self, number: int) -> None:
        while number in self._running:
            ending = self._order.choice(sorted(self._running))
            accuracy = 1 - abs(self._running.pop(ending) - 0.1)
            folder = self.folders[ending]
            folder.mkdir(parents=True)
            found = {"best_validation_accuracy": accuracy, "ended_by": "rounds"}
            (folder / "summary.json").write_text(json.dumps(found))

    def pass_over(self, number: int, what: str, folder: Path, chosen: Experiment) -> None:
        raise AssertionError("nothing ended before")

    def fail(self, number: int, what: str, failure: str, ended: bool) -> None:
        raise AssertionError(failure)


@pytest.fixture(scope="module")
def wanted() -> Plan:
    overrides = (
        "strategy=fedavg", "model=mlp", "engine=serial", "clients.total=2", "data.max_train=60",
        "data.validation=0.2", "tracker.wandb.mode=disabled", "train.lr=interval(0.001, 1)",
    )  # fmt: skip
    return plan(overrides, SearchSettings(trials=TRIALS))


def drawn(wanted: Plan, folder: Path, width: int, order: int) -> list[float]:
    folder.mkdir()
    jobs = Beside(folder, width, order)
    study = Study(folder, wanted.settings, wanted.space.drawn, wanted.identity, rounds=2)
    Search(wanted, jobs, study, folder, jobs.launch).run()
    assert jobs.begun == list(range(TRIALS))
    assert jobs.most == width
    results = [study.result(number) for number in range(TRIALS)]
    assert all(result is not None and result.values for result in results)
    return [study.drawn(number).values["train.lr"] for number in range(TRIALS)]


def test_what_is_drawn_does_not_depend_on_who_ends_first(wanted: Plan, tmp_path: Path) -> None:
    three = [drawn(wanted, tmp_path / f"three {order}", 3, order) for order in range(2)]
    assert three[0] == three[1]
    one = drawn(wanted, tmp_path / "one", 1, 0)
    assert one[:10] == three[0][:10]  # at random
    assert one != three[0]  # a sampler that knows two results less


def test_the_newest_folder_of_the_same_search_is_continued(wanted: Plan, tmp_path: Path) -> None:
    assert newest_search(tmp_path, wanted) is None
    for name, more in (("first", {}), ("second", {}), ("other", {"train.epochs": 7})):
        (tmp_path / name).mkdir()
        identity = wanted.identity | more
        Study(tmp_path / name, wanted.settings, wanted.space.drawn, identity, rounds=2)
    assert newest_search(tmp_path, wanted) == tmp_path / "second"
    with pytest.raises(FolderTakenError, match="resume=true continues it"):
        claim_search(tmp_path / "first", wanted)
    resumed = replace(wanted, experiment=replace(wanted.experiment, resume=True))
    claim_search(tmp_path / "first", resumed)
    with pytest.raises(FolderTakenError, match=r"another search: train.epochs \(was 7, is "):
        claim_search(tmp_path / "other", resumed)
    (tmp_path / "sweep" / "0").mkdir(parents=True)
    (tmp_path / "sweep" / "0" / "config.json").touch()
    with pytest.raises(FolderTakenError, match="is missing: holds no search"):
        claim_search(tmp_path / "sweep", resumed)
