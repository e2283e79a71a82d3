"""Who trains what: bits and a share of the channels for each client, and the networks of them.

    bits         weights are shared; each width has quantizers of its own, which lie in the global
                 model under `at_<bits>.` and are averaged over the clients of that width
    share        a client holds the first channels of each layer (`models.slices`); each entry is
                 averaged over the clients that hold it
    statistics   running statistics of batch normalisation: shared, or each kind's own, which lie
                 under `at_<kind>.`
    weighting    what a client counts for in an average: its samples, or these times its bits

With one width and all channels for everybody it is the network of one width, bit for bit.
"""

import copy
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fleet.clock import Rule
from fleet.per_client import AUTO, PerClient, each
from models.inputs import Inputs, Several, spec_of
from models.slices import Channels, Kept
from quant.layers import QuantSpec, quantize, weight_quantizer_paths
from quant.quantizer import Quantizer
from quant.settings import QuantSettings
from strategies import messages
from strategies.messages import SHARE, SHARES
from strategies.server.method import Clients, Recipe, RoundSettings
from strategies.server.networks import Quantized, WholeNetwork
from strategies.server.planning import Planning, say
from strategies.server.varied import Kind, NumBytes, VariedNetwork, costs_of_kinds
from strategies.server.views import Selected, Source

AUTO_BITS = (2, 3, 4, 8)
AUTO_SHARES = (0.0625, 0.125, 0.25, 0.5, 1.0)
BEGUN = "begun"  # in the global model: whether a client has trained what is a kind's own
STATISTICS = ("shared", "own")
WEIGHTINGS = ("samples", "bits")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SubmodelSettings:
    """The group submodel of the configuration."""

    share: Any = field(
        default=1.0,
        metadata={
            "help": "heterofl, fjord: share of each layer's channels that a client trains; "
            "splitfed_v1: of its device's layers; one per client: '{0: …, phone_low: …, "
            "default: …}', or auto (largest that ends in time)"
        },
    )
    statistics: str = field(
        default="shared",
        metadata={
            "help": "running statistics of batch normalisation where clients have bits or shares "
            "of their own: shared, own (each bits and share has its own)"
        },
    )
    weighting: str = field(
        default="samples",
        metadata={
            "help": "what clients of different bits count by in the average: samples, bits "
            "(samples times bits of weights)"
        },
    )

    def __post_init__(self) -> None:
        for key, value in each(SHARE, self.share, "share").items():
            if value != AUTO and not is_share(value):
                raise ValueError(f"{key}={value}: takes a share in (0, 1], or auto for all clients")
        if self.statistics not in STATISTICS:
            raise ValueError(
                f"submodel.statistics={self.statistics}: takes {', '.join(STATISTICS)}"
            )
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"submodel.weighting={self.weighting}: takes {', '.join(WEIGHTINGS)}")

    def shares(self) -> PerClient[Any]:
        """The share of each client."""
        return PerClient.of(SHARE, self.share)

    def stated_shares(self) -> list[float]:
        """The shares that there may be, from the smallest."""
        return sorted(float(one) for one in _of_auto(self.shares(), AUTO_SHARES))


@dataclass(frozen=True)
class Widths:
    """The bit widths of each client.

    Attributes:
        quant: what the user gave, and the kind of quantizers.
        default: what null stands for.
    """

    quant: QuantSettings
    default: int

    @property
    def is_auto(self) -> bool:
        """Whether a client's bits follow from what its round takes."""
        return any(AUTO in one.values.values() for one in self.stated)

    def check(self, rounds: RoundSettings) -> None:
        """Refuse keys that stand for nobody.

        Raises:
            ValueError: names the key.
        """
        for one in self.stated:
            check_per_client(one, rounds)

    @functools.cached_property
    def stated(self) -> tuple[PerClient[Any], PerClient[Any]]:
        """Bits of weights and of activations."""
        quant, bits = self.quant, self.default if self.quant.bits is None else self.quant.bits
        return tuple(  # type: ignore[return-value]
            PerClient.of("quant.bits", bits) if own is None else PerClient.of(f"quant.{key}", own)
            for key, own in (("weight_bits", quant.weight_bits), ("act_bits", quant.act_bits))
        )

    def specs(self) -> list[QuantSpec]:
        """What there may be."""
        weight, act = (_of_auto(one, AUTO_BITS) for one in self.stated)
        is_one = self.stated[0].key == self.stated[1].key
        pairs = [(w, a) for w in weight for a in act if w == a or not is_one]
        return [self.quant.of_widths(w, a) for w, a in dict.fromkeys(pairs)]

    def spec_of(self, partition: int, device: str) -> QuantSpec:
        """A client's, where it is stated."""
        weight, act = [one.of_client(partition, device) for one in self.stated]
        return self.quant.of_widths(weight, act)

    def takes(self, spec: QuantSpec, partition: int, device: str) -> bool:
        """Whether a client may have these widths."""
        weight, act = [one.of_client(partition, device) for one in self.stated]
        return bool(weight in (AUTO, spec.weight_bits) and act in (AUTO, spec.act_bits))


def is_share(value: Any) -> bool:
    """Whether a value is a share in (0, 1]."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def check_per_client(one: PerClient[Any], rounds: RoundSettings) -> None:
    """Refuse keys that stand for nobody, and ``auto`` without a fleet.

    Raises:
        ValueError: names the key.
    """
    one.check(rounds.fleet, rounds.num_clients)
    if AUTO in one.values.values() and rounds.fleet is None:
        raise ValueError(f"{one.key}={AUTO}: needs a fleet")


def _of_auto(given: PerClient[Any], choices: Sequence[Any]) -> list[Any]:
    values = list(dict.fromkeys(given.values.values()))
    return list(choices) if values == [AUTO] else values


def bits_name(spec: QuantSpec) -> str:
    """Of a kind: ``4bit``, or ``w2a8bit`` where activations have other bits than weights."""
    weight, act = spec.weight_bits, spec.act_bits
    return f"{weight}bit" if weight == act else f"w{weight}a{act}bit"


def share_name(share: float) -> str:
    """Of a share of the channels: ``width50``."""
    return f"width{100 * share:g}"


def mark_of(spec: QuantSpec) -> str:
    """Name of the mark that says whether the quantizers of these bits are trained."""
    return f"{_prefix(bits_name(spec))}.{BEGUN}"


def kind_name(share: float, spec: QuantSpec, has_shares: bool, has_bits: bool) -> str:
    """Of a kind: its share in per cent where shares differ, its bits where these do."""
    names = [share_name(share)] if has_shares else []
    return "_".join([*names, *([bits_name(spec)] if has_bits or not names else [])])


@dataclass(frozen=True)
class Varied:
    """The user's network, for each client in its own bits and with its own share of channels.

    Attributes:
        widths: who has which bits.
        submodel: who has which share, and what kinds share.
        num_bytes: what crosses, for ``auto``.
        plan: what decides where the user leaves something open.
    """

    widths: Widths
    submodel: SubmodelSettings
    num_bytes: NumBytes
    plan: Planning

    def check(self, rounds: RoundSettings) -> None:
        """Refuse keys that stand for nobody.

        Raises:
            ValueError: names the key.
        """
        self.widths.check(rounds)
        for one in (self.submodel.shares(), self.plan.floors()):
            check_per_client(one, rounds)

    def prepare(
        self,
        model: nn.Module,
        input_shape: Inputs,
        clients: Clients,
        rounds: RoundSettings,
        rule: Rule,
    ) -> WholeNetwork:
        """Make the network of each kind.

        Raises:
            ValueError: the network has no layer that could be narrower; names submodel.share.
        """
        specs = self.widths.specs()
        shares = self.submodel.stated_shares()
        if len(specs) == 1 and shares == [1.0]:
            return Quantized(specs[0]).prepare(model, input_shape, clients, rounds, rule)
        makes = Making(
            model,
            input_shape,
            specs,
            shares,
            None if shares == [1.0] else channels_of(model, input_shape),
            self.submodel.statistics == "own",
            self.submodel.weighting,
        )
        kinds = sorted(makes.kinds(), key=lambda kind: (kind.share, kind.cost.bops))
        network = VariedNetwork(
            makes.whole,
            input_shape,
            clients,
            kinds={kind.name: kind for kind in kinds},
            choose=functools.partial(self._choose, rounds, rule),
            fresh=makes.fresh(),
        )
        return network.for_clients(clients)

    def _choose(
        self, rounds: RoundSettings, rule: Rule, network: VariedNetwork
    ) -> Mapping[int, str]:
        """The kind that the user gave a client; of several that it may have, what is best.

        That is by the plan the one that takes it least, without one the largest with which it ends
        in time; alone with the server, at its usual speed. Where none fits it is the smallest, and
        the client will be left out.
        """
        shares, device = self.submodel.shares(), network.clients.device

        def takes(kind: Kind, partition: int) -> bool:
            is_share = shares.of_client(partition, device(partition)) in (AUTO, kind.share)
            return is_share and self.widths.takes(kind.spec, partition, device(partition))

        allowed = {
            p: [name for name, kind in network.kinds.items() if takes(kind, p)]
            for p in network.clients.num_examples
        }
        found, fleet = {p: names[0] for p, names in allowed.items()}, network.clients.fleet
        if fleet is None or all(len(names) == 1 for names in allowed.values()):
            return found
        costs = costs_of_kinds(network, rounds, rule, self.num_bytes)
        most = max(kind.cost.bops for kind in network.kinds.values())
        for p in network.clients.with_data():
            names = allowed[p]
            if p not in fleet.clients or len(names) == 1:
                continue
            own = [costs[name][p] for name in names]
            capacities = [network.kinds[name].cost.bops / most for name in names]
            found[p] = names[self.plan.choose(own, capacities, p, device(p), fleet.deadline_s)]
        say(self.plan.label, {p: found[p] for p in network.clients.with_data()}, device)
        return found


def varied(
    quant: QuantSettings,
    default_bits: int,
    submodel: SubmodelSettings,
    num_bytes: NumBytes,
    plan: Planning,
) -> Recipe:
    """Return the recipe of a network: one for all, or each client's own."""
    if quant.is_per_client or submodel.share != 1:
        return Varied(Widths(quant, default_bits), submodel, num_bytes, plan)
    return Quantized(quant.spec(default_bits))


# The networks -------------------------------------------------------------------------------------

Layers = frozenset[str] | None


def sliceable(
    submodel: SubmodelSettings, model: nn.Module, input_shape: Inputs
) -> tuple[SubmodelSettings, Channels | None]:
    """Return the settings for a network, and its channels where clients may have a share of them.

    What is left open is all of them, where no layer could be narrower; that is logged.

    Raises:
        ValueError: that is so, and a share is stated; names submodel.share.
    """
    if submodel.stated_shares() == [1.0]:
        return submodel, None
    try:
        return submodel, channels_of(model, input_shape)
    except ValueError as error:
        if AUTO not in submodel.shares().values.values():
            raise
        log.info("%s=%s: all clients have all channels: %s", SHARE, AUTO, error)
        return replace(submodel, share=1.0), None


def channels_of(model: nn.Module, input_shape: Inputs) -> Channels:
    """Return which channels of a network belong together, and log what stays whole.

    Raises:
        ValueError: no layer of it could be narrower; names submodel.share.
    """
    if isinstance(input_shape, Several):
        raise ValueError(f"{SHARE}: takes a network of one input, or 1 for all clients")
    channels = Channels.of(model, spec_of(input_shape).example())
    if whole := channels.whole():
        named = ", ".join(whole[:3]) + (", …" if len(whole) > 3 else "")
        log.info("%s: %d layers keep all their channels: %s", SHARE, len(whole), named)
    return channels


class Making:
    """Makes the global model, and the network of each kind.

    Args:
        model: the user's network.
        input_shape: of one sample.
        specs: bit widths that clients have.
        shares: of the channels that clients have, in order.
        channels: of the network, where these are not all.
        own_statistics: whether each kind has running statistics of its own.
        weighting: what clients count by, one of `WEIGHTINGS`.
        quantize: makes the network of a width.
    """

    def __init__(
        self,
        model: nn.Module,
        input_shape: Inputs,
        specs: Sequence[QuantSpec],
        shares: Sequence[float] = (1.0,),
        channels: Channels | None = None,
        own_statistics: bool = False,
        weighting: str = "samples",
        quantize: Callable[[nn.Module, QuantSpec], nn.Module] = quantize,
    ) -> None:
        self._model, self._input_shape, self._quantize = model, input_shape, quantize
        self._specs, self._shares, self._own_statistics = specs, shares, own_statistics
        self._weighting = weighting
        self._has_bits, self._has_shares = len(specs) > 1, channels is not None
        self._channels = channels
        self._narrow: dict[tuple[float, Layers], tuple[nn.Module, dict[str, Kept]]] = {}
        self._quantized: dict[tuple[float, QuantSpec, Layers], nn.Module] = {}
        self.whole = copy.deepcopy(model if self._has_bits else self._network(1.0, specs[0]))
        if self._has_bits:
            for spec in specs:
                self._add(_prefix(bits_name(spec)), _quantizers(self._network(1.0, spec)))
        if own_statistics:
            for share in shares:
                for spec in specs:
                    self._add(_prefix(self._name(share, spec)), _statistics(self._slice(share)[0]))

    def _slice(self, share: float, layers: Layers = None) -> tuple[nn.Module, dict[str, Kept]]:
        """A slice, and what of each array that is; made once."""
        if self._channels is None:
            return self._model, {}
        key = share, layers
        if key not in self._narrow:
            self._narrow[key] = self._channels.sliced(share, layers)
        return self._narrow[key]

    def _network(self, share: float, spec: QuantSpec, layers: Layers = None) -> nn.Module:
        """A slice in these bits, made once: that traces it."""
        key = share, spec, layers
        if key not in self._quantized:
            self._quantized[key] = self._quantize(self._slice(share, layers)[0], spec)
        return self._quantized[key]

    def _name(self, share: float, spec: QuantSpec) -> str:
        return kind_name(share, spec, self._has_shares, self._has_bits)

    def _add(self, prefix: str, leaves: Sequence[tuple[str, nn.Module]]) -> None:
        """Put copies of some modules into the global model, beside the user's layers.

        Raises:
            ValueError: the network has a part of such a name.
        """
        if not leaves:
            return
        if hasattr(self._model, prefix):
            raise ValueError(f"model: has a part {prefix}, the name of what is a kind's own")
        if prefix not in self.whole._modules:
            tree = nn.Module()
            tree.register_buffer(BEGUN, torch.tensor(False))
            self.whole.add_module(prefix, tree)
        for path, leaf in leaves:
            _insert(self.whole.get_submodule(prefix), path, copy.deepcopy(leaf))

    def kinds(self) -> list[Kind]:
        """One for each share and width."""
        return [self.kind(share, spec) for share in self._shares for spec in self._specs]

    def can_narrow(self, layers: Layers) -> bool:
        """Whether any of these layers can have fewer channels."""
        return self._channels is not None and self._channels.can_narrow(layers)

    def kind(self, share: float, spec: QuantSpec, layers: Layers = None) -> Kind:
        """One of them; ``layers`` are those that make fewer channels, None for all."""
        return Kind(
            self._name(share, spec),
            spec,
            self._told(share, spec),
            self._view(share, spec, layers),
            self._input_shape,
            share,
            spec.weight_bits / 32 if self._weighting == "bits" else 1.0,
        )

    def fresh(self) -> dict[str, Selected]:
        """Networks of all channels whose quantizers are a width's own, by its mark."""
        if not self._has_bits:
            return {}
        return {
            mark_of(spec): self._view(1.0, spec, may_own=False)
            for spec in self._specs
            if not spec.is_identity
        }

    def _told(self, share: float, spec: QuantSpec) -> tuple[tuple[str, Any], ...]:
        told = messages.pack_settings(quant=spec)
        if self._has_shares:
            told |= {SHARE: share, SHARES: " ".join(f"{one:g}" for one in self._shares)}
        return tuple(told.items())

    def _view(
        self, share: float, spec: QuantSpec, layers: Layers = None, may_own: bool = True
    ) -> Selected:
        narrow, kept = self._slice(share, layers)
        model = self._network(share, spec, layers)
        shared = narrow.state_dict().keys()
        kept = kept_of(model, kept)
        has_own = may_own and self._own_statistics
        statistics = _names(_statistics(narrow)) if has_own else frozenset[str]()
        of_bits, of_kind = (_prefix(name) for name in (bits_name(spec), self._name(share, spec)))
        sources, marks = {}, set[str]()
        for name in model.state_dict():
            if name in statistics:
                sources[name] = Source(f"{of_kind}.{name}")
                marks.add(f"{of_kind}.{BEGUN}")
            elif name in shared or not self._has_bits:
                sources[name] = Source(name, kept.get(name, ()))
            else:
                sources[name] = Source(f"{of_bits}.{name}", kept.get(name, ()))
                marks.add(f"{of_bits}.{BEGUN}")
        return Selected(model, self.whole, sources, frozenset(marks))


def kept_of(model: nn.Module, kept: Mapping[str, Kept]) -> dict[str, Kept]:
    """What of each array a quantized slice holds.

    Args:
        model: the slice, quantized.
        kept: of its weights; of steps per channel those of the same channels.
    """
    state, found = model.state_dict(), dict(kept)
    for weight, path in weight_quantizer_paths(model).items():
        step, axes = state[f"{path}.step"], kept.get(weight, ())
        if step.dim() and axes and axes[0] is not None:
            found[f"{path}.step"] = (axes[0], *[None] * (step.dim() - 1))
    return found


def _prefix(name: str) -> str:
    return f"at_{name}"


def _quantizers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Under all their paths."""
    named = model.named_modules(remove_duplicate=False)
    return [(path, module) for path, module in named if isinstance(module, Quantizer)]


def _statistics(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules with the running statistics of each batch normalisation, and nothing else."""
    found = []
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            leaf = nn.Module()
            for name, buffer in module.named_buffers(recurse=False):
                leaf.register_buffer(name, buffer)
            found.append((path, leaf))
    return found


def _names(leaves: Sequence[tuple[str, nn.Module]]) -> frozenset[str]:
    return frozenset(f"{path}.{name}" for path, leaf in leaves for name in leaf.state_dict())


def _insert(tree: nn.Module, path: str, leaf: nn.Module) -> None:
    """Put a module at a path, beside what is there."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in tree._modules:
            tree.add_module(parent, nn.Module())
        tree = tree.get_submodule(parent)
    if name not in tree._modules:
        tree.add_module(name, leaf)
        return
    for own, buffer in leaf.named_buffers(recurse=False):
        tree.get_submodule(name).register_buffer(own, buffer)
