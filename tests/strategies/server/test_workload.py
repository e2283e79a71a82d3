"""What hierarchical training takes and saves, by hand and as the paper claims."""

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.cloud_round import cloud_round
from benchmarks.hierarchical import (
    BASELINES,
    CUTS,
    NETWORKS,
    PAPER,
    SHAPE,
    Clock,
    curve,
    cuts,
    highest_rate,
    saved,
)
from benchmarks.hierarchical_plot import figure
from benchmarks.picture import write
from fleet.clock import overlapped, pipelined
from fleet.devices import tables
from models.cost import cost
from quant.codec import LinkSettings
from strategies.client.training import LocalTraining
from strategies.server.workload import alone_round, backward, forward, hierarchical_round

TRAIN = LocalTraining(epochs=1, batch_size=16, momentum=0.0)


@pytest.fixture(scope="module")
def parts():
    device, server = nn.Linear(20, 6), nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 10))
    head = nn.Linear(6, 10)
    return cost(device, (20,)), cost(head, (6,), input_grad=True), cost(server, (6,))


def test_a_batch_by_hand(parts) -> None:
    device, head, server = parts
    work = hierarchical_round([device, head], server, 40, TRAIN, LinkSettings(up="int8"), (100, 90))
    assert (work.bytes_down, work.bytes_up) == (100, 90)
    assert [batch.count for batch in work.batches] == [2, 1]  # 16, 16, 8
    (exchange,) = work.batches[0].exchanges
    assert exchange.bytes_up == 16 * 6 + 8 + 16  # codes, a range, labels
    assert exchange.bytes_down == 0
    assert exchange.device.flops == {"fp32": 16 * 2 * 120}
    assert exchange.server.flops == {"fp32": 16 * 2 * (3 * 480 - 180)}  # no gradient of z
    assert work.batches[0].last.flops == {"fp32": 16 * 2 * (3 * 60 + 120)}


def test_alone_is_the_same_without_the_cloud(parts) -> None:
    device, head, server = parts
    whole = hierarchical_round([device, head], server, 40, TRAIN, LinkSettings(), (0, 0))
    alone = alone_round([device, head], 40, TRAIN)
    assert alone.total().flops == whole.total().flops
    assert alone.peak_bytes == whole.peak_bytes
    assert (alone.total().bytes_up, alone.total().bytes_down, alone.batches) == (0, 0, ())


@pytest.mark.parametrize(("pixels", "num_bytes"), [("fp32", 4), ("uint8", 1)])
def test_the_cloud_alone_by_hand(parts, pixels, num_bytes) -> None:
    network = parts[2]
    work = cloud_round(network, 6, 40, TRAIN, pixels)
    assert work.total().bytes_up == 40 * (6 * num_bytes + 1)
    (exchange,) = work.batches[0].exchanges
    assert exchange.device.flops == {}
    assert exchange.server == forward(network, 16) + backward(network, 16)
    kept = cloud_round(network, 6, 40, TRAIN, pixels, uploads=False)
    assert kept.total().bytes_up == 0
    assert kept.batches[0].exchanges[0].server == exchange.server


@pytest.fixture(scope="module", params=sorted(PAPER))
def network(request):
    with torch.device("meta"):
        model = NETWORKS[request.param]()
    return request.param, cuts(model, [CUTS[request.param]]), cost(model, SHAPE)


def test_the_papers_savings_at_a_low_rate(network) -> None:
    """Jetson Nano, 0.1 Mbit/s, fp32 activations against fp32 inputs uploaded in each epoch."""
    name, (cut,), whole = network
    for rule in (overlapped, pipelined):
        clock = Clock(tables().device("jetson_nano"), 0.1, rule)
        seconds = clock.seconds(cut.epoch(LinkSettings()))
        share = saved(seconds, clock.baseline(whole, "fp32, each epoch", 10))
        assert share >= PAPER[name]
        # Never more than the bytes that it spares: z and its label against x and its label.
        values = torch.Size(cut.device.output_shape).numel()
        assert share <= 1 - (4 * values + 1) / (4 * 3072 + 1)
        # And against inputs of one byte a value it loses, at this cut, with fp32 activations.
        assert saved(seconds, clock.baseline(whole, "uint8, each epoch", 10)) < 0


UP_TO = {"vgg16": 1.16, "resnet18": 12.1}  # Mbit/s, as docs/HIERARCHICAL.md says


def test_up_to_which_rate_the_papers_savings_are_reached(network) -> None:
    name, (cut,), whole = network
    device = tables().device("jetson_nano")
    rate = highest_rate(cut, whole, device, PAPER[name])
    assert rate == pytest.approx(UP_TO[name], rel=0.01)
    at_and_above = curve(cut, whole, device, "fp32", 10, [rate, 1.01 * rate])
    at, above = at_and_above["fp32, each epoch"]
    assert at <= 1 - PAPER[name] < above


def test_the_curves_are_the_tables(network, tmp_path) -> None:
    name, (cut,), whole = network
    device, rates = tables().device("jetson_nano"), [0.1, 10.0]
    found = {codec: curve(cut, whole, device, codec, 10, rates) for codec in ("fp32", "int8")}
    for codec, shares in found.items():
        for baseline in BASELINES:
            for mbps, share in zip(rates, shares[baseline], strict=True):
                clock = Clock(device, mbps)
                seconds = clock.seconds(cut.epoch(LinkSettings(up=codec)))
                assert 1 - share == saved(seconds, clock.baseline(whole, baseline, 10))
    drawn = figure(rates, {name: found}, PAPER, "title")
    assert [line.y for line in drawn.data] == [
        tuple(values) for shares in found.values() for values in shares.values()
    ]
    write(tmp_path / "curve.html", drawn)
    assert "plotly.js v" in (tmp_path / "curve.html").read_text()
    with pytest.raises(ValueError, match=r"--plot curve\.svg: takes names that end"):
        write(Path("curve.svg"), drawn)


def test_savings_fall_with_the_rate_and_pipelining_never_costs(network) -> None:
    _, (cut,), whole = network
    device, found = tables().device("jetson_nano"), []
    for mbps in (0.1, 1.0, 10.0, 100.0):
        plain, ahead = (Clock(device, mbps, rule) for rule in (overlapped, pipelined))
        seconds = plain.seconds(cut.epoch(LinkSettings()))
        assert ahead.seconds(cut.epoch(LinkSettings())) <= seconds * (1 + 1e-9)
        found.append(saved(seconds, plain.baseline(whole, "fp32, each epoch", 10)))
        once = [plain.baseline(whole, "fp32, once", epochs) for epochs in (1, 10, 100)]
        assert once == sorted(once, reverse=True)
        assert once[0] == pytest.approx(plain.baseline(whole, "fp32, each epoch", 1))
    assert found == sorted(found, reverse=True)
