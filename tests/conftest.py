"""Settings and helpers that all tests share."""

import functools
import gc
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
gc.set_threshold(20_000)  # as main.py has it
# Ray's workers give way to other processes otherwise; here these are other tests, always busy.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
# Which clients of tests/app/faulty.py fail; named before any worker starts and inherits it.
FAULTS = Path(tempfile.mkdtemp(prefix="cutbit-test-")) / "faults"
FAULTS.touch()
os.environ["FAULTS"] = str(FAULTS)

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from xdist.scheduler import LoadScopeScheduling

from app.config.composition import compose
from app.engine import Simulator, Workers
from app.experiment import Experiment, resolve
from fleet.phases import Phases
from fleet.work import ClientWork
from strategies.server.cuts import CutNetwork
from strategies.server.loop import FederatedStrategy
from strategies.server.planner import Planner

ROOT = Path(__file__).resolve().parent.parent
# Small enough for a test, large enough for everything to happen: several clients, batches, rounds.
SMALL = (
    "engine=serial", "engine.fork=false", "rounds=2", "clients.total=6", "data.max_train=240",
    "train.epochs=1", "train.batch_size=16", "tracker.wandb.mode=disabled", "checkpoint.every=1",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate-golden", action="store_true", help="write tests/golden anew")


class OneRay(LoadScopeScheduling):
    """Whole files to each test process, and all that use Ray to one, which starts it once."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid.partition("::")[0])


@functools.cache
def unit(file: str) -> str:
    """What goes to one test process."""
    return "ray" if "ray_simulator" in (ROOT / file).read_text("utf-8") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneRay:
    return OneRay(config, log)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def faults() -> Iterator[Callable[..., None]]:
    """Says which clients of tests/app/faulty.py have which fault: ``faults(c3="raise")``."""

    def say(**kinds: str) -> None:
        FAULTS.write_text("\n".join(f"{k.removeprefix('c')} {v}" for k, v in kinds.items()))

    for marker in FAULTS.parent.glob("faults.*"):
        marker.unlink()
    yield say
    FAULTS.write_text("")


@pytest.fixture(scope="session")
def ray_simulator() -> Iterator[Simulator]:
    """Two workers, shared by all tests that run on Ray; ask for engine.workers=2."""
    simulator = Simulator()
    simulator._workers = Workers(2, None)
    yield simulator
    simulator.close()


@pytest.fixture
def no_wandb_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """wandb as it is where nothing is set, without what it remembers from other tests."""
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser, of Playwright's; without one the test that asks for it is skipped."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no browser: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-quic"]
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


def small(*overrides: str) -> Experiment:
    """A small experiment."""
    return resolve(compose([*SMALL, *overrides]))


def simulate(folder: Path, *overrides: str, simulator: Simulator | None = None) -> dict[str, Any]:
    """Run a small experiment into ``folder`` and return its summary."""
    return (simulator or Simulator()).run(small(*overrides), folder)


def rounds(folder: Path) -> list[dict[str, Any]]:
    """rounds.jsonl without what is measured by the clock."""
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return [_timeless(json.loads(line)) for line in lines]


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("wall_")}


def assert_same_run(one: Path, *others: Path) -> None:
    """Records, client records and weights are equal bit for bit."""
    for other in others:
        assert rounds(one) == rounds(other)
        assert (one / "clients.jsonl").read_text() == (other / "clients.jsonl").read_text()
        assert_same_arrays(
            load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
        )


def assert_same_arrays(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        assert np.array_equal(array, other[name]), name


def settings_of(strategy: FederatedStrategy, server_round: int = 1) -> dict[str, Any]:
    """What client 0 of a prepared strategy is told in a round, but for the round itself."""
    network = strategy.prepared().in_round(server_round)
    settings = {**strategy.client_settings(server_round), **dict(network.variant(0))}
    return {**settings, "seed": strategy.rounds.seed}


def works_of(strategy: FederatedStrategy, server_round: int = 1) -> Mapping[int, ClientWork]:
    """What a round takes each client, of a prepared strategy."""
    network = strategy.prepared().in_round(server_round)
    return network.works(strategy.rounds.train, partial(strategy.method.wire.num_bytes, network))


def phases_of(strategy: FederatedStrategy, server_round: int = 1) -> Mapping[int, Phases]:
    """Each client's round on its device and link, of a prepared strategy with a fleet."""
    network = strategy.prepared().in_round(server_round)
    return Planner(strategy.method, strategy.rounds, network.clients).phases(network)


def cut_network(strategy: FederatedStrategy, server_round: int = 1) -> CutNetwork:
    """The network of a round, of a prepared strategy that cuts it."""
    network = strategy.prepared().in_round(server_round)
    assert isinstance(network, CutNetwork)
    return network


def tolerance(made_with: str, is_rounded: bool) -> float:
    """How far losses may be from golden ones, relatively.

    Rounding, a quantizer's or a codec's, turns another last bit into another code, and that into
    other losses: with other kernels than those that the golden ones were made with, they agree to
    a few per cent only, after some steps.

    Args:
        made_with: the `processor` of the golden ones, or how its name begins.
        is_rounded: whether anything is.
    """
    return 1e-4 if processor().startswith(made_with) or not is_rounded else 0.1


# Of AVX-512, from the newest, as oneDNN tells them apart.
EXTENSIONS = ("amx_tile", "avx512_fp16", "avx512_bf16", "avx512_vnni")


def processor() -> str:
    """What torch and its libraries choose kernels by: vector instructions, vendor, extensions."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    vendor = next((line.split()[-1] for line in lines if line.startswith("vendor_id")), "")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    newest = next((flag for flag in EXTENSIONS if flag in flags), "")
    return f"{torch.backends.cpu.get_cpu_capability()} {vendor} {newest}"


def strategies() -> Sequence[str]:
    """Every method there is."""
    return sorted(path.stem for path in (ROOT / "conf" / "strategy").glob("*.yaml"))
