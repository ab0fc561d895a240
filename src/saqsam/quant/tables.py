"""Quantization of an activation to the levels of a table, for distributions that uniform grids fit badly.

After a GELU, most values lie between -0.17 and 0, and a few are large. A table of 2**b levels can follow them; the code
of a value is the index of its nearest level. Two papers give forms of such a table. The parameters of least squared
error are found from the calibration histogram. Both forms describe the values x shifted by their minimum,
y = x - min >= 0. The levels include the shift, which equals folding it into the bias of the layer exactly.

- `hybrid` (HLUQ of AHCPTQ, arXiv 2503.03088): y = 0, powers of 2 below a split point t, t * 2**-q, and n uniform steps
  from there to an upper end h, t + (h - t) * k / n. The search covers t, h and the share of codes up to t: a half, a
  quarter or an eighth. Assumptions, where the abstract leaves it open: the shift, and the search for the share.
- `log` (AdaLog, arXiv 2407.12951): y = 0 and s * 2**(-q * i / 37). The search covers the base 2**(i / 37) and the scale
  s. Deviation: it minimizes the error of the layer's input, where the paper minimizes that of its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from saqsam.quant.affine import check_bits
from saqsam.quant.range_observers import HistogramObserver

TableForm = Literal["hybrid", "log"]
BASE_DENOMINATOR = 37
"""Bases of `log` tables are powers of 2**(1 / 37), as in the paper."""
_MAX_STEP = 2 * BASE_DENOMINATOR
"""Largest exponent of the base, in these units: a base of 4."""
_SHRINK = 2.0 ** (-torch.arange(29).double() / 4)
"""Candidates for upper ends, as factors of the largest value: 1 to 1/128."""
_SPLITS = 2.0 ** (-torch.arange(1, 49).double() / 4)
"""Candidates for split points, as factors of the upper end: 0.84 to 1/4096."""
_ROUNDS = 4
"""Rounds of refinement; each halves the step between candidates."""


class TableQuantizer(nn.Module):
    """Static per-tensor quantization of an activation to the nearest of 2**b levels.

    Attributes:
        levels: Buffer, float32 [2**b], in ascending order; neighbors may be equal.
    """

    levels: Tensor

    def __init__(self, bits: int, levels: Tensor) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        if levels.shape != (2**bits,):
            raise ValueError(
                f"levels must have shape ({2**bits},) for {bits} bits, got {tuple(levels.shape)}"
            )
        self.register_buffer("levels", levels.detach().to(torch.float32).clone())

    @classmethod
    def empty(cls, bits: int) -> TableQuantizer:
        """Return a quantizer with placeholder levels, to load a state dict into."""
        return cls(bits, torch.zeros(2 ** check_bits(bits)))

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value it can return."""
        return float(self.levels[0]), float(self.levels[-1])

    def codes(self, values: Tensor) -> Tensor:
        """Return the indexes of the nearest levels, int32 in the shape of `values`; ties go to the lower level."""
        middles = (self.levels[1:] + self.levels[:-1]) / 2
        return torch.bucketize(values.float(), middles, out_int32=True)

    def forward(self, values: Tensor) -> Tensor:
        """Round `values` (any shape, float) to the nearest levels, in their dtype; not differentiable."""
        codes = self.codes(values)
        return self.levels.index_select(0, codes.flatten()).reshape(values.shape).to(values.dtype)

    def extra_repr(self) -> str:
        """Return the text that printing the module shows in parentheses."""
        return f"bits={self.bits}"


def table_levels(observer: HistogramObserver, bits: int, form: TableForm) -> Tensor:
    """Return the levels of least squared error for an observed activation, float32 [2**bits], in ascending order.

    Args:
        observer: Observer of the activation.
        bits: 2 to 8.
        form: `hybrid` or `log`.

    Raises:
        ValueError: The observer is empty.
    """
    if observer.is_empty:
        raise ValueError("no calibration value reached this quantizer")
    reach = observer.high - observer.low
    if reach <= 0:
        return torch.full((2**bits,), observer.low)
    moments = Moments(observer)
    tables = _hybrid_tables(moments, bits) if form == "hybrid" else [_search_log(moments, bits)]
    best = min(tables, key=lambda table: float(moments.errors(table[None])[0]))
    return (best * reach + observer.low).float()


class Moments:
    """Cumulative moments of a histogram, mapped to [0, 1], for squared errors in closed form.

    Values are assumed to be spread evenly within a bin.

    Args:
        observer: Observer that has seen at least two different values.
    """

    def __init__(self, observer: HistogramObserver) -> None:
        low, high, counts = observer.histogram()
        reach = observer.high - observer.low
        self.low, self.high = (low - observer.low) / reach, (high - observer.low) / reach
        self.counts = counts / counts.sum()
        low, high = self.low, self.high
        moments = torch.stack(
            [torch.ones_like(low), (low + high) / 2, (low * low + low * high + high * high) / 3]
        )
        self.below = torch.cat([torch.zeros(3, 1).double(), (moments * self.counts).cumsum(1)], 1)

    def at(self, points: Tensor) -> Tensor:
        """Return the integrals of 1, x and x**2 over the values up to each point, [3, *points.shape]."""
        index = torch.searchsorted(self.high, points.contiguous()).clamp_(max=len(self.high) - 1)
        low, high = self.low[index], self.high[index]
        inside = points.clamp(low, high)
        # A bin of width 0 lies below every point from its value on.
        share = torch.where(
            high > low, (inside - low) / (high - low).clamp_min(1e-300), (points >= high).double()
        )
        share = share * self.counts[index]
        moments = torch.stack(
            [torch.ones_like(low), (low + inside) / 2, (low * low + low * inside + inside * inside) / 3]
        )
        return self.below[:, index] + moments * share

    def errors(self, tables: Tensor) -> Tensor:
        """Return the mean squared error of rounding to the nearest level, [R], for tables [R, L] in ascending order."""
        middles = (tables[:, 1:] + tables[:, :-1]) / 2
        ends = self.below[:, [0, -1], None, None].expand(-1, -1, len(tables), 1)
        zeroth, first, second = torch.cat([ends[:, 0], self.at(middles), ends[:, 1]], 2).diff(dim=2)
        errors: Tensor = second - 2 * tables * first + tables.square() * zeroth
        return errors.sum(1)


def _search_log(moments: Moments, bits: int) -> Tensor:
    """Return the `log` table of least error on [0, 1], float64 [2**bits]."""
    powers = torch.arange(2**bits - 2, -1, -1).double()

    def tables(steps: Tensor, scales: Tensor) -> Tensor:
        """Return the tables of each pair of a step of the exponent and a scale, [R, 2**bits]."""
        levels = scales[:, None] * 2.0 ** (-powers * steps[:, None] / BASE_DENOMINATOR)
        return torch.cat([torch.zeros(len(levels), 1).double(), levels], 1)

    steps = torch.arange(1, _MAX_STEP + 1).double()
    step, scale = _best(moments, tables, torch.cartesian_prod(steps, _SHRINK))
    for factors in _refinements():
        scales = (scale * factors).clamp(max=1.0)
        near = torch.stack([step - 1, step, step + 1]).clamp(1, _MAX_STEP)
        step, scale = _best(moments, tables, torch.cartesian_prod(near, scales))
    return tables(step[None], scale[None])[0]


def _hybrid_tables(moments: Moments, bits: int) -> Iterator[Tensor]:
    """Yield the `hybrid` table of least error on [0, 1], float64 [2**bits], of each share of codes below the split."""
    for share in (2, 4, 8):
        small = 2**bits // share
        if small < 2:
            return
        yield _search_hybrid(moments, small, 2**bits - small)


def _search_hybrid(moments: Moments, small: int, large: int) -> Tensor:
    """Return the table of least error with `small` levels up to the split point and `large` levels above it."""
    powers = torch.arange(small - 2, -1, -1).double()
    steps = torch.arange(1, large + 1).double() / large

    def tables(splits: Tensor, ends: Tensor) -> Tensor:
        """Return the tables of each pair of a split point, relative to the upper end, and an upper end, [R, L]."""
        split = (splits * ends)[:, None]
        above = split + (ends[:, None] - split) * steps
        return torch.cat([torch.zeros(len(ends), 1).double(), split * 2.0**-powers, above], 1)

    split, end = _best(moments, tables, torch.cartesian_prod(_SPLITS, _SHRINK))
    for factors in _refinements():
        near = torch.cartesian_prod((split * factors).clamp(max=1.0), (end * factors).clamp(max=1.0))
        split, end = _best(moments, tables, near)
    return tables(split[None], end[None])[0]


def _best(
    moments: Moments, tables: Callable[[Tensor, Tensor], Tensor], pairs: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the pair of parameters [] whose table has the least error, of pairs [R, 2]; ties go to the first."""
    first, second = pairs.unbind(1)
    best = moments.errors(tables(first, second)).argmin()
    return first[best], second[best]


def _refinements() -> Iterator[Tensor]:
    """Yield the factors between a parameter and its neighbors, float64 [3], for each round."""
    for number in range(_ROUNDS):
        yield 2.0 ** (torch.tensor([0.0, -1.0, 1.0]).double() * 2.0 ** -(number + 3))
