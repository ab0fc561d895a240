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
import torch.nn.functional as F
from torch import Tensor, nn

from saqsam.quant.affine import AffineQuantizer, round_affine
from saqsam.quant.layers import PackedLinear


class _QuantizeWithScaleGradient(torch.autograd.Function):
    """Fake quantization with a gradient for the logarithm of the scale.

    LSQ: inside the range, d/d(log s) of s * round(x / s) is s * round(x / s) - x; outside, it is the end of the range.
    Values that stay float have the gradient of the identity and none for the scale.

    On a CPU, selecting by a random mask (`torch.where`, `masked_fill`) takes twenty times as long as an addition, so
    masks are multiplied instead.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, log_scale: Tensor, zero_point: Tensor, bits: int, rounds: Tensor | None
    ) -> Tensor:
        scale = log_scale.exp()
        output = round_affine(values, scale, zero_point, bits)
        if rounds is not None:
            output = output.sub_(values).mul_(rounds).add_(values)
        ctx.bits = bits
        ctx.save_for_backward(values, output, scale, zero_point, rounds)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        values, output, scale, zero_point, rounds = ctx.saved_tensors
        grad = grads[0].contiguous()
        low, high = (-0.5 - zero_point) * scale, (2**ctx.bits - 0.5 - zero_point) * scale
        clipped = grad - _inside(grad, values, low, high)
        if rounds is not None:
            clipped.mul_(rounds)
        # Dot products need no temporaries, unlike sums of products.
        slope = torch.dot(grad.flatten(), (output - values).flatten())
        slope = slope + torch.dot(clipped.flatten(), values.flatten())
        return torch.sub(grad, clipped, out=clipped), slope, None, None, None


def _inside(grad: Tensor, values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the gradient where a value lies between two ends (float32 []), and 0 elsewhere."""
    if values.device.type == "cpu":
        # The one kernel for this that is vectorized; its ends are numbers, for which a GPU would have to wait.
        return torch.ops.aten.hardtanh_backward(grad, values, float(low), float(high))  # type: ignore[no-any-return]
    return grad * ((values > low) & (values < high))


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

    def forward(self, values: Tensor, rounds: Tensor | None = None) -> Tensor:
        """Round `values` (any shape, float32) to the grid; gradients reach values and scale.

        Args:
            values: Values to round.
            rounds: Mask, uint8 in the shape of `values`: 1 where a value is rounded, 0 where it stays float; None
                rounds all.
        """
        rounded: Tensor = _QuantizeWithScaleGradient.apply(  # type: ignore[no-untyped-call]
            values, self.log_scale, self.zero_point, self.bits, rounds
        )
        return rounded

    @torch.no_grad()
    def fixed(self) -> AffineQuantizer:
        """Return a plain quantizer with the learned scale."""
        return AffineQuantizer(self.bits, self.log_scale.exp(), self.zero_point)


class LearnedScaleLinear(PackedLinear):
    """A packed linear layer whose weight scales are learned by a factor per output channel; its codes are kept.

    The factor multiplies the output, so that its gradient takes no product of the size of the weight's.

    Attributes:
        log_gain: Parameter, float32 [C]: natural logarithm of the factor.
    """

    def __init__(self, layer: PackedLinear) -> None:
        super().__init__(
            layer.weight, layer.bias, layer.input_scale, layer.input_quantizer, layer.input_constant
        )
        self.log_gain = nn.Parameter(torch.zeros_like(layer.weight.scale))
        with torch.no_grad():
            self._start = layer.weight()

    def forward(self, input: Tensor) -> Tensor:
        """Map input [..., K] to [..., C]; gradients reach the factors."""
        output = F.linear(self.rounded_input(input), self._start) * self.log_gain.exp()
        return output if self.bias is None else output + self.bias

    @torch.no_grad()
    def fixed(self) -> PackedLinear:
        """Multiply the scales of the packed weight by the factors, in place, and return the plain layer."""
        self.weight.scale.mul_(self.log_gain.exp())
        layer = PackedLinear(
            self.weight, self.bias, self.input_scale, self.input_quantizer, self.input_constant
        )
        return layer.train(self.training)


class StraightThrough(nn.Module):
    """A quantizer without learned parameters; its gradient is that of the identity (straight-through estimator)."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, values: Tensor, rounds: Tensor | None = None) -> Tensor:
        """Round `values` where the mask `rounds` (as for `LearnedAffineQuantizer`) is 1."""
        with torch.no_grad():
            error: Tensor = self.quantizer(values).sub_(values)
            if rounds is not None:
                error.mul_(rounds)
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
        rounds = self._draw(values, threshold) if threshold > 0 else None
        rounded: Tensor = self.quantizer(values, rounds)
        return rounded

    def _draw(self, values: Tensor, threshold: int) -> Tensor:
        """Draw a random mask, uint8 in the shape of `values`, from bytes: ten times as fast as a Bernoulli draw.

        Every value of every step is drawn anew. Slices of one long mask cost less, but learning ended worse.
        """
        words = -(-values.numel() // 8)
        drawn = torch.randint(-(2**63), 2**63 - 1, (words,), generator=self.generator, device=values.device)
        bytes_ = drawn.view(torch.uint8)[: values.numel()]
        # For a probability of one half, the highest bit is the mask; a comparison takes ten times as long.
        mask = bytes_ >> 7 if threshold == 128 else (bytes_ >= threshold).view(torch.uint8)
        return mask.reshape(values.shape)
