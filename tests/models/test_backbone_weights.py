"""Loading files of weights by name, and what does not fit."""

from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.densenet import densenet121
from models.inception_v3 import inception_v3
from models.resnet import resnet18
from models.vgg import vgg16
from models.weights import load_weights

torch.set_num_threads(1)

NARROW = {"width": 0.125}


@pytest.fixture
def file(tmp_path):
    """Write a state dict, such as a model's, and give its path."""

    def write(state):
        path = tmp_path / "weights.pth"
        torch.save(state.state_dict() if isinstance(state, nn.Module) else state, path)
        return path

    return write


def equal(first, second, without=()):
    first, second = first.state_dict(), second.state_dict()
    return all(
        torch.equal(first[name], second[name]) for name in first if not name.startswith(without)
    )


def test_loads_by_name(file):
    source, target = resnet18(**NARROW), resnet18(**NARROW)
    assert not equal(source, target)
    load_weights(target, file(source))
    assert equal(source, target)


def test_a_safetensors_file_loads_too(tmp_path):
    source, target = resnet18(**NARROW), resnet18(**NARROW)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    load_weights(target, tmp_path / "model.safetensors")
    assert equal(source, target)
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_weights(target, tmp_path / "model.safetensors")


def test_older_files_without_counters_load(file):
    source, target = resnet18(**NARROW), resnet18(**NARROW)
    state = {n: t for n, t in source.state_dict().items() if not n.endswith("batches_tracked")}
    load_weights(target, file(OrderedDict(state)))
    assert equal(source, target)


def test_a_head_of_other_classes_is_refused_or_replaced(file):
    source = resnet18(num_classes=1000, **NARROW)
    target = resnet18(num_classes=10, **NARROW)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    path = file(source)
    with pytest.raises(ValueError, match=r"1000 classes.*for 10.*replace_head.*new fc$"):
        load_weights(target, path)
    assert all(torch.equal(before[name], t) for name, t in target.state_dict().items())
    load_weights(target, path, replace_head=True)
    assert equal(target, source, without=("fc.",))
    assert torch.equal(target.fc.weight, before["fc.weight"])
    assert torch.equal(target.fc.bias, before["fc.bias"])


def test_replace_head_keeps_the_fresh_head_of_equal_classes_too(file):
    source, target = resnet18(**NARROW), resnet18(**NARROW)
    fresh = target.fc.weight.clone()
    load_weights(target, file(source), replace_head=True)
    assert torch.equal(target.fc.weight, fresh)


def test_vgg_keeps_the_hidden_layers_that_fit_or_replaces_the_whole_classifier(file):
    shape = (3, 64, 64)
    source = vgg16(num_classes=20, input_shape=shape, **NARROW)
    path = file(source)
    large = vgg16(num_classes=10, input_shape=shape, **NARROW)
    load_weights(large, path, replace_head=True)
    assert torch.equal(large.classifier[3].weight, source.classifier[3].weight)
    assert large.classifier[6].weight.shape[0] == 10
    small = vgg16(num_classes=10, input_shape=(3, 32, 32), **NARROW)
    with pytest.raises(ValueError, match=r"unexpected classifier\.3\.weight"):
        load_weights(small, path)
    load_weights(small, path, replace_head=True)
    assert equal(small, source, without=("classifier.",))


def test_densenets_older_names_are_understood(file):
    source, target = densenet121(**NARROW), densenet121(**NARROW)
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): tensor
        for name, tensor in source.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    load_weights(target, file(old))
    assert equal(source, target)


def test_inceptions_auxiliary_head_is_skipped(file):
    with torch.device("meta"):
        source = inception_v3(num_classes=10)
    state = {name: torch.full(t.shape, 2, dtype=t.dtype) for name, t in source.state_dict().items()}
    target = inception_v3(num_classes=10)
    load_weights(target, file({**state, "AuxLogits.fc.weight": torch.zeros(10, 768)}))
    assert (target.fc.weight == 2).all()


def test_names_and_shapes_that_do_not_fit_are_listed(file):
    state = resnet18(**NARROW).state_dict()
    missing = {n: t for n, t in state.items() if not n.startswith("layer1")}
    with pytest.raises(
        ValueError, match=r"missing layer1\.0\.conv1\.weight, .* and 17 more"
    ) as error:
        load_weights(resnet18(**NARROW), file(missing))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"unexpected extra$"):
        load_weights(resnet18(**NARROW), file({**state, "extra": torch.zeros(1)}))
    imagenet = resnet18(stem="imagenet", **{**NARROW, "input_shape": (3, 32, 32)})
    with pytest.raises(ValueError, match=r"conv1.weight is \(8, 3, 7, 7\) there, \(8, 3, 3, 3\)"):
        load_weights(resnet18(**NARROW), file(imagenet))


def test_files_that_are_no_weights_are_refused(file, tmp_path):
    model = resnet18(**NARROW)
    with pytest.raises(ValueError, match="No such file"):
        load_weights(model, tmp_path / "absent.pth")
    text = tmp_path / "text.pth"
    text.write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="is not a weights file saved by"):
        load_weights(model, text)
    empty = tmp_path / "empty.pth"
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match="is not a weights file saved by"):
        load_weights(model, empty)
    with pytest.raises(ValueError, match="no state dict"):
        load_weights(model, file([torch.zeros(1)]))
    pickled = tmp_path / "model.pth"
    torch.save(nn.ReLU(), pickled)
    with pytest.raises(ValueError, match="is not a weights file saved by"):
        load_weights(model, pickled)


@pytest.mark.parametrize("prefixes", [(), ("module.",), ("model.",), ("module.", "_orig_mod.")])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict"])
def test_checkpoints_of_training_programs_load_and_say_so(file, prefixes, wrapper):
    own = resnet18(**NARROW).state_dict()
    state = {"".join(prefixes) + name: tensor for name, tensor in own.items()}
    if wrapper:
        optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
        state = {"epoch": 3, "best": 0.5, "optimizer": optimizer, wrapper: state, "args": None}
    model = resnet18(**NARROW)
    said = load_weights(model, file(state))
    assert all(own[name].equal(tensor) for name, tensor in model.state_dict().items())
    assert len(said) == len(prefixes) + bool(wrapper)
    for word in (*prefixes, *([wrapper] if wrapper else [])):
        assert any(repr(word) in text for text in said)


def test_a_prefix_of_the_models_own_stays(file):
    model = nn.Sequential()
    model.add_module("module", nn.Linear(2, 3))
    weights = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    assert load_weights(model, file(weights)) == []
    assert model.module.weight.eq(1).all()


def test_a_pickled_model_says_what_it_names(tmp_path):
    torch.save(nn.ReLU(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"it names torch\.nn\.modules\.activation ReLU, which"):
        load_weights(resnet18(**NARROW), tmp_path / "model.pth")
