"""The strategies on Flower's own simulation grid: the same apps, the same numbers."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SMALL, assert_same_arrays, rounds, simulate, small
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result
from flwr.simulation import run_simulation
from safetensors.numpy import load_file

from app import client, experiment, runtime, server
from app.engine import Simulator
from app.worker import make_context
from quant.settings import QuantSettings
from strategies import messages
from strategies.client.training import LocalTraining
from strategies.fedavg import FedAvg
from strategies.oqfl import OQFL
from strategies.server.loop import FederatedStrategy

NODES = 3
OVERRIDES = ("clients.total=3", "engine.name=serial")


def on_flower(server_app: ServerApp, overrides: tuple[str, ...]) -> None:
    """Run with our ClientApp, given the run configuration that `flwr run` would give it."""
    run_config = {"overrides": " ".join([*SMALL, *overrides])}
    client_app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        partition = int(str(context.node_config["partition-id"]))
        return client.app(message, make_context(context.run_id, partition, NODES, run_config))

    client_app.query()(handle)
    client_app.train()(handle)
    resources = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0},
        "init_args": {"address": "local", "num_cpus": 2},
    }
    run_simulation(server_app, client_app, NODES, backend_config=resources)


@pytest.fixture
def no_ray_of_ours(ray_simulator: Simulator) -> None:
    """Flower starts a Ray of its own; ours starts again when the next test needs it."""
    ray_simulator.close()


@pytest.mark.long  # ends our Ray; test_flower_run.py has a run by `flwr run`
@pytest.mark.parametrize("strategy", ["fedavg", "oqfl"])
def test_whole_run_equals_ours(strategy: str, tmp_path: Path, no_ray_of_ours: None) -> None:
    overrides = (f"strategy={strategy}", *OVERRIDES)
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        assert runtime.is_simulated(grid)
        server.run(small(*overrides), grid, tmp_path / "flower")

    on_flower(app, overrides)
    simulate(tmp_path / "ours", *overrides)
    assert rounds(tmp_path / "flower") == rounds(tmp_path / "ours")
    assert (tmp_path / "flower" / "model.safetensors").read_bytes() == (
        tmp_path / "ours" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("override", "make"),
    [
        pytest.param(
            "strategy=fedavg", lambda training: FedAvg(train=training), marks=pytest.mark.long
        ),
        pytest.param(
            "strategy=oqfl",
            lambda training: OQFL(quant=QuantSettings(bits=4), train=training),
            marks=pytest.mark.long,  # tests/test_own_app.py does nearly the same
        ),
    ],
    ids=["fedavg", "oqfl"],
)
def test_a_strategy_alone(
    override: str,
    make: Callable[[LocalTraining], FederatedStrategy],
    tmp_path: Path,
    no_ray_of_ours: None,
) -> None:
    """As a user of Flower would write it: constructor, prepare, start, result."""
    app, results = ServerApp(), list[Result]()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = make(LocalTraining(epochs=1, lr=0.1, momentum=0.9, batch_size=16))
        model = experiment.prepare(small(), strategy)
        arrays = messages.to_record(model.state_dict())
        results.append(strategy.start(grid, arrays, num_rounds=2))

    on_flower(app, (override, *OVERRIDES))
    simulate(tmp_path, override, *OVERRIDES)
    (result,) = results
    assert_same_arrays(messages.to_arrays(result.arrays), load_file(tmp_path / "model.safetensors"))
    assert set(result.train_metrics_clientapp) == {1, 2}
