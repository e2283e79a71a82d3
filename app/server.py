"""ServerApp: builds the strategy, starts it on a grid, and keeps what comes of it."""

import importlib.metadata
import json
import logging
import platform
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from safetensors.numpy import save_file
from torch import nn

from app import experiment, runtime
from app.config.composition import config_hash, from_run_config, relevant
from app.config.errors import explain
from app.config.schema import Config
from strategies import messages
from strategies.server.checkpoint import Checkpoints
from strategies.server.discovery import wait_for_nodes
from strategies.server.loop import FederatedStrategy
from strategies.server.method import ServerState
from tracking.jsonl import ROUNDS, JsonlSink, read
from tracking.progress import ProgressSink, Show
from tracking.record import Sink
from tracking.summary import summarise
from tracking.wandb_sink import WandbSink, check_online

CONFIG, MODEL = "config.json", "model.safetensors"
EVALUATION_BATCH = 500
NODES_TIMEOUT_S = 300.0
SIMULATED_S = 3.0  # Flower makes its simulated nodes while the ServerApp starts

log = logging.getLogger(__name__)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run under `flwr run`; docs/FLOWER.md says how.

    Raises:
        ValueError: the run cannot start, and nothing was written; one line says why. An exception
            alone makes Flower count a run as failed: sys.exit would not.
    """
    try:
        config, folder = prepare(grid, context.run_config)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").unlink(missing_ok=True)
    except (ValueError, OSError, RuntimeError) as error:
        log.error("error: %s", explain(error))
        raise ValueError(explain(error)) from None
    try:
        run(config, grid, folder)
    except Exception as error:
        log.error("error: %s", explain(error))
        if not isinstance(error, FolderTakenError):  # what is there is not ours to mark
            (folder / "error.txt").write_text(traceback.format_exc())
        raise


def prepare(grid: Grid, run_config: Mapping[str, Any]) -> tuple[Config, Path]:
    """Check all that can be checked beforehand, and wait for the nodes; writes nothing.

    Args:
        grid: where the clients are.
        run_config: ``overrides`` is a command line, ``output`` an absolute folder (Flower starts
            apps in a folder of its own), ``nodes_timeout_s`` how long to wait for SuperNodes.

    Raises:
        ValueError: something in the run's configuration is wrong; names the key.
        FileNotFoundError: the data are not there.
        RuntimeError: too few nodes came.
    """
    output = str(run_config.get("output", ""))
    if not Path(output).is_absolute():
        raise ValueError(f"output={output!r}: takes an absolute folder to write the run to")
    timeout_s = run_config.get("nodes_timeout_s", NODES_TIMEOUT_S)
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or timeout_s < 0:
        raise ValueError(f"nodes_timeout_s={timeout_s!r}: takes seconds, 0 or more")
    config = from_run_config(run_config)
    is_simulated = runtime.is_simulated(grid)
    if experiment.strategy_class(config).needs_colocation and not is_simulated:
        raise ValueError(
            f"strategy={config.strategy['name']}: cannot run on SuperNodes: its server half runs "
            "beside each client and would leave the server; python main.py and Flower's simulation "
            "run it"
        )
    experiment.check(config)
    check_online(config.tracker.wandb)
    claim(Path(output), config)
    try:
        wait_for_nodes(grid, config.clients.total, SIMULATED_S if is_simulated else timeout_s)
    except (ValueError, RuntimeError) as error:
        if not is_simulated:
            raise
        hint = f'--federation-config "num-supernodes={config.clients.total}"'
        raise ValueError(f"{error}; {hint} simulates as many as are needed") from error
    return config, Path(output)


def run(
    config: Config, grid: Grid, folder: Path, group: str = "", show: Show = ProgressSink
) -> dict[str, Any]:
    """Run one experiment and return its summary.

    Args:
        config: a validated configuration.
        grid: where the clients are.
        folder: the run's folder; DESIGN section 4 says what it will hold.
        group: the sweep that this run is part of, for wandb.
        show: makes what shows the progress.

    Raises:
        FolderTakenError: the folder holds another run, or one that is not to be continued.
        AllClientsFailedError: no client of a round returned anything.
    """
    torch.set_num_threads(1)
    started = time.perf_counter()
    log.info("setting up")
    folder.mkdir(parents=True, exist_ok=True)
    strategy = experiment.strategy(config)
    checkpoints = Checkpoints(
        folder / "checkpoint", config.checkpoint.every, config.checkpoint.keep
    )
    is_continued = (folder / CONFIG).exists()
    resume_from = claim(folder, config)
    take(folder, config, is_continued)
    model, data = experiment.prepare(config, strategy), experiment.dataset(config)
    done = list(resume_from.records) if resume_from else []
    sinks: list[Sink] = [
        JsonlSink(folder, done),
        WandbSink(config.tracker.wandb, folder, identity(config), group, done),
        show(config.rounds, done),
    ]
    summary = None
    try:
        setup_s = time.perf_counter() - started
        log.info("training starts")
        result = strategy.start(
            grid,
            messages.to_record(model.state_dict()),
            num_rounds=config.rounds,
            test=lambda network: test(network, data.test_x, data.test_y),
            sinks=sinks,
            checkpoints=checkpoints,
            resume_from=resume_from,
        )
        part = folder / f"{MODEL}.part"
        save_file(messages.to_arrays(result.arrays), part)
        part.replace(folder / MODEL)
        summary = describe(config, strategy, folder) | {"wall_setup_s": setup_s}
        write_json(folder / "summary.json", summary)
        if not any(row["num_clients"] for row in read(folder / ROUNDS)):
            log.warning("no client took part in any round: the model is the initial one")
    finally:
        for sink in sinks:
            sink.finish(summary)
    return summary


@torch.no_grad()
def test(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Share of right answers and mean cross-entropy of ``model`` on (N, …) inputs ``x``."""
    torch.set_num_threads(1)
    model.eval()
    correct, loss = 0, 0.0
    for inputs, labels in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
        logits = model(inputs)  # (B, classes)
        correct += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return correct / len(y), loss / len(y)


class FolderTakenError(ValueError):
    """A run's folder holds something that this run must not touch."""


def claim(folder: Path, config: Config) -> ServerState | None:
    """Return the checkpoint in ``folder`` that this run continues from, if any.

    Raises:
        FolderTakenError: it holds a run that is not to be continued, or one of another
            configuration; names the differing keys.
    """
    path = folder / CONFIG
    if not path.exists() or not path.stat().st_size:  # killed in the moment of taking it
        return None
    if not config.resume:
        raise FolderTakenError(
            f"{folder}: holds a run already; resume=true continues it, another folder starts anew"
        )
    mine = identity(config)
    theirs = json.loads(path.read_text())
    different = [
        f"{key} (was {theirs.get(key)}, is {mine.get(key)})"
        for key in sorted(theirs.keys() | mine.keys())
        if key != "rounds" and theirs.get(key) != mine.get(key)
    ]
    if different:
        raise FolderTakenError(f"resume: {folder} holds another experiment: {', '.join(different)}")
    found = Checkpoints(folder / "checkpoint").latest()
    if found is not None and found.round > config.rounds:
        raise FolderTakenError(
            f"rounds={config.rounds}: {folder} is at round {found.round} already"
        )
    return found


def take(folder: Path, config: Config, is_continued: bool) -> None:
    """Mark the folder as this run's, and remove what an earlier, shorter run ended with.

    Args:
        folder: the run's folder.
        config: the run.
        is_continued: whether config.json was there already when `claim` allowed to go on.

    Raises:
        FolderTakenError: another process took it a moment ago.
    """
    path = folder / CONFIG
    if is_continued:
        write_json(path, identity(config))
    else:
        try:
            with path.open("x") as file:
                file.write(json.dumps(identity(config), indent=2) + "\n")
        except FileExistsError as error:
            raise FolderTakenError(f"{folder}: another run just took it") from error
    for name in ("summary.json", MODEL):
        (folder / name).unlink(missing_ok=True)


def identity(config: Config) -> dict[str, Any]:
    """Return what the results depend on, as flat keys; config.json holds it."""
    return relevant(config, experiment.strategy_class(config).reads)


def describe(config: Config, strategy: FederatedStrategy, folder: Path) -> dict[str, Any]:
    """Return summary.json: totals over rounds.jsonl, the client's model, and what ran."""
    network, train = strategy.prepared().in_round(config.rounds), strategy.rounds.train
    parts, whole = network.device_costs(), network.cost()
    batch, slots = train.batch_size, train.optimizer_slots
    return {
        **summarise(folder, config.target_accuracy),
        "client_params": sum(part.params for part in parts),
        "client_model_bytes": sum(part.packed_bytes for part in parts),
        "client_flops_per_sample": sum(p.flops_forward + p.flops_backward for p in parts),
        "client_bops_per_sample": sum(part.bops for part in parts),
        "client_peak_train_bytes": sum(part.peak_train_bytes(batch, slots) for part in parts),
        "network_params": whole.params,
        "network_flops_per_sample": whole.flops_forward + whole.flops_backward,
        "network_peak_train_bytes": whole.peak_train_bytes(batch, slots),
        **network.describe(train),
        "strategy": config.strategy["name"],
        "model": experiment.model_name(config),
        "data": config.data.name,
        "seed": config.seed,
        "config_hash": config_hash(config, strategy.reads),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    packages = ("torch", "flwr", "ray", "numpy", "hydra-core")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(path)
