"""Training losses that must not change unnoticed.

tests/golden/<method>.json holds the loss of each of 20 steps of one client on digits, as of the
commit that wrote it. `pytest tests/test_golden.py --regenerate-golden` writes them anew: say in the
commit's message why they changed.
"""

import json
from collections.abc import Iterator

import pytest
import torch
from conftest import ROOT, settings_of, small, strategies, tolerance

from app import experiment
from strategies.client import training as local
from strategies.client.simulated import train_simulated
from strategies.contract import Streams, Task
from strategies.messages import ROUND

STEPS = 20
LOSSES = {"hierarchical": 2}  # in a step, where they are not one: the exit's and the cloud's


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Every cross-entropy that local training computes."""
    found: list[float] = []
    original = local.F.cross_entropy

    def record(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = original(logits, labels)
        found.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(local.F, "cross_entropy", record)
    yield found


@pytest.mark.parametrize("strategy", strategies())
def test_losses(strategy: str, losses: list[float], request: pytest.FixtureRequest) -> None:
    config = small(
        f"strategy={strategy}", "clients.total=1", "train.epochs=2", f"train.max_batches={STEPS}"
    )
    server = experiment.strategy(config)
    arrays = experiment.prepare(config, server).state_dict()
    settings = {**settings_of(server), ROUND: 1}
    client = experiment.method_class(config).client
    model = client.prepare(experiment.network(config), settings)
    data = experiment.client_data(config, 0)
    train_simulated(client, model, arrays, data, Task(settings, Streams(0, 1, 0), len(data)))
    assert len(losses) == STEPS * LOSSES.get(strategy, 1)
    path = ROOT / "tests" / "golden" / f"{strategy}.json"
    if request.config.getoption("--regenerate-golden"):
        path.write_text(json.dumps(losses, indent=1) + "\n")
    rel = tolerance("AVX512 GenuineIntel avx512_vnni", is_rounded=strategy == "oqfl")
    assert losses == pytest.approx(json.loads(path.read_text()), rel=rel)
