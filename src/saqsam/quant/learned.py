"""Quantizers that exist only during reconstruction: learned scales and random dropping.

Learned step size quantization, LSQ (arXiv 1902.08153): the scale is learned, and the zero point is kept. Deviation: the
logarithm of the scale is learned, so that optimizer steps are relative and scales of 1e-3 and of 10 share one learning
rate. LSQ learns the scale itself and divides its gradient by a constant.

Random dropping, QDrop (arXiv 2203.05740): during learning, each activation stays float with some probability.
`RandomDrop` wraps a quantizer for that time; a quantized model contains none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saqsam.quant.affine import AffineQuantizer, round_affine
from saqsam.quant.layers import PackedTensor


class _QuantizeWithScaleGradient(torch.autograd.Function):
    """Fake quantization with a gradient for the logarithm of the scale.

    LSQ: inside the range, d/d(log s) of s * round(x / s) is s * round(x / s) - x; outside, it is the end of the range.
    Dropped values stay float, with the gradient of the identity and none for the scale.
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
        clipped_grad = grad * clipped
        # Dot products need no temporaries, unlike sums of products.
        slope = torch.dot(grad.flatten(), (rounded - values).flatten()) + torch.dot(
            clipped_grad.flatten(), values.flatten()
        )
        return grad - clipped_grad, slope, None, None, None


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
            values: Values to round.
            passes: Mask of the values that stay float, bool in the shape of `values`; None for none.
        """
        rounded: Tensor = _QuantizeWithScaleGradient.apply(  # type: ignore[no-untyped-call]
            values, self.log_scale, self.zero_point, self.bits, passes
        )
        return rounded

    @torch.no_grad()
    def fixed(self) -> AffineQuantizer:
        """Return a plain quantizer with the learned scale."""
        return AffineQuantizer(self.bits, self.log_scale.exp(), self.zero_point)


class LearnedWeightScale(nn.Module):
    """A packed weight whose scales are learned by a factor per output channel; its codes are kept.

    Attributes:
        log_gain: Parameter, float32 [C]: natural logarithm of the factor.
    """

    def __init__(self, packed: PackedTensor) -> None:
        super().__init__()
        self.packed = packed
        self.log_gain = nn.Parameter(torch.zeros_like(packed.scale))

    def forward(self) -> Tensor:
        """Return the dequantized weight, float32; gradients reach the factors."""
        shape = [size if axis == self.packed.axis else 1 for axis, size in enumerate(self.packed.shape)]
        weight: Tensor = self.packed() * self.log_gain.exp().reshape(shape)
        return weight

    @torch.no_grad()
    def fixed(self) -> PackedTensor:
        """Multiply the scales of the packed weight by the factors, in place, and return it."""
        self.packed.scale.mul_(self.log_gain.exp())
        return self.packed


class StraightThrough(nn.Module):
    """A quantizer without learned parameters; its gradient is that of the identity (straight-through estimator)."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, values: Tensor, passes: Tensor | None = None) -> Tensor:
        """Round `values`, except those that the mask `passes` marks."""
        with torch.no_grad():
            error: Tensor = self.quantizer(values).sub_(values)
            if passes is not None:
                error.masked_fill_(passes, 0.0)
        return values + error


class RandomDrop(nn.Module):
    """Wrapper of a quantizer that leaves each value float with some probability (QDrop).

    Args:
        quantizer: Quantizer of the remaining values.
        probability: Probability of a value to stay float, in steps of 1/256.
        generator: Random generator on the device of the values.
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
        """Round `values` except a random part of them."""
        threshold = round(256 * self.probability)
        if threshold >= 256:
            return values
        passes = self._draw(values, threshold) if threshold > 0 else None
        rounded: Tensor = self.quantizer(values, passes)
        return rounded

    def _draw(self, values: Tensor, threshold: int) -> Tensor:
        """Draw a random mask in the shape of `values` from random bytes, ten times as fast as a Bernoulli draw."""
        words = -(-values.numel() // 8)
        drawn = torch.randint(-(2**63), 2**63 - 1, (words,), generator=self.generator, device=values.device)
        bytes_ = drawn.view(torch.uint8)[: values.numel()]
        return (bytes_ < threshold).reshape(values.shape)
