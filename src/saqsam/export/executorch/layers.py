"""Layers of a quantized SAM as torch modules whose traces XNNPACK turns into integer kernels.

The pattern is that of `qd8` kernels: the rows that a product reads are rounded to 8 bits right before it, each on a
grid of its own, and its weight is dequantized right before it, by output channel. Outputs and biases are float.
Convolutions are products on rows too, as XNNPACK has 4-bit kernels for these alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed
import torch.nn.functional as F
from torch import Tensor, nn

from saqsam.export.packed import ExportError, signed_codes, slot_module
from saqsam.quant.affine import DynamicQuantizer
from saqsam.quant.layers import ChannelScale, PackedTensor

_OPS = torch.ops.quantized_decomposed  # registered by the import above
_LOW, _HIGH = -128, 127

Arrange = Callable[[Tensor], Tensor]
"""From a weight's own shape to [C, K]."""


class QuantizedWeight(nn.Module):
    """Signed codes of a weight, 4 bits wide in the file where they fit.

    Attributes:
        codes: Buffer, int8 [C, K].
        scale: Buffer, float32 [C].
        zero_point: Buffer, int64 [C], all 0.
        bits: Of the file: 4 or 8.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, packed: PackedTensor, where: str, arrange: Arrange) -> None:
        super().__init__()
        codes, scale = signed_codes(packed, where)
        scales = torch.from_numpy(np.ascontiguousarray(np.broadcast_to(scale, codes.shape)))
        self.bits = 4 if packed.bits <= 4 else 8
        self.register_buffer("codes", arrange(torch.from_numpy(codes)).contiguous())
        self.register_buffer("scale", arrange(scales)[:, 0].contiguous())
        self.register_buffer("zero_point", torch.zeros(len(self.codes), dtype=torch.int64))

    def forward(self) -> Tensor:
        """The weight in float32, [C, K]; no kernel ever computes it."""
        last = 2 ** (self.bits - 1) - 1
        found: Tensor = _OPS.dequantize_per_channel(
            self.codes, self.scale, self.zero_point, 0, -last - 1, last, torch.int8
        )
        return found


class RowProduct(nn.Module):
    """Rows [..., K] times a weight [C, K], plus a bias [C]; quantized where the checkpoint's layer is.

    Args:
        layer: A linear layer or convolution, float or packed.
        where: Its name, for errors.
        arrange: From its weight to [C, K].
        bias: Of the product; None for none.
    """

    def __init__(self, layer: Any, where: str, arrange: Arrange, bias: Tensor | None) -> None:
        super().__init__()
        self.bias, self.is_quantized = bias, isinstance(layer.weight, PackedTensor)
        self.input_scale = slot_module(layer, "input_scale")
        if self.is_quantized:
            check_quantizer(layer.input_quantizer, where)
            self.packed = QuantizedWeight(layer.weight, where, arrange)
        else:
            self.weight = nn.Parameter(arrange(layer.weight.detach()).contiguous(), requires_grad=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows [..., K] to [..., C]."""
        if isinstance(self.input_scale, ChannelScale):
            rows = self.input_scale(rows)
        if not self.is_quantized:
            return F.linear(rows, self.weight, self.bias)
        scale, zero_point = _OPS.choose_qparams_per_token_asymmetric(rows, torch.int8)
        codes = _OPS.quantize_per_token(rows, scale, zero_point, _LOW, _HIGH, torch.int8)
        rows = _OPS.dequantize_per_token(codes, scale, zero_point, _LOW, _HIGH, torch.int8, torch.float32)
        return F.linear(rows, self.packed(), self.bias)


class RowConvolution(nn.Module):
    """A convolution that keeps the size, of rows [1, h * w, K]: [1, h * w, C].

    One product gives what every pixel adds to each of its neighbours; what they give one another is then summed.
    """

    def __init__(self, layer: Any, side: int, where: str) -> None:
        super().__init__()
        self.channels, inputs, self.high, self.wide = layer.weight.shape
        self.side, self.bias = side, layer.bias
        self.product = RowProduct(layer, where, lambda w: w.permute(2, 3, 0, 1).reshape(-1, inputs), None)

    def forward(self, rows: Tensor) -> Tensor:
        """Convolve."""
        found: Tensor = self.product(rows)
        side = self.side
        if (self.high, self.wide) != (1, 1):
            up, left = self.high // 2, self.wide // 2
            grid = F.pad(found.reshape(1, side, side, -1), (0, 0, left, left, up, up))
            parts = [
                grid[:, y : y + side, x : x + side, number * self.channels : (number + 1) * self.channels]
                for number, (y, x) in enumerate(np.ndindex(self.high, self.wide))
            ]
            found = sum(parts[1:], start=parts[0]).reshape(1, side * side, self.channels)
        return found if self.bias is None else found + self.bias


class StoredTensor(nn.Module):
    """A packed tensor that is only stored small: 8 bits in the file, float32 where it is used.

    Attributes:
        codes: Buffer, uint8, in the tensor's shape.
        scale: Buffer, float32, broadcasting to it.
        zero_point: Buffer, float32, broadcasting to it.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, packed: PackedTensor) -> None:
        super().__init__()
        shape = [-1 if axis == packed.axis else 1 for axis in range(len(packed.shape))]
        self.register_buffer("codes", packed.unpack().cpu())
        self.register_buffer("scale", packed.scale.detach().cpu().reshape(shape))
        self.register_buffer("zero_point", packed.zero_point.cpu().float().reshape(shape))

    def forward(self) -> Tensor:
        """The tensor in float32."""
        return (self.codes.float() - self.zero_point) * self.scale


def linear_of(layer: Any, where: str) -> RowProduct:
    """A linear layer for the trace."""
    return RowProduct(layer, where, lambda weight: weight, layer.bias)


def check_quantizer(quantizer: nn.Module, where: str) -> None:
    """Raise ExportError unless a layer's input is rounded as XNNPACK's kernels round it."""
    if not isinstance(quantizer, DynamicQuantizer):
        raise ExportError(
            f"{where}: XNNPACK's integer kernels with float outputs find the range of each row themselves; quantize "
            "with --deploy-for executorch, or with --set activations.dynamic=true"
        )
    if quantizer.bits != 8:
        raise ExportError(
            f"{where}: XNNPACK rounds inputs to 8 bits, the checkpoint to {quantizer.bits}; quantize with activations "
            "of 8 bits (--bits w4a8 or w8a8, and 8 in overrides and extra)"
        )


def check_products(attention: Any, where: str, part: Literal["encoder", "decoder"]) -> None:
    """Raise ExportError if an attention's products are quantized, which XNNPACK multiplies in float alone."""
    for name in ("query_quantizer", "key_quantizer", "value_quantizer", "probability_quantizer"):
        if not isinstance(slot_module(attention, name), nn.Identity):
            raise ExportError(
                f"{where}: XNNPACK has no integer kernel for products of attention; quantize with "
                f"--deploy-for executorch, or with --set {part}_products=float"
            )


def normalize(norm: Any, rows: Tensor) -> Tensor:
    """Layer normalisation of rows [..., C]; also for those that transformers applies to channels first."""
    return F.layer_norm(rows, (rows.shape[-1],), norm.weight, norm.bias, norm.eps)
