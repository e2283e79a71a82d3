"""Networks that nobody here wrote for this project: cut exactly wherever there is a cut point."""

import pytest
import torch

from benchmarks.networks import row, subject
from models.split import cut, cut_points
from tests.models.zoo.networks import ZOO
from tests.models.zoo.packages import installed

REFUSED = {
    "adaptive": "Adaptive cannot be traced: control flow on the values of a tensor",
    "sparse experts": "Experts cannot be traced: control flow on the values of a tensor",
    "scripted": "body is compiled by torch.jit, and copies of it do not train: take the module",
}
SAMPLE = (
    "resnet basic", "ghostnet", "stochastic depth python", "frozen norm", "3-d", "nanogpt",
    "lstm cells", "vae", "scripted", "scripted and frozen", "lazy", "complex filter",
)  # fmt: skip


def test_there_are_enough() -> None:
    assert len(ZOO) >= 60
    assert len({entry.kind for entry in ZOO.values()}) >= 25
    assert {*SAMPLE, *REFUSED} <= ZOO.keys()


@pytest.mark.parametrize(
    "name", [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.long) for name in ZOO]
)
def test_every_cut_is_exact_and_a_step_is_finite(name: str) -> None:
    found = row(name, ZOO[name])
    assert found["step finite"] == ("" if name == "scripted" else "yes")
    exact, why = str(found["exact cuts"]), str(found["not exact"])
    if name in REFUSED:
        assert exact == "refused"
        assert REFUSED[name] in why
        assert len(why.splitlines()) == 1
    else:
        count, _, total = exact.partition(" of ")
        assert int(count) == int(total) > 0, why


@pytest.mark.long
def test_every_cut_of_networks_of_other_packages_is_exact() -> None:
    entries = installed()
    if not entries:
        pytest.skip("neither timm nor transformers is installed")
    for name, entry in entries.items():
        found = row(name, entry)
        assert found["step finite"] == "yes", name
        exact, why = str(found["exact cuts"]), str(found["not exact"])
        count, _, total = exact.partition(" of ")
        assert count == total, f"{name}: {exact}: {why}"
        if total == "0":
            assert "2 values would cross: input" in why, name  # decoders look for the last token


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin", "layers.0: control flow on the size of the batch (attention.py, line "),
        ("spiking", "1: uses a custom autograd function"),
        ("scripted and frozen", "body: it is compiled by torch.jit"),
        ("stochastic depth torch", "features.1.0: control flow on the values of a tensor"),
    ],
)
def test_what_is_kept_whole_says_why(name: str, reason: str) -> None:
    assert str(reason) in str(row(name, ZOO[name])["kept whole"])


def test_a_part_refuses_other_sizes_than_it_was_cut_for() -> None:
    """Control flow on sizes was followed for one size alone."""
    one = subject(ZOO["checked"])
    client, _ = cut(one.model, "conv", one.spec)
    x = torch.randn(5, 3, 16, 16)
    assert torch.equal(client(x), one.model.conv(x))
    with pytest.raises(ValueError, match="sizes are not those that the network was traced with"):
        client(torch.randn(2, 3, 16, 12))


def test_a_built_network_is_cut_alike_with_and_without_an_example() -> None:
    """A client cuts without one."""
    one = subject(ZOO["nanogpt"])
    for point in cut_points(one.model, one.spec):
        with_example, without = cut(one.model, point.name, one.spec), cut(one.model, point.name)
        for a, b in zip(with_example, without, strict=True):
            assert a.state_dict().keys() == b.state_dict().keys()
            assert a._part_code == b._part_code
