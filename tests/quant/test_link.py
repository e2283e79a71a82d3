"""The link: the same values and bytes as if every packet were packed and unpacked."""

import pytest
import torch
from torch import nn

from quant.codec import CODECS, LinkSettings
from quant.link import Link, label_bytes, there_and_back

SHAPE = (5, 4, 6, 6)


def generators():
    return torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)


@pytest.mark.parametrize("up", CODECS)
@pytest.mark.parametrize("down", CODECS)
def test_both_directions_as_if_packed(up, down):
    settings = LinkSettings(up, down, k=0.2, rounding="stochastic")
    z, gradient = torch.randn(SHAPE), torch.randn(SHAPE)
    link = Link(settings, *generators())
    sent = link.send_up(z)
    back = link.gradient_down(gradient, sent)

    one, other = settings.codecs()
    g_up, g_down = generators()
    packet = one.encode(z, g_up)
    received, support = one.decode(packet), one.support(packet)
    answer = other.encode(one.select(gradient, support), g_down)
    assert torch.equal(sent.values, received)
    assert torch.equal(back.values, other.decode(answer))
    assert (link.bytes_up, link.bytes_down) == (packet.num_bytes, answer.num_bytes)
    assert (link.bytes_up, link.bytes_down) == there_and_back(one, other, SHAPE)
    assert torch.equal(link.before_up(z, back), one.gradient(z, other.decode(answer), support))


def test_the_gradient_is_that_of_what_arrives():
    """With a straight-through codec, as if autograd had seen the rounding as a constant."""
    link, device, server = Link(LinkSettings("int4")), nn.Linear(7, 5), nn.Linear(5, 3)
    x = torch.randn(6, 7)
    z = device(x)
    sent = link.send_up(z)
    received = sent.values.detach().requires_grad_()
    server(received).square().sum().backward()
    z.backward(link.before_up(z.detach(), link.gradient_down(received.grad, sent)))
    got = device.weight.grad.clone()

    device.zero_grad()
    z = device(x)
    server(z + (sent.values - z).detach()).square().sum().backward()
    torch.testing.assert_close(got, device.weight.grad)


def test_random_codecs_draw_nothing_at_test():
    settings = LinkSettings("randtopk", "int8", rounding="stochastic")
    z = torch.randn(SHAPE)
    assert torch.equal(Link(settings).send_up(z).values, Link(settings).send_up(z).values)
    plain = Link(LinkSettings("topk", "int8"))
    assert torch.equal(Link(settings).send_up(z).values, plain.send_up(z).values)
    assert torch.equal(Link(settings).send_down(z).values, plain.send_down(z).values)


@pytest.mark.parametrize(
    ("num_classes", "size"), [(2, 1), (256, 1), (257, 2), (65536, 2), (65537, 4)]
)
def test_bytes_of_a_label(num_classes, size):
    assert label_bytes(num_classes) == size
    link = Link(LinkSettings())
    link.labels_up(torch.zeros(7, dtype=torch.int64), num_classes)
    assert link.bytes_up == 7 * size
