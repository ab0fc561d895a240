"""What calibration remembers of a tensor: a histogram of fixed size, however many images pass.

The bins are those of a 14-bit float: sign, exponent and the first five mantissa bits. So every octave of
magnitude has 32 bins of its own, an outlier of 170 costs the values below 1 nothing, no range has to be known
beforehand, and one pass is enough. Counts are integers: histograms of parts of the data add up to exactly
that of the whole, in any order and over any number of processes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MANTISSA_BITS = 5
_SHIFT = 23 - MANTISSA_BITS
BINS = 1 << (32 - _SHIFT)


def bin_edges() -> tuple[Tensor, Tensor]:
    """Lower and upper edge of every bin, float64 [BINS], in ascending order of value (both signs)."""
    half = BINS // 2
    # The patterns from infinity on are no values: their bins are empty and end where the largest float does.
    patterns = torch.arange(half + 1, dtype=torch.int32).clamp(max=0x7F80_0000 >> _SHIFT) << _SHIFT
    magnitude = patterns.view(torch.float32).double().clamp(max=torch.finfo(torch.float32).max)
    low = torch.cat([-magnitude[1:].flip(0), magnitude[:-1]])
    high = torch.cat([-magnitude[:-1].flip(0), magnitude[1:]])
    return low, high


class HistogramObserver(nn.Module):
    """Passes a tensor through and counts its values.

    Attributes:
        counts: int64 [BINS], in ascending order of value.
        low: Smallest value seen (float), +inf before the first.
        high: Largest value seen, -inf before the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.low = float("inf")
        self.high = float("-inf")

    def forward(self, values: Tensor) -> Tensor:
        """Count `values` (any shape, float) and return them.

        Raises:
            ValueError: If a value is not finite.
        """
        flat = values.detach().float().flatten()
        low, high = torch.aminmax(flat)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise ValueError("an activation is not finite while calibrating")
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        key = flat.view(torch.int32) >> _SHIFT  # arithmetic shift: negative floats get negative keys
        half = BINS // 2
        # Of a negative float the bits grow with its magnitude: -half is -0 and -1 the most negative.
        key = torch.where(key >= 0, key + half, -1 - key)
        self.counts += torch.bincount(key, minlength=BINS).cpu()
        return values

    @property
    def is_empty(self) -> bool:
        """Whether no value has been seen."""
        return self.low > self.high

    def merge(self, other: HistogramObserver) -> None:
        """Add what another observer saw."""
        # Not in place: counts made in inference mode refuse that.
        self.counts = self.counts + other.counts
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def histogram(self, merge: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """The used bins.

        Args:
            merge: How many neighbouring bins to take as one; a divisor of 32.

        Returns:
            Lower edges, upper edges (within [self.low, self.high]) and counts, each float64 [K].
        """
        low, high = bin_edges()
        low, high, counts = low[::merge], high[merge - 1 :: merge], self.counts.reshape(-1, merge).sum(1)
        used = counts > 0
        return (
            low[used].clamp(self.low, self.high),
            high[used].clamp(self.low, self.high),
            counts[used].double(),
        )
