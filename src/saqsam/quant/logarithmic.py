"""Logarithmic quantization of attention probabilities, with the base chosen for each tensor.

Adaptive granularity, after PTQ4SAM (arXiv 2405.03144): a probability p has the code

    q = round(-tau * log2(p / s)), at least 0,   and comes back as   s * 2**(-q / tau),

with tau a power of 2, in the paper {1, 2, 4}: the greater tau, the finer the steps and the sooner small probabilities
become 0. What is wanted is a good product `P @ V`, not a good P, so (tau, s) minimise the error of the product.

Deviation: codes are strictly b bits. The last code stands for 0, where public code keeps all 2**b codes for powers and
has 0 beside them, one level more than fits into b bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saqsam.quant.affine import check_bits

FINEST = 4
"""The greatest tau of the paper."""
_SCALES = 2.0 ** (-0.5 * torch.arange(17))
"""Largest values that are tried, 1 to 1/256: where attention spreads over thousands of keys, P stays far below 1."""
_TIE = 1e-4
"""Errors that differ by this share or less are equal."""


def quantize_log(values: Tensor, scale: Tensor, tau: Tensor, bits: int) -> Tensor:
    """Codes (uint8, shape of `values`) of probabilities in [0, 1]; `scale` and `tau` are of shape []."""
    # log2(0) is -inf, and its code the last one.
    codes = torch.round((torch.log2(scale) - torch.log2(values)) * tau)
    return codes.clamp(0, 2**bits - 1).to(torch.uint8)


def dequantize_log(codes: Tensor, scale: Tensor, tau: Tensor, bits: int) -> Tensor:
    """Probabilities (float32, shape of `codes`)."""
    values = torch.exp2(codes.float() / -tau) * scale
    return values.masked_fill(codes == 2**bits - 1, 0.0)


class LogQuantizer(nn.Module):
    """Static per-tensor logarithmic quantization of probabilities to b bits.

    Attributes:
        scale: Buffer, float32, shape []: the largest value that it returns.
        tau: Buffer, int32, shape []: steps an octave.
    """

    scale: Tensor
    tau: Tensor

    def __init__(self, bits: int, scale: Tensor, tau: Tensor) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        self.register_buffer("scale", scale.detach().to(torch.float32).reshape(()).clone())
        self.register_buffer("tau", tau.detach().to(torch.int32).reshape(()).clone())

    @classmethod
    def empty(cls, bits: int) -> LogQuantizer:
        """A quantizer whose parameters are still to be loaded."""
        return cls(bits, torch.ones(()), torch.ones(()))

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value it can return."""
        return 0.0, float(self.scale)

    def forward(self, values: Tensor) -> Tensor:
        """Round `values` (any shape, float in [0, 1]) to powers of 2**(1 / tau) times the scale, in their dtype."""
        last = 2**self.bits - 1
        codes = torch.log2(self.scale) - torch.log2(values.float())
        codes = codes.mul_(self.tau).round_().clamp_(0, last)
        is_zero = codes == last
        rounded = codes.div_(-self.tau).exp2_().mul_(self.scale).masked_fill_(is_zero, 0.0)
        return rounded.to(values.dtype)

    def extra_repr(self) -> str:
        """For printing."""
        return f"bits={self.bits}"


class ValueTap(nn.Module):
    """Passes the values of an attention through and remembers the last ones, for `GranularityObserver`."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None

    def forward(self, values: Tensor) -> Tensor:
        """Remember `values` [..., K, D]."""
        self.last = values.detach()
        return values


class GranularityObserver(nn.Module):
    """Passes probabilities through and sums, for each (tau, scale), the squared error of `P @ V`.

    Args:
        bits: Bits of the quantizer that is to be.
        tap: Sees the values before the probabilities come.
        most: Probabilities of one call that are looked at, at most: whole rows (at least one), drawn with a fixed seed.
        calls: Calls that are looked at; later ones pass.
        finest: The greatest tau that is tried, a power of 2.
        row_scaled: Whether it sees numerators, by whose sum the product is divided.
    """

    def __init__(
        self,
        bits: int,
        tap: ValueTap,
        *,
        most: int = 2**17,
        calls: int = 8,
        finest: int = FINEST,
        row_scaled: bool = False,
    ) -> None:
        super().__init__()
        self.bits, self.tap, self.most, self.calls = bits, tap, most, calls
        self.taus = [2**i for i in range(finest.bit_length())]
        self.row_scaled = row_scaled
        self.errors = torch.zeros(len(self.taus), len(_SCALES), dtype=torch.float64)
        self.count = 0

    def forward(self, probabilities: Tensor) -> Tensor:
        """Look at P [..., Q, K]; the values [..., K, D] have gone through the tap."""
        assert self.tap.last is not None, "the values come before the probabilities"
        if self.count < self.calls:
            rows = probabilities.detach().flatten(0, -3)  # [M, Q, K]
            values = self.tap.last.flatten(0, -3)  # [M, K, D]
            self._add(*self._sample(rows, values))
        self.count += 1
        return probabilities

    def _sample(self, rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Some rows of P [M, Q, K], as many of each of m matrices, [m, n, K], and the values [m, K, D] of these.

        Not every so-many-th: heads and tokens come in a fixed order, so that would be always the same ones.
        """
        matrices, queries, keys = rows.shape
        wanted = max(1, self.most // keys)
        generator = torch.Generator().manual_seed(0)
        if wanted < matrices:
            chosen = torch.randperm(matrices, generator=generator)[:wanted].to(rows.device)
            rows, values = rows[chosen], values[chosen]
        each = wanted // len(rows)
        if each < queries:
            order = torch.rand(len(rows), queries, generator=generator).argsort(1)[:, :each, None]
            rows = rows.gather(1, order.to(rows.device).expand(-1, -1, keys))
        return rows, values

    def _add(self, rows: Tensor, values: Tensor) -> None:
        exact = self._product(rows, values)
        last = 2**self.bits - 1
        exponent = -torch.log2(rows)
        for i, tau in enumerate(self.taus):
            for j, scale in enumerate(_SCALES.tolist()):
                codes = torch.round(tau * (exponent + torch.log2(torch.tensor(scale)))).clamp_(0, last)
                rounded = torch.where(codes == last, 0.0, scale * torch.exp2(codes.mul(-1 / tau)))
                self.errors[i, j] += float((self._product(rounded, values) - exact).square().mean())

    def _product(self, rows: Tensor, values: Tensor) -> Tensor:
        product = rows @ values
        return product / rows.sum(-1, keepdim=True).clamp_min(1e-6) if self.row_scaled else product

    def merge(self, other: GranularityObserver) -> None:
        """Add what another observer saw."""
        self.errors = self.errors + other.errors
        self.count += other.count

    def quantizer(self) -> LogQuantizer:
        """The quantizer of least error; ties go to the smallest tau, then to the largest scale.

        Raises:
            ValueError: If nothing was seen.
        """
        if not self.count:
            raise ValueError("no calibration value reached this quantizer")
        # Grids that differ beyond the probabilities alone have one error, but for its rounding.
        best = int((self.errors <= self.errors.min() * (1 + _TIE)).flatten().nonzero()[0])
        tau, scale = self.taus[best // len(_SCALES)], _SCALES[best % len(_SCALES)]
        return LogQuantizer(self.bits, scale, torch.tensor(tau))
