"""What a round of hierarchical training takes, and what it replaces: training in the cloud alone.

    hierarchical   per batch: t_fwd,edge + max(t_exit + t_bwd,edge, bits(z)/R + t_cloud)
    all in cloud   per batch: bits(x)/R + t_full,cloud

These are the sums of fleet.clock's rule ``overlapped``; ``pipelined`` lets device, link and server
each begin the next batch at once, for both alike. A device that uploads raw inputs computes
nothing.
"""

from fleet.work import BatchWork, ClientWork, Compute, Exchange
from models.cost import Cost
from quant.codec import LinkSettings
from quant.link import label_bytes
from strategies.client.training import LocalTraining
from strategies.server.workload import backward, batch_runs, forward, peak_bytes

PIXEL_BYTES = {"fp32": 4, "uint8": 1}


def hierarchical_round(
    device: Cost,
    head: Cost,
    server: Cost,
    num_examples: int,
    settings: LocalTraining,
    link: LinkSettings,
    model_bytes: tuple[int, int],
) -> ClientWork:
    """A round over a cut from which nothing comes back.

    Args:
        device: the device's part.
        head: its exit, with the gradient of its input.
        server: the cloud's part, without the gradient of its input.
        num_examples: samples that the client has.
        settings: how it trains.
        link: the codec of the activations.
        model_bytes: of the device's part and its exit, down and up.
    """
    codec, _ = link.codecs()
    runs = []
    for size, count in batch_runs(num_examples, settings):
        labels = size * label_bytes(server.output_shape[-1])
        exchange = Exchange(
            device=forward(device, size),
            bytes_up=codec.num_bytes((size, *device.output_shape)) + labels,
            server=forward(server, size) + backward(server, size),
        )
        runs.append(BatchWork((exchange,), _after_sending(device, head, size), count))
    down, up = model_bytes
    return ClientWork(down, Compute(), tuple(runs), up, peak_bytes([device, head], settings))


def alone_round(device: Cost, head: Cost, num_examples: int, settings: LocalTraining) -> ClientWork:
    """The same without network: the device's part and its exit."""
    total = Compute()
    for size, count in batch_runs(num_examples, settings):
        total += (forward(device, size) + _after_sending(device, head, size)) * count
    return ClientWork(local=total, peak_bytes=peak_bytes([device, head], settings))


def cloud_round(
    network: Cost,
    num_inputs: int,
    num_examples: int,
    settings: LocalTraining,
    pixels: str = "fp32",
    uploads: bool = True,
) -> ClientWork:
    """A round of training in the cloud on raw inputs.

    Args:
        network: the whole of it.
        num_inputs: numbers in one sample.
        num_examples: samples that the client has.
        settings: how the cloud trains.
        pixels: ``fp32``, or ``uint8`` as they lie in most data sets.
        uploads: whether the inputs go up in this round; False where the cloud has kept them.
    """
    runs = []
    for size, count in batch_runs(num_examples, settings):
        labels = size * label_bytes(network.output_shape[-1])
        sent = size * num_inputs * PIXEL_BYTES[pixels] + labels
        step = forward(network, size) + backward(network, size)
        exchange = Exchange(bytes_up=sent if uploads else 0, server=step)
        runs.append(BatchWork((exchange,), count=count))
    return ClientWork(batches=tuple(runs))


def _after_sending(device: Cost, head: Cost, size: int) -> Compute:
    """Exit and backward passes of one batch, which go on while the cloud works."""
    return forward(head, size) + backward(head, size) + backward(device, size)
