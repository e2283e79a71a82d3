"""Seconds, joules and memory of one client by hand; the best cut."""

import math
from dataclasses import replace

import pytest
from machines import DEVICE, FEDERATED, HIERARCHICAL, LINK, MBPS, SERVER, SLOW, SPLIT, flops

from fleet.clock import overlapped
from fleet.cost import choose_cut, cost
from fleet.devices import Device, Link
from fleet.phases import compute_seconds, phases, transfer_seconds
from fleet.work import BatchWork, ClientWork, Compute, Exchange, Work, traffic_bytes

RADIO = Link(
    "r",
    MBPS,
    MBPS,
    latency_s=0.5,
    down_w_per_mbps=0.1 / MBPS,
    up_w_per_mbps=0.2 / MBPS,
    radio_w=1.0,
)  # 0.1 W more while it receives at full speed, 0.2 W while it sends


def test_compute_by_hand() -> None:
    device = Device("x", {"fp32": 10.0, "int8": 20.0, "int4": 40.0}, 5.0, 1.0, 1.0)
    work = Compute({"fp32": 30, "int8": 40, "int4": 40}, traffic_bytes=10)
    assert compute_seconds(work, device) == 3 + 2 + 1 + 2
    assert compute_seconds(Compute(), device) == 0
    # Formats without a figure run as the next wider one that has one.
    assert [device.speed(f"int{b}") for b in (1, 3, 5, 8, 9, 16)] == [40, 40, 20, 20, 10, 10]
    assert device.speed("fp16") == 10
    for wrong in ("int0", "int33", "fp8", "int", ""):
        with pytest.raises(ValueError, match="takes fp32, fp16"):
            device.speed(wrong)


def test_transfer_by_hand() -> None:
    assert transfer_seconds(1_000_000, 8.0, 0.05) == pytest.approx(1.05)
    assert transfer_seconds(0, 8.0, 0.05) == 0  # no message, no latency


def test_forward_traffic_writes_and_reads_activations_and_reads_weights() -> None:
    assert traffic_bytes(100, 30) == 230


def test_totals_of_a_round() -> None:
    assert SPLIT.total() == Work(3 + 2, 3 + 2, {"fp32": 2 * (2 + 3)}, 900)
    assert FEDERATED.total() == Work(4, 3, {"fp32": 10}, 0)
    assert (Compute({"fp32": 1}, 2) + Compute({"int4": 3}, 4)) * 2 == Compute(
        {"fp32": 2, "int4": 6}, 12
    )


def test_energy_by_hand() -> None:
    # Down 3 s, two batches of 2 + 1 + 4 + 1 + 3, up 3 s, and 0.5 s for each of six messages: 31 s.
    parts = phases(SPLIT, DEVICE, RADIO, SERVER)
    assert parts.transfer_s == 10 + 6 * 0.5
    assert parts.compute_s == 10
    found = cost(SPLIT, DEVICE, RADIO, SERVER)
    assert found.seconds == 31
    idle, busy = 0.5 * 31, 1.5 * 10
    radio = 1.0 * 13 + 0.2 * 5 + 0.1 * 5
    assert found.joules == pytest.approx(idle + busy + radio)
    assert cost(SPLIT, DEVICE, RADIO, SERVER, participants=3).seconds == 31 + 2 * 8
    waiting = cost(SPLIT, DEVICE, RADIO, SERVER, participants=3).joules
    assert waiting == pytest.approx(found.joules + 0.5 * 16)
    assert cost(HIERARCHICAL, DEVICE, LINK, SERVER, overlapped).seconds == 20


def test_tails_count_once_and_only_where_something_was_sent() -> None:
    link = replace(RADIO, tail_s=4.0, tail_w=2.0)
    with_tail = phases(SPLIT, DEVICE, link, SERVER, tails=True)
    assert with_tail.joules(31) - phases(SPLIT, DEVICE, link, SERVER).joules(31) == pytest.approx(8)
    silent = ClientWork(local=flops(1))
    assert phases(silent, DEVICE, link, SERVER, tails=True).tail_j == 0


def test_doing_nothing_costs_nothing() -> None:
    found = cost(ClientWork(), DEVICE, RADIO, SERVER)
    assert (found.seconds, found.joules, found.fits) == (0, 0, True)


def test_memory_is_a_limit() -> None:
    assert cost(SPLIT, replace(DEVICE, memory_bytes=900), LINK, SERVER).fits
    assert not cost(SPLIT, replace(DEVICE, memory_bytes=899), LINK, SERVER).fits


def test_slowed_multiplies_each_part() -> None:
    slow = phases(SPLIT, SLOW, LINK, SERVER)
    assert phases(SPLIT, DEVICE, LINK, SERVER).slowed(device=2.0) == slow
    twice = phases(SPLIT, DEVICE, LINK, SERVER).slowed(link=2.0, server=3.0)
    assert (twice.transfer_s, twice.server_s, twice.compute_s) == (20, 24, 10)


def cut(device: float, up: int, peak: int) -> ClientWork:
    """One batch whose device part takes ``device`` s and whose server part the rest of 10 s."""
    exchange = Exchange(flops(device), up, flops(10 - device), 0)
    return ClientWork(0, Compute(), (BatchWork((exchange,)),), 0, peak)


def test_best_cut_by_hand() -> None:
    cuts = [cut(1, 9, 10), cut(4, 2, 40), cut(9, 1, 90)]  # 19 s, 12 s, 11 s
    assert choose_cut(cuts, DEVICE, LINK, SERVER) == 2
    assert choose_cut(cuts, replace(DEVICE, memory_bytes=50), LINK, SERVER) == 1
    assert choose_cut(cuts, replace(DEVICE, memory_bytes=5), LINK, SERVER) is None
    assert choose_cut([], DEVICE, LINK, SERVER) is None
    # 0.5·19 + 1.5·1, 0.5·12 + 1.5·4, 0.5·11 + 1.5·9 joules
    joules = [11, 12, 19]
    assert [cost(c, DEVICE, LINK, SERVER).joules for c in cuts] == joules
    assert choose_cut(cuts, DEVICE, LINK, SERVER, "joules") == 0
    assert choose_cut(cuts, DEVICE, LINK, SERVER, participants=9) == 2
    assert choose_cut(cuts, SLOW, LINK, SERVER) == 1  # 20, 16, 20: half as fast on its part
    assert choose_cut([cuts[2], cuts[2]], DEVICE, LINK, SERVER) == 0
    with pytest.raises(ValueError, match=r"fleet\.objective=watts: takes seconds, joules"):
        choose_cut(cuts, DEVICE, LINK, SERVER, "watts")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Compute({"fp32": -1}),
        lambda: Compute({"fp32": math.nan}),
        lambda: Compute({}, -1),
        lambda: Exchange(bytes_up=-1),
        lambda: ClientWork(peak_bytes=-1),
        lambda: BatchWork(()),
        lambda: BatchWork((Exchange(),), count=0),
    ],
)
def test_impossible_work_is_refused(make) -> None:
    with pytest.raises(ValueError, match="takes"):
        make()
