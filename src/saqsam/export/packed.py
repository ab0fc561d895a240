"""What every format asks of a checkpoint's modules, and the error for what it cannot express."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from saqsam.quant.layers import PackedTensor

_EMPTY = nn.Identity()


class ExportError(ValueError):
    """What an export cannot express; the message names the field of the recipe to change."""


def slot_module(module: Any, name: str) -> nn.Module:
    """What is in a slot; nothing in a module that has none."""
    found: nn.Module = getattr(module, name, _EMPTY)
    return found


def signed_codes(packed: PackedTensor, where: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Signed codes (int8, in the weight's shape) and scales (float32, broadcasting to it) of a weight.

    Raises:
        ExportError: If its zero points are not the middle code.
    """
    middle = 2 ** (packed.bits - 1)
    if not bool((packed.zero_point == middle).all()):
        raise ExportError(
            f"{where}: integer kernels take signed weights without zero points; quantize with --deploy, or with "
            "--set weights.symmetric=true"
        )
    codes = packed.unpack().cpu().numpy().astype(np.int16) - middle
    return codes.astype(np.int8), along_axis(packed, packed.scale)


def codes_and_zero_points(packed: PackedTensor, where: str) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Codes of a weight (in its shape) and their zero points (broadcasting to it); the differences are signed bytes.

    Raises:
        ExportError: If they are not: where codes have 8 bits and zero points other than the middle one.
    """
    if packed.bits == 8 and not bool((packed.zero_point == 2**7).all()):
        raise ExportError(
            f"{where}: integer kernels take signed bytes without zero points; quantize with --deploy, or with "
            "--set weights.symmetric_bytes=true"
        )
    codes = packed.unpack().cpu().numpy().astype(np.int16)
    return codes, along_axis(packed, packed.zero_point).astype(np.int16)


def along_axis(packed: PackedTensor, values: Tensor) -> NDArray[Any]:
    """Values of the channels of a weight, in a shape that broadcasts to it."""
    shape = [-1 if axis == packed.axis else 1 for axis in range(len(packed.shape))]
    return values.detach().cpu().numpy().reshape(shape)
