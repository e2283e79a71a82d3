"""Folders as users keep them: with links, leavings of systems, odd names, odd images."""

import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from data import folders, hub

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (8, 10, 8, 3), np.uint8)
LEAVINGS = (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    cache = tmp_path.parent / f"{tmp_path.name}-cache"  # in no folder that is read
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    hub._builder.cache_clear()
    datasets.disable_progress_bars()
    yield
    hub._builder.cache_clear()


def write(folder: Path, mode: str = "RGB", **options: object) -> Path:
    """Two images for each class and side."""
    numbers = iter(COLOURS)
    for side in ("train", "test"):
        for kind in ("cat", "dog"):
            (folder / side / kind).mkdir(parents=True)
            for i in range(2):
                image = Image.fromarray(next(numbers)).convert(mode)
                image.save(folder / side / kind / f"{i}.png", **options)
    return folder


def loaded(folder: Path) -> tuple[torch.Tensor, list[int]]:
    found = hub.describe(str(folder))
    data = hub.load(str(folder), found.shape, found.num_classes)
    return data.train_x, data.train_y.tolist()


def test_folders_that_are_links_are_followed(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain")
    expected, labels = loaded(plain)
    assert labels == [0, 0, 1, 1]
    classes, sides, half = (tmp_path / name for name in ("classes", "sides", "half"))
    for side in ("train", "test"):
        for folder in (classes, half):
            (folder / side).mkdir(parents=True)
            (folder / side / "dog").symlink_to(plain / side / "dog")
        (classes / side / "cat").symlink_to(plain / side / "cat")
        shutil.copytree(plain / side / "cat", half / side / "cat")
        (sides / side).parent.mkdir(exist_ok=True)
        (sides / side).symlink_to(plain / side)
    for folder in (classes, sides, half):
        found, names = loaded(folder)
        assert torch.equal(found, expected) and names == labels
        assert hub.folder_digest(folder) == hub.folder_digest(plain)
    image = Image.fromarray(COLOURS[0])
    image.save(plain / "train" / "dog" / "2.png")  # behind a link
    assert loaded(sides)[1] == [0, 0, 1, 1, 1]


def test_a_link_to_a_folder_above_ends(tmp_path: Path) -> None:
    folder = write(tmp_path / "pets")
    expected = loaded(folder)[0]
    (folder / "train" / "cat" / "again").symlink_to(folder)
    assert len(folders.files(folder)) == 8
    assert torch.equal(loaded(folder)[0], expected)


def test_leavings_of_systems_are_no_data(tmp_path: Path) -> None:
    folder = write(tmp_path / "pets")
    before, content = loaded(folder)[0], hub.folder_digest(folder)
    for place in (folder, folder / "train", folder / "test" / "dog"):
        for name in LEAVINGS:
            (place / name).write_bytes(os.urandom(8))
    for name in (".git", "__MACOSX"):
        shutil.copytree(folder / "train", folder / name)
    assert hub.folder_digest(folder) == content
    assert torch.equal(loaded(folder)[0], before)


@pytest.mark.parametrize("name", ["a [b] c", "star*x?", "a{b}", "é è", "x::y", ".hidden [x]"])
def test_any_name_of_a_folder(tmp_path: Path, name: str) -> None:
    expected = loaded(write(tmp_path / "plain"))[0]
    assert torch.equal(loaded(write(tmp_path / name))[0], expected)


def test_two_at_once_make_one_folder_of_links(tmp_path: Path) -> None:
    folder = write(tmp_path / "a [b]")
    first = folders.plain(folder, "0")
    assert folders.plain(folder, "0") == first != folders.plain(folder, "1")
    assert [p for p in first.parent.iterdir() if ".part" in p.name] == []
    assert all(path.is_symlink() for path in first.rglob("*.png"))


def test_images_without_classes_say_how_they_have_to_lie(tmp_path: Path) -> None:
    flat, half = tmp_path / "flat", write(tmp_path / "half")
    for side in ("train", "test"):
        (flat / side).mkdir(parents=True)
        Image.fromarray(COLOURS[0]).save(flat / side / "0.png")
    shutil.rmtree(half / "test")
    shutil.copytree(flat / "test", half / "test")
    for folder in (flat, half):
        with pytest.raises(ValueError, match="do not lie in folders of classes; takes train/<clas"):
            hub.describe(str(folder))
    rows = "file_name,kind\n0.png,{}\n"
    for side in ("train", "test"):
        (flat / side / "metadata.csv").write_text(rows.format(side), "utf-8")
    assert hub.describe(str(flat), label="kind").label_names == ("test", "train")


def test_palettes_are_their_colours(tmp_path: Path) -> None:
    for mode, channels in (("RGB", 3), ("L", 1)):
        plain = write(tmp_path / mode, mode)
        pixels = [np.asarray(Image.open(file).convert("P").convert("RGB"))
                  for file in folders.files(plain)]  # fmt: skip
        folder = tmp_path / f"{mode}-palette"
        for file in folders.files(plain):
            place = folder / file.relative_to(plain)
            place.parent.mkdir(parents=True, exist_ok=True)
            seen = {"transparency": bytes(range(256))}  # of each colour
            Image.open(file).convert("P").save(place, **seen)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert hub.describe(str(folder)).shape == (channels, 10, 8)
            array = hub.input_array("", hub.open_splits(str(folder), hub.Options())[1], "image",
                                    (channels, 10, 8), None)  # fmt: skip
        expected = np.stack(pixels[:4]).transpose(0, 3, 1, 2)[:, :channels]
        assert np.array_equal(array, expected)  # test comes first


def test_a_camera_held_upright_is_upright(tmp_path: Path) -> None:
    folder = write(tmp_path / "pets")
    for file in folders.files(folder)[::2]:
        turned = Image.open(file).transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90° to the left
        turned.save(file, exif=exif)
    assert torch.equal(loaded(folder)[0], loaded(write(tmp_path / "plain"))[0])


def test_colours_that_are_left_out_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path / "pets")
    first = folder / "train" / "cat" / "0.png"
    Image.open(first).convert("L").save(first)
    with caplog.at_level(logging.WARNING):
        loaded(folder)
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        f"{count} of 4 images of {side} have colours, which are left out: the first is grey, and "
        "so are all taken"
        for count, side in ((3, "train"), (4, "test"))
    ]
