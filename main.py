"""Run one experiment, or a sweep with -m. `python main.py --help` lists what can be set."""

import argparse
import os
import sys
import warnings

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
# Hydra then raises its errors instead of printing them, and explain() makes one line of them.
os.environ.setdefault("HYDRA_FULL_ERROR", "1")
warnings.filterwarnings("ignore", category=FutureWarning, module="ray")

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from app import ours_first
from app.config.composition import open_keys, parsed
from app.config.errors import explain
from app.config.help import help_text
from app.config.methods import register
from app.config.schema import CONF
from tracking.text import tolerant

SHOWS_ONLY = ("hydra_help", "cfg", "info", "shell_completion")


def main() -> int:
    """Check every job, run them, compare them; return the exit code."""
    tolerant()
    flags = get_args_parser().parse_args()
    ours_first()
    if flags.help:
        sys.stdout.write(help_text())
        return 0
    from app.jobs import Jobs  # brings Ray, which --help need not wait for

    register()
    jobs = Jobs()
    run = hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(jobs.job)
    try:
        parsed(flags.overrides)
        if any(getattr(flags, name) for name in SHOWS_ONLY):
            run()
            return 0
        refuse_other_configs(flags)
        options = [text for text in sys.argv[1:] if text not in flags.overrides]
        overrides = jobs.check(flags.overrides, is_sweep=flags.multirun)
        sys.argv[1:] = [*options, *open_keys(overrides)]
        run()
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        sys.stderr.write(f"error: {explain(error)}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command with resume=true continues\n")
        return 130
    finally:
        jobs.finish()
    return 1 if jobs.failed else 0


def refuse_other_configs(flags: argparse.Namespace) -> None:
    """Refuse Hydra's flags for another configuration: jobs are checked against ours.

    Raises:
        ValueError: names the flag and what to use instead.
    """
    for name in ("config_name", "config_path", "config_dir"):
        if getattr(flags, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag}: not taken; hydra.searchpath=[file:///folder] adds presets")


if __name__ == "__main__":
    sys.exit(main())
