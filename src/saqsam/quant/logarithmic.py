"""Logarithmic quantization of attention probabilities, with a base chosen for each tensor.

Adaptive granularity (AGQ), after PTQ4SAM (arXiv 2405.03144): the code of a probability p is

    q = round(-tau * log2(p / s)), at least 0,   and it dequantizes to   s * 2**(-q / tau),

with tau a power of 2, in the paper 1, 2 or 4. A larger tau gives finer steps, and small probabilities become 0 sooner.
Attention needs an accurate product `P @ V` rather than an accurate P, so (tau, s) minimize the error of the product.

Deviation: codes have strictly b bits. The last code stands for 0. Public code uses all 2**b codes for powers and has 0
in addition, one level more than fits into b bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saqsam.quant.affine import check_bits

MAX_TAU = 4
"""Largest tau of the paper."""
_SCALES = 2.0 ** (-0.5 * torch.arange(17))
"""Candidates for s, from 1 to 1/256: where attention spreads over thousands of keys, P stays far below 1."""
_TIE = 1e-4
"""Relative difference up to which two errors count as equal."""


def quantize_log(values: Tensor, scale: Tensor, tau: Tensor, bits: int) -> Tensor:
    """Return the codes, uint8 in the shape of `values`, of probabilities in [0, 1]; `scale` and `tau` have shape []."""
    # log2(0) is -inf, which the last code stands for.
    codes = torch.round((torch.log2(scale) - torch.log2(values)) * tau)
    return codes.clamp(0, 2**bits - 1).to(torch.uint8)


def dequantize_log(codes: Tensor, scale: Tensor, tau: Tensor, bits: int) -> Tensor:
    """Return the probabilities, float32 in the shape of `codes`; `scale` and `tau` have shape []."""
    values = torch.exp2(codes.float() / -tau) * scale
    return values.masked_fill(codes == 2**bits - 1, 0.0)


class LogQuantizer(nn.Module):
    """Static per-tensor logarithmic quantization of probabilities to b bits.

    Attributes:
        scale: Buffer, float32, shape []: largest value of the grid.
        tau: Buffer, int32, shape []: steps per octave.
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
        """Return a quantizer with placeholder parameters, to load a state dict into."""
        return cls(bits, torch.ones(()), torch.ones(()))

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value it can return."""
        return 0.0, float(self.scale)

    def forward(self, values: Tensor) -> Tensor:
        """Round `values` (any shape, float in [0, 1]) to powers of 2**(1 / tau) times the scale, in their dtype."""
        last = 2**self.bits - 1
        # The logarithm of 0 and of subnormal numbers takes ten times as long, so what is far below the grid is raised.
        floor = torch.exp2(-(last + 1.0) / self.tau) * self.scale
        codes = torch.log2(self.scale) - values.float().clamp_min(floor).log2_()
        codes = codes.mul_(self.tau).round_().clamp_(0, last)
        # Multiplied, because `masked_fill` by a random mask takes as long as ten of these steps on a CPU.
        is_power = (codes < last).view(torch.uint8)
        rounded = codes.div_(-self.tau).exp2_().mul_(self.scale).mul_(is_power)
        return rounded.to(values.dtype)

    def extra_repr(self) -> str:
        """Return the text that printing the module shows in parentheses."""
        return f"bits={self.bits}"


class ValueTap(nn.Module):
    """Identity that remembers the last values of an attention, for `GranularityObserver`."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None

    def forward(self, values: Tensor) -> Tensor:
        """Remember `values` [..., K, D]."""
        self.last = values.detach()
        return values


class GranularityObserver(nn.Module):
    """Identity that adds up the squared error of `P @ V` for each candidate (tau, scale).

    Args:
        bits: Bits of the quantizer.
        tap: Tap that remembers the values of the same forward pass.
        max_probabilities: Most probabilities of one call to sample: whole rows (at least one), drawn with a fixed seed.
        max_calls: Calls to sample from; later ones are ignored.
        min_tau: Smallest tau to try, a power of 2.
        max_tau: Largest tau to try, a power of 2.
        row_scaled: Whether it receives numerators of the softmax, by whose sum the product is divided.

    Attributes:
        next_call: Number of the next call over all processes; each numbers its calls so that no two are alike.
        errors_by_call: Errors of each sampled call, float64 [taus, scales], by its number. They are added up in the
            order of calls, so that the total is the same for any number of processes.
    """

    def __init__(
        self,
        bits: int,
        tap: ValueTap,
        *,
        max_probabilities: int = 2**17,
        max_calls: int = 8,
        min_tau: int = 1,
        max_tau: int = MAX_TAU,
        row_scaled: bool = False,
    ) -> None:
        super().__init__()
        self.bits, self.tap = bits, tap
        self.max_probabilities, self.max_calls = max_probabilities, max_calls
        self.taus = [2**i for i in range(min_tau.bit_length() - 1, max_tau.bit_length())]
        self.row_scaled = row_scaled
        self.next_call = 0
        self.errors_by_call: dict[int, Tensor] = {}

    def forward(self, probabilities: Tensor) -> Tensor:
        """Sample P [..., Q, K] and return it; the values [..., K, D], which may broadcast, have passed the tap."""
        assert self.tap.last is not None, "the values must pass the tap before the probabilities"
        if self.wants_rows:
            rows = probabilities.detach().flatten(0, -3)  # [M, Q, K]
            values = self.tap.last.expand(*probabilities.shape[:-2], -1, -1).flatten(0, -3)  # [M, K, D]
            matrices, order = self.draw_rows(*rows.shape)
            matrices, order = matrices.to(rows.device), order.to(rows.device)
            self.add_rows(rows[matrices[:, None], order], values[matrices])
        return probabilities

    @property
    def wants_rows(self) -> bool:
        """Whether the next call is sampled."""
        return self.next_call < self.max_calls

    def draw_rows(self, matrices: int, queries: int, keys: int) -> tuple[Tensor, Tensor]:
        """Draw which rows of the probabilities [M, Q, K] of a call to sample.

        Heads and tokens come in a fixed order, so taking every k-th row would always sample the same ones.

        Returns:
            Matrices, int64 [m], and n rows of each, int64 [m, n].
        """
        count = max(1, self.max_probabilities // keys)
        generator = torch.Generator().manual_seed(0)
        chosen = torch.arange(matrices)
        if count < matrices:
            chosen = torch.randperm(matrices, generator=generator)[:count]
        each = count // len(chosen)
        order = torch.arange(queries).expand(len(chosen), -1)
        if each < queries:
            order = torch.rand(len(chosen), queries, generator=generator).argsort(1)[:, :each]
        return chosen, order

    def add_rows(self, rows: Tensor, values: Tensor) -> None:
        """Add the errors of a call's sampled rows [m, n, K] with the values [m, K, D] of the same matrices."""
        self.errors_by_call[self.next_call] = self._errors(rows, values)
        self.next_call += 1

    @property
    def errors(self) -> Tensor:
        """Sum of the squared errors of all sampled calls, float64 [taus, scales]."""
        total = torch.zeros(len(self.taus), len(_SCALES), dtype=torch.float64)
        for call in sorted(self.errors_by_call):
            total += self.errors_by_call[call]
        return total

    def _errors(self, rows: Tensor, values: Tensor) -> Tensor:
        exact = self._product(rows, values)
        errors = [
            (self._product(rounded, values) - exact).square_().mean() for rounded in self._candidates(rows)
        ]
        return torch.stack(errors).double().cpu().reshape(len(self.taus), len(_SCALES))

    def _candidates(self, rows: Tensor) -> Iterator[Tensor]:
        """Yield P [m, n, K] rounded to the grid of each tau and, within it, each scale.

        Scales are powers of 2**-0.5, so that the grids of one tau and different scales lie on the same powers, or for
        odd tau on those half a step lower: they differ in where they end.
        """
        exponent = torch.log2(rows).neg_()
        for tau in self.taus:
            powers = []
            for shift in (0.0, 0.5) if tau % 2 else (0.0,):
                steps = (exponent * tau).sub_(shift).round_().add_(shift)
                powers.append(steps.mul_(-1 / tau).exp2_())
            smallest = 2.0 ** -((2**self.bits - 1.5) / tau)
            for j, scale in enumerate(_SCALES.tolist()):
                yield F.threshold(powers[j % len(powers)], scale * smallest, 0.0).clamp_(max=scale)

    def _product(self, rows: Tensor, values: Tensor) -> Tensor:
        product = rows @ values
        return product / rows.sum(-1, keepdim=True).clamp_min(1e-6) if self.row_scaled else product

    def merge(self, other: GranularityObserver) -> None:
        """Add the errors that another observer has found in calls of other numbers."""
        assert not self.errors_by_call.keys() & other.errors_by_call.keys(), "a call was sampled twice"
        self.errors_by_call.update(other.errors_by_call)
        self.next_call = max(self.next_call, other.next_call)

    def quantizer(self) -> LogQuantizer:
        """Return the quantizer of least error; ties go to the smallest tau, then to the largest scale.

        Raises:
            ValueError: The observer is empty.
        """
        if not self.errors_by_call:
            raise ValueError("no calibration value reached this quantizer")
        # Grids that differ only beyond the observed probabilities have equal errors, up to rounding.
        errors = self.errors
        best = int((errors <= errors.min() * (1 + _TIE)).flatten().nonzero()[0])
        tau, scale = self.taus[best // len(_SCALES)], _SCALES[best % len(_SCALES)]
        return LogQuantizer(self.bits, scale, torch.tensor(tau))
