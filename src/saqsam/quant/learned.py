"""Quantizers that exist only while a unit is reconstructed: a learned scale, and random dropping.

Learned step size: LSQ (arXiv 1902.08153). The zero point stays the integer that it was. The logarithm of the scale is
what is learned, so that a step of the optimizer is relative and scales of 1e-3 and of 10 share one learning rate
(deviation from LSQ, which learns the scale itself and divides its gradient by a constant).

Random dropping: QDrop (arXiv 2203.05740) lets each activation pass unquantized with some probability, while learning.
`RandomDrop` is put around a quantizer for that time and taken away with it: a finished model holds none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saqsam.quant.affine import AffineQuantizer, round_affine
from saqsam.quant.layers import PackedTensor


class _QuantizeWithScaleGradient(torch.autograd.Function):
    """Fake quantization whose backward pass also gives the logarithm of the scale its gradient.

    LSQ: inside the range, d/d(log s) of s * round(x / s) is s * round(x / s) - x; outside it is the end of the range.
    Values that are dropped pass as they are, with the gradient of the identity and none for the scale.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, log_scale: Tensor, zero_point: Tensor, bits: int, passes: Tensor | None
    ) -> Tensor:
        scale, last = log_scale.exp(), 2**bits - 1
        rounded = round_affine(values, scale, zero_point, bits)
        if passes is not None:
            rounded = torch.where(passes, values, rounded)
        low, high = (-0.5 - zero_point) * scale, (last + 0.5 - zero_point) * scale
        clipped = (values < low) | (values > high)
        if passes is not None:
            clipped &= ~passes
        ctx.save_for_backward(values, rounded, clipped)
        return rounded

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (grad,) = grads
        values, rounded, clipped = ctx.saved_tensors
        grad = grad.contiguous()
        lost = grad * clipped
        # Dots instead of sums of products: no temporaries.
        slope = torch.dot(grad.flatten(), (rounded - values).flatten()) + torch.dot(
            lost.flatten(), values.flatten()
        )
        return grad - lost, slope, None, None, None


class LearnedAffineQuantizer(nn.Module):
    """An `AffineQuantizer` whose scale is learned.

    Attributes:
        log_scale: Parameter, float32, shape []: natural logarithm of the scale.
        zero_point: Buffer, int32, shape [].
    """

    zero_point: Tensor

    def __init__(self, start: AffineQuantizer) -> None:
        super().__init__()
        self.bits = start.bits
        self.log_scale = nn.Parameter(start.scale.log())
        self.register_buffer("zero_point", start.zero_point.clone())

    def forward(self, values: Tensor, passes: Tensor | None = None) -> Tensor:
        """Round `values` (any shape, float32) to the grid; gradients reach values and scale.

        Args:
            values: What to round.
            passes: Mask, bool in the shape of `values`, of those that stay as they are.
        """
        rounded: Tensor = _QuantizeWithScaleGradient.apply(  # type: ignore[no-untyped-call]
            values, self.log_scale, self.zero_point, self.bits, passes
        )
        return rounded

    @torch.no_grad()
    def fixed(self) -> AffineQuantizer:
        """The quantizer that a finished model holds."""
        return AffineQuantizer(self.bits, self.log_scale.exp(), self.zero_point)


class LearnedWeightScale(nn.Module):
    """A packed weight whose scales are learned, a factor for each output channel; its codes stay.

    Attributes:
        log_gain: Parameter, float32 [C]: natural logarithm of the factor.
    """

    def __init__(self, packed: PackedTensor) -> None:
        super().__init__()
        self.packed = packed
        self.log_gain = nn.Parameter(torch.zeros_like(packed.scale))

    def forward(self) -> Tensor:
        """The weight in float32; gradients reach the factors."""
        shape = [size if axis == self.packed.axis else 1 for axis, size in enumerate(self.packed.shape)]
        weight: Tensor = self.packed() * self.log_gain.exp().reshape(shape)
        return weight

    @torch.no_grad()
    def fixed(self) -> PackedTensor:
        """The packed weight that a finished model holds: the one that was given, with other scales."""
        self.packed.scale.mul_(self.log_gain.exp())
        return self.packed


class StraightThrough(nn.Module):
    """A quantizer without learned parts, whose gradient is that of the identity."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, values: Tensor, passes: Tensor | None = None) -> Tensor:
        """Round `values`, but for those that `passes` marks."""
        with torch.no_grad():
            error: Tensor = self.quantizer(values).sub_(values)
            if passes is not None:
                error.masked_fill_(passes, 0.0)
        return values + error


class RandomDrop(nn.Module):
    """Lets each value pass unquantized with probability `probability`; never part of a finished model.

    The probability is met to 1/256; the generator lives on the device of the values.
    """

    def __init__(
        self,
        quantizer: LearnedAffineQuantizer | StraightThrough,
        probability: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.quantizer, self.probability, self.generator = quantizer, probability, generator

    def forward(self, values: Tensor) -> Tensor:
        """Round some of `values`."""
        threshold = round(256 * self.probability)
        if threshold >= 256:
            return values
        passes = self._draw(values, threshold) if threshold > 0 else None
        rounded: Tensor = self.quantizer(values, passes)
        return rounded

    def _draw(self, values: Tensor, threshold: int) -> Tensor:
        """A random mask in the shape of `values`, from random bytes: ten times as fast as a Bernoulli draw."""
        words = -(-values.numel() // 8)
        drawn = torch.randint(-(2**63), 2**63 - 1, (words,), generator=self.generator, device=values.device)
        bytes_ = drawn.view(torch.uint8)[: values.numel()]
        return (bytes_ < threshold).reshape(values.shape)
