"""The keys of tracker.wandb, what wandb's environment says where they are silent, and its keys."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tracking.text import line

MODES = ("offline", "online", "disabled")
# What stands in wandb's environment for a key that is not set, and what where that is not either.
_ELSE = {
    "mode": ("WANDB_MODE", "offline"),
    "project": ("WANDB_PROJECT", "cutbit"),
    "entity": ("WANDB_ENTITY", None),
}
_OLD_MODES = {"dryrun": "offline", "run": "online"}
_LONGEST_TAG = 64


@dataclass(frozen=True)
class WandbSettings:
    """The group tracker.wandb of the configuration."""

    mode: str | None = field(
        default=None,
        metadata={"help": "wandb mode: offline, online, disabled; null: WANDB_MODE, or offline"},
    )
    project: str | None = field(
        default=None, metadata={"help": "wandb project; null: WANDB_PROJECT, or cutbit"}
    )
    entity: str | None = field(
        default=None,
        metadata={"help": "wandb user or team; null: WANDB_ENTITY, or your default"},
    )
    clients: bool = field(
        default=False, metadata={"help": "log clients.jsonl as a table at the end"}
    )
    console: bool = field(default=False, metadata={"help": "log what is printed"})
    system: bool = field(default=False, metadata={"help": "sample CPU, memory, disk and GPU"})
    alerts: bool = field(
        default=False,
        metadata={"help": "alert when a run fails, reaches its target or finishes"},
    )

    def __post_init__(self) -> None:
        if self.mode is not None and self.mode not in MODES:
            raise ValueError(f"tracker.wandb.mode={self.mode}: takes {', '.join(MODES)} or null")


def resolved(
    settings: WandbSettings, environment: Mapping[str, str]
) -> tuple[WandbSettings, list[str]]:
    """Return the settings with what wandb's environment says where they are silent.

    Also lines for what the environment says in vain.

    Raises:
        ValueError: WANDB_MODE or WANDB_TAGS is none that we, or wandb, take.
    """
    found, said = dict[str, Any](), []
    for name, (variable, otherwise) in _ELSE.items():
        given, there = getattr(settings, name), environment.get(variable) or None
        if name == "mode" and there is not None:
            there = _OLD_MODES.get(there, there)
            if given is None and there not in MODES:
                raise ValueError(f"{variable}={line(there, 80)}: takes {', '.join(MODES)}")
        if given is not None and there not in (None, given):
            said.append(f"tracker.wandb.{name}={given}: {variable}={there} is not used")
        found[name] = given if given is not None else there or otherwise
    added = environment.get("WANDB_TAGS") or None
    if added and not all(1 <= len(tag) <= _LONGEST_TAG for tag in added.split(",")):
        raise ValueError(f"WANDB_TAGS={line(added, 80)}: takes tags of 1 to {_LONGEST_TAG} signs")
    return replace(settings, **found), said


def check_online(settings: WandbSettings) -> None:
    """Refuse to go online without a key: wandb would ask for one, in the middle of a run.

    Where keys are, and which server is meant, is asked of wandb: its environment, the settings that
    `wandb login --host` leaves, the file of keys.

    Raises:
        ValueError: names tracker.wandb.mode, or WANDB_MODE.
    """
    chosen, _ = resolved(settings, os.environ)
    if chosen.mode != "online":
        return
    host, reason = missing_key()
    if reason is not None:
        key = "WANDB_MODE" if settings.mode is None else "tracker.wandb.mode"
        raise ValueError(
            f"{key}=online: {reason or f'no key for {host}'}; set WANDB_API_KEY or run wandb "
            "login, or take offline and upload later with python -m tracking.sync"
        )


def missing_key() -> tuple[str, str | None]:
    """Return wandb's server, and why there is no key for it: None where there is one."""
    import wandb
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib.wbauth import authenticate_session  # `wandb.login` would print

    host = str(wandb_setup.singleton().settings.base_url)
    try:
        found = authenticate_session(host=host, source="cutbit", prompt=False, update_session=False)
    except wandb.Error as error:
        return host, line(error, 200)
    return host, None if found is not None else ""
