"""Text that comes with Python, and patients that come with scikit-learn."""

from pathlib import Path

import pytest
import torch

from data import diabetes, stdlib_chars, stdlib_text


def test_pieces_of_source_are_balanced_and_of_their_files() -> None:
    found = stdlib_text.load(Path())
    for x, y in ((found.train_x, found.train_y), (found.test_x, found.test_y)):
        assert isinstance(x, torch.Tensor)
        assert x.dtype == torch.int64
        assert x.shape[1:] == (stdlib_text.LENGTH,)
        assert 0 <= int(x.min()) <= int(x.max()) < stdlib_text.VOCABULARY
        counts = y.bincount(minlength=found.num_classes)
        assert counts.min() == counts.max() >= 50
    assert found.train_group is not None
    sources = stdlib_text.files(Path())
    for group, label in set(zip(found.train_group.tolist(), found.train_y.tolist(), strict=True)):
        assert stdlib_text.PACKAGES[label] in sources[group].parts
    again = stdlib_text.load(Path())
    assert all(torch.equal(found.tensors()[n], t) for n, t in again.tensors().items())


def test_labels_are_the_characters_that_follow() -> None:
    found = stdlib_chars.load(Path())
    x, y = found.train_x, found.train_y
    assert isinstance(x, torch.Tensor)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert len(x) > 1000
    assert max(int(x.max()), int(y.max())) < found.num_classes == stdlib_chars.NUM_TOKENS
    text = "".join("\n" if t == 0 else chr(t + 31) for t in x[0].tolist())
    assert text in stdlib_chars.topics(stdlib_chars.files(Path())[0])[0]


def test_characters_have_numbers() -> None:
    assert stdlib_chars.tokens("\n ~é\t").tolist() == [0, 1, 95, 32, 32]
    assert stdlib_chars.windows(torch.arange(64)).shape == (0, 65)
    assert stdlib_chars.windows(torch.arange(129)).tolist() == [
        list(range(65)),
        list(range(64, 129)),
    ]


def test_a_python_without_the_text_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for source in (stdlib_text, stdlib_chars):
        monkeypatch.setattr(source.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
        with pytest.raises(FileNotFoundError, match=f"^data={source.__name__[5:]}: .*{tmp_path}"):
            source.files(Path())


def test_patients_are_standardised() -> None:
    found = diabetes.load(Path())
    assert isinstance(found.train_x, torch.Tensor)
    assert found.train_x.shape == (353, 10)
    assert found.test_y.shape == (89, 1)
    for values in (found.train_x, found.train_y):
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.std(0, correction=0), torch.ones(values.shape[1]))
