"""Average the values of an attention by quantized weights: the softmax, or its numerators."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_NUMERATOR_SUM = 1e-6
"""Lower bound of the sum of a row of quantized numerators, which a learned scale could round to zero."""
MIN_EXPONENT = -80.0
"""Lower bound of the exponents of numerators."""


class SoftmaxAverage(nn.Module):
    """Average values by the quantized softmax of the logits, as in the papers."""

    def forward(self, logits: Tensor, value: Tensor, quantizer: nn.Module) -> tuple[Tensor, Tensor]:
        """Average values.

        Args:
            logits: [..., Q, K].
            value: [..., K, D].
            quantizer: Quantizer, observer or `nn.Identity` for the probabilities.

        Returns:
            Output [..., Q, D] and quantized probabilities [..., Q, K].
        """
        probabilities = quantizer(self.weights(logits).to(value.dtype))
        return self.average(probabilities, value), probabilities

    def weights(self, logits: Tensor) -> Tensor:
        """Return the softmax, float32."""
        return torch.softmax(logits, dim=-1, dtype=torch.float32)

    def average(self, weights: Tensor, value: Tensor) -> Tensor:
        """Average `value` [..., K, D] by probabilities [..., Q, K]."""
        return weights @ value

    def logits_gradient(self, weights: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient of the logits from that of the probabilities."""
        return torch._softmax_backward_data(gradient, weights, -1, gradient.dtype)


class RowScaledAverage(nn.Module):
    """Average values by quantized softmax numerators exp(x - row maximum), then divide by the sum of the numerators.

    Every row then uses the full range of the quantizer. Without row scaling, the probabilities of a row that attends to
    a thousand keys are all below half a step of the range that other rows need. The matrix product still has two static
    operands, followed by one division per row (as in SageAttention, arXiv 2410.02367).
    """

    def forward(self, logits: Tensor, value: Tensor, quantizer: nn.Module) -> tuple[Tensor, Tensor]:
        """Average values; arguments and results are those of `SoftmaxAverage.forward`."""
        numerators = quantizer(self.weights(logits).to(value.dtype))
        total = self._total(numerators)
        return (numerators @ value) / total, numerators / total

    def weights(self, logits: Tensor) -> Tensor:
        """Return the numerators."""
        # Without bounds, exponentials would be subnormal, which are thirty times as slow. `hardtanh` is `clamp` with a
        # vectorized backward pass; a row's maximum, 0, lies inside.
        largest = logits.detach().amax(-1, keepdim=True)
        if torch.is_grad_enabled():
            return F.hardtanh(logits - largest, MIN_EXPONENT, 1.0).exp()
        return (logits - largest).clamp_(min=MIN_EXPONENT).exp_()

    def average(self, weights: Tensor, value: Tensor) -> Tensor:
        """Average `value` [..., K, D] by numerators [..., Q, K]."""
        return (weights @ value) / self._total(weights)

    def logits_gradient(self, weights: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient of the logits from that of the numerators, which is overwritten."""
        return gradient.mul_(weights)

    def _total(self, numerators: Tensor) -> Tensor:
        return numerators.sum(-1, keepdim=True).clamp_min(MIN_NUMERATOR_SUM)
