"""IDX files as MNIST's authors define them, written here byte by byte."""

import gzip
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import fashion_mnist, mnist
from data.idx import FILES, find_files, prepare, read_idx

SIZES = {"train": 12, "test": 5}


def idx(array):
    """Magic 0, 0, 8 (unsigned byte), number of dimensions, each size big-endian, the values."""
    array = np.asarray(array, dtype=np.uint8)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def arrays():
    rng = np.random.default_rng(0)
    made = {}
    for part, size in SIZES.items():
        made[f"{part}_x"] = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        made[f"{part}_y"] = rng.integers(0, 10, size, dtype=np.uint8)
    return made


def write(folder, zipped=False, **changed):
    """The four files; ``changed`` replaces an array, None leaves its file out."""
    folder.mkdir(parents=True, exist_ok=True)
    made = arrays()
    for part, name in FILES.items():
        content = changed.get(part, made[part])
        if content is None:
            continue
        content = idx(content)
        path = folder / (name + ".gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    return made


# One file -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple),
    zipped=st.booleans(),
    seed=st.integers(0, 99),
)
def test_read_idx_gives_the_array_written(tmp_path_factory, shape, zipped, seed):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path_factory.getbasetemp() / ("file.gz" if zipped else "file")
    path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    tensor = read_idx(path)
    assert tensor.dtype == torch.uint8
    assert tuple(tensor.shape) == shape
    np.testing.assert_array_equal(tensor.numpy(), array)


GOOD = idx(np.arange(24).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file of unsigned bytes"),
        (b"\0\0\x08", "no IDX file of unsigned bytes"),
        (b"\0\0\x0d" + GOOD[3:], "no IDX file of unsigned bytes"),  # floats
        (b"<html>not found</html>", "no IDX file of unsigned bytes"),
        (GOOD[:-1], "holds 23 values where its header says 24"),
        (GOOD + b"\0", "holds more than 24 values where its header says 24"),
        (GOOD[:10], "where its header says"),
        (GOOD[:4], "where its header says"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_files_are_named(tmp_path, content, message, zipped):
    path = tmp_path / ("images.gz" if zipped else "images")
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(ValueError, match=message) as error:
        read_idx(path)
    assert str(error.value).startswith(f"{path}: ")


ZIPPED = gzip.compress(idx(np.random.default_rng(0).integers(0, 256, 3000)))


@pytest.mark.parametrize(
    "content",
    [
        ZIPPED[: len(ZIPPED) // 2],  # an interrupted copy
        ZIPPED[:-8] + b"\0" * 8,  # wrong check sum
        b"PK" + ZIPPED[2:],  # not gzip at all
        ZIPPED[:10] + b"\xff" * 500 + ZIPPED[510:],  # damaged in the middle
    ],
    ids=["cut", "checksum", "other", "stream"],
)
def test_damaged_gzip_files_are_named(tmp_path, content):
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged gzip file") as error:
        read_idx(path)
    assert str(error.value).startswith(f"{path}: ")


# Four files ---------------------------------------------------------------------------------------

LAYOUTS = [
    (mnist, "MNIST/raw"),
    (mnist, "mnist"),
    (fashion_mnist, "FashionMNIST/raw"),
    (fashion_mnist, "fashion-mnist"),
    (fashion_mnist, "fashion_mnist"),
]


@pytest.mark.parametrize(("source", "folder"), LAYOUTS)
@pytest.mark.parametrize("zipped", [False, True])
def test_layouts_give_standardised_samples(tmp_path, source, folder, zipped):
    made = write(tmp_path / folder, zipped)
    assert sorted(path.name for path in source.files(tmp_path)) == sorted(
        name + ".gz" * zipped for name in FILES.values()
    )
    dataset = source.load(tmp_path)
    assert dataset.num_classes == 10
    assert dataset.input_shape == (1, 28, 28)
    assert dataset.train_group is None
    for part in SIZES:
        x, y = getattr(dataset, f"{part}_x"), getattr(dataset, f"{part}_y")
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert x.shape == (SIZES[part], 1, 28, 28)
        pixels = made[f"{part}_x"][:, None].astype(np.float64)
        expected = (pixels / 255 - source.MEAN) / source.STD
        np.testing.assert_allclose(x.numpy(), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(y.numpy(), made[f"{part}_y"])


@pytest.mark.parametrize("folder", ["mnist", "fashion-mnist", "fashion_mnist"])
def test_the_root_may_be_the_folder_itself(tmp_path, folder):
    source = mnist if folder == "mnist" else fashion_mnist
    write(tmp_path / folder)
    assert all(path.parent == tmp_path / folder for path in source.files(tmp_path / folder))


def test_raw_and_zipped_files_may_mix_and_raw_wins(tmp_path):
    write(tmp_path / "mnist", zipped=True)
    raw = tmp_path / "mnist" / FILES["test_y"]
    raw.write_bytes(idx(np.arange(5)))
    assert find_files(tmp_path, "MNIST", mnist.FOLDERS)["test_y"] == raw
    assert mnist.load(tmp_path).test_y.tolist() == [0, 1, 2, 3, 4]


def test_an_incomplete_folder_is_passed_over(tmp_path):
    write(tmp_path / "MNIST/raw", train_y=None)
    write(tmp_path / "mnist")
    assert {path.parent.name for path in mnist.files(tmp_path)} == {"mnist"}


def test_sources_do_not_take_each_others_files(tmp_path):
    write(tmp_path / "mnist")
    with pytest.raises(FileNotFoundError):
        fashion_mnist.files(tmp_path)


@pytest.mark.parametrize("missing", [*FILES, "folder"])
@pytest.mark.parametrize("source", [mnist, fashion_mnist])
def test_what_is_missing_says_what_where_and_how(tmp_path, source, missing):
    if missing != "folder":
        for folder in source.FOLDERS:
            write(tmp_path / folder, **{missing: None})
    for function in (source.files, source.load):
        with pytest.raises(FileNotFoundError) as error:
            function(tmp_path)
        message = str(error.value)
        assert message.startswith(f"data.root={tmp_path}: ")
        assert ("Fashion-MNIST" if source is fashion_mnist else "no MNIST") in message
        for name in FILES.values():
            assert name in message
        assert ".gz" in message
        for folder in source.FOLDERS:
            assert str(tmp_path / folder) in message
        assert "CUTBIT_DATA" in message
        assert "\n" not in message


def test_files_that_do_not_match_are_refused(tmp_path):
    write(tmp_path / "mnist", train_y=np.zeros(11))
    with pytest.raises(
        ValueError, match=r"train-images-idx3-ubyte: 12 images but 11 labels in .*tr"
    ):
        mnist.load(tmp_path)
    write(tmp_path / "mnist", test_x=np.zeros((6, 28, 28)))
    with pytest.raises(
        ValueError, match=r"t10k-images-idx3-ubyte: 6 images but 5 labels in .*t10k"
    ):
        mnist.load(tmp_path)


def test_prepare_standardises_to_mean_zero_and_spread_one(tmp_path):
    made = write(tmp_path)
    pixels = made["train_x"] / 255
    files = {part: tmp_path / name for part, name in FILES.items()}
    dataset = prepare(files, float(pixels.mean()), float(pixels.std()))
    assert dataset.train_x.mean().item() == pytest.approx(0, abs=1e-4)
    assert dataset.train_x.std(correction=0).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_y": np.zeros((5, 2))}, "t10k-labels-idx1-ubyte: has 2 dimensions, not 1"),
        ({"train_x": np.zeros(12)}, "train-images-idx3-ubyte: has 1 dimensions, not 3"),
        ({"test_x": np.zeros((5, 28, 28, 3))}, "t10k-images-idx3-ubyte: has 4 dimensions, not 3"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, changed, message):
    write(tmp_path / "mnist", **changed)
    with pytest.raises(ValueError, match=message):
        mnist.load(tmp_path)


@pytest.mark.parametrize("part", ["train_y", "test_y"])
def test_labels_past_the_classes_are_refused(tmp_path, part):
    write(tmp_path / "mnist", **{part: np.full(SIZES[part[:-2]], 10)})
    with pytest.raises(ValueError, match="labels-idx1-ubyte"):
        mnist.load(tmp_path)
