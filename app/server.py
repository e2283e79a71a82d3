"""ServerApp: builds the strategy, starts it on a grid, and keeps what comes of it."""

import contextlib
import logging
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from app import device, experiment, processors, provenance, run_folder, runtime, signals
from app.client_evaluation import client_test
from app.config.composition import from_run_config
from app.config.errors import explain
from app.evaluation import in_rounds
from app.experiment import Experiment, Prepared
from app.last_look import look
from app.local_grid import LocalGrid
from app.run_folder import MODEL, FolderTakenError, claim, close, locked, take, write_json
from app.sinks import tracker_sink
from app.summary import describe, remarks
from strategies import messages
from strategies.server.checkpoint import save_arrays
from strategies.server.discovery import wait_for_nodes
from strategies.server.watch import Watch
from tracking.files import CannotWriteError, whole
from tracking.jsonl import ROUNDS, JsonlSink, read, readable
from tracking.progress import ProgressSink, Show
from tracking.record import Sink
from tracking.text import line
from tracking.wandb_settings import check_online

if TYPE_CHECKING:  # websockets and cryptography, which simulations do without
    from strategies.server.half_service import HalfService, HalfSettings

NODES_TIMEOUT_S = 300.0
ROUND_TIMEOUT_S = 3600.0
LABELS = "labels.json"  # the classes by number, where the data name them
LONGEST_NAMES = 200
SIMULATED_S = 3.0  # Flower makes its simulated nodes while the ServerApp starts

log = logging.getLogger(__name__)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run under `flwr run`; docs/FLOWER.md says how.

    Raises:
        ValueError: the run cannot start, and nothing was written; one line says why. An exception
            alone makes Flower count a run as failed: sys.exit would not.
        CannotWriteError: the folder cannot be written to.
    """
    listening = contextlib.ExitStack()
    try:
        chosen, prepared, folder, half = prepare(grid, context.run_config)
        service = listening.enter_context(half.service()) if half else None
    except (ValueError, OSError, RuntimeError) as error:
        log.error("error: %s", explain(error))
        raise ValueError(explain(error)) from None
    try:
        with listening, locked(folder):
            (folder / "error.txt").unlink(missing_ok=True)
            run(chosen, grid, folder, prepared=prepared, service=service)
    except Exception as error:
        log.error("error: %s", explain(error))
        if not isinstance(error, FolderTakenError | CannotWriteError):  # not ours, or no room
            (folder / "error.txt").write_text(traceback.format_exc(), "utf-8")
        raise


def prepare(
    grid: Grid, run_config: Mapping[str, Any]
) -> "tuple[Experiment, Prepared, Path, HalfSettings | None]":
    """Check all that can be checked beforehand, and wait for the nodes; writes nothing.

    Args:
        grid: where the clients are.
        run_config: ``overrides`` is a command line, ``output`` an absolute folder (Flower starts
            apps in a folder of its own), ``nodes_timeout_s`` how long to wait for SuperNodes,
            ``half_address`` and its kin where they find the server's half (`HalfSettings`).

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
    chosen = experiment.resolve(from_run_config(run_config))
    is_simulated = runtime.is_simulated(grid)
    half = half_of(chosen, grid, run_config)
    prepared = experiment.check(chosen)
    check_online(chosen.wandb)
    claim(Path(output), chosen)
    try:
        wait_for_nodes(grid, chosen.data.num_clients, SIMULATED_S if is_simulated else timeout_s)
    except (ValueError, RuntimeError) as error:
        if not is_simulated:
            raise
        hint = f'--federation-config "num-supernodes={chosen.data.num_clients}"'
        raise ValueError(f"{error}; {hint} simulates as many as are needed") from error
    return chosen, prepared, Path(output), half


def half_of(chosen: Experiment, grid: Grid, run_config: Mapping[str, Any]) -> "HalfSettings | None":
    """Return where SuperNodes find the server's half; None where there is none to be found.

    Raises:
        ValueError: the method has one, and nothing says where; names the key.
    """
    address = str(run_config.get("half_address", ""))
    if not experiment.method_class(chosen).has_server_half:
        if address:
            log.warning(
                "half_address=%s: not used: strategy=%s cuts nothing", address, chosen.method
            )
        return None
    if runtime.is_simulated(grid):
        if address:
            log.warning("half_address=%s: not used: a simulation has both halves together", address)
        return None
    if not address:
        raise ValueError(
            f"strategy={chosen.method}: on SuperNodes the server keeps its half of the network; "
            "takes -c 'half_address=\"host:port\"': where it listens and they reach it"
        )
    from strategies.server.half_service import HalfSettings

    given = {"cert": "half_cert", "key": "half_key", "timeout_s": "half_timeout_s"}
    told = {name: run_config[key] for name, key in given.items() if key in run_config}
    return HalfSettings(address, precision=chosen.engine.precision, **told)


def run(
    chosen: Experiment,
    grid: Grid,
    folder: Path,
    group: str = "",
    show: Show = ProgressSink,
    prepared: Prepared | None = None,
    timeout_s: float = ROUND_TIMEOUT_S,
    service: "HalfService | None" = None,
) -> dict[str, Any]:
    """Run one experiment and return its summary.

    Args:
        chosen: the experiment.
        grid: where the clients are.
        folder: the run's folder; DESIGN section 4 says what it will hold.
        group: the sweep that this run is part of, for wandb.
        show: makes what shows the progress.
        prepared: what `experiment.check` returned for it, and nobody has started; None prepares it.
        timeout_s: how long a round waits for its clients.
        service: has the server's halves, where clients dial it.

    Raises:
        FolderTakenError: the folder holds another run, or one that is not to be continued.
        DamagedError: it has checkpoints, and none is whole.
        CannotWriteError: there is no room, or the folder is gone.
        AllClientsFailedError: no client of a round returned anything.
    """
    processors.use_one()
    started = time.perf_counter()
    here = device.find(device.AUTO if chosen.engine.address else chosen.engine.device)
    threads = grid.processes if isinstance(grid, LocalGrid) and here.type == device.CPU else 1
    where = device.Where(here, chosen.engine.precision, threads)
    origin = provenance.provenance()  # now: the files may change while the run goes on
    log.info("setting up: %s", provenance.said(origin))
    folder.mkdir(parents=True, exist_ok=True)
    strategy = prepared.strategy if prepared else experiment.strategy(chosen)
    claim(folder, chosen)
    checkpoints = run_folder.checkpoints(folder, chosen)
    found = checkpoints.find()
    resume_from, stamp = (None, None) if found is None else (found.state, found.stamp)
    done = list(resume_from.records) if resume_from else []
    say_what_is_run_again(folder, len(done))
    take(folder, chosen)
    if names := chosen.data.settings.label_names:
        write_json(folder / LABELS, dict(enumerate(names)))
        log.info("labels: %s", line(", ".join(names), LONGEST_NAMES))
    model = prepared.model if prepared else experiment.prepare(chosen, strategy)
    for text in remarks(chosen, strategy):
        log.warning(text)
    data, objective, on = experiment.dataset(chosen), chosen.task.objective(), chosen.evaluated_on
    test_clients = client_test(chosen, where)
    with signals.shielded():  # wandb has a process of its own
        sinks: list[Sink] = [
            JsonlSink(folder, done, stamp),
            tracker_sink(chosen, folder, group, done),
            show(chosen.rounds, done),
        ]
    summary, ended = None, dict[str, Any]()
    try:
        setup_s = time.perf_counter() - started
        log.info("training starts")
        result = strategy.start(
            grid,
            messages.to_record(model.state_dict()),
            num_rounds=chosen.rounds,
            timeout=timeout_s,
            test=None if on == "clients" else in_rounds(data, objective, chosen.metrics, where),
            sinks=sinks,
            checkpoints=checkpoints,
            resume_from=resume_from,
            watch=Watch(
                evaluated_on=on,
                test_clients=test_clients,
                ending=chosen.ending,
                keeps_best=chosen.keeps_best,
                at_end=lambda found, state: ended.update(
                    look(chosen, folder, found, state, test_clients, where)
                ),
            ),
            service=service,
            undisturbed=signals.held,
        )
        with whole(folder / MODEL) as part:
            save_arrays(messages.to_arrays(result.arrays), part)
        described = describe(chosen, strategy, folder)
        described |= ended
        described |= {"wall_setup_s": setup_s, "provenance": origin}
        described |= {"device": str(where.device), "precision": where.precision}
        close(folder, described)
        summary = described
        if not any(row["num_clients"] for row in read(folder / ROUNDS)):
            log.warning("no client took part in any round: the model is the initial one")
    except BaseException:
        with contextlib.suppress(OSError):  # said already, if that is what went wrong
            checkpoints.save_rest()
        raise
    finally:
        for sink in sinks:
            sink.finish(summary)
    return summary


def say_what_is_run_again(folder: Path, num_done: int) -> None:
    """Say so where rounds.jsonl has more rounds than there is a state of."""
    rows, _ = readable(folder / ROUNDS)
    if len(rows) > num_done:
        where = f"continued after round {num_done}" if num_done else "no checkpoint, begun anew"
        log.warning("%s: %s: rounds %d to %d are run again", folder, where, num_done + 1, len(rows))
