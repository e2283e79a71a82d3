"""Many faults at once: each is counted with its reason, and the others never notice."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import FAULTS, assert_same_arrays, rounds, simulate
from safetensors.numpy import load_file

from app.engine import Simulator
from tests.app.faulty import ANSWERS, DEATHS, HANGS, LEAKS, STOPS

QUICK = [*STOPS, *ANSWERS, *LEAKS]
# A reason that says what was wrong, by kind; where none is given, that of `faulty.py`.
REASONS = {
    "exit": "SystemExit: this phone is leaving",
    "interrupt": "KeyboardInterrupt: not from the keyboard",
    "recursion": "RecursionError",
    "nan-weight": "holds NaN",
    "nan-buffer": "running_var holds NaN",
    "inf-weight": "holds infinity",
    "minus-inf-weight": "holds infinity",
    "inf-buffer": "running_var holds infinity",
    "huge-weight": "holds 3.0e+38: takes values up to 1.8e+19",
    "huge-buffer": "running_var holds 3.0e+38: takes values up to 1.8e+19",
    "large-weight": "holds 1.0e+20: takes values up to 1.8e+19",
    "float64": "is float64 (",
    "float16": "is float16 (",
    "int32": "is int32 (",
    "complex": "is complex64 (",
    "no-array": "is absent, expected float32",
    "missing-array": "is absent, expected float32",
    "extra-array": "array stranger is float32 (3,), expected absent",
    "no-samples": "num_examples=0: takes 1 to ",
    "negative-samples": "num_examples=-5: takes 1 to ",
    "absurd-samples": "num_examples=1000000000000: takes 1 to ",
    "nan-loss": "loss=nan: takes a finite number",
    "inf-loss": "loss=inf: takes a finite number",
    "negative-bytes": "bytes_up=-1: takes 0 or more",
    "nan-metric": "own=nan: takes a finite number",
    "hang": "no answer in ",
    "spin": "no answer in ",
    **dict.fromkeys(DEATHS, "its worker died 2 times"),
    **{kind: f"left behind: {kind}" for kind in LEAKS},
}


@pytest.fixture
def no_faults() -> Iterator[None]:
    yield
    FAULTS.write_text("")


def storm(
    folder: Path, engine: tuple[str, ...], kinds: list[str], num_clients: int, num_rounds: int,
    simulator: Simulator,
) -> None:  # fmt: skip
    """Give each of ``kinds`` to a client of a round, by chance, and compare with a run without."""
    places = [(r, p) for r in range(1, num_rounds + 1) for p in range(num_clients)]
    faults = dict(zip(random.Random(5).sample(places, len(kinds)), kinds, strict=True))
    FAULTS.write_text("\n".join(f"{r}/{p} {kind}" for (r, p), kind in faults.items()))
    chosen = (
        "strategy=fedavg", f"clients.total={num_clients}", f"rounds={num_rounds}",
        "data.max_train=1200", "train.batch_size=8", "model.norm=batch", "checkpoint.every=100",
        "evaluate.every=100",
    )  # fmt: skip
    target = "strategy._target_=tests.app.faulty."
    simulate(folder / "faulty", *chosen, target + "Faulty", *engine, simulator=simulator)
    simulate(folder / "without", *chosen, target + "Without")

    rows = map(json.loads, (folder / "faulty" / "clients.jsonl").read_text().splitlines())
    failed = {(row["round"], row["partition"]): row for row in rows if row["status"] == "failed"}
    assert failed.keys() == faults.keys()
    for place, kind in faults.items():
        assert REASONS.get(kind, "") in failed[place]["reason"], (kind, failed[place]["reason"])
        assert failed[place]["loss"] is None
    counted = {row["round"]: row["num_failed"] for row in rounds(folder / "faulty")}
    assert counted == {
        r: sum(of == r for of, _ in faults) for r in range(1, num_rounds + 1)
    }  # fmt: skip
    losses = [
        [(row["num_clients"], row["train_loss"], row["accuracy"]) for row in rounds(folder / name)]
        for name in ("faulty", "without")
    ]
    assert losses[0] == losses[1]
    assert_same_arrays(
        load_file(folder / "faulty" / "model.safetensors"),
        load_file(folder / "without" / "model.safetensors"),
    )


def test_every_kind_in_one_process(tmp_path: Path, no_faults: None) -> None:
    """Serial, where a KeyboardInterrupt ends the run and a death is the run's own."""
    kinds = [kind for kind in QUICK if kind != "interrupt"] + ["hang"]
    engine = ("engine=serial", "engine.client_timeout_s=1.5")
    storm(tmp_path, engine, kinds, 40, 2, Simulator())


def test_a_sample_on_ray(tmp_path: Path, no_faults: None, ray_simulator: Simulator) -> None:
    engine = ("engine=ray", "engine.workers=2", "engine.client_timeout_s=6")
    storm(tmp_path, engine, [*QUICK, *QUICK[:8], "hang"], 50, 2, ray_simulator)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_thousand_faults(tmp_path: Path, no_faults: None, ray_simulator: Simulator) -> None:
    """1,000 faults of all kinds over 200 clients in 10 rounds."""
    costly = [*DEATHS, *HANGS] * 5
    quick = [QUICK[i % len(QUICK)] for i in range(1000 - len(costly))]
    engine = ("engine=ray", "engine.workers=2", "engine.client_timeout_s=10")
    storm(tmp_path, engine, costly + quick, 200, 10, ray_simulator)
