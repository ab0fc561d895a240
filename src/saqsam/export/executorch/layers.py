"""Layers of a quantized SAM as torch modules whose traces XNNPACK runs with integer kernels.

The traces have the pattern of XNNPACK's `qd8` kernels: right before a matrix product, its input rows are quantized to 8
bits with one scale per row, and its weight is dequantized with one scale per output channel. Outputs and biases are
float. Convolutions are matrix products on rows, too, because XNNPACK has 4-bit kernels only for these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed
import torch.nn.functional as F
from torch import Tensor, nn

from saqsam.export.packed import ExportError, check_input_constant, signed_codes, slot_module
from saqsam.quant.affine import DynamicQuantizer
from saqsam.quant.layers import ChannelScale, PackedTensor

_OPS = torch.ops.quantized_decomposed  # registered by the import above
_LOW, _HIGH = -128, 127

Arrange = Callable[[Tensor], Tensor]
"""Function that turns a tensor in a weight's shape into [C, K]."""


class QuantizedWeight(nn.Module):
    """Signed codes of a weight, stored in 4 bits if they fit.

    Attributes:
        codes: Buffer, int8 [C, K].
        scale: Buffer, float32 [C].
        zero_point: Buffer, int64 [C], all 0.
        bits: Bits per code in the file: 4 or 8.
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
        """Return the weight [C, K] in float32. Integer kernels replace this node, so that it is never computed."""
        last = 2 ** (self.bits - 1) - 1
        weight: Tensor = _OPS.dequantize_per_channel(
            self.codes, self.scale, self.zero_point, 0, -last - 1, last, torch.int8
        )
        return weight


class RowLinear(nn.Module):
    """Linear layer on rows, quantized if the checkpoint's layer is.

    Args:
        layer: A linear layer or convolution, float or packed.
        where: Name of the layer, for errors.
        arrange: Function that turns its weight into [C, K].
        bias: Bias [C], or None.
    """

    def __init__(self, layer: Any, where: str, arrange: Arrange, bias: Tensor | None) -> None:
        super().__init__()
        self.bias, self.is_quantized = bias, isinstance(layer.weight, PackedTensor)
        self.input_scale = slot_module(layer, "input_scale")
        if self.is_quantized:
            check_quantizer(layer.input_quantizer, where)
            check_input_constant(layer, where, "--deploy-for executorch")
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
    """Size-preserving convolution of rows [1, h * w, K]: [1, h * w, C].

    One matrix product computes the contributions of every pixel to each of its neighbors, which are then summed.
    """

    def __init__(self, layer: Any, side: int, where: str) -> None:
        super().__init__()
        self.channels, inputs, self.high, self.wide = layer.weight.shape
        self.side, self.bias = side, layer.bias
        self.linear = RowLinear(layer, where, lambda w: w.permute(2, 3, 0, 1).reshape(-1, inputs), None)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows [1, h * w, K] to [1, h * w, C]."""
        output: Tensor = self.linear(rows)
        side = self.side
        if (self.high, self.wide) != (1, 1):
            up, left = self.high // 2, self.wide // 2
            grid = F.pad(output.reshape(1, side, side, -1), (0, 0, left, left, up, up))
            parts = [
                grid[:, y : y + side, x : x + side, number * self.channels : (number + 1) * self.channels]
                for number, (y, x) in enumerate(np.ndindex(self.high, self.wide))
            ]
            output = sum(parts[1:], start=parts[0]).reshape(1, side * side, self.channels)
        return output if self.bias is None else output + self.bias


class FloatConvolution(nn.Module):
    """Convolution of a map with float32 weights.

    Args:
        layer: A convolution with few weights; packed ones are dequantized when the program is written.

    Attributes:
        is_packed: Whether the checkpoint's weights are packed.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        weight = layer.weight
        self.is_packed = isinstance(weight, PackedTensor)
        if self.is_packed:
            weight = weight()
        self.weight = nn.Parameter(weight.detach().float().contiguous(), requires_grad=False)
        self.bias = layer.bias
        self.stride, self.padding, self.groups = layer.stride, layer.padding, getattr(layer, "groups", 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map [1, K, h, w] to [1, C, h', w']."""
        return F.conv2d(image, self.weight, self.bias, self.stride, self.padding, groups=self.groups)


class StoredTensor(nn.Module):
    """A packed tensor that is stored in 8 bits and dequantized to float32 in every call.

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
        """Return the tensor in float32."""
        return (self.codes.float() - self.zero_point) * self.scale


def traced_linear(layer: Any, where: str) -> RowLinear:
    """Return a linear layer of a checkpoint as a `RowLinear`."""
    return RowLinear(layer, where, lambda weight: weight, layer.bias)


def check_quantizer(quantizer: nn.Module, where: str) -> None:
    """Raise ExportError unless a layer quantizes its input as XNNPACK's kernels do: dynamically, to 8 bits."""
    if not isinstance(quantizer, DynamicQuantizer):
        raise ExportError(
            f"{where}: XNNPACK's integer kernels with float outputs take dynamic ranges; quantize with --deploy-for "
            "executorch, or with --set activations.dynamic=true"
        )
    if quantizer.bits != 8:
        raise ExportError(
            f"{where}: XNNPACK quantizes inputs to 8 bits, got {quantizer.bits}; quantize with activations of 8 bits "
            "(--bits w4a8 or w8a8, and 8 in overrides and extra)"
        )


def check_float_attention(attention: Any, where: str, part: Literal["encoder", "decoder"]) -> None:
    """Raise ExportError if operands of an attention are quantized: XNNPACK multiplies two activations only in float."""
    for name in ("query_quantizer", "key_quantizer", "value_quantizer", "probability_quantizer"):
        if not isinstance(slot_module(attention, name), nn.Identity):
            raise ExportError(
                f"{where}: XNNPACK has no integer kernel for products of attention; quantize with "
                f"--deploy-for executorch, or with --set {part}_products=float"
            )


def normalize(norm: Any, rows: Tensor) -> Tensor:
    """Apply a layer normalization, including those that transformers applies channels-first, to rows [..., C]."""
    return F.layer_norm(rows, (rows.shape[-1],), norm.weight, norm.bias, norm.eps)
