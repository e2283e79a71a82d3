"""Building a model from its path: sizes by signature, weights by seed, errors by key."""

import pytest
import torch
from torch import nn

from models.build import build, check, check_batch_of_one, smallest_input

CNN, LENET = "models.cnn.CNN", "models.lenet5.LeNet5"
HERE = __name__


class TakesAll(nn.Linear):
    def __init__(self, in_channels, num_classes, input_shape, depth=3, name="x"):
        super().__init__(in_channels, num_classes)
        self.given = (in_channels, num_classes, input_shape, depth, name)


class TakesSome(nn.Linear):
    def __init__(self, num_classes, width=4):
        super().__init__(width, num_classes)
        self.given = (num_classes, width)


class TakesNone(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)


class TakesAny(nn.Linear):
    def __init__(self, **options):
        super().__init__(2, 2)
        self.given = options


def function(num_classes, width=2):
    return nn.Linear(width, num_classes)


def no_module(num_classes):
    return num_classes


class Raises(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


def model(target=CNN, seed=0, shape=(1, 28, 28), num_classes=10, **options):
    return build(target, options, shape, num_classes, seed)


def same_weights(one, other):
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


# Sizes and options --------------------------------------------------------------------------------


def test_sizes_are_passed_where_the_signature_takes_them():
    made = model(f"{HERE}.TakesAll", shape=(3, 8, 9), num_classes=7, depth=5)
    assert made.given == (3, 7, (3, 8, 9), 5, "x")
    assert model(f"{HERE}.TakesSome", num_classes=7).given == (7, 4)
    assert isinstance(model(f"{HERE}.TakesNone"), TakesNone)
    assert model(f"{HERE}.function", num_classes=6).out_features == 6


def test_a_signature_that_takes_anything_gets_the_options_alone():
    """What it does with sizes nobody knows: torchvision's resnet18 hands **kwargs to a class."""
    assert model(f"{HERE}.TakesAny", shape=(3, 8), num_classes=7, depth=5).given == {"depth": 5}
    options = {"in_channels": 4, "depth": 5}
    assert build(f"{HERE}.TakesAny", options, (3, 8), 7, 0).given == options


@pytest.mark.parametrize("target", ["torch.nn.Linear", "torch.nn.Conv2d"])
def test_a_missing_argument_names_target_and_argument(target):
    with pytest.raises(ValueError, match=rf"^model\..*{target}.*'\w+'"):
        model(target)


def test_an_option_wins_over_the_datas_size():
    assert model(f"{HERE}.TakesSome", num_classes=7, width=9).given == (7, 9)
    made = build(f"{HERE}.TakesSome", {"num_classes": 3}, (1, 8, 8), 7, 0)
    assert made.given == (3, 4)


@pytest.mark.parametrize(
    ("target", "accepted"),
    [
        (f"{HERE}.TakesAll", "depth, name"),
        (f"{HERE}.TakesSome", "width"),
        (f"{HERE}.TakesNone", "no options"),
        (CNN, "width, norm"),
        (LENET, "no options"),
    ],
)
def test_an_unknown_option_is_named_with_what_is_taken(target, accepted):
    with pytest.raises(ValueError) as error:
        model(target, dpeth=3)
    assert str(error.value) == f"model.dpeth: {target} does not take it; it takes {accepted}"


@pytest.mark.parametrize(
    "target",
    [
        "models.cnn.Nope",
        "models.nope.CNN",
        "no_such_package.Net",
        "CNN",
        "",
        "models.cnn.",
        "models.cnn.GROUPS",
        ".cnn.CNN",
        "builtins.dict",
    ],
)
def test_a_wrong_target_names_the_key(target):
    with pytest.raises(ValueError) as error:
        model(target)
    assert str(error.value).startswith(f"model._target_={target}: ")


def test_what_is_no_module_is_refused():
    with pytest.raises(
        ValueError, match=r"model\._target_=.*\.no_module: is not a torch\.nn\.Module"
    ):
        model(f"{HERE}.no_module")


# Randomness ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [CNN, LENET])
def test_weights_depend_on_the_seed_alone(target):
    torch.manual_seed(1)
    one = model(target, seed=5)
    torch.manual_seed(2)
    torch.rand(3)
    assert same_weights(one, model(target, seed=5))
    assert not same_weights(one, model(target, seed=6))
    largest = 2**63 - 1  # what derive_seed returns at most
    assert same_weights(model(target, seed=largest), model(target, seed=largest))


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    check(model(), (1, 28, 28), 10)
    check_batch_of_one(model(), (1, 28, 28))
    smallest_input(CNN, {}, (1, 28, 28), 10)
    with pytest.raises(ValueError):
        model(norm="layer")
    assert torch.equal(torch.random.get_rng_state(), state)


# Memory format ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [CNN, LENET])
def test_convolution_weights_are_channels_last(target):
    weights = [p for p in model(target).parameters() if p.dim() == 4]
    assert len(weights) >= 2
    for weight in weights:
        assert weight.is_contiguous(memory_format=torch.channels_last)
    wide = [weight for weight in weights if weight.shape[1] > 1]
    assert wide
    assert not any(weight.is_contiguous() for weight in wide)


@pytest.mark.parametrize("target", [CNN, LENET])
def test_the_memory_format_does_not_change_what_is_computed(target):
    made = model(target).double().eval()
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    expected = made(x)
    torch.testing.assert_close(made.to(memory_format=torch.contiguous_format)(x), expected)


# Checks -------------------------------------------------------------------------------------------


def test_check_takes_what_fits_and_keeps_the_mode():
    for mode in (True, False):
        made = model(norm="batch").train(mode)
        state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
        check(made, (1, 28, 28), 10)
        assert made.training is mode
        for name, tensor in made.state_dict().items():
            assert torch.equal(tensor, state[name]), name
        with pytest.raises(ValueError):
            check(made, (2, 28, 28), 10)
        assert made.training is mode


def test_check_says_what_goes_in():
    with pytest.raises(ValueError, match=r"^it cannot take an input of 3×28×28: .*channels"):
        check(model(), (3, 28, 28), 10)
    with pytest.raises(ValueError, match=r"^it cannot take an input of 1×3×3: "):
        check(model(), (1, 3, 3), 10)


def test_check_says_what_comes_out():
    with pytest.raises(ValueError, match=r"two samples of 1×28×28 give \(2, 10\), not \(2, 7\)"):
        check(model(), (1, 28, 28), 7)
    with pytest.raises(ValueError, match=r"give \(2, 4, 4\), not \(2, 4\)"):
        check(nn.Identity(), (4, 4), 4)
    with pytest.raises(ValueError, match=r"give tuple, not \(2, 4\)"):
        check(nn.LSTM(3, 4), (5, 3), 4)


@pytest.mark.parametrize(
    "error", [ValueError("a\nb"), RuntimeError("a"), IndexError(" a "), TypeError("a")]
)
def test_check_gives_the_reason_in_one_line(error):
    with pytest.raises(ValueError, match=r"of 5: a$"):
        check(Raises(error), (5,), 2)


@pytest.mark.parametrize(
    "function", [lambda m: check(m, (5,), 2), lambda m: check_batch_of_one(m, (5,))]
)
def test_check_of_an_error_without_a_message(function):
    with pytest.raises(ValueError):
        function(Raises(ValueError()))


def test_check_restores_the_mode_of_each_module():
    made = model(norm="batch").train()
    made.stage1.norm.eval()
    check(made, (1, 28, 28), 10)
    assert made.training
    assert not made.stage1.norm.training


def test_check_batch_of_one():
    check_batch_of_one(model(), (1, 8, 8))
    check_batch_of_one(model(norm="batch"), (1, 8, 8))  # maps of 2×2 are four values
    with pytest.raises(ValueError, match=r"^train\.batch_size=1: the model takes 2 or more"):
        check_batch_of_one(model(norm="batch"), (1, 4, 4))  # maps of 1×1 in the third stage


@pytest.mark.parametrize(
    ("target", "options", "shape", "expected"),
    [
        (CNN, {}, (1, 28, 28), 4),
        (CNN, {"norm": "batch", "width": 8}, (3, 2, 2), 4),
        (LENET, {}, (1, 8, 8), 12),
        (CNN, {}, (1, 100), None),  # one dimension is never enough
        (f"{HERE}.Exact", {}, (1, 5, 5), None),
    ],
)
def test_smallest_input(target, options, shape, expected):
    assert smallest_input(target, options, shape, 10) == expected
    if expected:
        for size, takes in ((expected, True), (expected - 1, False)):
            at = (shape[0], size, size)
            if takes:
                check(build(target, options, at, 10, 0), at, 10)
            else:
                with pytest.raises(ValueError):
                    check(build(target, options, at, 10, 0), at, 10)


class Exact(nn.Module):
    """Takes 28×28 and nothing else."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(784, 10)

    def forward(self, x):
        return self.linear(x.flatten(1))
