"""Sources and weights from the configuration on: what is found, and what identifies it."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, assert_same_run, simulate, small
from safetensors.torch import load_file, save_file

from app import experiment
from app.config.composition import compose, config_hash, relevant
from app.config.schema import Config
from app.jobs import Jobs
from models.resnet import resnet18
from quant.functional import initial_step
from quant.layers import QuantSpec, quantize, weight_quantizers

USERS = """
import torch
from data.dataset import Dataset

def files(root):
    return []

def load(root, users=5, test=3.0):
    y = torch.arange(40) % 2
    group = torch.arange(40) % users
    x = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Dataset(x, y, torch.full((4, 1, 8, 8), test), torch.arange(4) % 2, 2, group)

def load_by_user(root):
    return load(root, users=4, test=7.0)
"""


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    experiment._dataset.cache_clear()
    experiment._division.cache_clear()


PARTS = {"train": 60, "test": 9}


def composed(*overrides: str) -> Config:
    """The configuration of a small experiment."""
    return compose([*SMALL, *overrides])


def npz(path: Path, seed: int = 0, side: int = 8, **more: np.ndarray) -> Path:
    """Colour images of three classes."""
    rng = np.random.default_rng(seed)
    shapes = {part: (n, 3, side, side) for part, n in PARTS.items()}
    x = {f"{part}_x": rng.integers(0, 256, shape, np.uint8) for part, shape in shapes.items()}
    y = {f"{part}_y": np.arange(n) % 3 for part, n in PARTS.items()}
    np.savez(path, **(x | y | more))
    return path


# Own arrays ---------------------------------------------------------------------------------------


def test_shape_and_classes_come_from_the_file_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npz(tmp_path / "x.npz")
    monkeypatch.chdir(tmp_path)
    config = composed("data=arrays", "data.path=x.npz")
    assert (config.data.shape, config.data.num_classes) == ([3, 8, 8], 3)
    assert config.data.path == str(tmp_path / "x.npz")  # for workers in folders of their own
    with pytest.raises(ValueError, match=r"model=lenet5 with data=arrays: .*at least 12×12"):
        Jobs().check(["data=arrays", "data.path=x.npz", "model=lenet5"], is_sweep=False)
    wider = small("data=arrays", "data.path=x.npz", "data.num_classes=7")
    assert experiment.dataset(wider).num_classes == 7
    assert experiment.network(wider)(torch.zeros(2, 3, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.shape=[3,8,9]", r"data\.shape=\[3, 8, 9\]: data\.path=.*x\.npz holds \(3, 8, 8\)"),
        ("data.num_classes=2", r"data\.num_classes=2: data\.path=.*x\.npz has 3"),
        ("data.path=y.npz", r"data\.path=y\.npz: no such file"),
    ],
)
def test_what_the_file_does_not_hold(tmp_path: Path, override: str, message: str) -> None:
    path = npz(tmp_path / "x.npz")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        compose(["data=arrays", f"data.path={path}", override])


def test_every_file_of_a_sweep_is_checked(tmp_path: Path) -> None:
    one, other = npz(tmp_path / "x.npz", side=12), npz(tmp_path / "y.npz", side=8)
    chosen = ["data=arrays", "clients.total=2", "model=lenet5"]
    Jobs().check([*chosen, f"data.path={one}"], is_sweep=False)
    with pytest.raises(ValueError, match=r"model=lenet5 with data=arrays: .*got 3×8×8"):
        Jobs().check([*chosen, f"data.path={one},{other}"], is_sweep=True)


def test_results_are_those_of_the_content_wherever_it_lies(tmp_path: Path) -> None:
    chosen = ("strategy=fedavg", "data=arrays", "rounds=1", "data.max_train=null")
    (tmp_path / "else").mkdir()
    one, other = npz(tmp_path / "x.npz"), npz(tmp_path / "else" / "y.npz")
    hashes = [config_hash(composed(*chosen, f"data.path={path}"), ()) for path in (one, other)]
    assert hashes[0] == hashes[1]
    for name, path in (("a", one), ("b", other)):
        simulate(tmp_path / name, *chosen, f"data.path={path}")
    assert_same_run(tmp_path / "a", tmp_path / "b")
    npz(other, seed=1)
    changed = small(*chosen, f"data.path={other}")
    assert config_hash(composed(*chosen, f"data.path={other}"), ()) != hashes[0]
    assert not torch.equal(
        experiment.dataset(changed).train_x,
        experiment.dataset(small(*chosen, f"data.path={one}")).train_x,
    )


def test_a_file_that_changes_under_a_run_is_noticed(tmp_path: Path) -> None:
    path = npz(tmp_path / "x.npz")
    config = small("data=arrays", f"data.path={path}")
    npz(path, seed=1)
    with pytest.raises(ValueError, match=r"data\.path=.*x\.npz: has changed since the run began"):
        experiment.dataset(config)


def test_workers_look_at_the_file_only_to_load_it(tmp_path: Path) -> None:
    path = npz(tmp_path / "x.npz")
    config = small("data=arrays", f"data.path={path}")
    experiment.division(config)
    path.unlink()
    given = experiment.run_config(config)[experiment.PARTS]
    sent: experiment.Parts = pickle.loads(pickle.dumps(given))
    assert sent == given
    experiment._dataset.cache_clear()
    assert len(experiment.dataset(sent).train_y) == 60  # from the cache on disk


def test_other_sources_keep_their_identity() -> None:
    keys = set(relevant(composed(), ()))
    assert not [k for k in keys if k.startswith(("data.path", "data.content", "data.options"))]
    assert "train.augment" not in keys
    assert not [k for k in keys if k.startswith("model.") and k != "model._target_"]
    assert "train.augment" in relevant(composed("train.augment=crop_flip"), ())


# Users --------------------------------------------------------------------------------------------


def test_natural_takes_the_split_by_user_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "people.py").write_text(USERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = ["data.source=people", "data.name=people", "data.num_classes=2", "data.max_train=null"]
    by_sample = experiment.dataset(small(*source))
    assert float(by_sample.test_x.max()) == 3.0
    config = small(*source, "data.partition=natural", "clients.total=4")
    whole = experiment.dataset(config)
    assert float(whole.test_x.max()) == 7.0
    assert whole.train_group is not None
    owners = [whole.train_group[rows].unique().tolist() for rows in experiment.division(config)]
    assert owners == [[0], [1], [2], [3]]
    with pytest.raises(ValueError, match=r"clients\.total=6: .* 4 users .* takes 1 to 4"):
        experiment.division(small(*source, "data.partition=natural"))


def test_users_of_own_arrays_and_their_identity(tmp_path: Path) -> None:
    users = np.array(["zoe", "ann", "max"] * 20)
    path = npz(tmp_path / "x.npz", train_user=users)
    chosen = ("data=arrays", f"data.path={path}", "clients.total=3", "data.max_train=null")
    rows = experiment.division(small(*chosen, "data.partition=natural"))
    assert [set(users[part]) for part in rows] == [{"ann"}, {"max"}, {"zoe"}]
    other = npz(tmp_path / "y.npz", train_user=np.roll(users, 1))
    chosen = ("data=arrays", f"data.path={other}", *chosen[2:])
    again = experiment.division(small(*chosen, "data.partition=natural"))
    assert not torch.equal(rows[0].sort().values, again[0].sort().values)


def test_natural_without_users_stops_before_the_run() -> None:
    with pytest.raises(ValueError, match=r"data\.partition=natural: these data have no users; dat"):
        Jobs().check(["data.partition=natural"], is_sweep=False)


# Augmentation -------------------------------------------------------------------------------------


def test_augmentation_is_for_images(tmp_path: Path) -> None:
    x = {f"{part}_x": np.zeros((n, 1, 30), np.float32) for part, n in PARTS.items()}
    path = npz(tmp_path / "x.npz", **x)
    with pytest.raises(ValueError, match=r"train\.augment=crop_flip: takes images .* \(1, 30\)"):
        compose(["data=arrays", f"data.path={path}", "train.augment=crop_flip"])


def test_augmentation_changes_the_run_and_repeats(tmp_path: Path) -> None:
    path = npz(tmp_path / "x.npz")
    chosen = ("strategy=fedavg", "data=arrays", f"data.path={path}", "rounds=1")
    simulate(tmp_path / "plain", *chosen)
    for name in ("one", "two"):
        simulate(tmp_path / name, *chosen, "train.augment=crop_flip")
    assert_same_run(tmp_path / "one", tmp_path / "two")
    plain, one = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "one"))
    assert any(not torch.equal(plain[name], one[name]) for name in plain)


# Pretrained weights -------------------------------------------------------------------------------

RESNET = ("data=cifar10", "model=resnet18", "model.stem=imagenet", "model.width=0.125")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """What torchvision's file looks like: colour images, a thousand classes."""
    path = tmp_path / "resnet18.pth"
    torch.manual_seed(5)
    torch.save(resnet18(num_classes=1000, stem="imagenet", width=0.125).state_dict(), path)
    return path


def test_published_weights_load_under_a_new_head(published: Path) -> None:
    plain = experiment.network(small(*RESNET)).state_dict()
    with pytest.raises(ValueError, match=r"model\.weights=.*1000 classes.*model\.replace_head=tr"):
        experiment.check_network(small(*RESNET, f"model.weights={published}"))
    chosen = small(*RESNET, f"model.weights={published}", "model.replace_head=true")
    experiment.check_network(chosen)
    state, there = experiment.network(chosen).state_dict(), torch.load(published)
    for name, tensor in state.items():
        expected = plain[name] if name.startswith("fc.") else there[name]
        assert torch.equal(tensor, expected), name


def test_quantizers_start_from_the_loaded_weights(published: Path) -> None:
    chosen = small(*RESNET, f"model.weights={published}", "model.replace_head=true")
    model = quantize(experiment.network(chosen), QuantSpec(4, 4)).train()
    model(torch.randn(4, 3, 32, 32))
    there = torch.load(published)
    quantizers = weight_quantizers(model)
    assert quantizers
    for name, quantizer in quantizers.items():
        if not name.startswith("fc."):
            # not bit for bit: the network's memory format sums in another order
            torch.testing.assert_close(quantizer.step.data, initial_step(there[name], quantizer.qp))


def test_a_runs_own_model_continues_in_another_run(tmp_path: Path) -> None:
    first = simulate(tmp_path / "first", "strategy=fedavg")
    stored = tmp_path / "first" / "model.safetensors"
    for given in (stored, stored.parent):  # the file, or the run's folder
        model = experiment.network(small(f"model.weights={given}"))
        expected = load_file(stored)
        assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items())
    more = simulate(tmp_path / "second", "strategy=fedavg", "rounds=1", f"model.weights={stored}")
    fresh = simulate(tmp_path / "fresh", "strategy=fedavg", "rounds=1")
    assert more["final_accuracy"] > fresh["final_accuracy"]
    assert first["config_hash"] != more["config_hash"] != fresh["config_hash"]


def test_weights_identify_a_run_by_their_content(tmp_path: Path) -> None:
    state = {n: t.contiguous() for n, t in experiment.network(small()).state_dict().items()}
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    for path in paths[:2]:
        save_file(state, path)
    last = list(state)[-1]
    save_file(state | {last: state[last] + 1}, paths[2])
    hashes = [config_hash(composed(f"model.weights={path}"), ()) for path in paths]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"stage9.weight": torch.zeros(3)}, "does not fit: missing .*; unexpected stage9.weight"),
        ([torch.zeros(3)], "holds no state dict"),
        (torch.nn.ReLU(), "is not a weights file saved by torch.save"),
        (b"PK nothing", "is not a weights file saved by torch.save"),
    ],
)
def test_weights_that_do_not_fit_name_the_key(
    tmp_path: Path, content: object, message: str
) -> None:
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"^model\.weights=.*w\.pth {message}") as caught:
        Jobs().check([f"model.weights={path}", "clients.total=3"], is_sweep=False)
    assert "\n" not in str(caught.value)
    path.rename(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"^model\.weights=.* is not a safetensors file"):
        experiment.check_network(small(f"model.weights={tmp_path / 'w.safetensors'}"))


def test_classes_without_samples_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Labels that begin at 1, as R, MATLAB and many a spreadsheet have them."""
    x = np.random.default_rng(0).normal(size=(12, 3, 8, 8)).astype(np.float32)
    for first, text in ((1, ": 0; labels count from 0, these begin at 1"), (0, "")):
        y = np.arange(12) % 3 + first
        path = tmp_path / f"{first}.npz"
        np.savez(path, train_x=x, train_y=y, test_x=x, test_y=y)
        caplog.clear()
        simulate(tmp_path / str(first), "data=arrays", f"data.path={path}", "strategy=fedavg",
                 "rounds=1", "clients.total=2")  # fmt: skip
        said = [r.message for r in caplog.records if "training sample" in r.message]
        wanted = f"data=arrays: 1 of 4 classes have no training sample{text}"
        assert said == ([wanted] if first else [])


def test_what_was_done_to_weights_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = experiment.network(small()).state_dict()
    path = tmp_path / "w.pth"
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    simulate(tmp_path / "run", "strategy=fedavg", "rounds=1", f"model.weights={path}")
    assert f"model.weights={path}: 'module.' before each name is left out" in caplog.text
