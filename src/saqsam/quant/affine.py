"""Uniform affine quantization: integer codes, a scale and a zero point.

With b bits, the code of a real x is ``q = clamp(round(x / scale) + zero_point, 0, 2**b - 1)``, and it dequantizes to
``(q - zero_point) * scale``. Codes are unsigned everywhere; *symmetric* means that the zero point is the
middle code ``2**(b - 1)``, so that ``q - zero_point`` is a signed integer in [-2**(b - 1), 2**(b - 1) - 1],
which is what integer kernels with signed weights take.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saqsam.quant import triton_kernels

MIN_BITS, MAX_BITS = 2, 8


def check_bits(bits: int, what: str = "bits") -> int:
    """Return `bits` if it is an integer from 2 to 8.

    Raises:
        ValueError: Otherwise.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"{what} must be an integer from {MIN_BITS} to {MAX_BITS}, got {bits!r}")
    return bits


def affine_parameters(low: Tensor, high: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return the scale and zero point of the grid that spans [low, high], widened to contain 0.

    Zero is always represented exactly: padding and ReLU zeros stay zero. A range of width 0 (a constant
    zero) gets scale 1, which maps zero to zero.

    Args:
        low: Lower ends, any shape, float.
        high: Upper ends, same shape.
        bits: 2 to 8.
        symmetric: Whether the zero point is fixed at the middle code.

    Returns:
        Scale (float32) and zero point (float32 holding integers), of the shape of `low`.
    """
    low = low.float().clamp(max=0.0)
    high = high.float().clamp(min=0.0)
    levels = 2**bits - 1
    if symmetric:
        middle = 2 ** (bits - 1)
        scale = torch.maximum(-low / middle, high / (middle - 1))
        zero_point = torch.full_like(scale, float(middle))
    else:
        scale = (high - low) / levels
        zero_point = torch.round(-low / torch.where(scale > 0, scale, 1.0)).clamp(0, levels)
    # The reciprocal of a subnormal scale would overflow.
    scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))
    return scale, zero_point


def quantize_affine(values: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Return the codes, uint8 in the shape of `values`; scale and zero point broadcast against `values`."""
    codes = torch.round(values / scale) + zero_point
    return codes.clamp(0, 2**bits - 1).to(torch.uint8)


def dequantize_affine(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return the reals, float32 in the shape of `codes`; scale and zero point broadcast against `codes`."""
    return (codes.float() - zero_point.float()) * scale


def round_affine(values: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Quantize and dequantize in one step, in the dtype of `values`: ``(q - zero_point) * scale``.

    It works in place on one temporary, ten times as fast on a CPU as `torch.fake_quantize_per_tensor_affine`. It
    divides by the scale, as ONNX's QuantizeLinear does. torch's function multiplies by the reciprocal and adds the zero
    point before rounding, so that ties round differently.
    """
    if triton_kernels.is_fused(values) and scale.numel() == 1:
        return triton_kernels.round_affine(values, scale, zero_point, bits)
    rounded = torch.div(values.float(), scale).round_()
    rounded = rounded.add_(zero_point).clamp_(0, 2**bits - 1).sub_(zero_point).mul_(scale)
    return rounded.to(values.dtype)


class AffineQuantizer(nn.Module):
    """Static per-tensor quantization of an activation to b bits, computed as quantize-dequantize.

    Attributes:
        scale: Buffer, float32, shape [].
        zero_point: Buffer, int32, shape []; a code.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int, scale: Tensor, zero_point: Tensor) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        self.register_buffer("scale", scale.detach().to(torch.float32).reshape(()).clone())
        self.register_buffer("zero_point", zero_point.detach().to(torch.int32).reshape(()).clone())

    @classmethod
    def empty(cls, bits: int) -> AffineQuantizer:
        """Return a quantizer with placeholder parameters, to load a state dict into."""
        return cls(bits, torch.ones(()), torch.zeros(()))

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value it can return."""
        scale, zero_point = float(self.scale), int(self.zero_point)
        return -zero_point * scale, (2**self.bits - 1 - zero_point) * scale

    def forward(self, values: Tensor) -> Tensor:
        """Round `values` (any shape, float) to the grid; not differentiable, see `learned`."""
        return round_affine(values, self.scale, self.zero_point, self.bits)

    def extra_repr(self) -> str:
        """Return the text that printing the module shows in parentheses."""
        return f"bits={self.bits}"


def round_dynamic(values: Tensor, bits: int, axis: int) -> Tensor:
    """Quantize and dequantize in one step, each row along `axis` on a grid that spans its own values and 0.

    The arithmetic is that of XNNPACK's `qd8` inputs, reciprocals included, so that codes equal those of that runtime.
    """
    levels, floats = 2**bits - 1, values.float()
    low = floats.amin(axis, keepdim=True).clamp(max=0.0)
    high = floats.amax(axis, keepdim=True).clamp(min=0.0)
    steps = torch.where(high > low, levels / (high - low), torch.ones_like(low))
    # Both ends give the same zero point up to its last bits.
    from_low, from_high = -low * steps, levels - high * steps
    zero_point = torch.where((low + high) * steps > 1, from_low, from_high).clamp(0, levels).round()
    rounded = torch.mul(floats, steps).round_().add_(zero_point).clamp_(0, levels)
    return rounded.sub_(zero_point).mul_(1 / steps).to(values.dtype)


class DynamicQuantizer(nn.Module):
    """Dynamic per-token quantization of an activation: each row has an asymmetric grid of its own.

    It has no parameters.

    Attributes:
        bits: 2 to 8.
        axis: Axis of the channels; a row consists of the values along it.
    """

    def __init__(self, bits: int, axis: int) -> None:
        super().__init__()
        self.bits, self.axis = check_bits(bits), axis

    def forward(self, values: Tensor) -> Tensor:
        """Round `values` (any shape, float) to the grids of their rows; not differentiable, see `learned`."""
        return round_dynamic(values, self.bits, self.axis)

    def extra_repr(self) -> str:
        """Return the text that printing the module shows in parentheses."""
        return f"bits={self.bits}, axis={self.axis}"
