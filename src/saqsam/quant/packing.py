"""Dense packing of b-bit codes: no bit is padding, except in the last byte of a tensor.

Code i of the flattened tensor fills the bits [i * b, (i + 1) * b) of a little-endian bit stream, in which bit
k is bit ``k % 8`` (least significant first) of byte ``k // 8``. Four-bit codes are therefore two to a byte,
the first in the low half. Codes c0, c1, ... of 3 bits look like this, each byte's highest bit on the left:

    byte 0: c2[1:0] c1[2:0] c0[2:0]    byte 1: c5[0] c4[2:0] c3[2:0] c2[2]    byte 2: c7[2:0] c6[2:0] c5[2:1]
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .affine import check_bits


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes take."""
    return math.ceil(count * bits / 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes (uint8, any shape, each below 2**bits) into bytes (uint8, one dimension).

    Raises:
        ValueError: If a code does not fit, or the dtype is not uint8.
    """
    check_bits(bits)
    if codes.dtype != torch.uint8:
        raise ValueError(f"codes must be uint8, got {codes.dtype}")
    flat = codes.flatten()
    if flat.numel() and int(flat.max()) >= 2**bits:
        raise ValueError(f"a code of {int(flat.max())} does not fit into {bits} bits")
    if bits == 8:
        return flat.clone()
    # Eight codes fill exactly `bits` bytes, so the work is done on groups of eight.
    groups = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).reshape(-1, 8)
    if bits in (2, 4):
        per_byte = 8 // bits
        shifts = torch.arange(per_byte, device=codes.device, dtype=torch.uint8) * bits
        packed = (groups.reshape(-1, per_byte) << shifts).sum(-1).to(torch.uint8)
    else:
        positions = torch.arange(bits, device=codes.device, dtype=torch.uint8)
        stream = ((groups[..., None] >> positions) & 1).reshape(-1, bits, 8)
        weights = 1 << torch.arange(8, device=codes.device, dtype=torch.uint8)
        packed = (stream * weights).sum(-1).to(torch.uint8)
    return packed.flatten()[: packed_size(flat.numel(), bits)].contiguous()


def unpack_codes(packed: Tensor, bits: int, count: int) -> Tensor:
    """Unpack `count` codes (uint8, one dimension) from bytes; the inverse of `pack_codes`.

    Raises:
        ValueError: If the number of bytes is not that of `count` codes.
    """
    check_bits(bits)
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != packed_size(count, bits):
        raise ValueError(
            f"{count} codes of {bits} bits need a vector of {packed_size(count, bits)} bytes, "
            f"got {tuple(packed.shape)} of {packed.dtype}"
        )
    if bits == 8:
        return packed.clone()
    if bits in (2, 4):
        shifts = torch.arange(8 // bits, device=packed.device, dtype=torch.uint8) * bits
        codes: Tensor = (packed[:, None] >> shifts) & (2**bits - 1)
        return codes.flatten()[:count]
    groups = torch.nn.functional.pad(packed, (0, -packed.numel() % bits)).reshape(-1, bits)
    positions = torch.arange(8, device=packed.device, dtype=torch.uint8)
    stream = ((groups[..., None] >> positions) & 1).reshape(-1, 8, bits)
    weights = 1 << torch.arange(bits, device=packed.device, dtype=torch.uint8)
    codes = (stream * weights).sum(-1).to(torch.uint8)
    return codes.flatten()[:count]
