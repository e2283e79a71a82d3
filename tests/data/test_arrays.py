"""A user's own .npz file: what is read of it before and at loading, and what is refused."""

import io
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data import arrays

RNG = np.random.default_rng(0)
NUM_TRAIN, NUM_TEST = 20, 6


def example(**changed: Any) -> dict[str, Any]:
    """Twelve by ten colour images of four classes; None takes an array away."""
    whole = {
        "train_x": np.random.default_rng(1).integers(0, 256, (NUM_TRAIN, 3, 12, 10), np.uint8),
        "train_y": np.arange(NUM_TRAIN) % 4,
        "test_x": np.random.default_rng(2).integers(0, 256, (NUM_TEST, 3, 12, 10), np.uint8),
        "test_y": np.arange(NUM_TEST) % 4,
    }
    return {name: value for name, value in (whole | changed).items() if value is not None}


def write(path: Path, compressed: bool = False, **changed: Any) -> str:
    (np.savez_compressed if compressed else np.savez)(path, **example(**changed))
    return str(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_what_a_file_holds_is_found(tmp_path: Path, compressed: bool) -> None:
    found = arrays.describe(write(tmp_path / "x.npz", compressed))
    assert (found.shape, found.num_classes) == ((3, 12, 10), 4)
    assert len(found.content) == 16


def test_looking_reads_no_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.npz")
    read = []
    original = np.lib.npyio.NpzFile.__getitem__

    def record(self: Any, name: str) -> Any:
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", record)
    arrays.describe(path)
    assert sorted(read) == ["test_y", "train_y"]


def test_bytes_are_scaled_and_standardised_by_the_training_images(tmp_path: Path) -> None:
    dataset = arrays.load(write(tmp_path / "x.npz"), (3, 12, 10), 4)
    raw = example()
    train, test = (raw[name].astype(np.float64) / 255 for name in ("train_x", "test_x"))
    mean, spread = (f(train, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    for x, expected in ((dataset.train_x, train), (dataset.test_x, test)):
        assert x.dtype == torch.float32
        np.testing.assert_allclose(x.numpy(), (expected - mean) / spread, atol=1e-5)
    assert dataset.train_y.dtype == dataset.test_y.dtype == torch.int64
    assert dataset.train_y.tolist() == raw["train_y"].tolist()
    assert dataset.num_classes == 4
    assert dataset.train_group is None


def test_a_constant_channel_becomes_zeros(tmp_path: Path) -> None:
    x = example()["train_x"].copy()
    x[:, 1] = 77
    dataset = arrays.load(write(tmp_path / "x.npz", train_x=x), (3, 12, 10), 4)
    assert dataset.train_x[:, 1].abs().max() < 1e-5
    assert dataset.test_x.isfinite().all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_floating_point_is_taken_as_it_is(tmp_path: Path, dtype: str) -> None:
    train, test = (RNG.normal(size=(n, 2, 30)).astype(dtype) for n in (NUM_TRAIN, NUM_TEST))
    path = write(tmp_path / "x.npz", train_x=np.asfortranarray(train), test_x=test)
    dataset = arrays.load(path, (2, 30), 4)
    np.testing.assert_array_equal(dataset.train_x.numpy(), train.astype(np.float32))
    np.testing.assert_array_equal(dataset.test_x.numpy(), test.astype(np.float32))


@pytest.mark.parametrize(
    "users", [np.array([30, 10, 20, 10] * 5), np.array(["zoe", "ann", "max", "ann"] * 5)]
)
def test_users_are_numbered_in_order(tmp_path: Path, users: Any) -> None:
    dataset = arrays.load(write(tmp_path / "x.npz", train_user=users), (3, 12, 10), 4)
    assert dataset.train_group is not None
    assert dataset.train_group.tolist() == [2, 0, 1, 0] * 5


def test_content_names_what_is_in_the_file_and_not_where(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz")
    before = arrays.describe(path).content
    (tmp_path / "other").mkdir()
    copy = shutil.copy(path, tmp_path / "other" / "y.npz")
    assert arrays.describe(str(copy)).content == before
    assert arrays.describe(write(tmp_path / "z.npz", compressed=True)).content == before
    assert arrays.describe(write(tmp_path / "z.npz", note=np.zeros(3))).content == before
    x = example()["train_x"].copy()
    x[3, 1, 2, 3] ^= 1
    y = (np.arange(NUM_TRAIN) + 1) % 4
    others = [{"train_x": x}, {"train_y": y}, {"train_user": np.arange(NUM_TRAIN)}]
    digests = {arrays.describe(write(tmp_path / "z.npz", **other)).content for other in others}
    assert len(digests | {before}) == 4


FINE = {"train_x": np.zeros((NUM_TRAIN, 1, 4)), "test_x": np.zeros((NUM_TEST, 1, 4))}
NAN = FINE["test_x"].copy()
NAN[2, 0, 1] = np.nan


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_y": None}, "test_y missing; needs train_x, train_y, test_x, test_y"),
        ({"train_x": np.zeros((20, 3, 12, 10), np.int64)}, "train_x is int64: takes uint8, float"),
        ({"train_x": np.zeros((20, 3, 12, 10), bool)}, "train_x is bool: takes uint8, float16"),
        ({"train_y": np.zeros(20)}, "train_y is (20,) of float64 and test_y (6,) of int64"),
        ({"train_user": np.zeros(20)}, "train_user is float64: takes integers or strings"),
        ({"train_y": np.array([{}] * 20)}, "train_y is object: takes integers"),
        ({"train_y": np.zeros((20, 2), bool)}, "train_y is (20, 2) of bool and test_y (6,)"),
        ({"train_x": np.zeros((20, 30), np.float32)}, "train_x has samples of (30,), test_x"),
        ({"train_x": np.zeros((0, 1, 4))}, "train_x is (0, 1, 4): takes"),
        ({"test_x": np.zeros((0, 3, 12, 10), np.uint8)}, "test_x is (0, 3, 12, 10): takes"),
        ({"train_x": np.zeros((20, 28, 28), np.uint8)}, "train_x is (20, 28, 28) of uint8: takes"),
        (
            {"train_x": np.zeros((20, 12, 10, 3), np.uint8)},
            "(20, 12, 10, 3) of uint8: takes images",
        ),
        (
            {"train_x": np.zeros((20, 3, 12, 9), np.uint8)},
            "train_x has samples of (3, 12, 9), test",
        ),
        ({"test_x": np.zeros((6, 3, 12, 10))}, "train_x is uint8 and test_x float64"),
        ({"train_y": np.zeros(19, int)}, "train_y is (19,) for 20 samples of train_x"),
        ({"train_y": np.zeros((20, 4, 2), int)}, "train_y is (20, 4, 2) for 20 samples of train_x"),
        ({"train_y": np.zeros((20, 4), int)}, "train_y is (20, 4) of int64 and test_y (6,)"),
        ({"train_user": np.zeros(3, int)}, "train_user is (3,) for 20 samples of train_x"),
        ({"test_y": np.array([0, 1, 2, -1, 0, 1])}, "test_y has class -1: takes 0 or more"),
        ({"train_y": np.full(20, 1000)}, "1000 is the largest class of 26 samples: classes count"),
        (FINE | {"test_x": NAN}, "test_x has values that are not finite"),
        (FINE | {"train_x": FINE["train_x"] - np.inf}, "train_x has values that are not finite"),
        (FINE | {"train_x": FINE["train_x"] + 1e300}, "train_x has values that are not finite"),
    ],
)
def test_what_cannot_be_taken_names_key_and_array(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "x.npz", **changed)
    with pytest.raises(ValueError) as caught:
        found = arrays.describe(path)
        arrays.load(path, found.shape, found.num_classes)
    assert str(caught.value).startswith(f"data.path={path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("unpickled",))

    path = write(tmp_path / "x.npz", train_user=np.array([Trap()] * NUM_TRAIN, dtype=object))
    with pytest.raises(ValueError, match="train_user is object"):
        arrays.describe(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "npy", "cut", "flipped", "short"])
def test_unreadable_files_are_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.npz"
    write(path)
    content = bytearray(path.read_bytes())
    if kind in ("missing", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
    elif kind == "text":
        path.write_text("no arrays")
    elif kind == "npy":
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(3))
        path.write_bytes(buffer.getvalue())
    elif kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "flipped":
        content[1500] ^= 1
        path.write_bytes(content)
    else:  # a header that promises more than there is
        with zipfile.ZipFile(path, "w") as file:
            for name, value in example().items():
                buffer = io.BytesIO()
                np.save(buffer, value)
                raw = buffer.getvalue()
                file.writestr(f"{name}.npy", raw[:-40] if name == "train_x" else raw)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        arrays.load(str(path), (3, 12, 10), 4)
    assert re.match(rf"data\.path={path}: no (such|readable \.npz) file", str(caught.value))
    assert "\n" not in str(caught.value)
