"""The backbones: published sizes and names, every input they take, and what they refuse.

Large networks are built on the meta device, where weights have shapes but no values.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from models.blocks import by, scaled
from models.cost import cost
from models.densenet import densenet121, densenet201
from models.ecg1d import ecg1d
from models.inception_v3 import inception_v3
from models.mobilenetv2 import mobilenetv2
from models.resnet import resnet8, resnet18, resnet50
from models.vgg import vgg16, vgg19

torch.set_num_threads(1)

IMAGENET = (3, 224, 224)
CIFAR = (3, 32, 32)

# torchvision's table of classification weights, columns "Params" and "GFLOPS" (multiply-adds):
# num_params and _ops in torchvision/models/*.py, docs.pytorch.org/vision/stable/models.html.
# inception_v3: 27,161,264 there includes the auxiliary head that ours leaves out (next test); its
# GFLOPS do not.
PUBLISHED = [
    (resnet18, IMAGENET, 11_689_512, 1.814),
    (resnet50, IMAGENET, 25_557_032, 4.089),
    (vgg16, IMAGENET, 138_365_992, 15.470),
    (vgg19, IMAGENET, 143_678_248, 19.632),
    (mobilenetv2, IMAGENET, 3_504_872, 0.301),
    (densenet121, IMAGENET, 7_978_856, 2.834),
    (densenet201, IMAGENET, 20_013_928, 4.291),
    (inception_v3, (3, 299, 299), 27_161_264 - 3_326_696, 5.713),
]

LONG = {resnet50, vgg19, densenet201, inception_v3}

# Builder, an input it takes, its smallest input, its smallest input with the other stem.
SMALL = [
    (resnet8, CIFAR, 4, None),
    (resnet18, CIFAR, 8, 32),
    (resnet50, CIFAR, 8, 32),
    (vgg16, CIFAR, 8, 32),
    (vgg19, CIFAR, 8, 32),
    (mobilenetv2, CIFAR, 8, 32),
    (densenet121, CIFAR, 8, 29),
    (densenet201, CIFAR, 8, 29),
    (inception_v3, (3, 75, 75), 75, None),
]
WITH_STEM = [row for row in SMALL if row[3] is not None]


def names(rows):
    return [row[0].__name__ for row in rows]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def on_meta(builder, **arguments) -> nn.Module:
    with torch.device("meta"):
        return builder(**arguments)


@pytest.mark.parametrize(
    ("builder", "shape", "params", "gmacs"),
    [
        pytest.param(*row, id=row[0].__name__, marks=pytest.mark.long if row[0] in LONG else ())
        for row in PUBLISHED
    ],
)
def test_parameters_and_operations_are_the_published_ones(builder, shape, params, gmacs):
    model = on_meta(builder, in_channels=3, num_classes=1000, input_shape=shape)
    found = cost(model, shape)
    assert count(model) == found.params == params
    assert found.flops_forward / 2e9 == pytest.approx(gmacs, abs=6e-4)
    assert found.output_shape == (1000,)


def test_inception_leaves_out_an_auxiliary_head_of_so_many_parameters():
    # torchvision's InceptionAux(768, 1000): 1×1 to 128, 5×5 to 768, each with batch norm; linear.
    conv0 = 768 * 128 + 2 * 128
    conv1 = 128 * 768 * 25 + 2 * 768
    assert conv0 + conv1 + 768 * 1000 + 1000 == 3_326_696


def test_cifar_sizes():
    # ResNet-18: the 7×7 stem of 9,408 weights becomes 3×3 of 1,728; ten classes.
    found = count(on_meta(resnet18, num_classes=10, input_shape=CIFAR))
    assert found == 11_689_512 - 9_408 + 1_728 - 1000 * 513 + 10 * 513
    # kuangliu/pytorch-cifar's VGG('VGG16'): one linear layer on 512 channels.
    assert count(on_meta(vgg16, num_classes=10, input_shape=CIFAR)) == 14_728_266
    # No weight but the classifier's differs from the ImageNet network.
    found = count(on_meta(mobilenetv2, num_classes=10, input_shape=CIFAR))
    assert found == 3_504_872 - 1000 * 1281 + 10 * 1281
    # Stem 432 + 32; blocks 4,672, 14,528, 57,728; head 650.
    assert count(resnet8(num_classes=10, input_shape=CIFAR)) == 78_042


NAMES = {
    resnet18: {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_mean": (64,),
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.running_var": (128,),
        "layer4.1.bn2.bias": (512,),
        "fc.weight": (1000, 512),
    },
    resnet50: {
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer3.5.conv3.weight": (1024, 256, 1, 1),
        "layer4.2.bn3.num_batches_tracked": (),
        "fc.bias": (1000,),
    },
    vgg16: {
        "features.0.weight": (64, 3, 3, 3),
        "features.1.running_mean": (64,),
        "features.40.bias": (512,),
        "features.41.weight": (512,),
        "classifier.0.weight": (4096, 25088),
        "classifier.3.weight": (4096, 4096),
        "classifier.6.weight": (1000, 4096),
    },
    vgg19: {"features.49.weight": (512, 512, 3, 3), "features.50.running_var": (512,)},
    mobilenetv2: {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.2.conv.0.0.weight": (96, 16, 1, 1),
        "features.17.conv.2.weight": (320, 960, 1, 1),
        "features.17.conv.3.bias": (320,),
        "features.18.1.running_mean": (1280,),
        "classifier.1.weight": (1000, 1280),
    },
    densenet121: {
        "features.conv0.weight": (64, 3, 7, 7),
        "features.norm0.weight": (64,),
        "features.denseblock1.denselayer1.norm1.weight": (64,),
        "features.denseblock1.denselayer2.conv1.weight": (128, 96, 1, 1),
        "features.denseblock4.denselayer16.conv2.weight": (32, 128, 3, 3),
        "features.transition1.norm.running_var": (256,),
        "features.transition3.conv.weight": (512, 1024, 1, 1),
        "features.norm5.weight": (1024,),
        "classifier.weight": (1000, 1024),
    },
    densenet201: {"features.denseblock3.denselayer48.norm2.bias": (128,)},
    inception_v3: {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_mean": (192,),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5d.branch_pool.conv.weight": (64, 288, 1, 1),
        "Mixed_6a.branch3x3dbl_3.bn.weight": (96,),
        "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
        "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "fc.weight": (1000, 2048),
    },
}


@pytest.mark.parametrize("builder", NAMES, ids=lambda builder: builder.__name__)
def test_weights_have_torchvisions_names(builder):
    shape = (3, 299, 299) if builder is inception_v3 else IMAGENET
    state = on_meta(builder, in_channels=3, num_classes=1000, input_shape=shape).state_dict()
    found = {name: tuple(state[name].shape) for name in NAMES[builder] if name in state}
    assert found == NAMES[builder]


def train_and_evaluate(model: nn.Module, shape: tuple[int, ...], batch: int) -> None:
    """A training step, then one sample in evaluation mode; everything finite."""
    x = torch.randn(batch, *shape)
    logits: Tensor = model.train()(x)
    F.cross_entropy(logits, torch.arange(batch) % logits.shape[1]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        last = model.eval()(x[:1])
    assert last.shape == (1, logits.shape[1])
    assert last.isfinite().all()


@pytest.mark.parametrize(("builder", "shape", "_minimum", "_other"), SMALL, ids=names(SMALL))
def test_trains_on_small_images(builder, shape, _minimum, _other):
    torch.manual_seed(0)
    model = builder(in_channels=3, num_classes=10, input_shape=shape)
    train_and_evaluate(model, shape, batch=2)


@pytest.mark.parametrize(("builder", "minimum"), [(row[0], row[2]) for row in SMALL[:-1]])
def test_trains_at_its_smallest_image_and_at_28_pixels(builder, minimum):
    torch.manual_seed(0)
    options = {"width": 0.25}
    for size in (minimum, 28):
        shape = (1, size, size + 1)
        model = builder(in_channels=1, num_classes=3, input_shape=shape, **options)
        train_and_evaluate(model, shape, batch=2)


@pytest.mark.parametrize("builder", [resnet8, resnet18, vgg16, vgg19, mobilenetv2, densenet121])
@pytest.mark.parametrize("size", [28, 32])
def test_a_training_batch_of_one_passes_batch_norm(builder, size):
    shape = (1, size, size)
    model = builder(in_channels=1, num_classes=3, input_shape=shape, width=0.25)
    train_and_evaluate(model, shape, batch=1)


@pytest.mark.parametrize("builder", [row[0] for row in WITH_STEM])
def test_narrow_imagenet_networks_run_at_their_smallest_image(builder):
    minimum = {row[0]: row[3] for row in WITH_STEM}[builder]
    shape = (3, minimum, minimum)
    model = builder(num_classes=3, input_shape=shape, stem="imagenet", width=0.125)
    train_and_evaluate(model, shape, batch=2)


@pytest.mark.parametrize(("builder", "shape", "_minimum", "_other"), SMALL, ids=names(SMALL))
def test_can_be_traced_and_nothing_works_in_place(builder, shape, _minimum, _other):
    torch.manual_seed(0)
    options = {} if builder is inception_v3 else {"width": 0.125}
    model = builder(in_channels=3, num_classes=10, input_shape=shape, **options).eval()
    traced = fx.symbolic_trace(model)
    x = torch.randn(3, *shape)
    with torch.no_grad():
        torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)
    assert not any(getattr(module, "inplace", False) for module in model.modules())


@pytest.mark.parametrize(("builder", "shape", "minimum", "other"), SMALL, ids=names(SMALL))
def test_too_small_an_image_is_refused_with_the_smallest_size(builder, shape, minimum, other):
    stems = [({}, minimum)] if other is None else [({}, minimum), ({"stem": "imagenet"}, other)]
    for options, smallest in stems:
        size = smallest - 1
        with pytest.raises(ValueError, match="takes images") as error:
            builder(input_shape=(3, size, size), **options)
        assert str(error.value) == (
            f"{builder.__name__} takes images of at least {by((smallest, smallest))}, "
            f"got {by((3, size, size))}"
        )
    with pytest.raises(ValueError, match="takes images"):
        builder(input_shape=(1, 128))


def test_smallest_images_are_the_smallest():
    """One pixel less does not pass the network itself (stems that any image passes aside)."""
    for builder, size in ((densenet121, 28), (inception_v3, 74)):
        minimum = {densenet121: 29, inception_v3: 75}[builder]
        options = {} if builder is inception_v3 else {"stem": "imagenet"}
        model = on_meta(builder, input_shape=(3, minimum, minimum), **options)
        with pytest.raises(RuntimeError):
            model(torch.zeros(2, 3, size, size, device="meta"))


@pytest.mark.parametrize(
    "builder",
    [pytest.param(row[0], marks=pytest.mark.long if row[0] in LONG else ()) for row in WITH_STEM],
)
def test_stem_follows_the_size_of_the_input(builder):
    def state(shape, stem):
        model = on_meta(builder, input_shape=shape, stem=stem)
        return {name: tensor.shape for name, tensor in model.state_dict().items()}, repr(model)

    large = (3, 64, 64)
    assert state((3, 63, 64), "auto") == state((3, 63, 64), "cifar")
    assert state(large, "auto") == state(large, "imagenet")
    assert state(large, "cifar") == state(CIFAR, "auto")
    assert state(large, "cifar")[1] != state(large, "imagenet")[1]
    with pytest.raises(ValueError, match=r"model\.stem=tiny: takes auto, cifar, imagenet"):
        builder(stem="tiny")


@pytest.mark.parametrize("builder", [row[0] for row in SMALL[:-1]])
def test_width_scales_the_network(builder):
    counts = [count(on_meta(builder, input_shape=CIFAR, width=w)) for w in (0.25, 0.5, 1.0, 2.0)]
    assert counts == sorted(set(counts))
    with pytest.raises(ValueError, match=r"model\.width=0: takes a positive number"):
        builder(width=0)


def test_scaled_is_mobilenets_rule():
    assert [scaled(c, 0.75) for c in (32, 16, 24, 96, 1280)] == [24, 16, 24, 72, 960]
    assert scaled(64, 0.01) == 8
    # 24 × 0.5 = 12 goes up to 16, where rounding down would lose more than 10 %.
    assert scaled(24, 0.5) == 16


def test_initial_weights_follow_torchvisions_rules():
    torch.manual_seed(0)
    resnet = resnet18(input_shape=CIFAR)
    assert resnet.layer4[0].conv1.weight.std().item() == pytest.approx(
        (2 / (9 * 512)) ** 0.5, rel=0.02
    )
    vgg = vgg16(input_shape=CIFAR)
    assert vgg.classifier[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert vgg.features[0].bias.abs().max() == vgg.classifier[0].bias.abs().max() == 0
    dense = densenet121(input_shape=CIFAR)
    fan_in = dense.features.transition3.conv.weight
    assert fan_in.std().item() == pytest.approx((2 / 1024) ** 0.5, rel=0.02)
    assert dense.classifier.bias.abs().max() == 0
    inception = inception_v3(input_shape=(3, 75, 75))
    assert inception.fc.weight.std().item() == pytest.approx(0.1, rel=0.05)


def test_same_random_state_same_weights():
    def weights():
        torch.manual_seed(7)
        return resnet18(width=0.25).state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_resnet8_and_ecg1d_name_their_parts():
    assert [n for n, _ in resnet8().named_children()] == ["stage1", "stage2", "stage3", "head"]
    for convolutions in range(2, 9):
        parts = [name for name, _ in ecg1d(convolutions=convolutions).named_children()]
        assert parts == [f"stage{n}" for n in range(1, convolutions + 2)] + ["head"]


def test_ecg1d_halves_have_the_papers_sizes():
    model = ecg1d(in_channels=1, num_classes=5, input_shape=(1, 128))
    assert count(model.stage1) + count(model.stage2) == 1_424
    assert count(model.stage3) + count(model.head) == 66_309
    # papers.md: 2,048 bytes per sample at fp32.
    cut = model.stage2(model.stage1(torch.zeros(1, 1, 128)))
    assert cut.numel() * cut.element_size() == 2_048


@pytest.mark.parametrize("convolutions", range(2, 9))
def test_ecg1d_keeps_its_server_half_for_any_number_of_convolutions(convolutions):
    model = ecg1d(convolutions=convolutions)
    server = [getattr(model, f"stage{convolutions + 1}"), model.head]
    assert sum(map(count, server)) == 66_309
    train_and_evaluate(model, (1, 128), batch=1)
    fx.symbolic_trace(model)


def test_ecg1d_refuses_short_signals_and_other_depths():
    with pytest.raises(ValueError, match=r"at least 4 samples, got 1.3$"):
        ecg1d(input_shape=(1, 3))
    with pytest.raises(ValueError, match="ecg1d takes signals"):
        ecg1d(input_shape=(1, 28, 28))
    with pytest.raises(ValueError, match=r"model\.convolutions=9: takes 2 to 8"):
        ecg1d(convolutions=9)
    train_and_evaluate(ecg1d(in_channels=2, input_shape=(2, 4)), (2, 4), batch=1)
