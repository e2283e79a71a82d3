"""Each rule against examples worked by hand, against a simulation event by event, and monotone."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import DEVICE, FEDERATED, HIERARCHICAL, LINK, SERVER, SLOW, SPLIT, U_SHAPED

from fleet.clock import Turn, overlapped, parallel, pipelined, queued, sequential
from fleet.devices import Device, Link
from fleet.phases import Phases, phases
from fleet.work import BatchWork, ClientWork, Compute, Exchange

properties = settings(deadline=None, max_examples=150)
RULES = (parallel, queued, sequential, overlapped, pipelined)
FAST_SPLIT = phases(SPLIT, DEVICE, LINK, SERVER)
SLOW_SPLIT = phases(SPLIT, SLOW, LINK, SERVER)  # forward 4 s, backward 6 s


def ends(turns: list[Turn | None]) -> list[float]:
    return [math.inf if turn is None else turn.end_s for turn in turns]


def test_federated_is_down_local_up() -> None:
    fast, slow = (phases(FEDERATED, device, LINK, SERVER) for device in (DEVICE, SLOW))
    assert ends(parallel([fast, slow])) == [3 + 10 + 4, 3 + 20 + 4]
    assert ends(parallel([fast])) == [17]


def test_splitfed_v1_shares_the_server() -> None:
    # 3 + 2·(2 + 1 + n·4 + 1 + 3) + 3
    assert ends(parallel([FAST_SPLIT])) == [28]
    assert ends(parallel([FAST_SPLIT, SLOW_SPLIT])) == [36, 46]
    assert ends(parallel([FAST_SPLIT] * 3)) == [44] * 3


def test_splitfed_v2_queues_for_the_server() -> None:
    # fast: its first batch is there at 3+2+1 = 6, the server is held for 4 + (1+3+2+1) + 4 = 15,
    # leaves it at 21; then 1+3+3. slow: there at 8, served from 21, held 4+12+4 = 20; then 1+6+3
    assert ends(queued([FAST_SPLIT, SLOW_SPLIT])) == [21 + 7, 21 + 20 + 10]
    # slow is served from 8 to 28; fast from 28 to 43.
    assert ends(queued([SLOW_SPLIT, FAST_SPLIT])) == [28 + 10, 43 + 7]
    assert ends(queued([FAST_SPLIT])) == ends(parallel([FAST_SPLIT]))


def test_sequential_takes_turns_and_relays() -> None:
    assert sequential([FAST_SPLIT, SLOW_SPLIT]) == [Turn(0, 28), Turn(28, 28 + 38)]


def test_u_shaped_exchanges_twice() -> None:
    client = phases(U_SHAPED, DEVICE, LINK, SERVER)
    alone = 3 + (2 + 1 + 4 + 2) + (1 + 2 + 5 + 1) + 3 + 3
    assert ends(parallel([client])) == [alone]
    assert ends(parallel([client, client])) == [alone + 9, alone + 9]
    assert ends(sequential([client, client])) == [alone, 2 * alone]
    # There at 6; the server is held from 4 s of it, through 2+1+2 s, to the end of its 5 s: 14 s.
    assert ends(queued([client, client])) == [20 + 7, 34 + 7]


def test_hierarchical_overlaps_device_and_server() -> None:
    client = phases(HIERARCHICAL, DEVICE, LINK, SERVER)
    assert ends(overlapped([client])) == [3 + 2 * (2 + max(5, 3 + 1)) + 3]
    assert ends(overlapped([client] * 4)) == [3 + 2 * (2 + max(5, 3 + 4)) + 3] * 4


@pytest.mark.parametrize(
    ("up", "serve", "end"),
    [
        (3, 1, 20),  # the device: 3 + 2·7, then up
        (9, 1, 26),  # the link: sends from 5 to 14 and from 14 to 23, then up
        (3, 9, 26),  # the server: from 8 to 17 and from 17 to 26
    ],
)
def test_pipelined_waits_for_its_slowest_part(up: int, serve: float, end: float) -> None:
    exchange = Exchange(Compute({"fp32": 2}), up, Compute({"fp32": serve}), 0)
    work = ClientWork(3, Compute(), (BatchWork((exchange,), Compute({"fp32": 5}), 2),), 3)
    assert ends(pipelined([phases(work, DEVICE, LINK, SERVER)])) == [end]


@pytest.mark.parametrize("rule", RULES)
def test_nobody_takes_no_time(rule) -> None:
    assert rule([]) == []


def test_late_clients_hold_up_nobody_in_a_queue() -> None:
    assert ends(queued([SLOW_SPLIT, FAST_SPLIT], 37)) == [math.inf, 28]
    assert ends(sequential([SLOW_SPLIT, FAST_SPLIT], 37)) == [math.inf, 28]
    assert ends(sequential([FAST_SPLIT] * 3, 60)) == [28, 56, math.inf]
    # In parallel the late one keeps its share of the server.
    assert ends(parallel([SLOW_SPLIT, FAST_SPLIT], 37)) == [math.inf, 36]
    assert ends(parallel([FAST_SPLIT], 27.9)) == [math.inf]


# Against a simulation of every batch ------------------------------------------------------------

seconds = st.integers(0, 20)
computes = st.builds(lambda n: Compute({"fp32": n}), seconds)


def works(min_exchanges: int = 1, max_exchanges: int = 2) -> st.SearchStrategy[ClientWork]:
    exchange = st.builds(Exchange, computes, seconds, computes, seconds)
    batch = st.builds(
        BatchWork,
        st.lists(exchange, min_size=min_exchanges, max_size=max_exchanges).map(tuple),
        computes,
        st.integers(1, 4),
    )
    return st.builds(
        ClientWork, seconds, computes, st.lists(batch, min_size=1, max_size=3).map(tuple), seconds
    )


@properties
@given(clients=st.lists(works(), min_size=1, max_size=4))
def test_queued_is_every_batch_one_after_another(clients: list[ClientWork]) -> None:
    free, wanted = 0.0, []
    for work in clients:
        now = work.bytes_down + work.local.flops["fp32"]
        first = True
        for batch in work.batches:
            for _ in range(batch.count):
                for exchange in batch.exchanges:
                    now += exchange.device.flops["fp32"] + exchange.bytes_up
                    now = max(now, free) if first else now
                    first = False
                    now = free = now + exchange.server.flops["fp32"]
                    now += exchange.bytes_down
                now += batch.last.flops["fp32"]
        wanted.append(now + work.bytes_up)
    found = ends(queued([phases(work, DEVICE, LINK, SERVER) for work in clients]))
    assert found == pytest.approx(wanted, abs=1e-9)


@properties
@given(work=works(max_exchanges=1), n=st.integers(1, 3))
def test_pipelined_is_three_stations_in_a_row(work: ClientWork, n: int) -> None:
    device = link = server = work.bytes_down + work.local.flops["fp32"]
    for batch in work.batches:
        for _ in range(batch.count):
            (exchange,) = batch.exchanges
            device += exchange.device.flops["fp32"]
            link = max(link, device) + exchange.bytes_up
            server = max(server, link) + n * exchange.server.flops["fp32"]
            device += batch.last.flops["fp32"]
    wanted = max(max(device, link) + work.bytes_up, server)
    found = ends(pipelined([phases(work, DEVICE, LINK, SERVER)] * n))
    assert found == pytest.approx([wanted] * n, abs=1e-9)


# Monotone ---------------------------------------------------------------------------------------


def one_more(work: ClientWork, where: str) -> ClientWork:
    """``work`` with one more operation, or byte, somewhere."""
    more = Compute({"fp32": 1}, 1)
    if where in ("bytes_down", "bytes_up"):
        return replace(work, **{where: getattr(work, where) + 1})
    if where == "local":
        return replace(work, local=work.local + more)
    *others, last = work.batches
    if where == "count":
        return replace(work, batches=(*others, replace(last, count=last.count + 1)))
    if where == "last":
        return replace(work, batches=(*others, replace(last, last=last.last + more)))
    *before, exchange = last.exchanges
    grown = {
        "device": replace(exchange, device=exchange.device + more),
        "server": replace(exchange, server=exchange.server + more),
        "up": replace(exchange, bytes_up=exchange.bytes_up + 1),
        "down": replace(exchange, bytes_down=exchange.bytes_down + 1),
    }[where]
    return replace(work, batches=(*others, replace(last, exchanges=(*before, grown))))


PLACES = ["bytes_down", "bytes_up", "local", "count", "last", "device", "server", "up", "down"]
links = st.builds(
    Link,
    st.just("l"),
    down_mbps=st.floats(1e-6, 1e-4),
    up_mbps=st.floats(1e-6, 1e-4),
    latency_s=st.floats(0, 3),
    down_w_per_mbps=st.floats(0, 1e5),
    up_w_per_mbps=st.floats(0, 1e5),
    radio_w=st.floats(0, 3),
)


def assert_never_less(rule, before: list[Phases], after: list[Phases]) -> None:
    old, new = rule(before), rule(after)
    for one, other, a, b in zip(old, new, before, after, strict=True):
        assert other.end_s >= one.end_s * (1 - 1e-9)
        spent, later = a.joules(one.end_s - one.begin_s), b.joules(other.end_s - other.begin_s)
        assert later >= spent * (1 - 1e-9) - 1e-9


@properties
@given(
    clients=st.lists(st.tuples(works(max_exchanges=1), links), min_size=1, max_size=3),
    who=st.integers(0, 2),
    where=st.sampled_from([*PLACES, "slow device", "slow up", "slow down", "latency"]),
    rule=st.sampled_from(RULES),
)
def test_more_work_or_a_slower_link_never_takes_less(clients, who, where, rule) -> None:
    before = [phases(work, DEVICE, link, SERVER) for work, link in clients]
    after = list(before)
    who %= len(clients)
    work, link = clients[who]
    device: Device = SLOW if where == "slow device" else DEVICE
    if where == "slow up":
        link = replace(link, up_mbps=link.up_mbps / 1.5)
    elif where == "slow down":
        link = replace(link, down_mbps=link.down_mbps / 1.5)
    elif where == "latency":
        link = replace(link, latency_s=link.latency_s + 1)
    elif where != "slow device":
        work = one_more(work, where)
    after[who] = phases(work, device, link, SERVER)
    assert_never_less(rule, before, after)


@properties
@given(clients=st.lists(works(), min_size=1, max_size=4), rule=st.sampled_from((parallel, queued)))
def test_one_client_more_never_takes_less(clients, rule) -> None:
    parts = [phases(work, DEVICE, LINK, SERVER) for work in clients]
    fewer, more = ends(rule(parts[:-1])), ends(rule(parts))
    assert all(late >= soon - 1e-9 for soon, late in zip(fewer, more, strict=False))
