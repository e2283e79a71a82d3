"""Integers of 1 to 8 bits as real bytes.

Eight b-bit codes lie in b bytes: code i of a group holds bits i·b … i·b+b−1 of the group's
little-endian word. The last group is cut to the bytes it needs, so n codes take ⌈n·b/8⌉ bytes.
"""

import math

import torch
from torch import Tensor


def packed_bytes(num_codes: int, bits: int) -> int:
    """Bytes that `pack` makes of ``num_codes`` codes."""
    return math.ceil(num_codes * bits / 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes.

    Args:
        codes: any shape, integer, each in [0, 2^bits).
        bits: 1 to 8.

    Returns:
        (⌈n·bits/8⌉,) uint8.

    Raises:
        ValueError: a code does not fit, or ``bits`` is not 1 to 8.
    """
    _check(bits)
    flat = codes.reshape(-1).long()
    if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= 2**bits):
        raise ValueError(f"codes go from {int(flat.min())} to {int(flat.max())}, not {bits} bits")
    groups = torch.zeros(math.ceil(flat.numel() / 8), 8, dtype=torch.int64)
    groups.view(-1)[: flat.numel()] = flat
    words = (groups << (torch.arange(8) * bits)).sum(1)  # disjoint bits: a sum is an or
    packed = words.view(torch.uint8).view(-1, 8)[:, :bits].reshape(-1)
    return packed[: packed_bytes(flat.numel(), bits)].clone()


def unpack(packed: Tensor, bits: int, num_codes: int) -> Tensor:
    """Inverse of `pack`.

    Args:
        packed: (⌈num_codes·bits/8⌉,) uint8.
        bits: 1 to 8.
        num_codes: how many codes were packed.

    Returns:
        (num_codes,) int64.

    Raises:
        ValueError: ``packed`` has another length.
    """
    _check(bits)
    if packed.numel() != packed_bytes(num_codes, bits):
        raise ValueError(
            f"{num_codes} codes of {bits} bits take {packed_bytes(num_codes, bits)} bytes, "
            f"got {packed.numel()}"
        )
    num_groups = math.ceil(num_codes / 8)
    padded = torch.zeros(num_groups * bits, dtype=torch.uint8)
    padded[: packed.numel()] = packed.reshape(-1)
    words = torch.zeros(num_groups, 8, dtype=torch.uint8)
    words[:, :bits] = padded.view(num_groups, bits)
    groups = words.view(torch.int64).view(-1, 1) >> (torch.arange(8) * bits)
    codes: Tensor = (groups & (2**bits - 1)).reshape(-1)[:num_codes]
    return codes


def _check(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"packing takes 1 to 8 bits, got {bits}")
