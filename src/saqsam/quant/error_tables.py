"""Search for the weight ranges of least error by tables of the error at each position of a grid.

The search minimizes the mean of |x - Q(x)|**p of each row of a weight: first over shrunk ranges, then over scales and
zero points near the best. In units of a row's widest scale, the candidates depend on nothing but its zero point. So one
table holds the errors of all candidates at closely spaced positions, and the errors of a row are the sum of the table's
rows at its values: one lookup per value, however many candidates there are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from saqsam.quant.affine import affine_parameters

POSITIONS = 2048
"""Positions of a table, unless its steps are too narrow for them."""
MIN_DENSITY = 16
"""Fewest positions per step. The error at the nearest one is off by a tenth, either way: a row's sum is not."""
_VALUES_PER_POSITION = 4
"""Values for each position of the tables at which computing the tables costs less than they save."""
_VALUES_AT_ONCE = 2**24
"""Weights searched together, which bounds the temporaries."""
_CACHED_TABLES = 160
"""Tables kept for the layers that follow: all that 4 bits need. The largest has a megabyte, most a third of it."""
_SHRINK = 0.975 ** torch.arange(64, dtype=torch.float64)
"""Scales of the first candidates, relative to the widest, whose zero point they keep."""
_SHRINK_ONE_END = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Factors of one end of the best range among the first candidates, for the second ones."""


def tables_pay(weight: Tensor, bits: int, *, symmetric: bool) -> bool:
    """Return whether `search_by_table` is faster than computing the errors of the values of a weight themselves."""
    tables = 1 if symmetric else 2**bits  # one for each zero point
    return bool(weight.numel() >= _VALUES_PER_POSITION * _density(bits) * 2**bits * tables)


@torch.no_grad()
def search_by_table(weight: Tensor, bits: int, *, symmetric: bool, power: float) -> tuple[Tensor, Tensor]:
    """Return the scale and zero point of least error, float32 [C] each, of the rows of a weight [C, K].

    Args:
        weight: Finite values, float.
        bits: 2 to 8.
        symmetric: Whether the zero point is fixed at the middle code.
        power: Exponent p of the error.
    """
    rows = max(1, _VALUES_AT_ONCE // max(1, weight.shape[1]))
    found = [_search_rows(part, bits, symmetric=symmetric, power=power) for part in torch.split(weight, rows)]
    scales, zero_points = zip(*found, strict=True)
    return torch.cat(scales), torch.cat(zero_points)


def _search_rows(weight: Tensor, bits: int, *, symmetric: bool, power: float) -> tuple[Tensor, Tensor]:
    """Run `search_by_table` on rows that fit into memory together."""
    unit, widest = affine_parameters(weight.amin(1), weight.amax(1), bits, symmetric=symmetric)
    density = _density(bits)
    # The nearest positions. All values lie between half a step below the widest grid and half a step above.
    positions = (weight / unit[:, None]).add_(widest[:, None] + 0.5).mul_(density).add_(0.5).int()
    first = torch.zeros(len(unit), dtype=torch.int64, device=unit.device)
    scale, zero_point = torch.ones_like(unit), widest.clone()
    for is_second in [False] if symmetric else [False, True]:
        for (widest_point, best), rows in _groups(widest.long(), first):
            table, scales, points = (
                tensor.to(unit.device)
                for tensor in _error_table(bits, widest_point, best if is_second else None, power)
            )
            first[rows] = chosen = F.embedding_bag(positions[rows], table, mode="sum").argmin(1)
            scale[rows], zero_point[rows] = scales[chosen], points[chosen]
    scale *= unit
    # The reciprocal of a subnormal scale would overflow.
    return torch.where(scale > torch.finfo(torch.float32).tiny, scale, unit), zero_point


def _density(bits: int) -> int:
    """Return the positions per step of the widest grid."""
    return max(MIN_DENSITY, POSITIONS >> bits)


def _groups(first: Tensor, second: Tensor) -> Iterator[tuple[tuple[int, int], Tensor | slice]]:
    """Yield each pair of values from two int64 tensors [C], the first below 256, and the rows that have it."""
    pairs, group, counts = torch.unique(first + 256 * second, return_inverse=True, return_counts=True)
    members: list[Tensor | slice] = list(group.argsort(stable=True).split(counts.tolist()))
    if len(members) == 1:
        members = [slice(None)]  # a view of all rows, not a copy
    for pair, rows in zip(pairs.tolist(), members, strict=True):
        yield (pair % 256, pair // 256), rows


@functools.lru_cache(maxsize=_CACHED_TABLES)
def _error_table(bits: int, widest: int, best: int | None, power: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the errors of candidates at all positions, and the candidates.

    Args:
        bits: 2 to 8.
        widest: Zero point of the widest grid, whose scale is 1.
        best: Index of the best of the first candidates, for a table of the second; None for one of the first.
        power: Exponent of the error.

    Returns:
        Errors, float32 [N, R], at N positions from half a step below the widest grid to half a step above; scales of
        the R candidates, float32 [R]; and their zero points, float32 [R].
    """
    last, density = 2**bits - 1, _density(bits)
    scales, points = _SHRINK.float(), torch.full((len(_SHRINK),), float(widest))
    if best is not None:
        scales, points = _second_candidates(bits, widest)
        scales = scales * _SHRINK[best].float()
    positions = torch.arange((last + 1) * density + 1)[:, None] / density - 0.5 - widest
    steps = positions / scales
    errors = steps.round().add_(points).clamp_(0, last).sub_(points)
    # |x|**power at half the cost of `pow`; log2(0) is -inf, which gives 0.
    return errors.sub_(steps).mul_(scales).abs_().log2_().mul_(power).exp2_(), scales, points


def _second_candidates(bits: int, widest: int) -> tuple[Tensor, Tensor]:
    """Return scales and zero points, float32 [R] each, of a grid of scale 1 with either end drawn in.

    Neighboring zero points are candidates, too: at few bits, each is far from the next.
    """
    last = 2**bits - 1
    factors = torch.tensor(
        [(1.0, 1.0), *((f, 1.0) for f in _SHRINK_ONE_END), *((1.0, f) for f in _SHRINK_ONE_END)]
    )
    low, high = (factors * torch.tensor([-widest, last - widest])).unbind(1)
    scales, points = affine_parameters(low, high, bits, symmetric=False)
    points = (points + torch.tensor([[0.0], [-1.0], [1.0]])).clamp(0, last)
    return scales.repeat(3), points.flatten()
