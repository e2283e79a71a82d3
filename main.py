"""Run one experiment, or a sweep with -m. `python main.py --help` lists what can be set."""

import argparse
import contextlib
import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
# Hydra then raises its errors instead of printing them, and explain() makes one line of them.
os.environ.setdefault("HYDRA_FULL_ERROR", "1")
warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
# Imports make 400,000 objects that stay. To look for garbage among them after every 700 is a tenth
# of the time to the first round.
gc.set_threshold(20_000)

# What takes long to import is imported where it is used: --help needs none of it.
from app import ours_first, signals
from app.help_page import help_page
from tracking.text import tolerant

if TYPE_CHECKING:
    from app.jobs import Jobs

SHOWS_ONLY = ("hydra_help", "cfg", "info", "shell_completion")


def main() -> int:
    """Check every job, run them, compare them; return the exit code."""
    tolerant()
    ours_first()
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.stdout.write(help_page())
        return 0
    from hydra._internal.utils import get_args_parser

    flags = get_args_parser().parse_args()
    signals.install()
    logging.raiseExceptions = False  # a full disk is said once, not by each line of the log
    from app.jobs import Jobs

    jobs = Jobs()
    code = guarded(lambda: start(jobs, flags))
    return guarded(jobs.finish) or code or (1 if jobs.failed else 0)


def start(jobs: "Jobs", flags: argparse.Namespace) -> None:
    """Check the jobs and run them."""
    import hydra

    from app.config.composition import open_keys, parsed
    from app.config.methods import register
    from app.config.quoting import as_typed
    from app.config.schema import CONF

    register()
    given = as_typed(flags.overrides)
    parsed(given)
    run = hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(jobs.job)
    options = [text for text in sys.argv[1:] if text not in flags.overrides]
    if any(getattr(flags, name) for name in SHOWS_ONLY):
        sys.argv[1:] = [*options, *given]
        run()
        return
    refuse_other_configs(flags)
    overrides = jobs.begin(jobs.check(given, is_sweep=flags.multirun))
    sys.argv[1:] = [*options, *open_keys(overrides)]
    if jobs.search is None:
        run()
    else:
        from app.search.run import run_search  # brings Optuna

        run_search(jobs.search, jobs, overrides)
    jobs.is_whole = True


def guarded(act: Callable[[], None]) -> int:
    """Run a part of the whole; what ends it is one line, and its exit code is returned."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from app.config.errors import explain

    try:
        act()
        return 0
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        say(f"error: {explain(error)}")
        return 1
    except signals.Stopped as stopped:
        say(f"stopped by {stopped}; the same command with resume=true continues")
        return stopped.code
    except KeyboardInterrupt:
        say("interrupted; the same command with resume=true continues")
        return 130


def say(line: str) -> None:
    """Write a line to the terminal; if it was closed, be silent from then on."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


def refuse_other_configs(flags: argparse.Namespace) -> None:
    """Refuse Hydra's flags for another configuration: jobs are checked against ours.

    Raises:
        ValueError: names the flag and what to use instead.
    """
    for name in ("config_name", "config_path", "config_dir"):
        if getattr(flags, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag}: not taken; hydra.searchpath=[file:///folder] adds presets")


def leave(code: int) -> None:
    """End the process; after a signal at once, whatever libraries would still do at an exit."""
    if code > 128:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
