"""What is made of a user's network before anything else sees it."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.build import build, check
from models.inputs import InputSpec
from models.split import cut, cut_points

HERE, SHAPE = __name__, (1, 8, 8)


class Body(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, num_classes)
        self.other = nn.Linear(4, 3)

    def features(self, x: Tensor) -> Tensor:
        return self.conv(x).relu().mean((2, 3))


class Viewed(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).view(-1, 144))


class Reshaped(Viewed):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(1))


class Results(Body):
    """A dict in training, a tuple in evaluation; options by keyword."""

    def forward(self, x: Tensor, *, scale: float | None = None, **options: object) -> object:
        x = self.features(x)
        if self.training:
            return {"other": self.other(x), "logits": self.fc(x)}
        return self.fc(x), {"other": self.other(x)}


class NoLogits(Body):
    def forward(self, x: Tensor) -> object:
        return {"mean": self.other(self.features(x)), "n": 3}


class Lazy(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv, self.fc = nn.LazyConv2d(4, 3), nn.LazyLinear(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(1))


class Drawn(nn.Module):
    """Its weights come from all random numbers there are."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.fc = nn.Linear(64, num_classes)
        with torch.no_grad():
            self.fc.weight.mul_(random.random())
            self.fc.bias.add_(float(np.random.rand()))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


class Volume(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv, self.flat = nn.Conv3d(1, 2, 3), nn.Conv2d(2, 4, 1)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flat(self.conv(x).mean(2)).mean((2, 3)))


class Words(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(30, 6), nn.Linear(6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.embed(x).mean(1))


def built(kind: type[nn.Module], seed: int = 0, shape: tuple[int, ...] = SHAPE) -> nn.Module:
    return build(f"{HERE}.{kind.__name__}", {}, shape, 10, seed)


def is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def test_a_network_that_takes_channels_last_gets_it_and_another_keeps_its_own() -> None:
    viewed, reshaped = built(Viewed), built(Reshaped)
    assert viewed.conv.weight.stride() == Viewed().conv.weight.stride()
    assert reshaped.conv.weight.stride() == Reshaped().conv.weight.to(
        memory_format=torch.channels_last
    ).stride()  # fmt: skip
    x = torch.randn(3, *SHAPE)
    check(viewed, SHAPE, 10)
    assert torch.allclose(viewed(x), reshaped(x), atol=1e-6)
    for point in cut_points(viewed, SHAPE):
        cut(viewed, point.name, SHAPE)


def test_five_dimensions_stay_as_they_are_beside_channels_last() -> None:
    model = built(Volume, shape=(1, 4, 8, 8))
    check(model, (1, 4, 8, 8), 10)
    assert model.conv.weight.is_contiguous()
    assert is_channels_last(model.flat.weight)


def test_logits_are_taken_out_of_what_a_network_gives() -> None:
    model, plain = built(Results), Results().to(memory_format=torch.channels_last)
    plain.load_state_dict(model.state_dict())
    assert list(model.state_dict()) == list(plain.state_dict())
    assert isinstance(model, Results)
    x = torch.randn(3, *SHAPE)
    assert torch.equal(model.train()(x), plain.train()(x)["logits"])
    assert torch.equal(model.eval()(x), plain.eval()(x)[0])
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    check(model, SHAPE, 10)
    client, server = cut(model, "conv", SHAPE)
    assert torch.equal(server.train()(client.train()(x)), model.train()(x))
    assert torch.equal(server.eval()(client.eval()(x)), model.eval()(x))


def test_a_network_that_gives_no_logits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"NoLogits: the network gives a dict with mean \(2, 3\);"):
        built(NoLogits)


def test_lazy_modules_get_shapes_and_the_seeds_values() -> None:
    one, same, other = built(Lazy), built(Lazy), built(Lazy, seed=1)
    check(one, SHAPE, 10)
    assert one.conv.weight.shape == (4, 1, 3, 3)
    assert torch.equal(one.fc.weight, same.fc.weight)
    assert not torch.equal(one.fc.weight, other.fc.weight)
    assert one.training


def test_what_a_constructor_draws_depends_on_the_seed_alone() -> None:
    random.seed(5)
    np.random.seed(5)
    one, same = built(Drawn), built(Drawn)
    assert torch.equal(one.fc.weight, same.fc.weight)
    assert torch.equal(one.fc.bias, same.fc.bias)
    after = random.random(), np.random.rand()
    random.seed(5)
    np.random.seed(5)
    assert after == (random.random(), np.random.rand())


def test_a_network_knows_what_its_inputs_look_like() -> None:
    spec = InputSpec((5,), torch.int64, 30)
    model = build(f"{HERE}.Words", {}, spec, 10, 0)
    assert [point.name for point in cut_points(model, (5,))] == ["embed", "embed+mean"]
    check(model, spec, 10)
    cut(model, "embed", (5,))
    assert [point.name for point in cut_points(Words(), spec)] == ["embed", "embed+mean"]
    x = spec.example(7)
    assert x.dtype == torch.int64
    assert 0 <= int(x.min()) <= int(x.max()) < 30
    assert torch.equal(x, spec.example(7))
    assert InputSpec((4,), high=3).example().unique().tolist() == [0, 1, 2]
