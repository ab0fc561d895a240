"""Range observers: histograms of an activation, of a fixed size for any number of calibration images.

The bins are those of a 14-bit float: sign, exponent and the first five mantissa bits. Every octave of magnitude
has 32 bins of its own, so an outlier of 170 costs the values below 1 no resolution, no range has to be known in
advance, and one pass is enough. Counts are integers: the histograms of parts of the data add up to exactly the
histogram of the whole, in any order and over any number of processes.

Of a large tensor, every k-th value is counted, k times. The extremes are always those of all values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

MANTISSA_BITS = 5
_SHIFT = 23 - MANTISSA_BITS
BINS = 1 << (32 - _SHIFT)
MAX_SAMPLE = 2**19
"""Most values of one tensor that are counted."""


def bin_edges() -> tuple[Tensor, Tensor]:
    """Return the lower and upper edges of all bins, float64 [BINS] each, in ascending order (both signs)."""
    half = BINS // 2
    # Bit patterns from infinity on are not values: their bins are empty and end at the largest float.
    patterns = torch.arange(half + 1, dtype=torch.int32).clamp(max=0x7F80_0000 >> _SHIFT) << _SHIFT
    magnitude = patterns.view(torch.float32).double().clamp(max=torch.finfo(torch.float32).max)
    low = torch.cat([-magnitude[1:].flip(0), magnitude[:-1]])
    high = torch.cat([-magnitude[:-1].flip(0), magnitude[1:]])
    return low, high


def _check_finite(low: Tensor, high: Tensor) -> None:
    """Raise ValueError unless the extremes of an activation are finite; NaN is an extreme, too."""
    if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
        raise ValueError("an activation is not finite while calibrating")


def _count(rows: Tensor) -> Tensor:
    """Return the histogram of each row, int64 [R, BINS], of values [R, K], float32."""
    half = BINS // 2
    keys = (rows.view(torch.int32) >> _SHIFT).add_(
        half
    )  # arithmetic shift: negative floats get negative keys
    if len(rows) > 1:
        keys += torch.arange(len(rows), dtype=torch.int32, device=rows.device)[:, None] * BINS
    counts = torch.bincount(keys.flatten(), minlength=len(rows) * BINS).reshape(-1, BINS).cpu()
    # The key of a negative float grows with its magnitude.
    return torch.cat([counts[:, :half].flip(1), counts[:, half:]], 1)


def _flat(values: Tensor) -> Tensor:
    """Return the values, [K], in the order of memory, which needs no copy of a transposed tensor."""
    strides = values.stride()
    order = sorted(range(values.dim()), key=lambda axis: -strides[axis])
    return values.permute(order).flatten()


def _stride(count: int, sizes: Sequence[int]) -> int:
    """Return the stride that samples `MAX_SAMPLE` of `count` values, or fewer.

    It has no divisor in common with the sizes of a tensor, so that the sample holds values of every channel.
    """
    stride = -(-count // MAX_SAMPLE)
    while any(math.gcd(stride, size) > 1 for size in sizes):
        stride += 1
    return stride


class HistogramObserver(nn.Module):
    """Identity that counts the values of a tensor in a histogram.

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
        flat = _flat(values.detach())
        low, high = torch.aminmax(flat)
        _check_finite(low, high)
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        stride = _stride(len(flat), values.shape)
        self.counts += stride * _count(flat[::stride].float()[None])[0]
        return values

    @property
    def is_empty(self) -> bool:
        """Whether no value has been seen."""
        return self.low > self.high

    def merge(self, other: HistogramObserver) -> None:
        """Add the values that another observer has counted."""
        # Not in place: tensors created in inference mode refuse that.
        self.counts = self.counts + other.counts
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def histogram(self, merge: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Return the occupied bins.

        Args:
            merge: Number of neighboring bins to merge into one; a divisor of 32.

        Returns:
            Lower edges, upper edges (within [self.low, self.high]) and counts, each float64 [K].
        """
        low, high = bin_edges()
        low, high, counts = low[::merge], high[merge - 1 :: merge], self.counts.reshape(-1, merge).sum(1)
        occupied = counts > 0
        return (
            low[occupied].clamp(self.low, self.high),
            high[occupied].clamp(self.low, self.high),
            counts[occupied].double(),
        )


class ChannelHistogramObserver(nn.Module):
    """Identity that counts the values of each channel, so that signs of channels can still be changed afterwards.

    Args:
        axes: Axes that index the channels, such as (1, 3) for [P, N, T, D] with N * D channels.

    Attributes:
        counts: int64 [channels, BINS] after the first tensor.
        next_call: Number of the next call over all processes; each numbers its calls so that no two are alike.
        sums_by_call: Sums of the values of each call, float64 [channels], by its number. Floats are added up in the
            order of calls, so that the total is the same for any number of processes.
        low: Smallest values, float64 [channels].
        high: Largest values, float64 [channels].
    """

    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes
        self.counts = torch.zeros(0, BINS, dtype=torch.int64)
        self.low = self.high = torch.zeros(0, dtype=torch.float64)
        self.next_call = 0
        self.sums_by_call: dict[int, Tensor] = {}

    def forward(self, values: Tensor) -> Tensor:
        """Count `values` (float) and return them.

        Raises:
            ValueError: If a value is not finite.
        """
        others = [axis for axis in range(values.dim()) if axis not in self.axes]
        values_by_channel = values.detach().permute(*self.axes, *others)
        ends = list(range(len(self.axes), values.dim()))
        low, high = values_by_channel.amin(ends).flatten(), values_by_channel.amax(ends).flatten()
        _check_finite(low, high)
        if self.is_empty:
            self._start(len(low))
        # Tokens are sampled, of all channels.
        longest = max(ends, key=lambda axis: values_by_channel.shape[axis])
        stride = _stride(values.numel(), values_by_channel.shape[longest : longest + 1])
        sampled = values_by_channel.movedim(longest, -1)[..., ::stride]
        rows = sampled.flatten(0, len(self.axes) - 1).flatten(1).float().contiguous()
        self.counts += stride * _count(rows)
        self.sums_by_call[self.next_call] = stride * rows.double().sum(1).cpu()
        self.next_call += 1
        self.low = torch.minimum(self.low, low.double().cpu())
        self.high = torch.maximum(self.high, high.double().cpu())
        return values

    def _start(self, channels: int) -> None:
        self.counts = torch.zeros(channels, BINS, dtype=torch.int64)
        self.low = torch.full((channels,), math.inf, dtype=torch.float64)
        self.high = -self.low

    @property
    def is_empty(self) -> bool:
        """Whether no value has been seen."""
        return not len(self.counts)

    @property
    def sums(self) -> Tensor:
        """Sums of the values, float64 [channels]."""
        total = torch.zeros(len(self.counts), dtype=torch.float64)
        for call in sorted(self.sums_by_call):
            total += self.sums_by_call[call]
        return total

    def means(self) -> Tensor:
        """Return the mean of each channel, float64 [channels].

        Raises:
            ValueError: The observer is empty.
        """
        if self.is_empty:
            raise ValueError("no calibration value reached this quantizer")
        return self.sums / self.counts.sum(1)

    def merge(self, other: ChannelHistogramObserver) -> None:
        """Add the values that another observer has counted in calls of other numbers."""
        assert not self.sums_by_call.keys() & other.sums_by_call.keys(), "a call was counted twice"
        if other.is_empty:
            return
        if self.is_empty:
            self._start(len(other.counts))
        self.counts = self.counts + other.counts
        self.sums_by_call.update(other.sums_by_call)
        self.next_call = max(self.next_call, other.next_call)
        self.low, self.high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)

    def pooled(self, signs: Tensor | None = None) -> HistogramObserver:
        """Return the histogram of all channels together, channel c multiplied by its sign.

        Args:
            signs: +1 or -1, [channels]; None changes no sign.
        """
        negative = torch.zeros(len(self.counts), dtype=torch.bool) if signs is None else signs < 0
        pooled = HistogramObserver()
        if self.is_empty:
            return pooled
        # The bins of -x are the bins of x in reverse order.
        pooled.counts = self.counts[~negative].sum(0) + self.counts[negative].sum(0).flip(0)
        low = torch.where(negative, -self.high, self.low)
        high = torch.where(negative, -self.low, self.high)
        pooled.low, pooled.high = float(low.min()), float(high.max())
        return pooled
