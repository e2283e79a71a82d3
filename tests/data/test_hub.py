"""Hugging Face data sets: local folders made here, a copy in the cache, and no network."""

import shutil
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

from data import hub
from data.arrays import inputs

RNG = np.random.default_rng(0)
PIXELS = {"train": RNG.integers(0, 256, (12, 10, 8), np.uint8)}
PIXELS["test"] = RNG.integers(0, 256, (6, 10, 8), np.uint8)
CLOSED = "http://127.0.0.1:9"  # the discard port, where nobody listens


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    cache = tmp_path.parent / f"{tmp_path.name}-huggingface"  # in no folder that is read
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    hub._builder.cache_clear()
    datasets.disable_progress_bars()
    yield cache
    hub._builder.cache_clear()


def table(part: str) -> datasets.Dataset:
    """Grey images of three classes, drawn by four writers."""
    images = [Image.fromarray(pixels) for pixels in PIXELS[part]]
    content = {
        "image": images,
        "label": [i % 3 for i in range(len(images))],
        "writer": [f"w{i % 4}" for i in range(len(images))],
    }
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list("abc")),
        "writer": datasets.Value("string"),
    }
    return datasets.Dataset.from_dict(content, datasets.Features(features))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The images as parquet files."""
    path = tmp_path / "tiny"
    path.mkdir()
    for part in PIXELS:
        table(part).to_parquet(path / f"{part}.parquet")
    return path


def write_images(path: Path, size: tuple[int, int] = (8, 10)) -> Path:
    """Coloured images in folders named by class; ``size`` is of the last one."""
    for part, count in (("train", 3), ("test", 2)):
        for kind in ("cat", "dog"):
            (path / part / kind).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(RNG.integers(0, 256, (10, 8, 3), np.uint8))
                if (part, kind, i) == ("test", "dog", 1):
                    image = image.resize(size)
                image.save(path / part / kind / f"{i}.png")
    return path


def test_a_local_folder_of_parquet_files(folder: Path) -> None:
    found = hub.describe(str(folder))
    assert (found.shape, found.num_classes) == ((1, 10, 8), 3)
    dataset = hub.load(str(folder), found.shape, found.num_classes)
    train, test = inputs("", PIXELS["train"][:, None], PIXELS["test"][:, None])
    assert torch.equal(dataset.train_x, train)
    assert torch.equal(dataset.test_x, test)
    assert dataset.train_y.tolist() == [i % 3 for i in range(12)]
    assert dataset.test_y.dtype == torch.int64
    assert dataset.num_classes == 3
    assert dataset.train_group is None


def test_users_and_slices_of_splits(folder: Path) -> None:
    options = {"user": "writer", "train_split": "train[:75%]", "test_split": "train[75%:]"}
    dataset = hub.load(str(folder), (1, 10, 8), 3, **options)
    assert (len(dataset.train_y), len(dataset.test_y)) == (9, 3)
    assert dataset.train_group is not None
    assert dataset.train_group.tolist() == [i % 4 for i in range(9)]


def test_users_that_are_missing_are_refused(folder: Path) -> None:
    for part in PIXELS:
        whole = table(part).remove_columns("writer")
        writers = [None, *["w1"] * (len(whole) - 1)]
        whole.add_column("writer", writers).to_parquet(folder / f"{part}.parquet")
    with pytest.raises(ValueError, match=r"data\.options\.user=writer: .* has object there; takes"):
        hub.load(str(folder), (1, 10, 8), 3, user="writer")


def test_folders_of_images(tmp_path: Path) -> None:
    path = str(write_images(tmp_path / "pets"))
    assert hub.describe(path).shape == (3, 10, 8)
    dataset = hub.load(path, (3, 10, 8), 2)
    assert dataset.train_x.shape == (6, 3, 10, 8)
    assert dataset.train_y.tolist() == [0, 0, 0, 1, 1, 1]
    raw = [
        np.stack(
            [np.asarray(Image.open(f)) for f in sorted((tmp_path / "pets" / part).rglob("*.*"))]
        )
        for part in ("train", "test")
    ]
    train, test = inputs("", *(x.transpose(0, 3, 1, 2) for x in raw))
    assert torch.equal(dataset.train_x, train)
    assert torch.equal(dataset.test_x, test)


def test_images_of_other_sizes_are_refused_or_resized(tmp_path: Path) -> None:
    path = str(write_images(tmp_path / "pets", size=(9, 11)))
    with pytest.raises(ValueError, match=r"an input is \(3, 11, 9\), not \(3, 10, 8\); data\.opti"):
        hub.load(path, (3, 10, 8), 2)
    assert hub.describe(path, resize=True).shape == ()
    assert hub.load(path, (1, 16, 12), 2, resize=True).train_x.shape == (6, 1, 16, 12)


@pytest.mark.parametrize(
    ("feature", "values", "shape"),
    [
        (datasets.List(datasets.Value("float32")), np.ones((4, 7)), (1, 7)),
        (datasets.Array2D((2, 7), "float32"), np.ones((4, 2, 7)), (2, 7)),
        (datasets.Array3D((2, 7, 5), "int32"), np.ones((4, 2, 7, 5), int), (2, 7, 5)),
    ],
)
def test_numbers_are_taken_as_they_are(
    tmp_path: Path, feature: Any, values: Any, shape: tuple[int, ...]
) -> None:
    features = datasets.Features({"x": feature, "y": datasets.Value("int8")})
    for part in ("train", "test"):
        content = {"x": (values * 3).tolist(), "y": [0, 1, 2, 4]}
        datasets.Dataset.from_dict(content, features).to_parquet(tmp_path / f"{part}.parquet")
    found = hub.describe(str(tmp_path), image="x", label="y")
    assert (found.shape, found.num_classes) == (shape, 5)
    dataset = hub.load(str(tmp_path), shape, 5, image="x", label="y")
    assert torch.equal(dataset.train_x, torch.full((4, *shape), 3.0))


def test_content_of_a_folder_is_its_bytes(folder: Path, tmp_path: Path) -> None:
    before = hub.folder_digest(folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert hub.folder_digest(copy) == before
    (copy / "train.parquet").rename(copy / "other.parquet")
    assert hub.folder_digest(copy) != before


def test_a_folder_that_changes_is_read_anew(folder: Path) -> None:
    before = hub.describe(str(folder))
    table("test").to_parquet(folder / "train.parquet")
    after = hub.describe(str(folder))
    assert before.content != after.content
    assert len(hub.load(str(folder), (1, 10, 8), 3).train_y) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_split": "val"}, r"data\.options\.test_split=val: .* has train, test, or slices"),
        (
            {"train_split": "train[:0]"},
            r"data\.options\.train_split=train\[:0\]: .* has train, test",
        ),
        ({"label": "kind"}, r"data\.options\.label=kind: .* has columns image, label, writer"),
        ({"label": "image"}, r"column image is .*: takes integers"),
        ({"features": ["writer"]}, r"column writer: takes numbers"),
        ({"features": "writer"}, r"data\.options\.features=writer: takes a list of columns"),
        ({"features": ["age"]}, r"data\.options\.features=age: .* has columns image, label, wr"),
        ({"image": "label"}, r"data\.options\.image: .* takes images, or numbers"),
        ({"subset": "de"}, r"data\.path=.*: cannot be loaded: BuilderConfig 'de' not found"),
        ({"resize": "maybe"}, r"data\.options\.resize=maybe: takes true or false"),
        ({"train_split": None}, r"data\.options\.train_split=None: takes a name"),
    ],
)
def test_what_is_not_there_names_the_key(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        hub.describe(str(folder), **options)
    assert "\n" not in str(caught.value)


def test_columns_that_could_be_meant_are_listed(tmp_path: Path) -> None:
    for part in PIXELS:
        content = table(part).rename_column("label", "fine").to_dict()
        content["coarse"] = [0] * len(content["fine"])
        names = {"fine": datasets.ClassLabel(num_classes=3), "coarse": datasets.ClassLabel(2)}
        features = datasets.Features({**table(part).features, **names, "image": datasets.Image()})
        del features["label"]
        datasets.Dataset.from_dict(content, features).to_parquet(tmp_path / f"{part}.parquet")
    with pytest.raises(ValueError, match=r"data\.options\.label: .* name one of .*fine"):
        hub.describe(str(tmp_path))
    assert hub.describe(str(tmp_path), label="coarse").num_classes == 2


def test_a_folder_without_data_and_names_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"data\.path=.*empty: cannot be loaded: ") as caught:
        hub.describe(str(tmp_path / "empty"))
    assert "\n" not in str(caught.value)
    for name in ("csv", "/nowhere/mnist", "a b/c"):
        with pytest.raises(ValueError, match="neither a folder that is there nor owner/name"):
            hub.describe(name)


# The Hub ------------------------------------------------------------------------------------------


def test_without_network_it_is_one_line_and_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", CLOSED)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waits to try again"))
    with pytest.raises(ValueError, match=r"data\.path=some/thing: .*cannot be reached: ") as caught:
        hub.describe("some/thing")
    assert "\n" not in str(caught.value)
    assert datasets.config.HF_HUB_OFFLINE is False


def test_offline_by_the_environment_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()  # one without the hook that refuses requests may be open
    try:
        with pytest.raises(ValueError, match=r"data\.path=some/thing: .*offline mode is enabled"):
            hub.describe("some/thing")
    finally:
        huggingface_hub.close_session()


def test_without_network_the_cache_serves(
    monkeypatch: pytest.MonkeyPatch, folder: Path, own_cache: Path
) -> None:
    """What datasets would have left there after fetching someone/tiny at that commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    builder = datasets.load_dataset_builder(str(folder))
    builder.download_and_prepare()
    shutil.copytree(builder.cache_dir, own_cache / "someone___tiny" / "default" / "0.0.0" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", CLOSED)
    found = hub.describe("someone/tiny")
    assert (found.shape, found.num_classes, found.content) == ((1, 10, 8), 3, commit)
    assert torch.equal(
        hub.load("someone/tiny", (1, 10, 8), 3).train_x,
        hub.load(str(folder), (1, 10, 8), 3).train_x,
    )
    assert hub.describe("someone/tiny", revision=commit).content == commit
    with pytest.raises(ValueError, match=rf"data\.options\.revision=v2: the cache has {commit} of"):
        hub.describe("someone/tiny", revision="v2")


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", r"data\.path=some/thing: neither a folder that is there nor a data"),
        (403, "GatedRepo", r"data\.path=some/thing: ask for access at https://huggingface\.co/da"),
        (404, "RevisionNotFound", r"data\.options\.revision=v9: data\.path=some/thing has no such"),
        (503, "", r"data\.path=some/thing: .* the Hub cannot be reached: .*503"),
    ],
)
def test_what_the_hub_refuses(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, message: str
) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    try:
        with pytest.raises(ValueError, match=message) as caught:
            hub.describe("some/thing", revision="v9")
    finally:
        server.shutdown()
        server.server_close()
    assert "\n" not in str(caught.value)
