"""Read packed modules for export: slots, codes, scales and zero points as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from saqsam.quant.layers import PackedTensor

_EMPTY = nn.Identity()


class ExportError(ValueError):
    """A recipe cannot be exported to a format; the message names the recipe field to change."""


def check_input_constant(layer: Any, where: str, option: str) -> None:
    """Raise ExportError if a layer rounds its input without a constant part.

    Args:
        layer: A packed layer.
        where: Name of the layer, for errors.
        option: Option of `saqsam quantize` that avoids such layers.
    """
    if getattr(layer, "input_constant", None) is not None:
        raise ExportError(
            f"{where}: exports add one bias per channel; quantize with {option}, or with --set separate_positions=false"
        )


def slot_module(module: Any, name: str) -> nn.Module:
    """Return the module in a slot such as `input_quantizer`; `nn.Identity` if the slot is empty or missing."""
    content: nn.Module = getattr(module, name, _EMPTY)
    return content


def signed_codes(packed: PackedTensor, where: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the signed codes of a weight (int8, in its shape) and its scales (float32, broadcasting to it).

    Raises:
        ExportError: A zero point is not the middle code.
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
    """Return the codes of a weight (in its shape) and its zero points (broadcasting to it).

    Codes minus zero points fit into int8.

    Raises:
        ExportError: They do not fit: codes have 8 bits, and a zero point is not the middle code.
    """
    if packed.bits == 8 and not bool((packed.zero_point == 2**7).all()):
        raise ExportError(
            f"{where}: integer kernels take signed bytes without zero points; quantize with --deploy, or with "
            "--set weights.symmetric_bytes=true"
        )
    codes = packed.unpack().cpu().numpy().astype(np.int16)
    return codes, along_axis(packed, packed.zero_point).astype(np.int16)


def along_axis(packed: PackedTensor, values: Tensor) -> NDArray[Any]:
    """Return per-channel values of a weight in a shape that broadcasts to the weight."""
    shape = [-1 if axis == packed.axis else 1 for axis in range(len(packed.shape))]
    return values.detach().cpu().numpy().reshape(shape)
