"""The 1-D network for heartbeats of Abuadbba et al. 2020 (arXiv 2003.12365), for 128-sample beats.

stage1: Conv1d(1 → 16, k7), LeakyReLU, MaxPool 2; stage2: Conv1d(16 → 16, k5), LeakyReLU, MaxPool 2;
then, cut there in the paper, linear layers 512 → 128 → 5 on the server. With two convolutions at
1×128 and five classes the client's half has 1,424 parameters and the server's 66,309.

The paper also gives the client up to eight convolutions without saying how they are pooled. Here
each further one is a stage Conv1d(16 → 16, k5), LeakyReLU that keeps the length, so that the
server's half stays the same. With n convolutions the parts are stage1 … stage{n}, then stage{n+1}
(flatten, first linear layer, LeakyReLU), then head (last linear layer): cut at stage{n} for the
paper's split. Other deviation: no softmax before the cross-entropy loss.
"""

from collections import OrderedDict

from torch import Tensor, nn

from models.blocks import by

CHANNELS = 16
HIDDEN = 128
NUM_POOLED = 2
"""Convolutions followed by pooling: the first two."""


def ecg1d(
    in_channels: int = 1,
    num_classes: int = 5,
    input_shape: tuple[int, ...] = (1, 128),
    convolutions: int = 2,
) -> nn.Module:
    """The network for signals (C, L) of at least 4 samples, with 2 to 8 convolutions; see `ECG1d`.

    Raises:
        ValueError: another number of convolutions, or a signal that is too short.
    """
    if not 2 <= convolutions <= 8:
        raise ValueError(f"model.convolutions={convolutions}: takes 2 to 8")
    if len(input_shape) != 2 or input_shape[1] < 2**NUM_POOLED:
        raise ValueError(
            f"ecg1d takes signals (C, L) of at least {2**NUM_POOLED} samples, got {by(input_shape)}"
        )
    return ECG1d(in_channels, num_classes, input_shape[1], convolutions)


class ECG1d(nn.Module):
    """Convolutional stages, a hidden linear stage, and a linear head.

    Args:
        in_channels: channels of the signal.
        num_classes: width of the output.
        length: samples of the signal; the hidden layer is sized by it.
        convolutions: number of convolutional stages.

    Shapes: (B, in_channels, length) → (B, num_classes).
    """

    def __init__(self, in_channels: int, num_classes: int, length: int, convolutions: int) -> None:
        super().__init__()
        stages = [_stage(in_channels, kernel=7, pool=True)]
        stages += [_stage(CHANNELS, kernel=5, pool=n < NUM_POOLED) for n in range(1, convolutions)]
        stages.append(
            nn.Sequential(
                OrderedDict(
                    flatten=nn.Flatten(),
                    linear=nn.Linear(CHANNELS * (length // 2**NUM_POOLED), HIDDEN),
                    relu=nn.LeakyReLU(),
                )
            )
        )
        self.num_stages = len(stages)
        for number, stage in enumerate(stages, start=1):
            self.add_module(f"stage{number}", stage)
        self.head = nn.Linear(HIDDEN, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, length) → (B, num_classes)."""
        for number in range(1, self.num_stages + 1):
            x = getattr(self, f"stage{number}")(x)
        logits: Tensor = self.head(x)
        return logits


def _stage(in_channels: int, kernel: int, pool: bool) -> nn.Sequential:
    """(B, C, L) → (B, 16, L // 2) with pooling, else (B, 16, L)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv1d(in_channels, CHANNELS, kernel, padding=kernel // 2), relu=nn.LeakyReLU()
    )
    if pool:
        layers["pool"] = nn.MaxPool1d(2)
    return nn.Sequential(layers)
