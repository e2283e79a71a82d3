"""State, parameters and modules are those that torch gives, in its order."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations

from models.lenet5 import LeNet5
from models.mobilenetv2 import mobilenetv2
from models.resnet import ResNet8
from models.split import cut
from models.state import modules_of, parameters_of, state_of
from quant.layers import QuantSpec, quantize
from tests.models.zoo.networks import ZOO


def assert_as_torch(model: nn.Module) -> None:
    found, wanted = state_of(model), model.state_dict()
    assert list(found) == list(wanted)
    for name, tensor in found.items():
        assert tensor.requires_grad == wanted[name].requires_grad
        if not is_lazy(tensor) and not name.endswith("_extra_state"):
            assert tensor.shape == wanted[name].shape and tensor.dtype == wanted[name].dtype
            assert tensor.data_ptr() == wanted[name].data_ptr()
    named = list(model.named_parameters())
    assert [name for name, _ in parameters_of(model)] == [name for name, _ in named]
    assert all(a is b for (_, a), (_, b) in zip(parameters_of(model), named, strict=True))
    assert {id(one) for one in modules_of(model)} == {id(one) for one in model.modules()}
    assert len(modules_of(model)) == len(list(model.modules()))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_networks_of_others(name: str) -> None:
    assert_as_torch(ZOO[name].make())


@pytest.mark.parametrize("model", [LeNet5(), ResNet8(3, 10), mobilenetv2(3, 10, width=0.25)])
def test_ours_plain_and_quantized(model: nn.Module) -> None:
    assert_as_torch(model)
    assert_as_torch(quantize(model, QuantSpec()))


class More(nn.Linear):
    """Keeps more than torch does."""

    def get_extra_state(self) -> Tensor:
        return torch.ones(3)

    def set_extra_state(self, state: Tensor) -> None: ...


class Otherwise(nn.Linear):
    """Keeps it under other names."""

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        destination[f"{prefix}kernel"] = self.weight.detach()


def shared() -> nn.Module:
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.ReLU(), layer)


def tied() -> nn.Module:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    return nn.ModuleDict({"b": first, "a": second})


def hooked() -> nn.Module:
    layer = nn.Linear(2, 2)

    def rename(_module, state, prefix, _meta) -> None:
        state[f"{prefix}w"] = state.pop(f"{prefix}weight")

    layer.register_state_dict_post_hook(rename)
    return nn.Sequential(layer)


def passing() -> nn.Module:
    model = nn.BatchNorm2d(3)
    model.register_buffer("kept", torch.ones(2))
    model.register_buffer("gone", torch.ones(2), persistent=False)
    model.register_parameter("none", None)
    return model


ODD: dict[str, Callable[[], nn.Module]] = {
    "extra state": lambda: nn.Sequential(More(2, 2)),
    "other names": lambda: nn.Sequential(Otherwise(2, 2)),
    "one module twice": shared,
    "one weight twice": tied,
    "a hook": hooked,
    "buffers that pass": passing,
    "nothing": nn.Identity,
    "parametrized": lambda: parametrizations.weight_norm(nn.Linear(2, 2)),
    "none within": lambda: nn.ModuleList([nn.Linear(1, 1)]),
}


@pytest.mark.parametrize("name", ODD)
def test_what_keeps_it_otherwise(name: str) -> None:
    assert_as_torch(ODD[name]())


def test_parts_of_a_cut() -> None:
    for part in cut(LeNet5(), "stage1", torch.zeros(2, 1, 28, 28)):
        assert_as_torch(part)
