"""What every format asks of a checkpoint's modules, and the error for what it cannot express."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from saqsam.quant.layers import PackedTensor

_EMPTY = nn.Identity()


class ExportError(ValueError):
    """What an export cannot express; the message names the field of the recipe to change."""


def slot(module: Any, name: str) -> nn.Module:
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
    shape = [-1 if axis == packed.axis else 1 for axis in range(codes.ndim)]
    return codes.astype(np.int8), packed.scale.detach().cpu().numpy().reshape(shape)
