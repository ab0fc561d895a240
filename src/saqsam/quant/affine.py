"""Uniform affine quantization: integer codes, a scale and a zero point.

With b bits a real x has the code ``q = clamp(round(x / scale) + zero_point, 0, 2**b - 1)`` and comes back as
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
    """Scale and zero point whose grid spans [low, high] widened to hold 0.

    Zero is always represented exactly: padding and ReLU zeros stay zero. A range without width (a constant
    zero) gets scale 1, which maps zero to zero.

    Args:
        low: Lower ends, any shape, float.
        high: Upper ends, same shape.
        bits: 2 to 8.
        symmetric: Zero point fixed at the middle code.

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
    # Subnormal scales would overflow their reciprocal.
    scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))
    return scale, zero_point


def quantize_affine(values: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Codes (uint8, shape of `values`); scale and zero point broadcast against `values`."""
    codes = torch.round(values / scale) + zero_point
    return codes.clamp(0, 2**bits - 1).to(torch.uint8)


def dequantize_affine(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Reals (float32, shape of `codes`); scale and zero point broadcast against `codes`."""
    return (codes.float() - zero_point.float()) * scale


def round_affine(values: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Quantize and dequantize at once, in the dtype of `values`: ``(q - zero_point) * scale``.

    In place on one temporary: ten times as fast on a CPU as `torch.fake_quantize_per_tensor_affine`, and what ONNX's
    QuantizeLinear gives, which divides by the scale (that function multiplies by its reciprocal, and adds the zero
    point before it rounds, so that halves go another way).
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
        """A quantizer whose parameters are still to be loaded."""
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
        """For printing."""
        return f"bits={self.bits}"


def round_dynamic(values: Tensor, bits: int, axis: int) -> Tensor:
    """Quantize and dequantize at once, each row along `axis` on a grid that spans its own values and 0.

    Steps are those of XNNPACK's `qd8` inputs, reciprocals included, so that codes fall where that runtime's do.
    """
    levels, given = 2**bits - 1, values.float()
    low = given.amin(axis, keepdim=True).clamp(max=0.0)
    high = given.amax(axis, keepdim=True).clamp(min=0.0)
    steps = torch.where(high > low, levels / (high - low), torch.ones_like(low))
    # Both ends give the same zero point but for its last bits.
    from_low, from_high = -low * steps, levels - high * steps
    zero_point = torch.where((low + high) * steps > 1, from_low, from_high).clamp(0, levels).round()
    rounded = torch.mul(given, steps).round_().add_(zero_point).clamp_(0, levels)
    return rounded.sub_(zero_point).mul_(1 / steps).to(values.dtype)


class DynamicQuantizer(nn.Module):
    """Asymmetric quantization whose grid is found anew for each row of an activation; it has no parameters.

    Attributes:
        bits: 2 to 8.
        axis: Of the channels: a row is what lies along it.
    """

    def __init__(self, bits: int, axis: int) -> None:
        super().__init__()
        self.bits, self.axis = check_bits(bits), axis

    def forward(self, values: Tensor) -> Tensor:
        """Round `values` (any shape, float) to the grids of their rows; not differentiable, see `learned`."""
        return round_dynamic(values, self.bits, self.axis)

    def extra_repr(self) -> str:
        """For printing."""
        return f"bits={self.bits}, axis={self.axis}"
