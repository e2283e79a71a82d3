"""Methods that must be another method where they degenerate, bit for bit."""

from pathlib import Path

import pytest
from conftest import assert_same_run, simulate

from app.engine import Simulator


@pytest.mark.parametrize("model", ["model=cnn", "model=lenet5"])
def test_oqfl_at_32_bits_is_fedavg(model: str, tmp_path: Path) -> None:
    data = (
        [] if model == "model=cnn" else ["data.source=benchmarks.random_data", "data.name=random"]
    )
    data += ["data.shape=[1,28,28]"] if data else []
    simulate(tmp_path / "fedavg", "strategy=fedavg", model, *data)
    simulate(tmp_path / "oqfl", "strategy=oqfl", "quant.bits=32", model, *data)
    simulate(tmp_path / "codes", "strategy=oqfl", "quant.bits=32", "quant.wire=codes", model, *data)
    assert_same_run(tmp_path / "fedavg", tmp_path / "oqfl", tmp_path / "codes")


@pytest.mark.parametrize("strategy", ["fedavg", "oqfl"])
def test_any_number_of_workers(strategy: str, tmp_path: Path, ray_simulator: Simulator) -> None:
    chosen = (f"strategy={strategy}", "clients.total=25", "clients.per_round=0.8")
    simulate(tmp_path / "serial", *chosen)
    two = ("engine=ray", "engine.workers=2")
    simulate(tmp_path / "two", *chosen, *two, simulator=ray_simulator)
    pool = ray_simulator._workers
    assert pool is not None
    pool.start()
    first, pool.actors = pool.actors, pool.actors[:1]
    simulate(tmp_path / "one", *chosen, *two, simulator=ray_simulator)
    pool.actors = first
    assert_same_run(tmp_path / "serial", tmp_path / "one", tmp_path / "two")


def test_seeds_differ_and_methods_share_them(tmp_path: Path) -> None:
    simulate(tmp_path / "a", "strategy=fedavg", "clients.per_round=3")
    simulate(tmp_path / "b", "strategy=fedavg", "clients.per_round=3", "seed=1")
    simulate(tmp_path / "c", "strategy=oqfl", "clients.per_round=3")

    def chosen(run: str) -> list[tuple[int, int]]:
        import json

        lines = (tmp_path / run / "clients.jsonl").read_text().splitlines()
        return [(row["round"], row["partition"]) for row in map(json.loads, lines)]

    assert chosen("a") != chosen("b")
    assert chosen("a") == chosen("c")
