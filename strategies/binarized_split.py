"""Binarized split learning (Pham et al. 2021, doi 10.1063/5.0066470; B-SL, arXiv 2206.04864).

The device's part has ±1 weights and ±1 activations (`quant.binary`), so that one bit a value
crosses; the server's part is real. Two measures against leakage, alone or together:

    leak loss   the device adds λ·(mean + max over channels of dCor(x, z))/2 to what comes back
    noise       Laplace noise on z before it is sent, scale (max − min)/ε (arXiv 2003.12365)

What still gets out is measured at each evaluation, on what crosses: distance correlation with the
input, and how well an attacker's decoder draws the input from it.

Only the abstracts were at hand; binarized_split.md lists what is ours.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from fleet.clock import Rule
from fleet.seeds import derive_seed
from models.inputs import Inputs, spec_of
from models.split import cut_many
from privacy.attacks import reconstruct
from privacy.leakage import channel_leakage, laplace_noise
from privacy.settings import PrivacySettings
from quant.binary import BinarySpec, binarize, clip_latent
from quant.codec import LinkSettings
from quant.link import carried
from strategies import messages
from strategies.client.split_loop import CutAt, Halves, Hooks, SplitClient
from strategies.client.training import epoch_sizes
from strategies.contract import Settings, Task
from strategies.messages import unpack_settings
from strategies.server.aggregation import AverageSettings, Averaging
from strategies.server.cuts import (
    CutNetwork,
    Joined,
    PartCosts,
    Place,
    Tested,
    part_costs,
)
from strategies.server.cutting import Candidate, Cut, SplitSettings
from strategies.server.loop import FederatedStrategy
from strategies.server.method import (
    Clients,
    Method,
    RoundArguments,
    RoundSettings,
    Test,
    measured,
)
from strategies.server.schedules import BaseSettings
from strategies.server.wires import Latent, device_part

BINARIZE = ("client", "both", "none")
PROBES = 500  # test samples that leakage is measured on: dCor's cost is quadratic in them
PAIRS = 1500  # others, at most, that the attacker's decoder learns from
KEPT_VALUES = 2**24  # of all that crossed for these samples: wide cuts keep fewer of them,
FEWEST = 200  # but not fewer than so many
ATTACK_EPOCHS = 20


@dataclass(frozen=True)
class Binarized:
    """What is binary: ``client`` (the device's part), ``both`` (the whole network) or ``none``."""

    what: str = "client"

    def __post_init__(self) -> None:
        if self.what not in BINARIZE:
            raise ValueError(f"strategy.binarize={self.what}: takes {', '.join(BINARIZE)}")


@dataclass(frozen=True)
class BinarizedSettings(BaseSettings):
    """The method's own keys of the group strategy."""

    binarize: str = field(
        default="client",
        metadata={
            "help": "binarized part: client (the client model), both (the whole network), none"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        Binarized(self.binarize)  # checks itself


# The client half ----------------------------------------------------------------------------------


class Shield(Hooks):
    """Keeps latent weights in [−1, 1], and what crosses from saying too much."""

    def __init__(self, privacy: PrivacySettings, generator: torch.Generator) -> None:
        self._privacy = privacy
        self._generator = generator

    def on_activations(self, z: Tensor) -> Tensor:
        """Add noise."""
        epsilon = self._privacy.epsilon
        return laplace_noise(z, epsilon, self._generator) if epsilon else z

    def extra_loss(self, x: Tensor, z: Tensor) -> Tensor | None:
        """λ · (mean + max dCor)/2; a batch of one has none.

        The mean alone leaves the channel that gives most away as it is: its share is small.
        """
        weight = self._privacy.dcor_weight
        if not weight or len(x) < 2:
            return None
        channels = channel_leakage(x, z)
        return weight * (channels.mean() + channels.max()) / 2

    def after_step(self, part: nn.Module) -> None:
        """Clip."""
        clip_latent(part)


def shield(task: Task) -> Shield:
    """What the settings say is done against leakage."""
    privacy = unpack_settings(task.settings, "privacy", PrivacySettings)
    return Shield(privacy, task.streams.generator("privacy"))


def cut_binarized(model: nn.Module, settings: Settings) -> Halves:
    """Cut the network, with the parts binarized that the settings say."""
    split = unpack_settings(settings, "split", CutAt)
    return binarized(model, split, unpack_settings(settings, "binarized", Binarized))


def binarized(model: nn.Module, split: CutAt, settings: Binarized) -> Halves:
    """Cut ``model``, with the parts binarized that are to be."""
    spec = BinarySpec()
    if settings.what == "both":
        model = binarize(model, spec, sign_output=False)
    first, server = cut_many(model, [split.cut])
    return Halves((binarize(first, spec) if settings.what == "client" else first,), server)


# The method ---------------------------------------------------------------------------------------


class BinarizedSplit(FederatedStrategy):
    """A cut network whose device part, or all of it, is binary, on the schedule of a base.

    Args:
        settings: what is binary, and whose schedule it is.
        privacy: leak loss and noise.
        split: where the network is cut.
        link: codecs at the cut. Where the device's part is binary, ``up=fp32`` stands for
            ``sign``: ±1 is one bit.
        averaging: how clients are averaged.
        objective: what ``split.cut=auto`` makes least.
        rounds: as `RoundSettings`.
    """

    client = SplitClient(cut_binarized, shield, clip_latent)
    reads = ("split.cut", "link", "fleet.objective", "train.server_lr", "privacy")
    has_server_half = True

    def __init__(
        self,
        *,
        settings: BinarizedSettings | None = None,
        privacy: PrivacySettings | None = None,
        split: SplitSettings | None = None,
        link: LinkSettings | None = None,
        averaging: AverageSettings | None = None,
        objective: str = "seconds",
        **rounds: Unpack[RoundArguments],
    ) -> None:
        settings, privacy = settings or BinarizedSettings(), privacy or PrivacySettings()
        link, common = link or LinkSettings(), RoundSettings(**rounds)
        if common.train.batch_size == 1 and (privacy.dcor_weight or privacy.epsilon):
            raise ValueError(
                "train.batch_size=1: privacy.dcor_weight and privacy.epsilon take 2 or more, they "
                "compare the samples of a batch"
            )
        if settings.binarize != "none" and link.up == "fp32":
            link = replace(link, up="sign")
        binarized = Binarized(settings.binarize)
        measured = partial(tested_and_probed, privacy, common.train.batch_size, common.seed)
        method = Method(
            network=BinaryCut(Cut.of(split, link, None, objective), binarized, measured),
            schedule=settings.schedule,
            wire=Latent(device_part),
            aggregate=Averaging.over_a_cut(averaging),
            settings=messages.pack_settings(binarized=binarized, privacy=privacy),
            needs_prepare="a network that is cut",
        )
        super().__init__(method, **rounds)


# The network --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BinaryCut:
    """Cuts the user's network and binarizes its parts.

    Attributes:
        cut: how it is cut.
        binarized: what is binary.
        tested: how the network is tested.
    """

    cut: Cut
    binarized: Binarized
    tested: Tested

    def check(self, rounds: RoundSettings) -> None:
        """As `Cut`."""
        self.cut.check(rounds)

    def prepare(
        self,
        model: nn.Module,
        input_shape: Inputs,
        clients: Clients,
        rounds: RoundSettings,
        rule: Rule,
    ) -> CutNetwork:
        """Cut the network and binarize its parts.

        Raises:
            ValueError: as `Cut`, or a layer has no binary form.
        """

        if spec_of(input_shape).high is not None:
            raise ValueError(
                "strategy=binarized_split: takes inputs of real numbers, not tokens, of which "
                "leakage would say nothing"
            )

        def costs_at(candidate: Candidate) -> PartCosts:
            parts = binarized(candidate.model, CutAt(candidate.name), self.binarized)
            return part_costs(parts, candidate.input_shape)

        network = replace(self.cut, costs_at=costs_at).prepare(
            model, input_shape, clients, rounds, rule
        )
        place = network.only()
        try:
            parts = binarized(model, place.split, self.binarized)
        except ValueError as error:
            raise ValueError(
                f"split.cut={place.split.cut} strategy.binarize={self.binarized.what}: {error}"
            ) from error
        bits = 32 if self.binarized.what == "none" else 1
        return network.with_parts(
            Whole(parts),
            replace(place, parts=parts, names=parts.device_names()),
            described={"weight_bits": bits, "act_bits": bits},
            tested=self.tested,
        )


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


# What an evaluation measures ----------------------------------------------------------------------


def tested_and_probed(
    privacy: PrivacySettings,
    batch: int,
    seed: int,
    network: CutNetwork,
    place: Place,
    arrays: Mapping[str, Tensor],
    test: Test,
) -> dict[str, float]:
    """Test what crosses, noise and all, and measure what it says about the input."""
    noise, draw = (
        torch.Generator().manual_seed(derive_seed(seed, f"privacy {purpose}"))
        for purpose in ("noise", "probes")
    )
    disguise = partial(noisy, epsilon=privacy.epsilon, batch=batch, generator=noise)
    observed = Observed(place.parts, arrays, network.link, disguise, draw)
    tested = measured(test, observed)
    found = leakage(observed.x, observed.z, seed)
    return tested | found


class Observed(Joined):
    """The joined network, which keeps a random draw of its inputs and of what crossed for them.

    Args:
        parts: the network; they get ``arrays``.
        arrays: state of the whole.
        link: codecs at the cut.
        disguise: what is done to activations before they are sent.
        generator: of the draw.

    Attributes:
        x: (n, …) inputs in random order, all equally likely; at most `PROBES` + `PAIRS`, fewer
            where the cut is wide.
        z: (n, …) what crossed for them.
    """

    x: Tensor
    z: Tensor

    def __init__(
        self,
        parts: Halves,
        arrays: Mapping[str, Tensor],
        link: LinkSettings,
        disguise: Callable[[Tensor], Tensor],
        generator: torch.Generator,
    ) -> None:
        super().__init__(parts, arrays, link)
        self._disguise = disguise
        self._generator = generator
        self._tickets = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → (B, classes)."""
        first, server = self.parts
        z = carried(self._up, self._disguise(first(x)))
        self._keep(x, z)
        output: Tensor = server(z)
        return output

    def _keep(self, x: Tensor, z: Tensor) -> None:
        """Give each sample a random ticket; those with the lowest stay."""
        most = min(PROBES + PAIRS, max(FEWEST, KEPT_VALUES // z[0].numel()))
        if not len(self._tickets):
            self.x, self.z = x[:0], z[:0]
        tickets = torch.cat([self._tickets, torch.rand(len(x), generator=self._generator)])
        rows = tickets.argsort()[:most]
        self._tickets, x, z = tickets[rows], x.cpu(), z.cpu().float()  # as it crossed
        self.x, self.z = picked(self.x, x, rows), picked(self.z, z, rows)


def picked(kept: Tensor, new: Tensor, rows: Tensor) -> Tensor:
    """Return ``rows`` of both one after the other; none but these is copied.

    Args:
        kept: (k, …).
        new: (n, …).
        rows: from 0 to k + n - 1.
    """
    found, is_new = new.new_empty((len(rows), *new.shape[1:])), rows >= len(kept)
    found[is_new], found[~is_new] = new[rows[is_new] - len(kept)], kept[rows[~is_new]]
    return found


def noisy(z: Tensor, epsilon: float | None, batch: int, generator: torch.Generator) -> Tensor:
    """``z`` with the noise that batches of ``batch`` have in training; as it is without ε."""
    if not epsilon:
        return z
    parts = z.split(epoch_sizes(len(z), batch))
    return torch.cat([laplace_noise(part, epsilon, generator) for part in parts])


def leakage(x: Tensor, z: Tensor, seed: int) -> dict[str, float]:
    """What ``z`` (n, …) says about ``x`` (n, …); nothing of fewer than four samples."""
    if len(x) < 4:
        return {}
    probes = min(PROBES, len(x) // 2)
    channels = channel_leakage(x[:probes], z[:probes])
    found = {"dcor_max": float(channels.max()), "dcor_mean": float(channels.mean())}
    pairs, unseen = (z[probes:], x[probes:]), (z[:probes], x[:probes])
    drawn = reconstruct(pairs, unseen, ATTACK_EPOCHS, derive_seed(seed, "privacy attack"))
    found |= {"attack_mse": drawn.mse, "attack_mean_mse": drawn.mean_mse}
    if drawn.ssim is not None:
        found["attack_ssim"] = drawn.ssim
    return found
