"""Folders of runs as the tests make them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

VERSIONS = {"torch": "2.13", "flwr": "1.41"}


def make_run(
    folder: Path,
    overrides: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
    error: str | None = None,
    rounds: Sequence[Mapping[str, Any]] = (),
    clients: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write what a run leaves behind; without a config it failed before it had any."""
    folder.mkdir(parents=True)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    for name, content in (("config.json", config), ("summary.json", summary)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    if error is not None:
        (folder / "error.txt").write_text(error)
    for name, rows in (("rounds.jsonl", rounds), ("clients.jsonl", clients)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def round_row(number: int, accuracy: float | None, **changes: Any) -> dict[str, Any]:
    """One line of rounds.jsonl."""
    return {
        "round": number, "accuracy": accuracy, "loss": None, "train_loss": 1 / number,
        "num_clients": 2, "num_failed": 0, "num_dropped": 0, "bytes_up": 100, "bytes_down": 10,
        "sim_s": None, "energy_j": None, "wall_s": 0.5, **changes,
    }  # fmt: skip


def client_row(number: int, partition: int, **changes: Any) -> dict[str, Any]:
    """One line of clients.jsonl."""
    return {
        "round": number, "partition": partition, "device": None, "status": "ok",
        "num_examples": 7, "loss": 1.0, "bytes_up": 50, "bytes_down": 5, "sim_s": None,
        "energy_j": None, **changes,
    }  # fmt: skip


def make_seeds(root: Path) -> None:
    """OQFL at 2 and 4 bits and FedAvg, which reads none, with two seeds each; one is a copy."""
    number = 0
    for strategy, bits, accuracy in (("oqfl", 2, 0.5), ("oqfl", 4, 0.75), ("fedavg", 2, 0.875)):
        for seed in (0, 1):
            config = {"seed": seed, "strategy.name": strategy, "train.lr": 0.1}
            if strategy == "oqfl":
                config["quant.bits"] = bits
            total = 1000 * bits if strategy == "oqfl" else 32000
            summary = {
                "final_accuracy": accuracy + seed / 8, "best_accuracy": 0.9,
                "total_bytes_up": total, "total_bytes_down": total,
                "total_sim_s": None, "total_energy_j": None,
                "total_wall_s": 1.0, "rounds": 2, "strategy": strategy, "seed": seed,
                "versions": VERSIONS,
            }  # fmt: skip
            said = [f"strategy={strategy}", f"quant.bits={bits}", f"seed={seed}", "train.lr=0.1"]
            make_run(
                root / str(number), said, config, summary,
                rounds=[round_row(1, None), round_row(2, accuracy + seed / 8)],
                clients=[client_row(r, p, loss=r + p) for r in (1, 2) for p in (0, 1)],
            )  # fmt: skip
            number += 1
    config = {"seed": 1, "strategy.name": "fedavg", "train.lr": 0.1}
    said = ["strategy=fedavg", "quant.bits=4", "seed=1", "train.lr=0.1"]
    make_run(root / str(number), said, config, summary | {"same_as": "5"})


def make_schedules(root: Path, target: float = 0.5) -> None:
    """Sync with rounds of 2 s and buffered with steps of 1 s, of two seeds and six rounds each.

    Accuracy rises by 0.1 a round, but by 0.0125 in buffered with seed 1, which does not reach the
    target.
    """
    for job, (name, seed) in enumerate((n, s) for n in ("sync", "buffered") for s in (0, 1)):
        is_sync = name == "sync"
        config = {"seed": seed, "fleet.population": "mobile"}
        gain = 0.1 if is_sync or not seed else 0.0125
        reached = gain * 6 >= target
        rounds = [
            round_row(r, gain * r, sim_s=2.0 if is_sync else 1.0, energy_j=3.0, staleness_mean=r)
            for r in range(1, 7)
        ]  # fmt: skip
        make_run(
            root / str(job), [f"schedule={name}", f"seed={seed}"],
            config if is_sync else config | {"schedule.name": "buffered"},
            {
                "final_accuracy": gain * 6, "total_sim_s": 12.0 if is_sync else 6.0,
                "target_accuracy": target, "rounds_to_target": 5 if reached else None,
                "sim_s_to_target": (10.0 + 2 * seed if is_sync else 5.0) if reached else None,
                "energy_j_to_target": 15.0 if reached else None,
                "bytes_up_to_target": 500 if reached else None,
                "bytes_down_to_target": 50 if reached else None,
            },
            rounds=rounds,
        )  # fmt: skip
