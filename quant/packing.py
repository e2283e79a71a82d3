"""Integers of 1 to 32 bits as real bytes.

Eight codes of b ≤ 8 bits lie in b bytes: code i of a group holds bits i·b … i·b+b−1 of the group's
little-endian word. The last group is cut to the bytes it needs, so n codes take ⌈n·b/8⌉ bytes. Of
wider codes the lowest bytes come first, n of them; then follows what is left, packed the same way.

`pack` folds a group as one 64-bit word in three steps: neighbouring bytes are moved together, then
the pairs, then the fours.
"""

import math

import torch
from torch import Tensor

MAX_BITS = 32


def packed_bytes(num_codes: int, bits: int) -> int:
    """Bytes that `pack` makes of ``num_codes`` codes."""
    return math.ceil(num_codes * bits / 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes.

    Args:
        codes: any shape, integer, each in [0, 2^bits).
        bits: 1 to 32.

    Returns:
        (⌈n·bits/8⌉,) uint8, on the codes' device.

    Raises:
        ValueError: a code does not fit, or ``bits`` is not 1 to 32.
    """
    _check(bits)
    flat = codes.reshape(-1)
    if flat.numel():
        low, high = (int(end) for end in torch.aminmax(flat))
        if low < 0 or high >= 2**bits:
            raise ValueError(f"codes go from {low} to {high}, not {bits} bits")
    if bits == 8:
        return flat.to(torch.uint8, copy=True)
    if bits > 8:
        return torch.cat([flat.to(torch.uint8), pack(flat.long() >> 8, bits - 8)])
    groups = torch.zeros(math.ceil(flat.numel() / 8), 8, dtype=torch.uint8, device=flat.device)
    groups.view(-1)[: flat.numel()] = flat
    words = groups.view(torch.int64)
    for width in (1, 2, 4):  # codes that already lie side by side in each lane
        lower = words & _every_other_lane(bits, width)
        words = lower | ((words ^ lower) >> (8 - bits) * width)
    packed = words.view(torch.uint8)[:, :bits].reshape(-1)
    return packed[: packed_bytes(flat.numel(), bits)].clone()


def unpack(packed: Tensor, bits: int, num_codes: int) -> Tensor:
    """Inverse of `pack`.

    Args:
        packed: (⌈num_codes·bits/8⌉,) uint8.
        bits: 1 to 32.
        num_codes: how many codes were packed.

    Returns:
        (num_codes,) int64.

    Raises:
        ValueError: ``packed`` has another length, or ``bits`` is not 1 to 32.
    """
    _check(bits)
    if packed.numel() != packed_bytes(num_codes, bits):
        raise ValueError(
            f"{num_codes} codes of {bits} bits take {packed_bytes(num_codes, bits)} bytes, "
            f"got {packed.numel()}"
        )
    flat = packed.reshape(-1)
    if bits == 8:
        return flat.long()
    if bits > 8:
        above = unpack(flat[num_codes:], bits - 8, num_codes)
        return flat[:num_codes].long() | (above << 8)
    num_groups = math.ceil(num_codes / 8)
    padded = torch.zeros(num_groups * bits, dtype=torch.uint8, device=flat.device)
    padded[: flat.numel()] = flat
    words = torch.zeros(num_groups, 8, dtype=torch.uint8, device=flat.device)
    words[:, :bits] = padded.view(num_groups, bits)
    shifts = torch.arange(8, device=flat.device) * bits
    groups = words.view(torch.int64).view(-1, 1) >> shifts
    codes: Tensor = (groups & (2**bits - 1)).reshape(-1)[:num_codes]
    return codes


def _every_other_lane(bits: int, width: int) -> int:
    """The ``width`` lowest codes of every second lane of ``width`` bytes, once lanes are filled."""
    return sum((2 ** (bits * width) - 1) << lane for lane in range(0, 64, 16 * width))


def _check(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"packing takes 1 to {MAX_BITS} bits, got {bits}")
