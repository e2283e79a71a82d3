"""What the server halves of all split-learning methods share.

The global model is the whole network. A message carries all of it, because the server's part is
simulated beside the client (`strategies.client.split_loop`); bytes count what would cross: the
device's part in both directions, activations, labels and gradients.
"""

import difflib
import functools
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor, nn

from fleet.cost import OBJECTIVES, choose_cut
from fleet.seeds import derive_seed
from fleet.selection import num_selected
from fleet.work import ClientWork
from models.cost import Cost, cost
from models.split import at_fraction, before, last_layer
from quant.codec import LinkSettings
from quant.layers import QuantSpec
from quant.link import Link, label_bytes, there_and_back
from strategies import messages
from strategies.client.split_loop import Halves, Side, Split, halves, quantized
from strategies.client.training import load_arrays
from strategies.server.checkpoint import Arrays
from strategies.server.loop import QUANTIZERS, FederatedStrategy, Test, Variant
from strategies.server.results import Outcome, report_failures
from strategies.server.workload import Pieces, split_round

Cut = str | float
AUTO, DEFAULT, HEAD = "auto", "default", "head"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitSettings:
    """The group split of the configuration."""

    cut: Any = field(
        default="stage1",
        metadata={
            "help": "a cut point (python -m app.cuts), a share of the FLOPs, auto (the best on the "
            "fleet), or '{0: …, phone_low: …, default: …}'"
        },
    )
    tail: str = field(
        default=HEAD, metadata={"help": "ushaped: where the device's last part begins"}
    )


class SplitStrategy(FederatedStrategy):
    """Base of the methods that cut the network; clients train in parallel, both halves averaged.

    Args:
        cut: a cut point's name, a share of the forward FLOPs in (0, 1), ``auto`` (the best for each
            client, or for all, on the fleet), or a mapping from partition ids, device classes and
            ``default`` to names and shares.
        tail: where the device's last part begins, for methods that cut twice: a module's name, or a
            cut point's; ``head`` stands for the last layer where no module is called so.
        link: codecs at the cut.
        spec: bit widths, where the network is quantized.
        side: which half is.
        objective: what ``auto`` makes least: ``seconds`` or ``joules`` of a round.
        common: arguments of `FederatedStrategy`.
    """

    reads: ClassVar[tuple[str, ...]] = (
        *QUANTIZERS, "quant.side", "split.cut", "link", "fleet.objective", "train.server_lr",
    )  # fmt: skip
    needs_colocation: ClassVar[bool] = True
    takes_mapping: ClassVar[bool] = False  # whether clients may have cuts of their own
    is_u_shaped: ClassVar[bool] = False
    is_private: ClassVar[bool] = False

    def __init__(
        self,
        *,
        cut: Cut | Mapping[str, Cut] = "stage1",
        tail: str = "head",
        link: LinkSettings | None = None,
        spec: QuantSpec | None = None,
        side: str = "both",
        objective: str = OBJECTIVES[0],
        **common: object,
    ) -> None:
        super().__init__(**common)  # type: ignore[arg-type]
        if self.server_optimizer is not None or self.proximal_mu:
            raise ValueError(
                "strategy.server_optimizer, strategy.proximal_mu: are for fedavg and oqfl; methods "
                "over a cut take neither"
            )
        given = cut if isinstance(cut, Mapping) else {DEFAULT: cut}
        self.cut = {str(key): value for key, value in given.items()}
        self.tail = tail
        self.link = link or LinkSettings()
        self.spec = spec or QuantSpec(weight_bits=32, act_bits=32)
        self.side = Side(side)
        self.objective = objective
        self._check_cuts(isinstance(cut, Mapping))
        self._splits: dict[Cut, Split] = {}  # by what the user called the cut
        self._halves: dict[Split, Halves] = {}
        self._names: dict[Split, frozenset[str]] = {}  # of the device's arrays
        self._costs: dict[Split, tuple[list[Cost], Cost]] = {}

    def state(self) -> Arrays:
        """None: the global model is all there is."""
        return {}

    def load_state(self, state: Arrays) -> None:
        """Nothing to take back."""

    def prepare(self, model: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
        """Cut the network, compare the parts with the whole, and return it, quantized or not.

        Raises:
            ValueError: it cannot be cut there; names split.cut or split.tail, and the nearest.
        """
        plain = model
        if AUTO in self.cut.values():
            self.cut = self._best_cuts(quantized(model, self.spec, self.side, None), input_shape)
        for name in dict.fromkeys(self.cut.values()):
            split = self._resolve(plain, name, input_shape)
            model = quantized(plain, self.spec, self.side, split)
            self._splits[name] = split
            try:
                self._halves[split] = parts = halves(model, split, input_shape)
                self._names[split] = parts.device_names()
            except ValueError as error:
                tail = f" split.tail={self.tail}" if self.is_u_shaped else ""
                raise ValueError(f"split.cut={name}{tail}: {error}") from error
        return super().prepare(model, input_shape)

    def split_of(self, partition: int) -> Split:
        """Return where a client's network is cut."""
        self.whole_model()  # says if prepare() is missing
        keys = (str(partition), self._device_of(partition), DEFAULT)
        name = next((self.cut[key] for key in keys if key in self.cut), None)
        if name is None:
            raise ValueError(f"split.cut: says nothing of client {partition}, and has no {DEFAULT}")
        return self._splits[name]

    def in_use(self) -> list[Split]:
        """Cuts of the clients that have data, in the user's order; all before anybody is known."""
        used = {self.split_of(partition) for partition in self.with_data()}
        return [split for split in self._halves if split in used or not used]

    def _device_of(self, partition: int) -> str:
        client = self.fleet.clients.get(partition) if self.fleet else None
        return client.device.name if client else ""

    def device_names(self, partition: int = 0) -> frozenset[str]:
        """Names of the arrays of a client's device part."""
        return self._names[self.split_of(partition)]

    def evaluate(self, arrays: Mapping[str, Tensor], test: Test) -> dict[str, float]:
        """Test the network with its link: what crosses the cut is compressed there, too."""
        return self.tested(self.in_use()[0], arrays, test)

    def tested(self, split: Split, arrays: Mapping[str, Tensor], test: Test) -> dict[str, float]:
        """Accuracy and loss of the network with its link, cut at ``split``."""
        accuracy, loss = test(Joined(self._halves[split], arrays, self.link))
        return {"accuracy": accuracy, "loss": loss}

    def device_costs(self) -> list[Cost]:
        """Of the device's parts; where clients differ, of those with the most operations."""
        found = [self.costs()[split][0] for split in self.in_use()]
        return max(found, key=lambda parts: sum(p.flops_forward for p in parts))

    def costs(self) -> dict[Split, tuple[list[Cost], Cost]]:
        """What the device's parts and the server's part cost at each cut."""
        for split, parts in self._halves.items():
            if split not in self._costs:
                self._costs[split] = part_costs(parts, self.input_shape)
        return self._costs

    def client_works(self) -> dict[int, ClientWork]:
        """What a round takes each client at its cut."""
        works: dict[int, ClientWork] = {}
        alike: dict[tuple[Split, int], ClientWork] = {}
        for partition in self.with_data():
            key = self.split_of(partition), self.num_examples[partition]
            if key not in alike:
                device, server = self.costs()[key[0]]
                sent = self.model_bytes(partition)
                alike[key] = split_round(device, server, key[1], self.train, self.link, sent)
            works[partition] = alike[key]
        return works

    def describe(self) -> dict[str, float]:
        """Bit widths, and bytes that cross the cut per sample and step, in batches of that size.

        Of the first cut, where clients differ.
        """
        split = self.in_use()[0]
        device, server = self.costs()[split]
        first, second, size = device[0], server.output_shape, self.train.batch_size
        to_server, to_device = self.link.codecs()
        up, down = there_and_back(to_server, to_device, (size, *first.output_shape))
        if split.tail:
            activations, gradients = there_and_back(to_device, to_server, (size, *second))
            up, down = up + gradients, down + activations
        else:
            up += size * label_bytes(math.prod(second))
        return {
            "weight_bits": self.spec.weight_bits,
            "act_bits": self.spec.act_bits,
            "cut_bytes_up_per_sample": up / size,
            "cut_bytes_down_per_sample": down / size,
        }

    def client_config(self) -> dict[str, bool | int | float | str]:
        """Training settings, bit widths and the link."""
        settings = messages.pack_settings(quant=self.spec, side=self.side, link=self.link)
        return super().client_config() | settings

    def variant(self, partition: int) -> Variant:
        """Where this client's network is cut."""
        return tuple(messages.pack_settings(split=self.split_of(partition)).items())

    def crosses(self, partition: int) -> frozenset[str] | None:
        """The device's part, unless it is private."""
        return frozenset() if self.is_private else self.device_names(partition)

    def requests_each(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        chosen: Sequence[int],
        own: Callable[[int], Arrays],
    ) -> list[Message]:
        """A message of its own for each client, with ``own`` arrays in place of the model's."""
        whole = messages.to_arrays(arrays)
        sent: list[Message] = []
        for partition in chosen:
            mine = messages.to_record(whole | own(partition))
            sent += super().requests(server_round, mine, config, [partition])
        return sent

    def _best_cuts(self, model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, Cut]:
        """Return the best cut for each client, or for all where the server has one half."""
        if self.fleet is None or not self.num_examples:
            raise ValueError(
                f"split.cut={AUTO}: needs a fleet, and the clients' numbers of samples"
            )
        pieces, tail = Pieces.of(model, input_shape), self._tail(model, input_shape)
        if tail and tail not in pieces.names:
            nearest = ", ".join(difflib.get_close_matches(tail, pieces.names, cutoff=0.0))
            raise ValueError(
                f"split.tail={self.tail}: no such cut point; the nearest are {nearest}"
            )
        costs, refusal = dict[str, tuple[list[Cost], Cost]](), "it has no cut points"
        for at in pieces.names[: pieces.names.index(tail)] if tail else pieces.names:
            try:
                costs[at] = self.costs_at(model, input_shape, pieces, at, tail)
            except ValueError as error:
                refusal = f"split.cut={at}: {error}"
        if not costs:
            raise ValueError(f"split.cut={AUTO}: the network cannot be cut anywhere; {refusal}")
        names = list(costs)
        work = functools.cache(
            lambda name, samples: self._work(*costs[name], samples)  # one per pair
        )
        sizes = {p: self.num_examples[p] for p in self.with_data() if p in self.fleet.clients}
        if not self.takes_mapping:
            works = [{p: work(name, samples) for p, samples in sizes.items()} for name in names]
            best = names[self.fleet.best(works, self.rule(), self.objective)]
            log.info("split.cut=%s: %s", AUTO, best)
            return {DEFAULT: best}
        participants = num_selected(self.clients_per_round, len(sizes))
        cuts: dict[str, Cut] = {DEFAULT: names[0]}
        for p, samples in sizes.items():
            client, works_of = self.fleet.clients[p], [work(name, samples) for name in names]
            found = choose_cut(
                works_of, client.device, client.link, self.fleet.server, self.objective,
                self.rule(), participants,
            )  # fmt: skip
            cuts[str(p)] = names[found or 0]  # where none fits: the client will be left out
        chosen = Counter((self._device_of(p), cuts[str(p)]) for p in sizes)
        for (device, name), count in sorted(chosen.items()):
            log.info("split.cut=%s: %s for %d clients with %s", AUTO, name, count, device)
        return cuts

    def costs_at(
        self,
        model: nn.Module,
        input_shape: tuple[int, ...],
        pieces: Pieces,
        name: str,
        tail: str,
    ) -> tuple[list[Cost], Cost]:
        """What the device's parts and the server's part would cost, cut at ``name``.

        Args:
            model: the network.
            input_shape: of one sample.
            pieces: the network cut everywhere.
            name: the cut point.
            tail: the second one; empty for none.

        Raises:
            ValueError: the method takes no cut there.
        """
        return pieces.at(name, tail)

    def _work(self, device: Sequence[Cost], server: Cost, samples: int) -> ClientWork:
        sent = 0 if self.is_private else sum(part.model_bytes for part in device)
        return split_round(device, server, samples, self.train, self.link, (sent, sent))

    def _tail(self, model: nn.Module, input_shape: tuple[int, ...]) -> str:
        """Return the name of the second cut point, if there is one."""
        modules, tail = dict(model.named_modules()), self.tail if self.is_u_shaped else ""
        try:
            if tail == HEAD and HEAD not in modules:
                tail = last_layer(model)
            return before(model, tail, input_shape).name if tail and tail in modules else tail
        except ValueError as error:
            raise ValueError(f"split.tail={self.tail}: {error}") from error

    def _resolve(self, model: nn.Module, cut: Cut, input_shape: tuple[int, ...]) -> Split:
        try:
            at = cut if isinstance(cut, str) else at_fraction(model, input_shape, cut).name
        except ValueError as error:
            raise ValueError(f"split.cut={cut}: {error}") from error
        tail = self._tail(model, input_shape)
        return Split(at, tail, self.is_private)

    def _check_cuts(self, is_mapping: bool) -> None:
        if is_mapping and not self.takes_mapping:
            raise ValueError(
                "split.cut: a mapping needs clients that train in parallel from halves of their "
                "own: splitfed_v1 or splitfed_v3"
            )
        if self.is_u_shaped and not self.tail:
            raise ValueError("split.tail=: takes a module with which the device's last part begins")
        if not self.cut:
            raise ValueError("split.cut={}: takes a cut point or a mapping to cut points")
        total, devices = self.num_clients, self.fleet.device_names() if self.fleet else []
        for key, cut in self.cut.items():
            if not key.isdecimal() and key not in (DEFAULT, *devices):
                known = ", ".join(["partition ids", *devices, DEFAULT])
                raise ValueError(f"split.cut.{key}: takes as keys {known}")
            if key.isdecimal() and total is not None and int(key) >= total:
                raise ValueError(f"split.cut.{key}: there is no client {key} of {total}")
            if cut == AUTO and is_mapping:
                raise ValueError(f"split.cut.{key}={AUTO}: {AUTO} is for all clients, not for some")
            is_share = isinstance(cut, float) and 0 < cut < 1
            if not is_share and not isinstance(cut, str):
                raise ValueError(f"split.cut={cut}: takes a cut point, or a share in (0, 1)")
        if DEFAULT not in self.cut:
            absent = [
                p
                for p in range(total or 0)
                if str(p) not in self.cut and self._device_of(p) not in self.cut
            ]
            if absent:
                raise ValueError(
                    f"split.cut: says nothing of client {absent[0]}, and has no {DEFAULT}"
                )
        varies = len(set(self.cut.values())) > 1 or AUTO in self.cut.values()
        if varies and self.side.name == "client":
            raise ValueError("quant.side=client: takes one stated cut for all clients")


class Chain(SplitStrategy):
    """Base of the methods in which clients train one after another and hand something on."""

    def handed_on(self, name: str) -> bool:
        """Whether an array goes from one client to the next; the others begin as the round did."""
        return True

    def train_round(
        self,
        grid: Grid,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        timeout: float,
    ) -> tuple[ArrayRecord, list[Outcome]]:
        """One client after another; a client that fails hands on what it was given."""
        current = dict(messages.to_arrays(arrays))
        outcomes: list[Outcome] = []
        for partition in self.choose(server_round):
            sent = self.requests(server_round, messages.to_record(current), config, [partition])
            (outcome,) = self.exchange(grid, sent, timeout)
            current |= {n: array for n, array in outcome.state.items() if self.handed_on(n)}
            kept = {n: array for n, array in outcome.state.items() if not self.handed_on(n)}
            outcomes.append(replace(outcome, state=kept))
        if not outcomes:
            return arrays, []
        outcomes.sort(key=lambda outcome: outcome.partition)
        report_failures(server_round, outcomes)
        averaged, _ = self.combine(outcomes)
        if averaged is None:
            return self.all_lost(server_round, arrays, outcomes), outcomes
        return messages.to_record(current | messages.to_arrays(averaged)), outcomes


def shuffled(chosen: Sequence[int], seed: int, server_round: int) -> list[int]:
    """Return the clients in a random order of the round's own."""
    generator = random.Random(derive_seed(seed, "order", server_round))
    return generator.sample(sorted(chosen), len(chosen))


class Joined(nn.Module):
    """The parts of a network with the link between them, for testing.

    Args:
        parts: the network; they get ``arrays``.
        arrays: state of the whole.
        link: codecs at the cut, which draw nothing at random here.
    """

    def __init__(self, parts: Halves, arrays: Mapping[str, Tensor], link: LinkSettings) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts.parts)
        for part in self.parts:
            load_arrays(part, {name: arrays[name] for name in part.state_dict()})
        self._link = Link(link)

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → (B, classes)."""
        first, server, *last = self.parts
        output: Tensor = server(self._link.send_up(first(x)).values)
        return last[0](self._link.send_down(output).values) if last else output


def part_costs(parts: Halves, input_shape: tuple[int, ...]) -> tuple[list[Cost], Cost]:
    """Return what the device's parts and the server's part cost."""
    first = cost(parts.device[0], input_shape)
    server = cost(parts.server, first.output_shape, input_grad=True)
    last = [cost(part, server.output_shape, input_grad=True) for part in parts.device[1:]]
    return [first, *last], server
