"""Every task through every method: what it trains is the same, cut or not, and what it records."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import assert_same_arrays, assert_same_run, rounds, simulate, small, strategies
from safetensors.numpy import load_file
from torch import Tensor, nn

from app import experiment
from app.commands import cuts, plan
from quant.layers import quantized_layers
from strategies.server.cuts import CutNetwork

NUM = {"train": 25, "test": 9}  # the last batch of some client is of one
MLP = ("model=mlp", "model.width=8")
TEXT = ("model=transformer", "model.dim=8", "model.heads=2", "split.cut=block1")
OF_TASK = {
    "classification": MLP,
    "multilabel": MLP,
    "regression": MLP,
    "tokens": (*TEXT, "model.causal=true"),
}
ADDED = {
    "classification": set(),
    "multilabel": {"exact_match"},
    "regression": {"r2", "mse"},
    "tokens": {"perplexity"},
}
SHORT = ("data.max_train=null", "clients.total=4", "train.batch_size=5", "train.lr=0.05")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    experiment.forget_data()


def arrays(task: str, part: str) -> dict[str, Any]:
    rng, n = np.random.default_rng(len(part)), NUM[part]
    x: Any = rng.normal(size=(n, 6)).astype(np.float32)
    if task == "tokens":
        x = (np.arange(9) * rng.integers(1, 4, (n, 1)) + rng.integers(7, size=(n, 1))) % 7
        return {f"{part}_x": x[:, :-1], f"{part}_y": x[:, 1:]}
    y = {
        "classification": (x[:, 0] > 0).astype(int) + (x[:, 1] > 0),
        "multilabel": x[:, :3] > 0,
        "regression": x[:, :2] * 2 + x[:, 2:4],
        "words": (x[:, 0] > 0).astype(int),
    }[task]
    if task == "words":
        x = rng.integers(9, size=(n, 8)) + 3 * y[:, None]
    return {f"{part}_x": x, f"{part}_y": y}


def given(task: str, folder: Path) -> list[str]:
    """Overrides of an experiment on a file of the task's own."""
    path = folder / f"{task}.npz"
    if not path.exists():
        np.savez(path, **arrays(task, "train"), **arrays(task, "test"))
    name = "classification" if task == "words" else task
    network = TEXT if task == "words" else OF_TASK[task]
    return [f"task={name}", "data=arrays", f"data.path={path}", *network, *SHORT]


def weights(run: Path) -> dict[str, Any]:
    return load_file(run / "model.safetensors")


def figures(run: Path) -> list[dict[str, Any]]:
    names = ("accuracy", "loss", "train_loss", "perplexity", "mse", "r2", "exact_match")
    return [{k: v for k, v in row.items() if k in names} for row in rounds(run)]


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "task",
    [
        "tokens",
        *(
            pytest.param(task, marks=LONG)
            for task in (*sorted(OF_TASK.keys() - {"tokens"}), "words")
        ),
    ],
)
def test_cut_with_exact_links_it_is_fedavg(task: str, tmp_path: Path) -> None:
    """Bit for bit, records too; of one client, all methods over a cut are."""
    common = given(task, tmp_path)
    simulate(tmp_path / "fedavg", "strategy=fedavg", *common)
    simulate(tmp_path / "v1", "strategy=splitfed_v1", *common)
    simulate(tmp_path / "oqfl", "strategy=oqfl", "quant.bits=32", *common)
    assert_same_run(tmp_path / "fedavg", tmp_path / "oqfl")
    assert_same_arrays(weights(tmp_path / "fedavg"), weights(tmp_path / "v1"))
    assert figures(tmp_path / "fedavg") == figures(tmp_path / "v1")
    one = [*common, "clients.total=1", "rounds=1"]
    simulate(tmp_path / "one", "strategy=fedavg", *one)
    for method in ("split", "splitfed_v2", "splitfed_v3", "ushaped"):
        simulate(tmp_path / method, f"strategy={method}", *one)
        assert figures(tmp_path / "one") == figures(tmp_path / method), method
        if method != "splitfed_v3":
            assert_same_arrays(weights(tmp_path / "one"), weights(tmp_path / method))


REFUSED = {
    ("binarized_split", "tokens"): "strategy=binarized_split: takes inputs of real numbers",
    ("deprune", "tokens"): "a bottleneck takes activations with channels first",
    ("prune", "tokens"): "a bottleneck takes activations with channels first",
}


# One task of each form of output, through each method that looks at outputs or labels.
SAMPLED = {
    "tokens": ("oqfl", "splitfed_v3", "ushaped", "hierarchical", "binarized_split", "deprune"),
    "regression": ("hierarchical", "binarized_split", "deprune", "prune"),
}
PAIRS = [
    pytest.param(method, task, marks=() if method in SAMPLED.get(task, ()) else LONG)
    for task in OF_TASK
    for method in strategies()
]


@pytest.mark.parametrize(("method", "task"), PAIRS)
def test_every_method_takes_every_task(method: str, task: str, tmp_path: Path) -> None:
    overrides = [f"strategy={method}", *given(task, tmp_path)]
    if wanted := REFUSED.get((method, task)):
        with pytest.raises(ValueError, match=wanted):
            experiment.check(small(*overrides))
        return
    summary = simulate(tmp_path / "run", *overrides)
    for row in rounds(tmp_path / "run"):
        assert row["num_failed"] == 0
        assert ADDED[task] <= row.keys()
        assert 0 <= row["accuracy"] <= 1
        assert all(np.isfinite(v) for v in row.values() if isinstance(v, float))
        if method == "hierarchical":
            assert {f"edge_{name}" for name in ("accuracy", "loss", *ADDED[task])} <= row.keys()
    assert set(summary) >= {f"final_{name}" for name in ADDED[task]}


@pytest.mark.parametrize(("task", "size"), [("multilabel", 3), ("regression", 8), ("tokens", 8)])
def test_labels_are_counted_as_they_cross(task: str, size: int, tmp_path: Path) -> None:
    """What a round sends up beyond activations and weights; simulated time knows it, too."""
    chosen = small("strategy=splitfed_v1", *given(task, tmp_path))
    method = experiment.strategy(chosen)
    experiment.prepare(chosen, method)
    network = method.prepared().in_round(1)
    assert isinstance(network, CutNetwork)
    simulate(tmp_path / "run", "strategy=splitfed_v1", *given(task, tmp_path))
    (device,), _ = network.only().costs
    activations = 4 * int(np.prod(device.output_shape))
    sent = sum(method.method.wire.num_bytes(network, client)[1] for client in range(4))
    for row in rounds(tmp_path / "run"):
        assert row["bytes_up"] - sent == NUM["train"] * (activations + size)
    described = network.describe(chosen.train)["cut_bytes_up_per_sample"]
    assert described == activations + size


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["task=regression", "model=cnn"],
            "task=regression with data=digits: takes labels (N, 10) real numbers, got N of int64, "
            "which are those of task=classification",
        ),
        (["task=ranking"], "task=ranking: takes classification, multilabel, regression, tokens"),
        (["task.loss=mse"], "task.loss=mse: task=classification takes cross_entropy, multi_margin"),
        (["task.los=mse"], "task.los: unknown key; did you mean task.loss"),
        (
            ["task=tokens"],
            "model=cnn with data=digits: two samples of 1×8×8 give (2, 10), not (2, ",
        ),
        (
            ["task._target_=tests.test_tasks.Detached"],
            "task._target_=tests.test_tasks.Detached: its loss is no scalar that the network's",
        ),
        (
            ["task._target_=tests.test_tasks.Broken"],
            "task._target_=tests.test_tasks.Broken with data=digits: no such thing",
        ),
        (["data.vocab_size=0"], "data.vocab_size=0: takes 1 or more"),
    ],
)
def test_pairs_that_cannot_be_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        experiment.check(small(*overrides))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_inputs_are_of_the_type_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^data\.vocab_size=7: data=digits has train_x of torch.fl"
    ):
        experiment.dataset(small("data.vocab_size=7"))
    with pytest.raises(ValueError, match=r"^data\.vocab_size=5: data\.path=.* has 7$"):
        small(*given("tokens", tmp_path), "data.vocab_size=5")
    with pytest.raises(
        ValueError, match=r"^data\.vocab_size=50: data=stdlib_chars has tokens from 0"
    ):
        experiment.dataset(small("data=stdlib_chars", "data.vocab_size=50"))


class Detached:
    """A loss that trains nothing."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.detach().sum()

    def accuracy(self, outputs: Tensor, labels: Tensor) -> float:
        return 0.0


class Broken(Detached):
    """A loss that raises."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        raise ValueError("no such thing")


class Smooth:
    """Cross-entropy of smoothed labels."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, labels, label_smoothing=0.1)

    def accuracy(self, outputs: Tensor, labels: Tensor) -> float:
        return float((outputs.argmax(1) == labels).float().mean())


def test_a_task_of_the_users_own_trains(tmp_path: Path) -> None:
    common = given("classification", tmp_path)
    own = ["task._target_=tests.test_tasks.Smooth", *common[1:]]
    for method in ("fedavg", "splitfed_v1"):
        simulate(tmp_path / method, f"strategy={method}", *own)
    assert figures(tmp_path / "fedavg") == figures(tmp_path / "splitfed_v1")
    plain = simulate(tmp_path / "plain", "strategy=fedavg", *common)
    assert figures(tmp_path / "plain") != figures(tmp_path / "fedavg")
    identity = json.loads((tmp_path / "fedavg" / "config.json").read_text())
    assert identity["task._target_"] == "tests.test_tasks.Smooth"
    assert "task.name" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert plain["config_hash"] != small(*own).hash


def test_a_task_in_a_file_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch.nn.functional as F\n"
        "class Mine:\n"
        "    kind = 'regression'\n"
        "    def loss(self, outputs, labels):\n"
        "        return F.smooth_l1_loss(outputs, labels)\n"
        "    def accuracy(self, outputs, labels):\n"
        "        return ((outputs - labels).abs() < 0.5).float().mean()\n"
    )
    own = [f"task._target_={file}:Mine", *given("regression", tmp_path)[1:]]
    simulate(tmp_path / "run", "strategy=hierarchical", *own)
    before = small(*own).hash
    file.write_text(file.read_text().replace("0.5", "0.6"))
    assert small(*own).hash != before


# Several inputs -----------------------------------------------------------------------------------


class Both(nn.Module):
    """An image and a row of features."""

    def __init__(self, num_classes: int, input_shape: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        (channels, *_), (features,) = input_shape
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.features = nn.Linear(features, 4)
        self.head = nn.Linear(8, num_classes)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        seen = self.conv(image).relu().mean((2, 3))
        return self.head(torch.cat([seen, self.features(row).relu()], 1))


def several(folder: Path) -> list[str]:
    rng, found = np.random.default_rng(0), {}
    for part, n in NUM.items():
        row = rng.normal(size=(n, 3)).astype(np.float32)
        found |= {
            f"{part}_x0": rng.normal(size=(n, 1, 6, 6)).astype(np.float32),
            f"{part}_x1": row,
            f"{part}_y": (row[:, 0] > 0).astype(int),
        }
    np.savez(folder / "both.npz", **found)
    return ["data=arrays", f"data.path={folder / 'both.npz'}", *SHORT,
            "model._target_=tests.test_tasks.Both"]  # fmt: skip


def test_a_sample_may_have_several_inputs(tmp_path: Path) -> None:
    common = several(tmp_path)
    chosen = small(*common)
    assert chosen.network.input_shape == ((1, 6, 6), (3,))
    model = experiment.check(small("strategy=oqfl", *common)).model
    assert {name for name, _ in quantized_layers(model)} == {"conv", "features", "head"}
    found = simulate(tmp_path / "oqfl", "strategy=oqfl", *common)
    losses = [row["train_loss"] for row in rounds(tmp_path / "oqfl")]
    assert losses[1] < losses[0]
    assert found["client_flops_per_sample"] > 0
    simulate(tmp_path / "again", "strategy=oqfl", *common)
    assert_same_run(tmp_path / "oqfl", tmp_path / "again")
    simulate(tmp_path / "fedavg", "strategy=fedavg", "fleet=mobile", *common)
    assert rounds(tmp_path / "fedavg")[-1]["sim_s"] > 0


IN_SLICES = ("heterofl", "fjord")


@pytest.mark.parametrize("method", IN_SLICES)
def test_slices_take_one_input_and_the_whole_takes_several(method: str, tmp_path: Path) -> None:
    common = several(tmp_path)
    simulate(tmp_path / "fedavg", "strategy=fedavg", *common)
    simulate(tmp_path / "whole", f"strategy={method}", *common)
    assert_same_run(tmp_path / "fedavg", tmp_path / "whole")
    with pytest.raises(ValueError, match=r"^submodel\.share: takes a network of one input, or 1"):
        experiment.check(small(f"strategy={method}", "submodel.share=0.5", *common))


@pytest.mark.parametrize("method", sorted(set(strategies()) - {"fedavg", "oqfl", *IN_SLICES}))
def test_a_cut_takes_one_input(method: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes one input, the data have 2; strategy=fedavg and"):
        experiment.check(small(f"strategy={method}", *several(tmp_path)))


# Division -----------------------------------------------------------------------------------------


def test_real_numbers_are_divided_by_their_decile(tmp_path: Path) -> None:
    path, values = tmp_path / "x.npz", np.random.default_rng(0).normal(size=400)
    x = np.zeros((400, 2), np.float32)
    np.savez(path, train_x=x, train_y=values, test_x=x, test_y=values)
    common = ["task=regression", "model=mlp", "data=arrays", f"data.path={path}",
              "data.max_train=null", "clients.total=10", "data.partition=shards"]  # fmt: skip
    chosen = small(*common)
    deciles = np.searchsorted(np.quantile(values, np.arange(1, 10) / 10), values, side="right")
    for rows in experiment.division(chosen):
        assert len(set(deciles[rows.numpy()])) <= 3  # two runs of those in order


@pytest.mark.parametrize("scheme", ["dirichlet", "shards"])
@pytest.mark.parametrize("task", ["multilabel", "tokens", "regression"])
def test_samples_without_a_class_are_not_divided_by_it(
    task: str, scheme: str, tmp_path: Path
) -> None:
    message = f"^data.partition={scheme}: divides by class, and these samples have . labels each"
    with pytest.raises(ValueError, match=message):
        experiment.check(small(f"data.partition={scheme}", *given(task, tmp_path)))


# Tables -------------------------------------------------------------------------------------------


def write_csv(folder: Path, missing: str = "") -> list[str]:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for part, n in (("train", 80), ("test", 30)):
        x = rng.normal(size=(n, 2)) * (1, 100)
        kinds = np.where(x[:, 0] > 0, "dog", np.where(x[:, 1] > 0, "owl", "cat"))
        lines = ["age,size,kind,weight"]
        for (a, b), kind in zip(x, kinds, strict=True):
            lines.append(f"{a:.3f},{b:.3f},{kind},{2 * a + 1:.3f}")
        if missing and part == "train":
            lines[3] = lines[3].replace(lines[3].split(",")[1], missing)
        (folder / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return ["data=hub", f"data.path={folder}", "data.max_train=null", *MLP]


def test_a_table_with_labels_of_text(tmp_path: Path) -> None:
    common = [*write_csv(tmp_path / "csv"), "data.options.label=kind",
              "data.options.features=[age,size]"]  # fmt: skip
    chosen = small(*common)
    assert (chosen.network.input_shape, chosen.network.num_classes) == ((2,), 3)
    data = experiment.dataset(chosen)
    assert isinstance(data.train_x, Tensor)
    torch.testing.assert_close(data.train_x.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train_x.std(0, correction=0), torch.ones(2))
    found = simulate(
        tmp_path / "run", "strategy=fedavg", *common, "train.epochs=9", "clients.total=2"
    )
    assert found["final_accuracy"] > 0.6
    names = json.loads((tmp_path / "run" / "labels.json").read_text())
    assert names == {"0": "cat", "1": "dog", "2": "owl"}
    regression = [*common[:-2], "data.options.label=weight", "data.options.features=[age]"]
    found = simulate(tmp_path / "other", "task=regression", *regression, "rounds=6")
    assert found["final_r2"] > 0.5
    assert not (tmp_path / "other" / "labels.json").exists()


@pytest.mark.parametrize(
    ("missing", "overrides", "message"),
    [
        ("", ["data.options.label=kind"], "this is fine without a column of text"),
        ("", ["data.options.label=age"], "column kind: takes numbers; data.options.features names"),
        ("", [], "data.options.label: data.path=CSV does not say which column it is; name one of"),
        ("nan", ["data.options.label=kind"], "train row 3 has "),
    ],
)
def test_tables_that_cannot_be(
    missing: str, overrides: list[str], message: str, tmp_path: Path
) -> None:
    common = write_csv(tmp_path / "csv", missing)
    if message.startswith("this is fine"):
        assert small(*common, *overrides).network.input_shape == (3,)
        return
    with pytest.raises(ValueError) as caught:
        experiment.check(small(*common, *overrides))
    assert message in str(caught.value).replace(str(tmp_path / "csv"), "CSV")
    assert "\n" not in str(caught.value)


# Presets ------------------------------------------------------------------------------------------

TINY = ("data.max_train=48", "data.max_test=32", "clients.total=2", "rounds=1", "train.epochs=1")


@pytest.mark.parametrize("preset", ["text", pytest.param("chars", marks=pytest.mark.long)])
def test_presets_train_and_are_cut_at_a_block(preset: str, tmp_path: Path) -> None:
    common = (f"experiment={preset}", *TINY)
    simulate(tmp_path / "oqfl", *common)
    simulate(tmp_path / "fedavg", *common, "strategy=fedavg")
    simulate(tmp_path / "v1", *common, "strategy=splitfed_v1")
    assert_same_arrays(weights(tmp_path / "fedavg"), weights(tmp_path / "v1"))
    assert figures(tmp_path / "fedavg") == figures(tmp_path / "v1")
    links = ("link.up=int8", "link.down=int8")
    summary = simulate(tmp_path / "int8", *common, "strategy=splitfed_v1", *links)
    exact = json.loads((tmp_path / "v1" / "summary.json").read_text())
    assert summary["cut_bytes_up_per_sample"] < exact["cut_bytes_up_per_sample"] / 3


def test_cuts_of_a_network_of_tokens_are_listed() -> None:
    names = [row.name for row in cuts.find(["experiment=text"]).rows]
    assert {"embedding", "block1", "block2"} <= set(names)
    rows = plan.rows(small("experiment=chars"))
    assert {"block1", plan.WHOLE} <= {row.name for row in rows}
