"""The link: the same values and bytes as if every packet were packed and unpacked."""

import pytest
import torch
from torch import nn

from models.crossing import answer, receive
from models.objective import label_bytes, label_dtype
from quant.codec import CODECS, LinkSettings
from quant.link import End, carried, receive_labels, there_and_back
from quant.packet import Packet

SHAPE = (5, 4, 6, 6)


def two_ends(settings, packed=False):
    up, down = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    return End.of_device(settings, up, packed), End.of_server(settings, down, packed)


def moved(packet):
    """As it comes out at the other side."""
    return packet if packet.values is not None else Packet.from_bytes(packet.to_bytes())


@pytest.mark.parametrize("up", CODECS)
@pytest.mark.parametrize("down", CODECS)
def test_both_directions_as_if_packed(up, down):
    settings = LinkSettings(up, down, k=0.2, rounding="stochastic")
    z, gradient = torch.randn(SHAPE), torch.randn(SHAPE)
    device, server = two_ends(settings)
    received = server.receive(device.send(z))
    back = device.receive_gradient(server.send_gradient(gradient))

    one, other = settings.codecs()
    g_up, g_down = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    packet = one.encode(z, g_up)
    expected, support = one.decode(packet), one.support(packet)
    answer = other.encode(one.select(gradient, support), g_down)
    assert torch.equal(received, expected)
    assert torch.equal(back, one.gradient(z, other.decode(answer), support))
    sent = device.bytes_sent, server.bytes_sent
    assert sent == (packet.num_bytes, answer.num_bytes) == there_and_back(one, other, SHAPE)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("down", CODECS)
@pytest.mark.parametrize("up", CODECS)
def test_an_exchange_as_bytes(up, down, memory_format):
    """Activations there and back, and gradients back and there: bits, strides, bytes as unpacked.

    The gradient comes back in another memory format than its activations went up in.
    """
    settings = LinkSettings(up, down, k=0.2, rounding="stochastic")
    z = torch.randn(SHAPE).to(memory_format=memory_format)
    h, of_h, of_z = torch.randn(5, 9), torch.randn(5, 9), torch.randn(SHAPE)
    y = torch.tensor([3, 255, 0, 7, 200])
    found = []
    for packed in (False, True):
        device, server = two_ends(settings, packed)
        arrived = [
            server.receive(moved(device.send(z))),
            device.receive(moved(server.send(h))),
            server.receive_gradient(moved(device.send_gradient(of_h))),
            device.receive_gradient(moved(server.send_gradient(of_z))),
            receive_labels(device.send_labels(y, torch.uint8)),
        ]
        found.append((arrived, device.bytes_sent, server.bytes_sent))
    (plain, *sent), (packed, *also_sent) = found
    for one, other in zip(plain, packed, strict=True):
        assert torch.equal(one, other)
        assert (one.stride(), one.dtype) == (other.stride(), other.dtype)
    assert sent == also_sent


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("down", CODECS)
@pytest.mark.parametrize("up", CODECS)
def test_bfloat16_crosses_as_float32_and_is_itself_again(up, down, packed):
    settings = LinkSettings(up, down, k=0.2, rounding="stochastic")
    z = torch.randn(SHAPE, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    gradient = torch.randn(SHAPE, dtype=torch.bfloat16)
    found = []
    for one, other in ((z, gradient), (z.float(), gradient.float())):
        device, server = two_ends(settings, packed)
        arrived = server.receive(moved(device.send(one)))
        back = device.receive_gradient(moved(server.send_gradient(other)))
        found.append((arrived, back, device.bytes_sent, server.bytes_sent))
    (arrived, back, *sent), (whole, whole_back, *whole_sent) = found
    assert sent == whole_sent
    assert arrived.dtype == back.dtype == torch.bfloat16
    assert torch.equal(arrived, whole.bfloat16()) and torch.equal(back, whole_back.bfloat16())
    assert arrived.stride() == whole.stride()
    if (up, down) == ("fp32", "fp32"):
        assert torch.equal(arrived, z) and torch.equal(back, gradient)


def test_at_test_what_is_carried_is_what_arrives():
    z = torch.randn(SHAPE)
    for name in CODECS:
        codec, _ = LinkSettings(name).codecs()
        arrived = codec.transmit(z, None)[0]
        assert torch.equal(carried(codec, z), arrived)
        half = z.bfloat16()
        assert torch.equal(carried(codec, half), codec.transmit(half.float(), None)[0].bfloat16())


def test_the_gradient_is_that_of_what_arrives():
    """With a straight-through codec, as if autograd had seen the rounding as a constant."""
    device, server = nn.Linear(7, 5), nn.Linear(5, 3)
    one, other = End.of_device(LinkSettings("int4")), End.of_server(LinkSettings("int4"))
    x = torch.randn(6, 7)
    z = device(x)
    received, gradients = receive(other.receive(one.send(z)))
    server(received).square().sum().backward()
    back = one.receive_gradient(other.send_gradient(gradients.pop()))
    answer(z, [back]).backward()
    got = device.weight.grad.clone()

    device.zero_grad()
    z = device(x)
    server(z + (received - z).detach()).square().sum().backward()
    torch.testing.assert_close(got, device.weight.grad)


def test_random_codecs_draw_nothing_at_test():
    settings = LinkSettings("randtopk", "int8", rounding="stochastic")
    z = torch.randn(SHAPE)
    sent, again = (End.of_device(settings).send(z).values for _ in range(2))
    assert torch.equal(sent, again)
    plain = LinkSettings("topk", "int8")
    assert torch.equal(sent, End.of_device(plain).send(z).values)
    down = [End.of_server(link).send(z).values for link in (settings, plain)]
    assert torch.equal(*down)


@pytest.mark.parametrize(
    ("num_classes", "size"), [(2, 1), (256, 1), (257, 2), (65536, 2), (65537, 4)]
)
def test_bytes_of_a_label(num_classes, size):
    assert label_bytes(num_classes) == size
    y = torch.arange(num_classes - 7, num_classes).clamp_(min=0)
    for packed in (False, True):
        end = End.of_device(LinkSettings(), packed=packed)
        sent = end.send_labels(y, label_dtype(num_classes))
        assert end.bytes_sent == 7 * size
        assert not packed or sent.numel() * sent.element_size() == 7 * size
        assert torch.equal(receive_labels(sent), y)


# What is no packet of this link ---------------------------------------------------------------


def test_a_gradient_of_another_shape_is_refused():
    device, server = two_ends(LinkSettings("topk", "fp32", k=0.2))
    server.receive(device.send(torch.randn(SHAPE)))
    with pytest.raises(ValueError, match=r"a gradient of shape \(5, 4, 6, 6\): \(5, 29\) expected"):
        device.receive_gradient(End.of_server(LinkSettings()).send(torch.randn(SHAPE)))


@pytest.mark.parametrize("codec", CODECS)
def test_a_packet_of_another_codec_is_refused(codec):
    alike = {"topk", "randtopk"}
    for other in CODECS:
        if other == codec or {codec, other} == alike:
            continue
        packet = moved(End.of_device(LinkSettings(other), packed=True).send(torch.randn(SHAPE)))
        with pytest.raises(ValueError, match=r"^a packet of shape \(5, 4, 6, 6\)"):
            End.of_server(LinkSettings(codec)).receive(packet)


def test_positions_that_are_none_are_refused():
    sparse = LinkSettings("topk", k=0.2)
    packet = End.of_device(sparse, packed=True).send(torch.randn(2, 5, 3))  # 15 positions in 4 bits
    packet.payload[1].fill_(255)
    with pytest.raises(ValueError, match=r"a packet of shape \(2, 5, 3\)"):
        End.of_server(sparse).receive(moved(packet))
