"""CIFAR-10 from small batches written here, and the unpickler that refuses code."""

import collections
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data import cifar10

NUM_IMAGES = 4  # per batch


class Python2Pickler(pickle._Pickler):
    """Write bytes as Python 2 strings, as the official files hold them."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_string(self, obj: bytes) -> None:
        self.write(b"T" + struct.pack("<i", len(obj)) + obj)
        self.memoize(obj)

    dispatch[bytes] = save_string


def dump_python2(batch: Any) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(batch)
    return buffer.getvalue()


def make_batch(number: int) -> dict[bytes, Any]:
    """Batch ``number``, counted from 0: every red byte is 10·number, green 100, blue 200."""
    data = np.empty((NUM_IMAGES, 3072), dtype=np.uint8)
    data[:, :1024], data[:, 1024:2048], data[:, 2048:] = 10 * number, 100, 200
    return {
        b"batch_label": b"a batch",
        b"labels": [number, 9, 0, 5],
        b"data": data,
        b"filenames": [b"%d.png" % i for i in range(NUM_IMAGES)],
    }


def write_batches(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(cifar10.BATCHES):
        (folder / name).write_bytes(dump_python2(make_batch(number)))


def write_archive(root: Path, leave_out: str = "") -> Path:
    write_batches(root / "unpacked")
    path = root / cifar10.ARCHIVE
    with tarfile.open(path, "w:gz") as archive:
        for name in sorted(cifar10.BATCHES, reverse=True):  # the order does not matter
            if name != leave_out:
                archive.add(root / "unpacked" / name, f"{cifar10.FOLDER}/{name}")
    return path


def check_small(root: Path) -> None:
    """What the batches of ``make_batch`` must become, worked out by hand."""
    dataset = cifar10.load(root)
    assert dataset.train_x.shape == (5 * NUM_IMAGES, 3, 32, 32)
    assert dataset.test_x.shape == (NUM_IMAGES, 3, 32, 32)
    assert dataset.train_x.dtype == dataset.test_x.dtype == torch.float32
    assert dataset.train_y.tolist() == [y for number in range(5) for y in (number, 9, 0, 5)]
    assert dataset.test_y.tolist() == [5, 9, 0, 5]
    assert dataset.train_y.dtype == torch.int64
    assert dataset.num_classes == 10
    assert dataset.train_group is None
    red, green, blue = (30 / 255 - 0.4914) / 0.247, (100 / 255 - 0.4822) / 0.2435, 1.2913
    expected = torch.tensor([red, green, blue]).reshape(3, 1, 1).expand(3, 32, 32)
    torch.testing.assert_close(dataset.train_x[3 * NUM_IMAGES], expected, rtol=0, atol=1e-4)


def test_batches_in_a_folder_become_images_and_labels(tmp_path: Path) -> None:
    write_batches(tmp_path / cifar10.FOLDER)
    check_small(tmp_path)
    check_small(tmp_path / cifar10.FOLDER)  # or the folder itself is data.root


def test_batches_in_the_archive_are_read_without_unpacking(tmp_path: Path) -> None:
    write_archive(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    check_small(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_pixels_keep_their_row_and_column() -> None:
    batch = make_batch(0)
    batch[b"data"][2, 1024 + 5 * 32 + 7] = 77  # image 2, green, row 5, column 7
    images, _ = cifar10.parse_batch(dump_python2(batch), "here")
    assert images[2, 1, 5, 7] == 77
    assert (images == 77).sum() == 1


@pytest.mark.parametrize("protocol", [3, 4])
def test_batches_written_by_python_3_are_read_too(protocol: int) -> None:
    batch = {key.decode(): value for key, value in make_batch(1).items()}
    images, labels = cifar10.parse_batch(pickle.dumps(batch, protocol), "here")
    assert labels.tolist() == [1, 9, 0, 5]
    assert images.shape == (NUM_IMAGES, 3, 32, 32)


def test_batches_that_name_numpy_1_are_read() -> None:
    content = dump_python2(make_batch(1)).replace(
        b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    )
    assert b"numpy._core" not in content
    assert cifar10.parse_batch(content, "here")[1].tolist() == [1, 9, 0, 5]


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, f"{os.system.__module__}.system"),
        (eval, r"(builtins|__builtin__)\.eval"),
        (getattr, r"(builtins|__builtin__)\.getattr"),
        (collections.OrderedDict, r"collections\.OrderedDict"),
        (np.load, r"numpy\.load"),
    ],
)
def test_every_other_global_is_refused_and_named(
    tmp_path: Path, function: Any, name: str, protocol: int
) -> None:
    canary = tmp_path / "ran"
    batch = {"labels": [0], "data": Call(function, f"touch {canary}")}
    with pytest.raises(ValueError, match=f"refused the global {name}") as caught:
        cifar10.parse_batch(pickle.dumps(batch, protocol), "data_batch_1")
    assert "\n" not in str(caught.value)
    assert "data_batch_1" in str(caught.value)
    assert not canary.exists()


def test_a_malicious_batch_in_a_folder_or_archive_does_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    content = pickle.dumps(Call(os.system, f"touch {canary}"), protocol=2)
    write_batches(tmp_path / "folder" / cifar10.FOLDER)
    (tmp_path / "folder" / cifar10.FOLDER / "test_batch").write_bytes(content)
    (tmp_path / "archive").mkdir()
    path = tmp_path / "archive" / cifar10.ARCHIVE
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(f"{cifar10.FOLDER}/data_batch_1")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    for root in (tmp_path / "folder", tmp_path / "archive"):
        with pytest.raises(ValueError, match=r"refused the global \w+\.system"):
            cifar10.load(root)
    assert not canary.exists()


def test_dotted_names_do_not_reach_through_an_allowed_global() -> None:
    dotted = b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93."  # STACK_GLOBAL of the two
    with pytest.raises(ValueError, match=r"refused the global numpy\.ndarray\.__class__"):
        cifar10.parse_batch(dotted, "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": None}, "its data are no table of bytes"),
        ({b"data": np.zeros((4, 3072), dtype=np.float32)}, "its data are no table of bytes"),
        ({b"data": np.zeros((4, 3000), dtype=np.uint8)}, r"data of shape \(4, 3000\) for 4 labels"),
        ({b"labels": [1, 2, 3]}, r"data of shape \(4, 3072\) for 3 labels"),
        ({b"labels": None}, "its labels are no list of integers"),
        ({b"labels": [0, 1, 2, b"3"]}, "its labels are no list of integers"),
        ({b"labels": [0, 1, 2, 10]}, "a label is not in 0 to 9"),
    ],
)
def test_a_batch_of_something_else_is_refused(change: dict[bytes, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^here: no CIFAR-10 batch: {message}"):
        cifar10.parse_batch(dump_python2(make_batch(0) | change), "here")


@pytest.mark.parametrize(
    "content", [b"", b"junk", dump_python2(make_batch(0))[:-100], pickle.dumps([1, 2])]
)
def test_a_damaged_batch_is_one_line_with_its_source(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^here: no CIFAR-10 batch: [^\n]+$"):
        cifar10.parse_batch(content, "here")


def test_a_damaged_or_incomplete_archive_is_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a")
    whole = path.read_bytes()
    for cut in (len(whole) // 2, 900, *range(150, 250, 7)):  # wherever it is cut off
        path.write_bytes(whole[:-cut])
        with pytest.raises(ValueError, match=rf"{cifar10.ARCHIVE}: damaged archive: [^\n]+$"):
            cifar10.load(tmp_path / "a")
    write_archive(tmp_path / "b", leave_out="data_batch_3")
    with pytest.raises(ValueError, match=r"the archive lacks data_batch_3$"):
        cifar10.load(tmp_path / "b")


def test_a_missing_folder_is_one_line_that_says_how_to_get_it(tmp_path: Path) -> None:
    write_batches(tmp_path / cifar10.FOLDER)
    (tmp_path / cifar10.FOLDER / "test_batch").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        cifar10.load(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "no CIFAR-10 there",
        str(tmp_path / cifar10.FOLDER),
        str(tmp_path / cifar10.ARCHIVE),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ):
        assert part in message


@pytest.fixture(scope="module")
def real_root() -> Path:
    """The folder that holds the real batches."""
    project = Path(__file__).resolve().parents[2]
    roots = [project.parent / "shared" / "data", Path.home() / ".cache" / "cutbit"]
    if os.environ.get("CUTBIT_DATA"):
        roots = [Path(os.environ["CUTBIT_DATA"])]
    for root in roots:
        if (root / cifar10.FOLDER / cifar10.TEST_BATCH).is_file():
            return root
        if (root / cifar10.ARCHIVE).is_file():
            return root
    pytest.skip(f"no CIFAR-10 in {', '.join(map(str, roots))}; set CUTBIT_DATA")


def test_real_channels_have_mean_0_and_deviation_1(real_root: Path) -> None:
    dataset = cifar10.load(real_root)
    assert dataset.train_x.shape == (50000, 3, 32, 32)
    assert dataset.test_x.shape == (10000, 3, 32, 32)
    assert dataset.train_y.bincount().tolist() == [5000] * 10
    assert dataset.test_y.bincount().tolist() == [1000] * 10
    for channel in range(3):
        values = dataset.train_x[:, channel].double()
        # the literals have four digits: 5e-5 of a pixel's range is 2.1e-4 of a deviation
        assert abs(float(values.mean())) < 2.1e-4
        assert abs(float(values.std()) - 1) < 2.1e-4
