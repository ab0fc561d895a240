"""Range setting: the scale and zero point of a quantizer by min-max, percentile, or least error.

`mse` minimizes the mean of |x - Q(x)|**p with p = 2.4 over lower and upper ends (and with them over zero points),
as in the post-training quantization literature (QDrop, arXiv 2203.05740; PTQ4SAM, arXiv 2405.03144). For
activations, the error is computed from the calibration histogram in closed form: values are assumed to be spread
evenly within a bin, and the integral of |x - Q(x)|**p over an interval is elementary, so bins may be wider than
quantization steps. The histogram pools all images, which equals the mean over images of equally many values.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from saqsam.quant.affine import affine_parameters
from saqsam.quant.error_tables import search_by_table, tables_pay
from saqsam.quant.range_observers import HistogramObserver

RangeMethod = Literal["min-max", "percentile", "mse"]
RANGE_METHODS: tuple[RangeMethod, ...] = ("min-max", "percentile", "mse")


def activation_parameters(
    observer: HistogramObserver,
    bits: int,
    *,
    symmetric: bool,
    method: RangeMethod,
    percentile: float = 99.99,
    power: float = 2.4,
) -> tuple[Tensor, Tensor]:
    """Return the scale and zero point of an observed activation.

    Args:
        observer: Observer of the activation.
        bits: 2 to 8.
        symmetric: Whether the zero point is fixed at the middle code.
        method: `min-max`, `percentile` or `mse`.
        percentile: For `percentile`: percentage of the values inside the range on each side.
        power: For `mse`: exponent p of the error.

    Returns:
        Scale and zero point, float32 [] each.

    Raises:
        ValueError: The observer is empty, or the method is unknown.
    """
    if observer.is_empty:
        raise ValueError("no calibration value reached this quantizer")
    if method == "min-max":
        low, high = torch.tensor(observer.low), torch.tensor(observer.high)
    elif method == "percentile":
        ends = torch.tensor([1 - percentile / 100, percentile / 100], dtype=torch.float64)
        low, high = histogram_quantiles(observer, ends).float()
    elif method == "mse":
        low, high = _least_error_range(observer, bits, symmetric=symmetric, power=power)
    else:
        raise ValueError(f"range method must be one of {', '.join(RANGE_METHODS)}, got {method!r}")
    return affine_parameters(low, high, bits, symmetric=symmetric)


def weight_parameters(
    weight: Tensor,
    bits: int,
    *,
    symmetric: bool,
    method: RangeMethod,
    percentile: float = 99.99,
    power: float = 2.4,
) -> tuple[Tensor, Tensor]:
    """Return the scale and zero point, float32 [C] each, of the rows of a weight [C, K].

    The other arguments are those of `activation_parameters`.
    """
    if method == "mse" and tables_pay(weight, bits, symmetric=symmetric):
        return search_by_table(weight, bits, symmetric=symmetric, power=power)
    low, high = weight.amin(1), weight.amax(1)
    if method == "percentile":
        tail = torch.tensor(
            [1 - percentile / 100, percentile / 100], dtype=weight.dtype, device=weight.device
        )
        low, high = torch.quantile(weight, tail, dim=1)
    elif method == "mse":
        low, high = _least_error_rows(weight, low, high, bits, symmetric=symmetric, power=power)
    elif method != "min-max":
        raise ValueError(f"range method must be one of {', '.join(RANGE_METHODS)}, got {method!r}")
    return affine_parameters(low, high, bits, symmetric=symmetric)


def group_parameters(rows: Tensor, group_size: int, bits: int, **options: Any) -> tuple[Tensor, Tensor]:
    """Return scale and zero point (float32 [C, G]) of the groups of each row of a weight [C, K].

    Args:
        rows: The weight, float.
        group_size: Consecutive values of a row that share a grid; the last group of a row may be shorter.
        bits: 2 to 8.
        options: As for `weight_parameters`.
    """
    whole = rows.shape[1] // group_size * group_size
    parts = []
    if whole:
        steps = weight_parameters(rows[:, :whole].reshape(-1, group_size), bits, **options)
        parts.append([step.reshape(len(rows), -1) for step in steps])
    if whole < rows.shape[1]:
        parts.append([step[:, None] for step in weight_parameters(rows[:, whole:], bits, **options)])
    scales, zero_points = zip(*parts, strict=True)
    return torch.cat(scales, 1), torch.cat(zero_points, 1)


def histogram_quantiles(observer: HistogramObserver, fractions: Tensor) -> Tensor:
    """Return quantiles of the observed values, interpolated within a bin.

    Args:
        observer: Observer that has seen values.
        fractions: Fractions from 0 to 1, float64 [F].

    Returns:
        Quantiles, float64 [F].
    """
    low, high, counts = observer.histogram()
    cumulative = counts.cumsum(0)
    target = fractions * cumulative[-1]
    index = torch.searchsorted(cumulative, target).clamp_(max=len(counts) - 1)
    inside = (target - cumulative[index] + counts[index]) / counts[index]
    return low[index] + (high[index] - low[index]) * inside


# The first candidates: factors by which an end of the range shrinks from the extreme, down to 1/330.
_SHRINK = torch.cat([torch.linspace(1.0, 0.3, 11), 0.3 * 0.6 ** torch.arange(1, 10)]).double()


def _least_error_range(
    observer: HistogramObserver, bits: int, *, symmetric: bool, power: float
) -> tuple[Tensor, Tensor]:
    """Return the ends of least error, float32 [] each: the best shrunk extremes, refined in three rounds."""
    # Half the resolution does as well at half the cost. A quarter increases the error by up to a quarter where all
    # values lie within a few bins, far from zero.
    histogram = observer.histogram(merge=2)
    low, high = min(observer.low, 0.0), max(observer.high, 0.0)
    one = torch.ones(1, dtype=torch.float64)
    if symmetric:
        reach = max(-low, high)
        low, high = -reach, reach

    def search(low_factors: Tensor, high_factors: Tensor) -> tuple[float, float]:
        if symmetric:
            pairs = torch.stack([high_factors, high_factors], 1)
        else:
            pairs = torch.cartesian_prod(low_factors, high_factors)
        ends = pairs * torch.tensor([low, high], dtype=torch.float64)
        error = histogram_error(*histogram, ends[:, 0], ends[:, 1], bits, symmetric=symmetric, power=power)
        best = int(error.argmin())
        return float(pairs[best, 0]), float(pairs[best, 1])

    f_low, f_high = search(_SHRINK if low < 0 else one, _SHRINK if high > 0 else one)
    for width in (0.12, 0.03, 0.008):
        steps = 1 + width * torch.linspace(-1, 1, 7, dtype=torch.float64)
        f_low, f_high = search((f_low * steps).clamp(max=1.0), (f_high * steps).clamp(max=1.0))
    return torch.tensor(low * f_low), torch.tensor(high * f_high)


def histogram_error(
    bin_low: Tensor,
    bin_high: Tensor,
    counts: Tensor,
    low: Tensor,
    high: Tensor,
    bits: int,
    *,
    symmetric: bool,
    power: float,
) -> Tensor:
    """Return the mean |x - Q(x)|**power of the histogram's values for each candidate range.

    Args:
        bin_low: Lower bin edges, float64 [K].
        bin_high: Upper bin edges, float64 [K].
        counts: Values in each bin, float64 [K].
        low: Lower ends of the candidates, float64 [R].
        high: Upper ends, float64 [R].
        bits: 2 to 8.
        symmetric: Whether the zero point is fixed at the middle code.
        power: Exponent.

    Returns:
        Errors, float64 [R].
    """
    scale, zero_point = (t.double()[:, None] for t in affine_parameters(low, high, bits, symmetric=symmetric))
    first, last = -zero_point, 2**bits - 1 - zero_point

    def integral(edge: Tensor) -> Tensor:
        """Return the antiderivative of |x - Q(x)|**power at the edges [K], in units of scale, [R, K]."""
        x = edge / scale
        inside = torch.minimum(torch.maximum(x, first), last)
        step = torch.round(inside)
        rest = inside - step
        half_step = 2 * 0.5 ** (power + 1)
        within = step * half_step + rest.sign() * rest.abs() ** (power + 1)
        outside = x - inside
        total: Tensor = within + outside.sign() * outside.abs() ** (power + 1)
        return total / (power + 1)

    width = (bin_high - bin_low) / scale
    # A bin of width 0 (one repeated value) has the error of that value.
    x = bin_low / scale
    point = (x - torch.minimum(torch.maximum(torch.round(x), first), last)).abs() ** power
    mean = torch.where(width > 1e-9, (integral(bin_high) - integral(bin_low)) / width.clamp_min(1e-9), point)
    return (mean * counts).sum(1) / counts.sum() * scale[:, 0] ** power


_VALUES_AT_ONCE = 2**17
"""Weights searched together by one thread: with the temporaries, they stay in its cache."""

# Candidates for a row, as factors of its two ends: first both ends together, then each end of the best alone.
_SHRINK_BOTH = torch.linspace(1.0, 0.3, 29)[:, None].expand(-1, 2)
_SHRINK_EITHER = torch.tensor(
    [[1.0, 1.0]] + [pair for f in (0.95, 0.9, 0.85, 0.8, 0.75, 0.7) for pair in ([f, 1.0], [1.0, f])]
)


@torch.no_grad()
def _least_error_rows(
    weight: Tensor, low: Tensor, high: Tensor, bits: int, *, symmetric: bool, power: float
) -> tuple[Tensor, Tensor]:
    """Return the ends of least error, float32 [C] each, for the rows of a weight [C, K], a few rows at a time."""
    at_once = _VALUES_AT_ONCE * torch.get_num_threads() if weight.device.type == "cpu" else 2**24
    rows = max(1, at_once // max(1, weight.shape[1]))
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)  # new tensors, overwritten below
    for factors in [_SHRINK_BOTH] if symmetric else [_SHRINK_BOTH, _SHRINK_EITHER]:
        factors = factors.to(weight)[:, :, None]
        for part, part_low, part_high in zip(
            *(torch.split(tensor, rows) for tensor in (weight, low, high)), strict=True
        ):
            lows, highs = part_low * factors[:, 0], part_high * factors[:, 1]
            best = _row_errors(part, lows, highs, bits, symmetric=symmetric, power=power).argmin(0)[None]
            part_low.copy_(lows.gather(0, best)[0])
            part_high.copy_(highs.gather(0, best)[0])
    return low, high


def _row_errors(
    weight: Tensor, low: Tensor, high: Tensor, bits: int, *, symmetric: bool, power: float
) -> Tensor:
    """Return the mean |x - Q(x)|**power, float32 [R, C], of the rows of a weight [C, K] for candidate ends [R, C].

    Each row has a unit of its own, so that no power of a tiny weight underflows.
    """
    scales, zero_points = affine_parameters(low, high, bits, symmetric=symmetric)
    steps, error = torch.empty_like(weight), torch.empty_like(weight)
    errors = torch.empty_like(low)
    for i, (scale, zero_point) in enumerate(zip(scales[:, :, None], zero_points[:, :, None], strict=True)):
        torch.div(weight, scale, out=steps)
        torch.round(steps, out=error).add_(zero_point).clamp_(0, 2**bits - 1)
        error.sub_(zero_point).sub_(steps).abs_()  # in steps of the grid
        # |x|**power at half the cost of `pow`; log2(0) is -inf, which gives 0.
        errors[i] = error.log2_().mul_(power).exp2_().mean(1)
    return errors * (scales / scales.amax(0)) ** power
