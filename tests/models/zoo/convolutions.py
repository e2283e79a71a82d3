"""Convolutional networks, small, written as their authors and users write them."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.models.zoo.entry import CLASSES, IMAGE, SIGNAL, Entry, InputSpec


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def conv_bn(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1,
            act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:  # fmt: skip
    return nn.Sequential(
        conv(inputs, outputs, size, stride, groups), nn.BatchNorm2d(outputs), act()
    )


class Head(nn.Module):
    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.features, self.fc = body, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = F.adaptive_avg_pool2d(x, 1)
        return self.fc(torch.flatten(x, 1))


class PlainCNN(nn.Module):
    """PyTorch's tutorial on CIFAR-10: view() after a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.pool = nn.Conv2d(3, 6, 5), nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 3)
        self.fc1, self.fc2 = nn.Linear(16 * 2 * 2, 24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, self.num_flat_features(x))
        return self.fc2(F.relu(self.fc1(x)))

    def num_flat_features(self, x: Tensor) -> int:
        size = x.size()[1:]
        num_features = 1
        for s in size:
            num_features *= s
        return num_features


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int = 1, inplace_sum: bool = True) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes), nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != planes:
            self.downsample = nn.Sequential(conv(inputs, planes, 1, stride), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, planes: int, groups: int = 1, se: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, planes, 1), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3, groups=groups), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = conv(planes, inputs, 1), nn.BatchNorm2d(inputs)
        self.se = SqueezeExcite(inputs) if se else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.se(self.bn3(self.conv3(out)))
        out += x
        return F.relu(out)


class PreAct(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), conv(width, width)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        return out + shortcut


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, 4), nn.ReLU(inplace=True), nn.Linear(4, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class CBAM(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(channels, 4), nn.ReLU(), nn.Linear(4, channels)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        total = None
        for pool in (F.avg_pool2d, F.max_pool2d):
            raw = self.mlp(pool(x, (x.size(2), x.size(3))))
            total = raw if total is None else total + raw
        x = x * torch.sigmoid(total).unsqueeze(2).unsqueeze(3).expand_as(x)
        pooled = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * torch.sigmoid(self.spatial(pooled))


class ECA(nn.Module):
    """Channel attention by a 1-D convolution over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        k = int(abs((math.log2(channels) + 1) / 2)) | 1
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * y.sigmoid()


class DenseLayer(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), conv(inputs, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, F.dropout(self.conv(F.relu(self.norm(x))), 0.1, self.training)], 1)


class Inception(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.b1 = conv_bn(inputs, 4, 1)
        self.b2 = nn.Sequential(conv_bn(inputs, 4, 1), conv_bn(4, 6, 3))
        self.b3 = nn.Sequential(conv_bn(inputs, 2, 1), conv_bn(2, 4, 5))
        self.b4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(inputs, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([b(x) for b in (self.b1, self.b2, self.b3, self.b4)], 1)


class GoogLeNet(nn.Module):
    """Auxiliary logits in training, in a named tuple's place a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = conv_bn(3, 8), Inception(8)
        self.aux, self.fc = nn.Linear(16, CLASSES), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.block(self.stem(x)).mean((2, 3))
        if self.training:
            return self.fc(x), self.aux(x)
        return self.fc(x)


class Fire(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.squeeze, self.act = nn.Conv2d(inputs, 4, 1), nn.ReLU(inplace=True)
        self.expand1x1, self.expand3x3 = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.squeeze(x))
        return torch.cat([self.act(self.expand1x1(x)), self.act(self.expand3x3(x))], 1)


class InvertedResidual(nn.Module):
    def __init__(self, width: int, act: Callable[[], nn.Module], se: bool) -> None:
        super().__init__()
        mid = 2 * width
        layers = [conv_bn(width, mid, 1, act=act), conv_bn(mid, mid, 3, groups=mid, act=act)]
        if se:
            layers.append(SqueezeExcite(mid))  # type: ignore[arg-type]
        self.conv = nn.Sequential(*layers, conv(mid, width, 1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class MBConv(InvertedResidual):
    """EfficientNet's block: swish and stochastic depth by torch's random numbers."""

    def __init__(self, width: int) -> None:
        super().__init__(width, nn.SiLU, True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.training:
            keep = 0.8
            mask = keep + torch.rand([y.shape[0], 1, 1, 1], dtype=y.dtype, device=y.device)
            y = y / keep * torch.floor(mask)
        return x + y


class Skipped(nn.Module):
    """Stochastic depth by control flow: a block of its own, or in the network's forward."""

    def __init__(self, body: nn.Module, draw: str) -> None:
        super().__init__()
        self.body, self.draw = body, draw

    def forward(self, x: Tensor) -> Tensor:
        if self.draw == "torch":
            skip = self.training and torch.rand(1).item() < 0.3
        else:
            import random

            skip = self.training and random.random() < 0.3
        return x if skip else x + self.body(x)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    batch_size, num_channels, height, width = x.size()
    x = x.view(batch_size, groups, num_channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch_size, num_channels, height, width)


class Shuffle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(conv_bn(half, half, 1), conv_bn(half, half, 3, groups=half))

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat((x1, self.branch(x2)), dim=1), 2)


class Ghost(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.primary, self.cheap = conv_bn(width, half, 1), conv_bn(half, half, 3, groups=half)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        x1 = self.primary(x)
        out = torch.cat([x1, self.cheap(x1)], dim=1)[:, : self.width, :, :]
        out += residual
        return out


class LayerNorm2d(nn.Module):
    """ConvNeXt's layer norm over channels first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), nn.LayerNorm(dim)
        self.pwconv1, self.act = nn.Linear(dim, 2 * dim), nn.GELU()
        self.pwconv2, self.gamma = nn.Linear(2 * dim, dim), nn.Parameter(0.1 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


class ScaledStdConv2d(nn.Conv2d):
    """NFNet's convolution: its weight is standardised each time."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        mean, var = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), keepdim=True)
        w = self.gain * (w - mean) / torch.sqrt(var * w[0].numel() + 1e-4)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class DynamicSamePad(nn.Conv2d):
    """efficientnet_pytorch's convolution: pads by the size of what comes."""

    def forward(self, x: Tensor) -> Tensor:
        ih, iw = x.size()[-2:]
        kh, kw = self.weight.size()[-2:]
        oh, ow = math.ceil(ih / self.stride[0]), math.ceil(iw / self.stride[1])
        pad_h = max((oh - 1) * self.stride[0] + kh - ih, 0)
        pad_w = max((ow - 1) * self.stride[1] + kw - iw, 0)
        if pad_h > 0 or pad_w > 0:
            x = F.pad(x, [pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride)


class RepVGG(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense, self.point = conv(width, width), conv(width, width, 1)
        self.identity = nn.BatchNorm2d(width)

    def forward(self, inputs: Tensor) -> Tensor:
        id_out = 0 if self.identity is None else self.identity(inputs)
        return F.relu(self.dense(inputs) + self.point(inputs) + id_out)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv_bn(3, 4), conv_bn(4, 8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.last, self.fc = conv_bn(8, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x)
        x = self.up(self.down2(F.max_pool2d(skip, 2)))
        dy, dx = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
        x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.fc(self.last(torch.cat([skip, x], dim=1)).mean((2, 3)))


class FPN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = conv_bn(3, 4), conv_bn(4, 8, 3, 2), conv_bn(8, 8, 3, 2)
        self.lateral = nn.ModuleList([nn.Conv2d(w, 6, 1) for w in (4, 8, 8)])
        self.fc = nn.Linear(18, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        c1 = self.c1(x)
        c2 = self.c2(c1)
        feats = [c1, c2, self.c3(c2)]
        p = [lat(f) for lat, f in zip(self.lateral, feats, strict=True)]
        for i in (1, 0):
            p[i] = p[i] + F.interpolate(p[i + 1], size=p[i].shape[-2:], mode="nearest")
        return self.fc(torch.cat([level.mean((2, 3)) for level in p], 1))


class Generator(nn.Module):
    """DCGAN's generator as a classifier's body."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            conv(3, 8, 3, 2), nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6),
            nn.ReLU(True), nn.ConvTranspose2d(6, 4, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.main(x).mean((-2, -1)))


class Capsules(nn.Module):
    """Dynamic routing between capsules, three iterations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.primary = nn.Conv2d(3, 8, 5, 2), nn.Conv2d(8, 8, 3, 2)
        self.W = nn.Parameter(0.1 * torch.randn(1, 8, CLASSES, 6, 4))

    def forward(self, x: Tensor) -> Tensor:
        u = self.primary(F.relu(self.conv(x)))
        u = u.reshape(u.size(0), -1, 4)
        u = u / (1 + u.norm(dim=-1, keepdim=True))
        u_hat = torch.matmul(self.W, u[:, :, None, :, None]).squeeze(-1)
        b = torch.zeros(u.size(0), u.size(1), CLASSES, device=x.device)
        for i in range(3):
            c = F.softmax(b, dim=2)
            s = (c.unsqueeze(-1) * u_hat).sum(1)
            norm = s.norm(dim=-1, keepdim=True)
            v = s * norm / (1 + norm**2)
            if i < 2:
                b = b + (u_hat * v[:, None]).sum(-1)
        return v.norm(dim=-1)


class MaxBlurPool(nn.Module):
    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        a = torch.tensor([1.0, 2.0, 1.0])
        filt = a[:, None] * a[None, :] / 16
        self.register_buffer("filt", filt[None, None].repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(x, 2, 1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.filt, stride=2, groups=x.shape[1])


class Res2(nn.Module):
    """Res2Net: a hierarchy of groups, with a list of pieces."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv_bn(width // 4, width // 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        spx = torch.split(x, x.size(1) // 4, 1)
        out = sp = spx[0]
        for i, c in enumerate(self.convs):
            sp = c(sp + spx[i + 1])
            out = torch.cat((out, sp), 1)
        return out + x


class FrozenNorm(nn.Module):
    """Detection code: train() keeps batch norm in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(conv_bn(3, 8), conv_bn(8, 8)), nn.Linear(8, CLASSES)

    def train(self, mode: bool = True) -> "FrozenNorm":
        super().train(mode)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean([2, 3]))


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 8, 3, stride=2)
        self.bn, self.fc = nn.BatchNorm3d(4), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv1(x)))
        return self.fc(F.adaptive_avg_pool3d(F.relu(self.conv2(x)), 1).view(x.size(0), -1))


class R2Plus1D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Conv3d(1, 4, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.temporal = nn.Conv3d(4, 8, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.temporal(self.spatial(x).relu_()).relu_().flatten(2).mean(-1))


def wrapped(block: Callable[[int], nn.Module], width: int = 8, outputs: int = 8) -> nn.Module:
    return Head(nn.Sequential(conv_bn(3, width), block(width)), outputs)


def normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    body = nn.Sequential(norm(nn.Conv2d(3, 8, 3)), nn.LeakyReLU(0.2), norm(nn.Conv2d(8, 8, 3, 2)))
    return Head(nn.Sequential(*body, nn.LeakyReLU(0.2)), 8)


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 12)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    head = [nn.Linear(192, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, CLASSES)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


def hardswish_net() -> nn.Module:
    return wrapped(lambda w: InvertedResidual(w, nn.Hardswish, True))


def nfnet() -> nn.Module:
    return Head(nn.Sequential(ScaledStdConv2d(3, 8), nn.GELU(), ScaledStdConv2d(8, 8)), 8)


def same_padding() -> nn.Module:
    body = [DynamicSamePad(3, 8, 3, 2), nn.BatchNorm2d(8), nn.SiLU(), DynamicSamePad(8, 8, 5, 2)]
    return Head(nn.Sequential(*body), 8)


def convnext() -> nn.Module:
    return Head(nn.Sequential(nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8), ConvNeXtBlock(8)), 8)


VOLUME = InputSpec((1, 6, 8, 8))

CONVOLUTIONS = {
    "tutorial": Entry("plain CNN", PlainCNN),
    "vgg": Entry("VGG", vgg),
    "resnet basic": Entry("ResNet", lambda: wrapped(lambda w: BasicBlock(w, 12, 2), 8, 12)),
    "resnet bottleneck": Entry("ResNet", lambda: wrapped(lambda w: Bottleneck(w, 4))),
    "resnext": Entry("ResNeXt", lambda: wrapped(lambda w: Bottleneck(w, 8, groups=4))),
    "preact resnet": Entry("pre-activation ResNet", lambda: wrapped(PreAct)),
    "se resnet": Entry("SENet", lambda: wrapped(lambda w: Bottleneck(w, 8, se=True))),
    "cbam": Entry("CBAM", lambda: wrapped(CBAM)),
    "eca": Entry("ECA", lambda: wrapped(ECA)),
    "densenet": Entry("DenseNet", lambda: wrapped(
        lambda w: nn.Sequential(DenseLayer(w), DenseLayer(w + 4)), 8, 16)),
    "inception": Entry("Inception", lambda: wrapped(Inception, 8, 16)),
    "googlenet": Entry("auxiliary logits", GoogLeNet),
    "squeezenet": Entry("SqueezeNet", lambda: wrapped(Fire, 8, 12)),
    "mobilenet v1": Entry("MobileNet", lambda: wrapped(
        lambda w: nn.Sequential(conv_bn(w, w, 3, groups=w), conv_bn(w, 12, 1)), 8, 12)),
    "mobilenet v2": Entry("MobileNet", lambda: wrapped(
        lambda w: InvertedResidual(w, nn.ReLU6, False))),
    "mobilenet v3": Entry("MobileNet", hardswish_net),
    "efficientnet": Entry("EfficientNet", lambda: wrapped(MBConv)),
    "same padding": Entry("EfficientNet", same_padding),
    "shufflenet": Entry("ShuffleNet", lambda: wrapped(Shuffle)),
    "ghostnet": Entry("GhostNet", lambda: wrapped(Ghost)),
    "convnext": Entry("ConvNeXt", convnext),
    "nfnet": Entry("NFNet", nfnet),
    "repvgg": Entry("RepVGG", lambda: wrapped(RepVGG)),
    "res2net": Entry("Res2Net", lambda: wrapped(Res2)),
    "blur pool": Entry("anti-aliased CNN", lambda: wrapped(MaxBlurPool)),
    "weight norm": Entry("weight_norm", lambda: normed(weight_norm)),
    "spectral norm": Entry("spectral_norm", lambda: normed(spectral_norm)),
    "stochastic depth torch": Entry("stochastic depth", lambda: wrapped(
        lambda w: nn.Sequential(Skipped(conv_bn(w, w), "torch"), conv_bn(w, w)))),
    "stochastic depth python": Entry("stochastic depth", lambda: wrapped(
        lambda w: nn.Sequential(Skipped(conv_bn(w, w), "python"), conv_bn(w, w)))),
    "unet": Entry("U-Net", UNet),
    "fpn": Entry("FPN", FPN),
    "transposed": Entry("transposed convolution", Generator),
    "capsules": Entry("capsules", Capsules),
    "frozen norm": Entry("frozen batch norm", FrozenNorm),
    "3-d": Entry("3-D convolution", Volume, VOLUME),
    "r(2+1)d": Entry("3-D convolution", R2Plus1D, VOLUME),
}  # fmt: skip
__all__ = ["CONVOLUTIONS", "IMAGE", "SIGNAL"]
