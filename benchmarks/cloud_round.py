"""What hierarchical training replaces: training in the cloud alone, on uploaded raw inputs.

    hierarchical   per batch: t_fwd,edge + max(t_exit + t_bwd,edge, bits(z)/R + t_cloud)
    all in cloud   per batch: bits(x)/R + t_full,cloud

These are the sums of fleet.clock's rule ``overlapped``; ``pipelined`` lets device, link and server
each begin the next batch at once, for both alike. A device that uploads raw inputs computes
nothing.
"""

from fleet.work import BatchWork, ClientWork, Exchange
from models.cost import Cost
from models.objective import label_bytes
from strategies.client.training import LocalTraining
from strategies.server.workload import backward, batch_runs, forward

PIXEL_BYTES = {"fp32": 4, "uint8": 1}


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
