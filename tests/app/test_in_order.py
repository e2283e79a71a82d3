"""A test of a network in several threads: the numbers of one, in order, or no threads."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import assert_same_run, simulate, strategies
from torch import Tensor, nn

from app import evaluation, in_order
from app.device import Where
from app.engine import Simulator, Workers
from app.evaluation import measure, passes
from models.cnn import CNN
from models.inputs import call
from models.metrics import Metrics
from models.objective import Classification
from models.resnet import resnet8
from quant.layers import QuantSpec, quantize

COUNT = 16 * 3 * 5 - 3  # fifteen batches of 16
X, Y = torch.randn(COUNT, 1, 8, 8), torch.randint(10, (COUNT,))


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_order, "LEAST", 1)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


class Passing(Linear):
    """Hands its features on by way of itself, which two threads would do to each other."""

    def forward(self, x: Tensor) -> Tensor:
        self.features = x.flatten(1)
        time.sleep(0.001)
        return self.fc(self.features)


class Hidden(Linear):
    """Draws from a generator of its own, and counts where nobody looks."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)
        self.seen = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.seen[0] += 1
        return super().forward(x) + torch.rand((), generator=self.generator) + self.seen[0]


class Counting(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.batches = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        self.batches += 1
        return super().forward(x) + self.seen + self.batches


class Drawing(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(())


def quantized() -> nn.Module:
    model = quantize(CNN(input_shape=(1, 8, 8)), QuantSpec(4, 4))
    model.train()(X[:32])
    return model


def hooked() -> nn.Module:
    model, seen = CNN(input_shape=(1, 8, 8)), [0]

    def add(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        seen[0] += 1
        return output + seen[0]

    model.head.register_forward_hook(add)
    return model


NETWORKS: dict[str, tuple[Callable[[], nn.Module], bool]] = {  # and whether threads run it
    "cnn": (lambda: CNN(input_shape=(1, 8, 8)), True),
    "batch norm": (lambda: resnet8(1, 10), True),
    "quantized": (quantized, True),
    "hooked": (hooked, False),
    "passing": (Passing, False),
    "hidden": (Hidden, False),
    "counting": (Counting, False),
    "drawing": (Drawing, False),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_any_number_of_threads(name: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, is_spread = NETWORKS[name]
    torch.manual_seed(0)
    state = make().state_dict()
    outputs, found, used = list[Tensor](), list[dict[str, float]](), list[set[int]]()
    ids = set[int]()

    def noted(network: nn.Module, x: Tensor) -> Tensor:
        ids.add(threading.get_ident())
        return call(network, x)

    monkeypatch.setattr(evaluation, "call", noted)
    for threads in (1, 2, 5):
        model = make()
        model.load_state_dict(state)
        ids.clear()
        where = Where(torch.device("cpu"), precision, threads)
        torch.manual_seed(1)
        pairs = list(passes(model, X, COUNT, 16, where))
        assert [rows.start for rows, _ in pairs] == list(range(0, COUNT, 16))
        outputs.append(torch.cat([part for _, part in pairs]))
        assert outputs[-1].dtype == torch.float32 and not outputs[-1].requires_grad
        used.append(set(ids))
        if name not in ("counting", "hidden", "hooked"):  # whose second test is another
            torch.manual_seed(1)
            metrics = Metrics("classification", ["macro_f1", "auroc"])
            found.append(measure(model, X, Y, Classification(), 16, metrics, where=where))
    assert all(torch.equal(outputs[0], other) for other in outputs)
    assert all(found[0] == other for other in found)
    assert [len(ids) > 1 for ids in used] == [False, is_spread, is_spread]


def test_copies_share_what_is_trained() -> None:
    model = CNN(input_shape=(1, 8, 8))
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]
    seen = list(
        in_order.in_order(
            lambda network, _: [t.data_ptr() for t in network.state_dict().values()],
            model, [slice(0, 1)] * 9, 3,
        )
    )  # fmt: skip
    assert seen == [pointers] * 9


def test_an_error_is_raised_and_no_thread_is_left() -> None:
    def fails(network: nn.Module, rows: slice) -> int:
        if rows.start == 7:
            raise RuntimeError("the eighth")
        return rows.start

    before, got = threading.active_count(), []
    with pytest.raises(RuntimeError, match="the eighth"):
        for one in in_order.in_order(
            fails, CNN(input_shape=(1, 8, 8)), [slice(i, i + 1) for i in range(20)], 3
        ):
            got.append(one)
    assert got == list(range(7))
    ended = in_order.in_order(
        lambda _, rows: rows.start, CNN(input_shape=(1, 8, 8)), [slice(0, 1)] * 20, 3
    )
    assert [next(ended) for _ in range(4)] == [0] * 4
    ended.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(name, marks=() if name in ("fedavg", "ushaped") else pytest.mark.long)
        for name in strategies()
    ],
)
def test_whole_runs(strategy: str, tmp_path: Path) -> None:
    chosen = (f"strategy={strategy}", "clients.total=3", "data.max_train=60", "evaluate.on=both")
    simulate(tmp_path / "one", *chosen)
    simulator = Simulator()
    simulator._workers = Workers(2, fork=True)
    workers = ("engine=ray", "engine.fork=true", "engine.workers=2")
    try:
        simulate(tmp_path / "two", *chosen, *workers, simulator=simulator)
    finally:
        simulator.close()
    assert_same_run(tmp_path / "one", tmp_path / "two")
