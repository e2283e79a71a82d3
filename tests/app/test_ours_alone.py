"""Our own methods and networks leave nothing behind in a process: only a user's are kept apart."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import assert_same_run, simulate
from torch import nn

from app import client, isolation
from app.config.schema import CONF
from models.lenet5 import LeNet5
from strategies.fedavg import FedAvgClient

METHODS = sorted(file.stem for file in (CONF / "strategy").glob("*.yaml"))
MORE = {
    "fedavg": ["strategy.proximal_mu=0.1", "train.augment=crop_flip", "train.clip_norm=1.0"],
    "oqfl": ["quant.wire=updates", "model=mobilenetv2", "model.width=0.25", "rounds=1"],
    "splitfed_v1": ["link.up=int8", "link.down=int8", "model=resnet8", "rounds=1"],
    "fjord": ["submodel.share={phone_low: 0.5, default: 1.0}", "fleet=mobile"],
    "heterofl": ["submodel.share={phone_low: 0.5, default: 1.0}", "fleet=mobile"],
}
CASES = [*((name, ()) for name in METHODS), *((n, tuple(given)) for n, given in MORE.items())]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Keep all clients apart, and fail where that puts anything back; what is_ours says of them."""
    judged, real, isolated = list[bool](), isolation.is_ours, isolation.isolated

    def is_ours(*given: object) -> bool:
        judged.append(real(*given))
        return False

    @contextmanager
    def unchanged(seed: int) -> Iterator[None]:
        with isolated(seed):
            settings, drawn = isolation._settings(), generators()
            yield
            assert isolation._settings() == settings
            assert generators() == drawn

    monkeypatch.setattr(isolation, "is_ours", is_ours)
    monkeypatch.setattr(isolation, "isolated", unchanged)
    client._prepared.cache_clear()
    yield judged
    client._prepared.cache_clear()


def generators() -> tuple[object, str]:
    return random.getstate(), np.array2string(np.random.get_state()[1], threshold=1000)


@pytest.mark.parametrize(("method", "given"), CASES)
def test_nothing_is_put_back(
    method: str,
    given: tuple[str, ...],
    watched: list[bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = (f"strategy={method}", *given, "clients.total=4", "data.max_train=96")
    simulate(tmp_path / "apart", *settings)
    assert watched and all(watched)
    assert "prepared anew" not in caplog.text and "failed" not in caplog.text
    monkeypatch.undo()
    client._prepared.cache_clear()
    simulate(tmp_path / "as-usual", *settings)
    assert_same_run(tmp_path / "apart", tmp_path / "as-usual")


class Mine(nn.Module):
    """Somebody's own."""


class MyClient(FedAvgClient):
    """Somebody's own."""


def test_what_is_a_users_in_any_part_is_kept_apart() -> None:
    ours = FedAvgClient()
    assert isolation.is_ours(ours, LeNet5())
    assert isolation.is_ours(ours, nn.Sequential(nn.Linear(2, 2)))
    assert not isolation.is_ours(MyClient(), LeNet5())
    assert not isolation.is_ours(ours, Mine())
    assert not isolation.is_ours(ours, nn.Sequential(nn.Sequential(Mine())))
    hooked, patched = LeNet5(), LeNet5()
    hooked.head.register_forward_hook(lambda *_: None)
    patched.head.forward = lambda x: x  # type: ignore[method-assign]
    assert not isolation.is_ours(ours, hooked)
    assert not isolation.is_ours(ours, patched)


@pytest.mark.parametrize(
    ("error", "is_forgotten"), [(KeyboardInterrupt, True), (ValueError, False)]
)
def test_one_that_is_stopped_has_the_network_made_anew(
    error: type[BaseException], is_forgotten: bool
) -> None:
    forgotten = list[bool]()
    prepared = SimpleNamespace(is_ours=True, forget=lambda: forgotten.append(True))
    with torch.no_grad(), pytest.raises(error), client._kept_apart(prepared, {}, None, None):
        assert torch.is_grad_enabled()
        raise error
    assert bool(forgotten) == is_forgotten
