"""Learned rounding of weights: AdaRound (arXiv 2004.10568).

Each weight lies between two codes, `floor(w / s)` and the next. A variable V per weight decides how far up it is
rounded,

    h(V) = clamp(1.2 * sigmoid(V) - 0.1, 0, 1)        (rectified sigmoid),

and is learned with the regularizer sum(1 - |2 h - 1|**beta), which drives every h to 0 or 1 as beta decreases. At the
end, h >= 0.5 decides the remaining ones, so that every weight has a code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saqsam.quant.affine import check_bits

_LOW, _HIGH = -0.1, 1.1
"""Range of the sigmoid before it is clamped to [0, 1] (AdaRound's zeta and gamma)."""
_SATURATED = 20.0
"""Value of V, and of -V, at which h is 1 or 0."""


class LearnedRounding(nn.Module):
    """Weight quantizer with learned soft rounding.

    Attributes:
        variable: Parameter, float32 in the shape of the weight: V above.
        below: Buffer, float32: lower of the two codes, zero point included, before clamping.
        scale: Buffer, float32, broadcasts against the weight.
        zero_point: Buffer, float32, broadcasts against the weight.
    """

    below: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> None:
        """Start from the float weight; `scale` and `zero_point` broadcast against it."""
        super().__init__()
        self.bits = check_bits(bits)
        scaled = weight.detach() / scale
        below = torch.floor(scaled)
        rest = (scaled - below).clamp(0.001, 0.999)
        # h(V) = rest: the soft weight starts as the float weight.
        self.variable = nn.Parameter(torch.logit((rest - _LOW) / (_HIGH - _LOW)))
        self.register_buffer("below", below + zero_point)
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("zero_point", zero_point.detach().float().clone())

    def soft_rounding(self) -> Tensor:
        """Return h(V), float32 in [0, 1] in the shape of the weight."""
        # `hardtanh` is `clamp` with a vectorized backward pass.
        return F.hardtanh(torch.sigmoid(self.variable) * (_HIGH - _LOW) + _LOW, 0.0, 1.0)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the softly rounded weight, float32; the argument is ignored, since the start holds the weight."""
        codes = F.hardtanh(self.below + self.soft_rounding(), 0.0, 2.0**self.bits - 1)
        return (codes - self.zero_point) * self.scale

    def regularizer(self, beta: float) -> Tensor:
        """Return sum(1 - |2 h - 1|**beta), float32 []: 0 if every weight is on the grid."""
        return (1 - (2 * self.soft_rounding() - 1).abs().pow(beta)).sum()

    @contextmanager
    def hard(self) -> Iterator[None]:
        """Round every weight to its code while the block runs."""
        with torch.no_grad():
            soft = self.variable.clone()
            self.variable.copy_(torch.where(self.soft_rounding() >= 0.5, _SATURATED, -_SATURATED))
        try:
            yield
        finally:
            with torch.no_grad():
                self.variable.copy_(soft)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Return the codes, uint8 in the shape of the weight."""
        return (self.below + (self.soft_rounding() >= 0.5)).clamp(0, 2**self.bits - 1).to(torch.uint8)
