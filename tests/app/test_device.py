"""engine.device: a batch's loop reads nothing from the device, and mixes nothing of two.

There is no GPU where these run. On the meta device tensors have shapes and no values: to read one
raises, and so does an operation on tensors of two devices. Tests marked `gpu` need one.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from conftest import assert_same_run, rounds, simulate, small

from app import device, experiment
from app.config.composition import compose
from app.config.schema import EngineSettings
from app.engine import pool_of
from models import eager
from quant.quantizer import Quantizer
from strategies import messages
from strategies.client import split_loop, tiers, training
from strategies.client.simulated import train_simulated
from strategies.contract import ClientData
from strategies.server import half

META = torch.device("meta")
METHODS = {
    "fedavg": ("strategy=fedavg", "train.optimizer=adam", "train.clip_norm=1"),
    "fedavg, proximal": ("strategy=fedavg", "strategy.proximal_mu=0.1", "model.norm=batch"),
    "oqfl": ("strategy=oqfl",),
    "oqfl, per channel": ("strategy=oqfl", "quant.per_channel=true"),
    "oqfl, fixed": ("strategy=oqfl", "quant.learn_step=false"),
    "oqfl, transformer": ("strategy=oqfl", "experiment=text", "data.max_train=240"),
    "splitfed_v1": ("strategy=splitfed_v1", "quant.bits=4"),
    "splitfed_v1, int8": ("strategy=splitfed_v1", "link.up=int8", "link.down=int4"),
    "splitfed_v1, rounding": ("strategy=splitfed_v1", "link.up=int8", "link.rounding=stochastic"),
    "ushaped": ("strategy=ushaped", "link.up=fp16"),
    "binarized_split": ("strategy=binarized_split",),
    "deprune": ("strategy=deprune", "prune.importance=taylor"),
    "hierarchical": ("strategy=hierarchical", "quant.bits=4"),
    "augmented": ("strategy=fedavg", "train.augment=crop_flip"),
}
SAMPLE = (
    "fedavg", "oqfl, per channel", "splitfed_v1, rounding", "ushaped", "binarized_split", "deprune",
    "hierarchical", "augmented",
)  # fmt: skip


def to_meta(data: ClientData) -> ClientData:
    x = data.x
    moved = x.to(META) if isinstance(x, torch.Tensor) else tuple(one.to(META) for one in x)
    return ClientData(moved, data.y.to(META), data.rows, data.num_classes)


def unfused(kind: type[torch.optim.Optimizer], *args: Any, **options: Any) -> torch.optim.Optimizer:
    return kind(*args, **{**options, "fused": False})


@pytest.mark.parametrize(
    "name",
    [n if n in SAMPLE else pytest.param(n, marks=pytest.mark.long) for n in METHODS],
)
def test_a_round_reads_no_value_and_mixes_no_devices(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = small(*METHODS[name], "train.epochs=2")
    strategy = experiment.strategy(chosen)
    arrays = experiment.prepare(chosen, strategy).state_dict()
    half_of = experiment.method_class(chosen).client
    variant = dict(strategy.prepared().in_round(1).variant(0))
    settings = {**strategy.client_settings(), **variant, messages.SEED: 0}
    data = experiment.client_data(chosen, 0)
    task = messages.task_of(messages.ConfigRecord(settings), 1, 0, len(data))

    def train(where: torch.device, data: ClientData) -> dict[str, torch.Tensor]:
        model = half_of.prepare(experiment.network(chosen), settings)
        there = {name: tensor.to(where) for name, tensor in arrays.items()}
        return train_simulated(half_of, device.place(model, where), there, data, task).arrays

    found = train(torch.device("cpu"), data)
    for kind in ("SGD", "Adam"):  # a fused step asks for a device that computes
        monkeypatch.setattr(eager, kind, partial(unfused, getattr(eager, kind)))
    # What is read once per client, before its first batch and after its last.
    monkeypatch.setattr(Quantizer, "is_set", True)
    for module in (training, split_loop, tiers, half):
        monkeypatch.setattr(module, "mean_of", lambda losses, counts: 0.0)
    monkeypatch.setattr(training, "_are_finite", lambda tensors: True)
    on_meta = train(META, to_meta(data))
    assert found.keys() == on_meta.keys()
    for key, array in on_meta.items():
        assert array.device == META and array.shape == found[key].shape, key


def test_losses_on_a_device_are_fetched_together() -> None:
    losses = [torch.tensor(value) for value in (0.1, 0.7, 0.4)]
    assert training.mean_of(losses, [2, 3, 1]) == training.mean_of(
        [float(x) for x in losses], [2, 3, 1]
    )
    expected = (float(losses[0]) * 2 + float(losses[1]) * 3 + float(losses[2])) / 6
    assert training.mean_of(losses, [2, 3, 1]) == expected
    with pytest.raises((RuntimeError, NotImplementedError)):
        training.mean_of([x.to(META) for x in losses], [2, 3, 1])


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("engine.device=tpu", "engine.device=tpu: takes auto, cpu, cuda, cuda:1, mps"),
        ("engine.device=cuda:1", "engine.device=cuda:1: with engine=ray, which gives each worker"),
        (
            "engine.gpus_per_worker=0",
            "engine.gpus_per_worker=0.0: takes more than 0 and up to 64, or null",
        ),
        pytest.param(
            "engine.device=cuda",
            "engine.device=cuda: is not on this machine (torch ",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU"),
        ),
    ],
)
def test_refused(override: str, error: str) -> None:
    done = run(override, "rounds=1")
    assert done.returncode == 1 and error in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (("engine=serial",), "takes engine=ray and engine.device=auto or cuda"),
        (("engine.device=cpu",), "takes engine=ray and engine.device=auto or cuda"),
        (("sweep.jobs=2",), "takes sweep.jobs=1: jobs side by side share all GPUs"),
    ],
)
def test_a_share_of_a_gpu_is_not_left_unread(overrides: tuple[str, ...], error: str) -> None:
    with pytest.raises(ValueError, match=f"engine.gpus_per_worker=0.5 with .*: {error}"):
        compose(["engine.gpus_per_worker=0.5", *overrides])


def test_processes_are_forked_only_where_no_gpu_is_used() -> None:
    assert pool_of(EngineSettings(device="cpu")) == (None, None, True, 0.0)
    assert pool_of(EngineSettings(device="cuda", gpus_per_worker=0.5)) == (None, None, False, 0.5)
    assert pool_of(EngineSettings(device="cuda")) == (None, None, False, None)
    assert pool_of(EngineSettings(device="mps")) == (None, None, False, 0.0)
    if not torch.cuda.is_available():
        assert pool_of(EngineSettings()) == (None, None, True, 0.0)


def test_more_gpus_than_there_are_is_one_line(tmp_path: Path) -> None:
    done = run(
        "engine.gpus_per_worker=1", "engine.workers=1", "engine.address=null", "rounds=1",
        "engine.device=cuda", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: engine.")


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_gives_the_same_twice_and_learns_what_a_cpu_does(name: str, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    cuda = (*METHODS[name], "engine.device=cuda")
    for folder in ("one", "two"):
        simulate(tmp_path / folder, *cuda)
    simulate(tmp_path / "cpu", *METHODS[name], "engine.device=cpu")
    assert_same_run(tmp_path / "one", tmp_path / "two")
    rows = [rounds(tmp_path / folder) for folder in ("one", "cpu")]
    for one, other in zip(*rows, strict=True):
        assert one["bytes_up"] == other["bytes_up"]
        assert abs(one["train_loss"] - other["train_loss"]) < 0.05
