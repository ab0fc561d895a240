"""Layers of a quantized SAM as torch modules whose traces XNNPACK turns into integer kernels.

The patterns are those of `qd8` kernels: what a layer reads is rounded to 8 bits right before it, on a grid found from the
values themselves, and the weight is dequantized right before it, by output channel. Outputs and biases are float.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torch.ao.quantization.fx._decomposed  # noqa: F401, I001  (registers the operators)
from torch import Tensor, nn

from saqsam.export.packed import ExportError, signed_codes, slot
from saqsam.quant.affine import DynamicQuantizer
from saqsam.quant.layers import ChannelScale, PackedConv2d, PackedLinear, PackedTensor

_OPS = torch.ops.quantized_decomposed
_LOW, _HIGH = -128, 127


class QuantizedWeight(nn.Module):
    """Signed codes of a weight, 4 bits wide in the file where they fit and the kernel takes them.

    Attributes:
        codes: Buffer, int8 [C, ...].
        scale: Buffer, float32 [C].
        zero_point: Buffer, int64 [C], all 0.
        bits: Of the file: 4 or 8.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, packed: PackedTensor, where: str, *, has_4bit_kernel: bool = True) -> None:
        super().__init__()
        codes, scale = signed_codes(packed, where)
        self.bits = 4 if packed.bits <= 4 and has_4bit_kernel else 8
        self.register_buffer("codes", torch.from_numpy(codes).contiguous())
        self.register_buffer("scale", torch.from_numpy(scale.reshape(-1).copy()))
        self.register_buffer("zero_point", torch.zeros(len(codes), dtype=torch.int64))

    def forward(self) -> Tensor:
        """The weight in float32, [C, ...]; no kernel ever computes it."""
        last = 2 ** (self.bits - 1) - 1
        found: Tensor = _OPS.dequantize_per_channel(
            self.codes, self.scale, self.zero_point, 0, -last - 1, last, torch.int8
        )
        return found


class QuantizedLinear(nn.Module):
    """A packed linear layer with a dynamic grid for each row."""

    def __init__(self, layer: PackedLinear, where: str) -> None:
        super().__init__()
        check_quantizer(layer.input_quantizer, where)
        self.weight, self.bias = QuantizedWeight(layer.weight, where), layer.bias
        self.input_scale = layer.input_scale

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows [..., K] to [..., C]."""
        if isinstance(self.input_scale, ChannelScale):
            rows = self.input_scale(rows)
        scale, zero_point = _OPS.choose_qparams_per_token_asymmetric(rows, torch.int8)
        codes = _OPS.quantize_per_token(rows, scale, zero_point, _LOW, _HIGH, torch.int8)
        rows = _OPS.dequantize_per_token(codes, scale, zero_point, _LOW, _HIGH, torch.int8, torch.float32)
        return F.linear(rows, self.weight(), self.bias)


class QuantizedConv2d(nn.Module):
    """A packed convolution with a dynamic grid for the image."""

    def __init__(self, layer: PackedConv2d, where: str) -> None:
        super().__init__()
        check_quantizer(layer.input_quantizer, where)
        self.weight = QuantizedWeight(layer.weight, where, has_4bit_kernel=False)
        self.bias, self.stride, self.padding = layer.bias, layer.stride, layer.padding

    def forward(self, image: Tensor) -> Tensor:
        """Map an image [1, K, H, W] to [1, C, H', W']."""
        least = torch.finfo(torch.float32).eps
        scale, zero_point = _OPS.choose_qparams.tensor(image, _LOW, _HIGH, least, torch.int8)
        codes = _OPS.quantize_per_tensor.tensor(image, scale, zero_point, _LOW, _HIGH, torch.int8)
        image = _OPS.dequantize_per_tensor.tensor(codes, scale, zero_point, _LOW, _HIGH, torch.int8)
        return F.conv2d(image, self.weight(), self.bias, self.stride, self.padding)


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


def check_quantizer(quantizer: nn.Module, where: str) -> None:
    """Raise ExportError unless a layer's input is rounded as XNNPACK's kernels round it."""
    if not isinstance(quantizer, DynamicQuantizer):
        raise ExportError(
            f"{where}: XNNPACK's integer kernels with float outputs find the range of each input themselves; quantize "
            "with --deploy-for executorch, or with --set activations.dynamic=true"
        )
    if quantizer.bits != 8:
        raise ExportError(
            f"{where}: XNNPACK rounds inputs to 8 bits, the checkpoint to {quantizer.bits}; quantize with activations "
            "of 8 bits (--bits w4a8 or w8a8, and 8 in overrides and extra)"
        )


def linear_of(layer: Any, where: str) -> nn.Module:
    """A linear layer for the trace: quantized where the checkpoint's is, float where that is."""
    if isinstance(layer, PackedLinear):
        return QuantizedLinear(layer, where)
    assert isinstance(layer, nn.Linear)
    return layer


def convolution_of(layer: Any, where: str) -> nn.Module:
    """The same for a convolution."""
    if isinstance(layer, PackedConv2d):
        return QuantizedConv2d(layer, where)
    assert isinstance(layer, nn.Conv2d)
    return layer


def check_products(attention: Any, where: str) -> None:
    """Raise ExportError if an attention's products are quantized, which XNNPACK multiplies in float alone."""
    for name in ("query_quantizer", "key_quantizer", "value_quantizer", "probability_quantizer"):
        if not isinstance(slot(attention, name), nn.Identity):
            part = "encoder" if where.startswith("vision_encoder") else "decoder"
            raise ExportError(
                f"{where}: XNNPACK has no integer kernel for products of attention; quantize with --deploy-for executorch, "
                f"or with --set {part}_products=float"
            )


def normalise(norm: Any, rows: Tensor) -> Tensor:
    """Layer normalisation of rows [..., C]; also for those that transformers applies to channels first."""
    return F.layer_norm(rows, (rows.shape[-1],), norm.weight, norm.bias, norm.eps)
