"""Dense packing of b-bit codes: no bit is padding, except in the last byte of a tensor.

Code i of the flattened tensor fills the bits [i * b, (i + 1) * b) of a little-endian bit stream, in which bit
k is bit ``k % 8`` (least significant first) of byte ``k // 8``. Four-bit codes are therefore two to a byte,
the first in the low half. Codes c0, c1, ... of 3 bits look like this, each byte's highest bit on the left:

    byte 0: c2[1:0] c1[2:0] c0[2:0]    byte 1: c5[0] c4[2:0] c3[2:0] c2[2]    byte 2: c7[2:0] c6[2:0] c5[2:1]
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from saqsam.quant.affine import check_bits


def packed_size(count: int, bits: int) -> int:
    """Return the number of bytes of `count` packed codes."""
    return math.ceil(count * bits / 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes (uint8, any shape, each below 2**bits) into bytes (uint8, one dimension).

    Raises:
        ValueError: A code does not fit, or the dtype is not uint8.
    """
    check_bits(bits)
    if codes.dtype != torch.uint8:
        raise ValueError(f"codes must be uint8, got {codes.dtype}")
    flat = codes.flatten()
    if flat.numel() and int(flat.max()) >= 2**bits:
        raise ValueError(f"a code of {int(flat.max())} does not fit into {bits} bits")
    if bits == 8:
        return flat.clone()
    per_group, group_bytes = _group(bits)
    groups = torch.nn.functional.pad(flat, (0, -flat.numel() % per_group)).reshape(-1, per_group)
    planes = groups.T.contiguous()
    packed = []
    for byte in range(group_bytes):
        ups = (
            i * bits - 8 * byte for i in range(per_group)
        )  # first bits of the codes, relative to this byte
        parts = [_shift(plane, up) for plane, up in zip(planes, ups, strict=True) if -bits < up < 8]
        packed.append(functools.reduce(torch.bitwise_or, parts))
    return torch.stack(packed, -1).flatten()[: packed_size(flat.numel(), bits)].contiguous()


def unpack_codes(packed: Tensor, bits: int, count: int) -> Tensor:
    """Unpack `count` codes (uint8, one dimension) from bytes; the inverse of `pack_codes`.

    Raises:
        ValueError: The number of bytes is not that of `count` codes.
    """
    check_bits(bits)
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != packed_size(count, bits):
        raise ValueError(
            f"{count} codes of {bits} bits need a vector of {packed_size(count, bits)} bytes, "
            f"got {tuple(packed.shape)} of {packed.dtype}"
        )
    if bits == 8:
        return packed.clone()
    per_group, group_bytes = _group(bits)
    groups = torch.nn.functional.pad(packed, (0, -packed.numel() % group_bytes)).reshape(-1, group_bytes)
    planes = groups.T.contiguous()
    unpacked = []
    for i in range(per_group):
        byte, first_bit = divmod(i * bits, 8)
        codes = _shift(planes[byte], -first_bit)
        if first_bit + bits > 8:
            codes = codes | _shift(planes[byte + 1], 8 - first_bit)
        unpacked.append(codes & (2**bits - 1))
    return torch.stack(unpacked, -1).flatten()[:count]


def _group(bits: int) -> tuple[int, int]:
    """Return the smallest number of codes that fill whole bytes, and the number of these bytes.

    All groups are processed at once, one position after another, since this runs in each forward pass of a layer.
    """
    common = math.gcd(bits, 8)
    return 8 // common, bits // common


def _shift(values: Tensor, up: int) -> Tensor:
    """Shift bytes, uint8, left by `up` bits, or right if it is negative; bits that leave a byte are dropped."""
    return values << up if up >= 0 else values >> -up
