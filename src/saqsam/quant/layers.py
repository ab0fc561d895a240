"""Layers of a model during quantization (float weights, quantizers in slots) and after it (packed codes).

`QuantLinear`, `QuantConv2d` and `QuantConvTranspose2d` are their float namesakes with two slots:
`input_quantizer` and `weight_quantizer`. A slot holds `nn.Identity` until it is replaced by an observer during
calibration, and by a quantizer after it. Their `weight_grid`, scale and zero point of each output channel, is None
until compensation chooses one; otherwise packing does. `PackedLinear` and its siblings are the layers of a checkpoint:
codes, scales and zero points, no float weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saqsam.quant.affine import check_bits, dequantize_affine, quantize_affine, round_affine
from saqsam.quant.packing import pack_codes, packed_size, unpack_codes


class PackedTensor(nn.Module):
    """A quantized weight: packed b-bit codes, and a scale and zero point per channel or per group.

    Group-wise, the K values of a channel, in row-major order of the other axes, are cut into G = ceil(K / group_size)
    groups; the last may be shorter.

    Attributes:
        codes: Packed codes, uint8 [ceil(numel * bits / 8)], see `packing.py`.
        scale: float32 [C], where C is the size of the channel axis; group-wise [C, G].
        zero_point: uint8, of the shape of `scale`.
        shape: Shape of the weight.
        bits: 2 to 8.
        axis: Channel axis.
        group_size: Values per group; None for per-channel quantization.
        dtype: Dtype that the model computes in. Model code casts inputs to the dtype of a weight.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, shape: tuple[int, ...], bits: int, axis: int, group_size: int | None = None) -> None:
        super().__init__()
        self.shape, self.bits, self.axis = torch.Size(shape), check_bits(bits), axis
        self.group_size, self.dtype = group_size, torch.float32
        channels, count = shape[axis], self.shape.numel()
        steps = (channels,) if group_size is None else (channels, math.ceil(count // channels / group_size))
        self.register_buffer("codes", torch.zeros(packed_size(count, bits), dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(steps, dtype=torch.float32))
        self.register_buffer("zero_point", torch.zeros(steps, dtype=torch.uint8))

    @classmethod
    def from_float(
        cls,
        values: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bits: int,
        axis: int = 0,
        group_size: int | None = None,
    ) -> PackedTensor:
        """Quantize float values with a scale and zero point, [C] or [C, G], and pack the codes."""
        codes = quantize_affine(
            values.detach(),
            _expand(scale, values.shape, axis, group_size),
            _expand(zero_point, values.shape, axis, group_size),
            bits,
        )
        return cls.from_codes(codes, scale, zero_point, bits, axis, group_size)

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bits: int,
        axis: int = 0,
        group_size: int | None = None,
    ) -> PackedTensor:
        """Pack codes, uint8 in the shape of the weight, with their scale and zero point, [C] or [C, G]."""
        packed = cls(tuple(codes.shape), bits, axis, group_size).to(codes.device)
        packed.codes.copy_(pack_codes(codes, bits))
        packed.scale.copy_(scale)
        packed.zero_point.copy_(zero_point)
        return packed

    def unpack(self) -> Tensor:
        """Return the codes, uint8 in the shape of the weight."""
        return unpack_codes(self.codes, self.bits, self.shape.numel()).reshape(self.shape)

    def forward(self) -> Tensor:
        """Return the dequantized weight, float32."""
        scale = _expand(self.scale, self.shape, self.axis, self.group_size)
        zero_point = _expand(self.zero_point, self.shape, self.axis, self.group_size)
        return dequantize_affine(self.unpack(), scale, zero_point)

    def extra_repr(self) -> str:
        """Return the text that printing the module shows in parentheses."""
        groups = "" if self.group_size is None else f", group_size={self.group_size}"
        return f"shape={tuple(self.shape)}, bits={self.bits}, axis={self.axis}{groups}"


def _expand(steps: Tensor, shape: torch.Size, axis: int, group_size: int | None) -> Tensor:
    """Return scales or zero points in a shape that broadcasts against a weight.

    Args:
        steps: [C], or [C, G] for groups.
        shape: Shape of the weight, with C at `axis`.
        axis: Channel axis.
        group_size: Values per group; None for per-channel quantization.

    Returns:
        Shape [1, ..., C, ..., 1], or `shape` for groups.
    """
    if group_size is None:
        return steps.reshape([size if i == axis else 1 for i, size in enumerate(shape)])
    others = [size for i, size in enumerate(shape) if i != axis]
    rows = steps.repeat_interleave(group_size, 1)[:, : math.prod(others)]  # [C, K]
    return rows.reshape(shape[axis], *others).movedim(0, axis)


Grid = tuple[Tensor, Tensor]
"""Scale and zero point of each output channel of a weight, float32 [C] each."""


class GridRounding(nn.Module):
    """Weight quantizer that rounds to nearest on a fixed grid.

    Args:
        grid: Scale and zero point of each channel.
        bits: 2 to 8.
        axis: Channel axis of the weight.
    """

    def __init__(self, grid: Grid, bits: int, axis: int) -> None:
        super().__init__()
        self.grid, self.bits, self.axis = grid, check_bits(bits), axis

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight, in its shape and dtype."""
        scale, zero_point = (_expand(part, weight.shape, self.axis, None) for part in self.grid)
        return round_affine(weight, scale, zero_point, self.bits)


class ChannelScale(nn.Module):
    """Per-channel offset and gain of a layer's input, applied before it is quantized.

    The quantizer receives (x - offset) * gain, so that channels of different ranges share one grid; the inverse is
    folded into the layer's weight and bias. At run time this is one multiply-add, fused with the rounding after it.

    Attributes:
        offset: Parameter, float32 [K].
        gain: Parameter, float32 [K].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(channels))
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, input: Tensor) -> Tensor:
        """Shift and scale the input [..., K]."""
        return (input - self.offset) * self.gain


def without(values: Tensor, constant: Tensor | None) -> Tensor:
    """Return values [..., T, K] minus a constant [T, K], or the values themselves if it is None."""
    return values if constant is None else values - constant


class QuantizedInput:
    """Mixin for the linear layers that round their input.

    Attributes:
        input_scale: `ChannelScale` of the input; `nn.Identity` if it has none.
        input_quantizer: Quantizer of the input; `nn.Identity` if the input stays float.
        input_constant: Part of the input that is the same for every image, such as positions: float32 [T, K] for T
            rows, or None. It is subtracted before rounding; its product with the weight is constant as well.
    """

    input_scale: nn.Module
    input_quantizer: nn.Module
    input_constant: Tensor | None

    def scaled_constant(self) -> Tensor | None:
        """Return the constant part of the scaled input, float32 [T, K], or None if there is none."""
        if self.input_constant is None or not isinstance(self.input_scale, ChannelScale):
            return self.input_constant
        return self.input_constant * self.input_scale.gain

    def rounded_input(self, input: Tensor) -> Tensor:
        """Scale and round the input [..., T, K]: return what the layer multiplies by its weight."""
        scaled, constant = self.input_scale(input), self.scaled_constant()
        rounded: Tensor = self.input_quantizer(without(scaled, constant))
        return rounded if constant is None else rounded + constant


class QuantLinear(QuantizedInput, nn.Linear):
    """`nn.Linear` with quantizer slots, and a slot for a `ChannelScale` before the input quantizer."""

    weight_quantizer: nn.Module
    weight_grid: Grid | None

    def forward(self, input: Tensor) -> Tensor:
        """Map input [..., K] to [..., C]."""
        return F.linear(self.rounded_input(input), self.weight_quantizer(self.weight), self.bias)


class QuantConv2d(nn.Conv2d):
    """`nn.Conv2d` with quantizer slots."""

    input_quantizer: nn.Module
    weight_quantizer: nn.Module
    weight_grid: Grid | None

    def forward(self, input: Tensor) -> Tensor:
        """Map input [B, K, H, W] to [B, C, H', W']."""
        weight = self.weight_quantizer(self.weight)
        return F.conv2d(self.input_quantizer(input), weight, self.bias, self.stride, self.padding)


class QuantConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` (stride = kernel size, no padding) with quantizer slots."""

    input_quantizer: nn.Module
    weight_quantizer: nn.Module
    weight_grid: Grid | None

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map input [B, K, H, W] to [B, C, s * H, s * W]."""
        weight = self.weight_quantizer(self.weight)
        return F.conv_transpose2d(self.input_quantizer(input), weight, self.bias, self.stride)


QuantLayer = QuantLinear | QuantConv2d | QuantConvTranspose2d

_QUANT_CLASS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: QuantLinear,
    nn.Conv2d: QuantConv2d,
    nn.ConvTranspose2d: QuantConvTranspose2d,
}


def channel_axis(layer: nn.Module) -> int:
    """Return the axis of the output channels in a layer's weight: 1 for transposed convolutions, else 0."""
    return 1 if isinstance(layer, nn.ConvTranspose2d) else 0


def to_quant_layer(layer: nn.Module) -> QuantLayer:
    """Return a layer with empty slots that shares the parameters of a float linear layer or convolution.

    Raises:
        TypeError: The layer is of another kind, or a convolution with groups, dilation, padding other than zeros or,
            if transposed, any padding.
    """
    if type(layer) not in _QUANT_CLASS:
        raise TypeError(f"cannot quantize a {type(layer).__name__}")
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and (
        layer.groups != 1
        or layer.dilation != (1, 1)
        or layer.padding_mode != "zeros"
        or (isinstance(layer, nn.ConvTranspose2d) and {layer.padding, layer.output_padding} != {(0, 0)})
    ):
        raise TypeError(f"cannot quantize {layer}: it has groups, dilation or padding that is not supported")
    new = _QUANT_CLASS[type(layer)].__new__(_QUANT_CLASS[type(layer)])
    # The state of the layer under a class with another forward: nothing is copied or initialized again.
    new.__dict__ = {**layer.__dict__, "_modules": {}}
    new.input_quantizer = nn.Identity()
    new.weight_quantizer = nn.Identity()
    if isinstance(new, QuantLinear):
        new.input_scale = nn.Identity()
        new._buffers = dict(layer._buffers)
        new.register_buffer("input_constant", None, persistent=False)
    assert isinstance(new, (QuantLinear, QuantConv2d, QuantConvTranspose2d))
    new.weight_grid = None
    return new


class PackedLinear(QuantizedInput, nn.Module):
    """A linear layer with packed weights.

    Attributes:
        weight: PackedTensor [C, K].
        bias: Parameter float32 [C] or None.
    """

    def __init__(
        self,
        weight: PackedTensor,
        bias: Tensor | None,
        input_scale: nn.Module,
        input_quantizer: nn.Module,
        input_constant: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.input_scale, self.input_quantizer = input_scale, input_quantizer
        self.register_buffer("input_constant", input_constant, persistent=False)
        self.out_features, self.in_features = weight.shape

    def forward(self, input: Tensor) -> Tensor:
        """Map input [..., K] to [..., C], in the input's dtype; scales are applied in float32."""
        values = self.rounded_input(input).to(input.dtype)
        return F.linear(values, self.weight().to(input.dtype), self.bias)


class PackedConv2d(nn.Module):
    """A convolution with packed weights [C, K, h, w]; otherwise as `PackedLinear`."""

    def __init__(
        self,
        weight: PackedTensor,
        bias: Tensor | None,
        input_quantizer: nn.Module,
        stride: Any,
        padding: Any,
    ) -> None:
        super().__init__()
        self.weight, self.bias, self.input_quantizer = weight, bias, input_quantizer
        self.stride, self.padding = stride, padding

    def forward(self, input: Tensor) -> Tensor:
        """Map input [B, K, H, W] to [B, C, H', W']."""
        weight = self.weight().to(input.dtype)
        return F.conv2d(self.input_quantizer(input), weight, self.bias, self.stride, self.padding)


class PackedConvTranspose2d(nn.Module):
    """A transposed convolution with packed weights [K, C, s, s]; otherwise as `PackedLinear`."""

    def __init__(
        self, weight: PackedTensor, bias: Tensor | None, input_quantizer: nn.Module, stride: Any
    ) -> None:
        super().__init__()
        self.weight, self.bias, self.input_quantizer, self.stride = weight, bias, input_quantizer, stride

    def forward(self, input: Tensor) -> Tensor:
        """Map input [B, K, H, W] to [B, C, s * H, s * W]."""
        weight = self.weight().to(input.dtype)
        return F.conv_transpose2d(self.input_quantizer(input), weight, self.bias, self.stride)


PackedLayer = PackedLinear | PackedConv2d | PackedConvTranspose2d


def to_packed_layer(layer: nn.Module, weight: PackedTensor, input_quantizer: nn.Module) -> PackedLayer:
    """Return the packed form of a float or quant layer, with its bias, stride and padding.

    Args:
        layer: Layer to replace.
        weight: Packed weight.
        input_quantizer: Quantizer of the input; `nn.Identity` if it stays float.

    Raises:
        TypeError: The layer is neither linear nor a convolution.
    """
    if isinstance(layer, nn.Linear):
        if not isinstance(layer, QuantLinear):
            return PackedLinear(weight, layer.bias, nn.Identity(), input_quantizer)
        return PackedLinear(weight, layer.bias, layer.input_scale, input_quantizer, layer.input_constant)
    if isinstance(layer, nn.ConvTranspose2d):
        return PackedConvTranspose2d(weight, layer.bias, input_quantizer, layer.stride)
    if isinstance(layer, nn.Conv2d):
        return PackedConv2d(weight, layer.bias, input_quantizer, layer.stride, layer.padding)
    raise TypeError(f"cannot pack a {type(layer).__name__}")
