"""Binarized split learning (Pham et al. 2021, doi 10.1063/5.0066470; B-SL, arXiv 2206.04864).

The device's part has ±1 weights and ±1 activations (`quant.binary`), so that one bit a value
crosses; the server's part is real. Two measures against leakage, alone or together:

    leak loss   the device adds λ·mean over channels of dCor(x, z) to what comes back
    noise       Laplace noise on z before it is sent, scale (max − min)/ε (arXiv 2003.12365)

Only the abstracts were at hand; binarized_split.md lists what is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from app import messages
from app.messages import unpack_settings
from models.privacy import channel_leakage, laplace_noise
from models.split import cut_many
from quant.binary import BinarySpec, binarize, clip_latent
from quant.codec import LinkSettings
from strategies import split_learning
from strategies.base import FederatedStrategy, Test
from strategies.local import ClientData, Streams, Update
from strategies.split_base import Joined, SplitStrategy
from strategies.split_learning import Guard, Halves, Split

BINARIZE = ("client", "both", "none")
PROBES = 500  # test samples that the leakage is measured on: its cost is quadratic in them


@dataclass(frozen=True)
class Binarized:
    """What is binary.

    Attributes:
        what: ``client`` (the device's part), ``both`` (the whole network) or ``none``.
        estimator: gradient of the activations' sign, see `quant.binary`.
        scale: whether each channel is scaled by its mean |weight|.
    """

    what: str = "client"
    estimator: str = "clip"
    scale: bool = False

    def __post_init__(self) -> None:
        if self.what not in BINARIZE:
            raise ValueError(f"strategy.binarize={self.what}: takes {', '.join(BINARIZE)}")

    def spec(self) -> BinarySpec:
        """Return what `binarize` takes."""
        return BinarySpec(estimator=self.estimator, scale=self.scale)


@dataclass(frozen=True)
class Privacy:
    """What is done against leakage.

    Attributes:
        dcor_weight: λ; 0 for no leak loss.
        epsilon: ε of the noise; 0 for none.
    """

    dcor_weight: float = 0.0
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dcor_weight < float("inf"):
            raise ValueError(f"privacy.dcor_weight={self.dcor_weight}: takes 0 or more, and finite")
        if not 0 <= self.epsilon < float("inf"):
            raise ValueError(f"privacy.epsilon={self.epsilon}: takes a positive number, or null")


class BinarizedSplit(SplitStrategy):
    """Server half; `strategies.on_base.on_base` puts it on a base.

    Args:
        binarize: what is binary: ``client``, ``both`` or ``none``.
        estimator: gradient of the activations' sign.
        scale: whether channels are scaled by their mean |weight|.
        privacy: leak loss and noise.
        common: arguments of `SplitStrategy`. Where the device's part is binary, ``link.up=fp32``
            stands for ``sign``: ±1 is one bit.
    """

    reads: ClassVar[tuple[str, ...]] = (
        "split.cut", "link", "fleet.objective", "train.server_lr", "privacy",
    )  # fmt: skip
    takes_mapping: ClassVar[bool] = False

    def __init__(
        self,
        *,
        binarize: str = "client",
        estimator: str = "clip",
        scale: bool = False,
        privacy: Privacy | None = None,
        **common: Any,
    ) -> None:
        self.binarized = Binarized(binarize, estimator, scale)
        self.binarized.spec()  # checks the estimator
        self.privacy = privacy or Privacy()
        link = common.get("link") or LinkSettings()
        if binarize != "none" and link.up == "fp32":
            common["link"] = replace(link, up="sign")
        super().__init__(**common)

    def prepare(self, model: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
        """Cut the network and binarize its parts.

        Raises:
            ValueError: as `SplitStrategy`, or a layer has no binary form.
        """
        super().prepare(model, input_shape)
        for split in self._halves:
            try:
                self._halves[split] = parts = binarized(model, split, self.binarized)
            except ValueError as error:
                raise ValueError(f"strategy.binarize={self.binarized.what}: {error}") from error
            self._names[split] = parts.device_names()
        self._costs = {}
        return FederatedStrategy.prepare(self, Whole(parts), input_shape)

    def client_config(self) -> dict[str, bool | int | float | str]:
        """As `SplitStrategy`, what is binary, and the measures against leakage."""
        own = messages.pack_settings(binarized=self.binarized, privacy=self.privacy)
        return super().client_config() | own

    def evaluate(self, arrays: Mapping[str, Tensor], test: Test) -> dict[str, float]:
        """Test through the link, and measure what the cut says about the input."""
        (parts,) = self._halves.values()
        network = Observed(parts, arrays, self.link)
        accuracy, loss = test(network)
        leakage = channel_leakage(network.x, network.z)
        return {
            "accuracy": accuracy,
            "loss": loss,
            "dcor_max": float(leakage.max()),
            "dcor_mean": float(leakage.mean()),
        }


def binarized(model: nn.Module, split: Split, settings: Binarized) -> Halves:
    """Cut ``model``, with the parts binarized that are to be."""
    spec = settings.spec()
    if settings.what == "both":
        model = binarize(model, spec, sign_output=False)
    first, server = cut_many(model, [split.cut])
    return Halves((binarize(first, spec) if settings.what == "client" else first,), server)


class Whole(nn.Module):
    """The parts as one network, whose state has the parts' names."""

    def __init__(self, parts: Halves) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts.parts)

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → (B, classes)."""
        for part in self.parts:
            x = part(x)
        return x

    def state_dict(  # type: ignore[override]
        self, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Of all parts."""
        return {name: t for part in self.parts for name, t in part.state_dict().items()}

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """Of all parts."""
        for part in self.parts:
            yield from part.named_parameters(remove_duplicate=False)


class Observed(Joined):
    """The joined network, which keeps the first inputs and activations that it sees."""

    x: Tensor
    z: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → (B, classes)."""
        first, server = self.parts
        z = self._link.send_up(first(x)).values
        if not hasattr(self, "x"):
            self.x, self.z = x[:PROBES], z[:PROBES]
        output: Tensor = server(z)
        return output


# The client half ----------------------------------------------------------------------------------


class Shield(Guard):
    """Keeps latent weights in [−1, 1], and what crosses from saying too much."""

    def __init__(self, privacy: Privacy, generator: torch.Generator) -> None:
        self._privacy = privacy
        self._generator = generator

    def disguise(self, z: Tensor) -> Tensor:
        """Add noise."""
        epsilon = self._privacy.epsilon
        return laplace_noise(z, epsilon, self._generator) if epsilon else z

    def leak(self, x: Tensor, z: Tensor) -> Tensor | None:
        """λ · mean dCor; a batch of one has none."""
        weight = self._privacy.dcor_weight
        return weight * channel_leakage(x, z).mean() if weight and len(x) > 1 else None

    def stepped(self, part: nn.Module) -> None:
        """Clip."""
        clip_latent(part)


def prepare(model: nn.Module, config: Mapping[str, Any]) -> Halves:
    """Clients train the binarized parts."""
    split = unpack_settings(config, "split", Split)
    return binarized(model, split, unpack_settings(config, "binarized", Binarized))


def train(
    model: Halves,
    arrays: Mapping[str, Tensor],
    data: ClientData,
    config: Mapping[str, Any],
    streams: Streams,
) -> Update:
    """Client half: split learning's, shielded."""
    privacy = unpack_settings(config, "privacy", Privacy)
    guard = Shield(privacy, streams.generator("privacy"))
    return split_learning.train(model, arrays, data, config, streams, guard)
