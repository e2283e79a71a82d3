"""Prepared tensors on disk: prepared once, damaged files again, no cache no harm."""

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save

from data import cache
from data.cache import cached
from data.cache_folder import cache_folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Source:
    """Counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return tensors()


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(7, 1, 3, 3, generator=generator),
        "turned": torch.randn(4, 6, generator=generator).T,
        "y": torch.arange(7),
        "flag": torch.tensor(True),
        "number": torch.tensor(10),
        "none": torch.empty(0, dtype=torch.int64),
    }


def assert_as_prepared(got):
    expected = tensors()
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name


def file_of(key):
    return cache_folder() / f"{key}.safetensors"


def test_prepared_once(home):
    source = Source()
    assert not home.exists()
    for _ in range(3):
        assert_as_prepared(cached("key", source))
    assert source.calls == 1
    assert [path.name for path in (home / "cutbit").iterdir()] == ["key.safetensors"]
    assert load_file(file_of("key")).keys() == tensors().keys()


def test_keys_do_not_mix():
    one = cached("one", lambda: {"x": torch.zeros(2)})
    two = cached("two", lambda: {"x": torch.ones(2)})
    assert one["x"].tolist() == [0, 0]
    assert two["x"].tolist() == [1, 1]
    assert cached("one", Source())["x"].tolist() == [0, 0]


def test_folder_follows_the_environment(home, tmp_path, monkeypatch):
    assert cache_folder() == home / "cutbit"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in (
        lambda: monkeypatch.setenv("XDG_CACHE_HOME", ""),
        lambda: monkeypatch.delenv("XDG_CACHE_HOME"),
    ):
        unset()
        assert cache_folder() == tmp_path / ".cache" / "cutbit"


def cut(content):
    return content[: len(content) // 2]


def no_header(content):
    return b"\0" * 100


def header_too_long(content):
    return b"\xff" * 8 + content[8:]


def flipped(content):
    """One bit of a value."""
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


def renamed(content):
    return content.replace(b'"x":', b'"h":')


def without_checksum(content):
    return save(load(content))


DAMAGES = [cut, no_header, header_too_long, lambda content: b"", flipped, renamed, without_checksum]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_prepared_again(damage):
    source = Source()
    cached("key", source)
    file_of("key").write_bytes(damage(file_of("key").read_bytes()))
    assert_as_prepared(cached("key", source))
    assert source.calls == 2
    assert_as_prepared(cached("key", source))
    assert source.calls == 2


def test_an_unwritable_folder_still_returns(tmp_path, monkeypatch):
    """The folder's parent is a file: it cannot be made, by root neither."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    source = Source()
    assert_as_prepared(cached("key", source))
    assert_as_prepared(cached("key", source))
    assert source.calls == 2


def test_a_failed_rename_leaves_no_file_behind(monkeypatch):
    def refuse(self, target):
        raise PermissionError

    monkeypatch.setattr(Path, "replace", refuse)
    assert_as_prepared(cached("key", Source()))
    assert list(cache_folder().iterdir()) == []


def test_a_full_disk_still_returns(monkeypatch):
    def full(tensors, name, metadata):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    assert_as_prepared(cached("key", Source()))


def test_a_damaged_file_that_cannot_be_removed(monkeypatch):
    cached("key", Source())
    file_of("key").write_bytes(b"")

    def refuse(self, missing_ok=False):
        raise PermissionError

    monkeypatch.setattr(Path, "unlink", refuse)
    assert_as_prepared(cached("key", Source()))


def test_tensors_that_share_memory():
    x = torch.arange(4)
    got = cached("key", lambda: {"a": x, "b": x})
    assert got["a"].tolist() == got["b"].tolist() == [0, 1, 2, 3]


def test_an_error_of_the_source_is_the_users(home):
    def fail():
        raise FileNotFoundError("data.root: no data there")

    with pytest.raises(FileNotFoundError, match="no data there"):
        cached("key", fail)
    assert not home.exists()


def test_what_comes_back_may_be_written_to():
    """Mapped privately: a worker that writes by mistake changes nobody else's data."""
    cached("key", Source())["x"].zero_()
    assert_as_prepared(cached("key", Source()))
