"""What a client's round takes, from shapes alone: models.cost turned into fleet.work.

Forward passes count at the precision of each layer, the wider of weight and input: a device with
fast integers gains as far as its table says. Backward passes are fp32: gradients of quantized
layers are real numbers. A step of the optimizer, quantizing and coding are not counted.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from fleet.work import BatchWork, ClientWork, Compute, Exchange, traffic_bytes
from models.cost import FULL_PRECISION_BITS, Cost, cost, joined
from models.inputs import FromFlat, Inputs, Several, example_of, spec_of
from models.objective import Classification
from models.split import cut_many, cut_points
from quant.codec import LinkSettings
from quant.link import there_and_back
from strategies.client.training import LocalTraining, batch_sizes

# Bytes of a sample's labels, of the output's shape for one sample.
LabelBytes = Callable[[Sequence[int]], int]
of_class: LabelBytes = Classification().label_bytes


def cost_at(model: nn.Module, inputs: Inputs) -> Cost:
    """What a network, or the first part of one, costs at its inputs."""
    if isinstance(inputs, Several):
        flat = FromFlat(model, inputs.specs)
        return cost(flat, flat.shape)
    spec = spec_of(inputs)
    return cost(model, spec.shape, dtype=spec.dtype)


@dataclass(frozen=True)
class Pieces:
    """A network cut at every cut point at once, and what each piece costs.

    Attributes:
        names: of the cut points, in execution order.
        costs: one more than there are cut points.
        parts: what they are costs of.
        shapes: of a sample at each one's input.
    """

    names: list[str]
    costs: list[Cost]
    parts: Sequence[nn.Module]
    shapes: Sequence[tuple[int, ...]]

    @staticmethod
    def of(model: nn.Module, input_shape: Inputs) -> "Pieces":
        """Cut ``model``, whose samples are of ``input_shape``, everywhere."""
        example = example_of(input_shape)
        points = cut_points(model, example)
        names = [point.name for point in points]
        parts = cut_many(model, names, example, check=False) if points else (model,)
        later = [point.shape for point in points]
        first, *rest = parts
        costs = [
            cost_at(first, input_shape),
            *(cost(part, shape, True) for part, shape in zip(rest, later, strict=True)),
        ]
        return Pieces(names, costs, parts, [spec_of(input_shape).shape, *later])

    def at(self, cut: str, tail: str = "", is_detached: bool = False) -> tuple[list[Cost], Cost]:
        """What the device's parts and the server's part cost, cut at ``cut`` and ``tail``.

        Args:
            cut: a cut point.
            tail: the second one; empty for none.
            is_detached: whether the backward pass ends with the server's part.
        """
        begin = self.names.index(cut) + 1
        end = self.names.index(tail) + 1 if tail else len(self.costs)
        last = [joined(self.costs[end:])] if tail else []
        server = self.costs[begin:end]
        if is_detached:
            server = [cost(self.parts[begin], self.shapes[begin]), *server[1:]]
        return [joined(self.costs[:begin]), *last], joined(server)


def batch_runs(num_examples: int, settings: LocalTraining) -> Iterator[tuple[int, int]]:
    """Sizes of a round's batches, and how many of a size follow each other."""
    for size, alike in itertools.groupby(batch_sizes(num_examples, settings)):
        yield size, len(list(alike))


def forward(part: Cost, batch_size: int) -> Compute:
    """A forward pass of one batch."""
    flops: dict[str, float] = {}
    for layer in part.layers:
        bits = max(layer.weight_bits, layer.input_bits)
        name = "fp32" if bits >= FULL_PRECISION_BITS else f"int{bits}"
        flops[name] = flops.get(name, 0.0) + 2.0 * layer.macs * batch_size
    rest = part.flops_forward * batch_size - sum(flops.values())  # products outside of layers
    flops["fp32"] = flops.get("fp32", 0.0) + max(0.0, rest)
    return Compute(flops, _traffic(part, batch_size))


def backward(part: Cost, batch_size: int) -> Compute:
    """A backward pass of one batch, which moves twice what the forward pass does."""
    flops = {"fp32": float(part.flops_backward * batch_size)}
    return Compute(flops, 2 * _traffic(part, batch_size))


def peak_bytes(parts: Sequence[Cost], settings: LocalTraining) -> int:
    """Most memory that a step of the parts on the device holds at once."""
    slots = settings.optimizer_slots
    return sum(part.peak_train_bytes(settings.batch_size, slots) for part in parts)


def local_round(
    network: Cost, num_examples: int, settings: LocalTraining, model_bytes: tuple[int, int]
) -> ClientWork:
    """A round without a cut: model down, training, model up."""
    total = Compute()
    for size, count in batch_runs(num_examples, settings):
        total += (forward(network, size) + backward(network, size)) * count
    down, up = model_bytes
    return ClientWork(down, total, (), up, peak_bytes([network], settings))


def split_round(
    device: Sequence[Cost],
    server: Cost,
    num_examples: int,
    settings: LocalTraining,
    link: LinkSettings,
    model_bytes: tuple[int, int],
    labels_of: LabelBytes = of_class,
) -> ClientWork:
    """A round over a cut: the device's part down, batches, the device's part up.

    Args:
        device: its first part, and its last where the network is cut twice.
        server: the part between or after.
        num_examples: samples that the client has.
        settings: how it trains.
        link: codecs at the cut.
        model_bytes: of the device's part, down and up.
        labels_of: bytes of a sample's labels.
    """
    runs = tuple(
        _split_batch(device, server, link, size, count, labels_of)
        for size, count in batch_runs(num_examples, settings)
    )
    down, up = model_bytes
    return ClientWork(down, Compute(), runs, up, peak_bytes(device, settings))


def hierarchical_round(
    tiers: Sequence[Cost],
    server: Cost,
    num_examples: int,
    settings: LocalTraining,
    link: LinkSettings,
    model_bytes: tuple[int, int],
    labels_of: LabelBytes = of_class,
) -> ClientWork:
    """A round over a cut from which nothing comes back.

    Args:
        tiers: the device's part, and its exit with the gradient of its input.
        server: the cloud's part, without the gradient of its input.
        num_examples: samples that the client has.
        settings: how it trains.
        link: the codec of the activations.
        model_bytes: of the device's part and its exit, down and up.
        labels_of: bytes of a sample's labels.
    """
    device, head = tiers
    codec, _ = link.codecs()
    runs = []
    for size, count in batch_runs(num_examples, settings):
        labels = size * labels_of(server.output_shape)
        exchange = Exchange(
            device=forward(device, size),
            bytes_up=codec.num_bytes((size, *device.output_shape)) + labels,
            server=forward(server, size) + backward(server, size),
        )
        runs.append(BatchWork((exchange,), _after_sending(device, head, size), count))
    down, up = model_bytes
    return ClientWork(down, Compute(), tuple(runs), up, peak_bytes([device, head], settings))


def alone_round(tiers: Sequence[Cost], num_examples: int, settings: LocalTraining) -> ClientWork:
    """The same without network: the device's part and its exit."""
    device, head = tiers
    total = Compute()
    for size, count in batch_runs(num_examples, settings):
        total += (forward(device, size) + _after_sending(device, head, size)) * count
    return ClientWork(local=total, peak_bytes=peak_bytes([device, head], settings))


def _split_batch(
    device: Sequence[Cost],
    server: Cost,
    link: LinkSettings,
    size: int,
    count: int,
    labels_of: LabelBytes,
) -> BatchWork:
    first, *last = device
    to_server, to_device = link.codecs()
    z_up, z_down = there_and_back(to_server, to_device, (size, *first.output_shape))
    ahead, back = forward(first, size), backward(first, size)
    middle = forward(server, size), backward(server, size)
    if not last:
        labels = size * labels_of(server.output_shape)
        exchange = Exchange(ahead, z_up + labels, middle[0] + middle[1], z_down)
        return BatchWork((exchange,), back, count)
    h_down, h_up = there_and_back(to_device, to_server, (size, *server.output_shape))
    around = forward(last[0], size) + backward(last[0], size)
    exchanges = Exchange(ahead, z_up, middle[0], h_down), Exchange(around, h_up, middle[1], z_down)
    return BatchWork(exchanges, back, count)


def _after_sending(device: Cost, head: Cost, size: int) -> Compute:
    """Exit and backward passes of one batch, which go on while the cloud works."""
    return forward(head, size) + backward(head, size) + backward(device, size)


def _traffic(part: Cost, batch_size: int) -> float:
    kept = part.fixed_activation_bytes + part.activation_bytes * batch_size
    return traffic_bytes(kept, part.model_bytes)
