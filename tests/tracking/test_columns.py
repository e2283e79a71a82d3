"""What columns mean, clients' frames, and the notebook that compares runs, cell by cell."""

import json
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from conftest import ROOT, simulate

import tracking
from tracking.columns import meaning_of, unit_of


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    for job, (strategy, seed) in enumerate((s, n) for s in ("fedavg", "oqfl") for n in (0, 1)):
        chosen = (f"strategy={strategy}", f"seed={seed}", "fleet=mobile", "target_accuracy=0.1")
        simulate(folder / str(job), *chosen)
    return folder


@pytest.mark.parametrize(
    ("column", "unit", "meaning"),
    [
        ("sim_s", "s", "simulated seconds on the fleet; None without a fleet"),
        ("total_sim_s", "s", "simulated seconds on the fleet; None without a fleet; over all"),
        ("bytes_up_to_target", "bytes", "payload bytes from clients, as packed; until target"),
        ("final_accuracy", "share", "accuracy after the last round"),
        ("energy_j", "J", "simulated joules of all clients"),
        ("staleness_mean", "", "server steps between begin and arrival"),
        ("num_clients", "", "clients whose work entered the round's result"),
        ("mean_weight_bits", "bits", "bits of a weight"),
        ("train.lr", "", ""),
    ],
)
def test_what_a_column_says(column: str, unit: str, meaning: str) -> None:
    assert unit_of(column) == unit
    assert meaning_of(column).startswith(meaning)
    assert bool(meaning_of(column)) == bool(meaning)


def test_every_common_column_has_a_meaning(sweep: Path) -> None:
    _, rounds = tracking.load(sweep)
    clients = tracking.load_clients(sweep)
    for frame in (rounds, clients):
        found = tracking.columns(frame)
        assert list(found.index) == list(frame.columns)
        assert (found.meaning != "").all()
    assert tracking.columns(clients).loc["loss", "meaning"].startswith("its mean training loss")


def test_clients_are_those_of_the_files(sweep: Path) -> None:
    frame = tracking.load_clients(sweep)
    assert len(frame) == 4 * 2 * 6  # runs, rounds, clients
    lines = (sweep / "2" / "clients.jsonl").read_text().splitlines()
    own = frame[frame.run == "2"].drop(columns="run")
    assert json.loads(own.iloc[3].to_json())["loss"] == pytest.approx(json.loads(lines[3])["loss"])
    with pytest.raises(FileNotFoundError, match="no run there"):
        tracking.load_clients(sweep / "none")


def test_the_notebook_runs(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Jupyter would run it, one cell after another, on a sweep that is there."""
    matplotlib.use("Agg")
    monkeypatch.setenv("SWEEP", str(sweep))
    monkeypatch.chdir(ROOT / "docs" / "notebooks")
    notebook = json.loads((ROOT / "docs/notebooks/compare.ipynb").read_text("utf-8"))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "outputs are not stored"
            exec("".join(cell["source"]), names)
    table = names["table"]
    assert isinstance(table, pd.DataFrame)
    assert list(table["count"]) == [2, 2]
    axes = names["axes"]
    assert len(axes.lines) == 4  # type: ignore[attr-defined]
