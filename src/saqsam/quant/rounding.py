"""Learned rounding of weights: AdaRound (arXiv 2004.10568).

Each weight lies between two codes, `floor(w / s)` and the next. A variable V for each weight says how far up it goes,

    h(V) = clamp(1.2 * sigmoid(V) - 0.1, 0, 1)        (rectified sigmoid),

and is learned with the regulariser sum(1 - |2 h - 1|**beta), which drives every h to 0 or 1 while beta falls. At the
end, whatever is not at 0 or 1 yet is decided by h >= 0.5, so that every weight is a code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from saqsam.quant.affine import check_bits

_LOW, _HIGH = -0.1, 1.1
_FAR = 20.0


class LearnedRounding(nn.Module):
    """Takes the place of a weight quantizer while its rounding is learned.

    Attributes:
        variable: Parameter, float32, the shape of the weight: V above.
        below: Buffer, float32: the lower of the two codes before clamping, zero point included.
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

    def share_up(self) -> Tensor:
        """h(V), float32 in [0, 1], the shape of the weight."""
        return (torch.sigmoid(self.variable) * (_HIGH - _LOW) + _LOW).clamp(0, 1)

    def forward(self, weight: Tensor) -> Tensor:
        """The soft weight; the argument is only what the slot is given."""
        codes = (self.below + self.share_up()).clamp(0, 2**self.bits - 1)
        return (codes - self.zero_point) * self.scale

    def regulariser(self, beta: float) -> Tensor:
        """sum(1 - |2 h - 1|**beta): 0 when every weight is on the grid."""
        return (1 - (2 * self.share_up() - 1).abs().pow(beta)).sum()

    @contextmanager
    def hard(self) -> Iterator[None]:
        """Every weight on its code while the block runs."""
        with torch.no_grad():
            soft = self.variable.clone()
            self.variable.copy_(torch.where(self.share_up() >= 0.5, _FAR, -_FAR))
        try:
            yield
        finally:
            with torch.no_grad():
                self.variable.copy_(soft)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Hard codes, uint8, the shape of the weight."""
        return (self.below + (self.share_up() >= 0.5)).clamp(0, 2**self.bits - 1).to(torch.uint8)
