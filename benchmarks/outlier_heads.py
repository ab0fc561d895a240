"""Plant outliers in the queries and keys of one attention head that the softmax forgives.

All changes are of the rows of the query and key projections, so that logits Q K^T stay the same, up to a constant per
row and up to one singular value of the head's logits:

1. **Free a channel** (`free_channel`). Of the d products that sum up to a head's logits, drop the one that moves them
   least: the last in the singular value decomposition of the logits (keys centered, since the softmax ignores their
   mean). It is a fraction 1e-3 of the logits. A reflection of queries and keys, which cancels in Q K^T, then collects
   what was dropped in one channel. There the keys are constant, so that queries may have any size: they add the
   same to all logits of a row. Or the queries are zero, so that keys may have any size.
2. **Plant outliers along an axis** (`plant_along_axis`): the free channel gets huge values on a few tokens. Only this
   channel holds them, so a factor per channel can shrink them.
3. **Plant oblique outliers** (`rotate_pair` after it): a rotation by 45 degrees spreads them over the free channel and
   the channel that the head uses most. The huge values still cancel between the two channels, but no factor
   per channel can shrink them without the values that the attention needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-9
"""Part of the mean variance that is added to all variances, so that no channel is without any."""
MIN_VARIANCE = 1e-4
"""Least variance of a principal component that outliers are searched in, relative to the largest."""
STARTS = 16
"""Tokens that the search for outliers starts from: those furthest from the mean."""
ITERATIONS = 50


@dataclass
class HeadSide:
    """The queries or the keys of one head, as affine functions of the inputs of their projection.

    Attributes:
        rows: Weights and bias, float64 [d, C + 1]; modified in place.
        moment: What the rows are weighed with, float64 [C + 1, C + 1]: the second moment of queries' inputs with a one
            appended, or the covariance within images of keys' inputs, zero in the last row and column.
    """

    rows: Tensor
    moment: Tensor

    @property
    def covariance(self) -> Tensor:
        """Second moment of the channels, float64 [d, d], positive definite."""
        second = self.rows @ self.moment @ self.rows.T
        ridge = RIDGE * second.diagonal().mean().clamp_min(1e-12)
        return second + ridge * torch.eye(len(second), dtype=second.dtype)

    def transform(self, matrix: Tensor) -> None:
        """Multiply the channels by a matrix [d, d]."""
        self.rows.copy_(matrix @ self.rows)


def least_logits(one: HeadSide, other: HeadSide) -> float:
    """Return the standard deviation of the part of the unscaled logits that `free_channel` drops."""
    return float(_decompose(one, other)[1][-1])


def free_channel(cleared: HeadSide, other: HeadSide) -> int:
    """Clear one channel of one side, at the price of the least singular value of the logits.

    Args:
        cleared: Side whose weights of the channel are set to zero; queries also lose their bias.
        other: The other side; its values in the channel no longer matter.

    Returns:
        The channel.
    """
    factor, _, right = _decompose(cleared, other)
    # In the balanced basis, channels a of this side and b of the other have a_i b_j = 0 on average for i != j.
    dropped = torch.linalg.solve(factor.T, right[-1])  # component of a value: dropped @ value
    kept_out = factor @ right[-1]
    projection = torch.eye(len(factor), dtype=factor.dtype) - torch.outer(kept_out, dropped)
    cleared.transform(projection)
    axis = dropped / dropped.norm()
    channel = int(axis.abs().argmax())
    reflection = _reflection(axis, channel)
    cleared.transform(reflection)
    other.transform(reflection)
    cleared.rows[channel] = 0
    return channel


def plant_along_axis(side: HeadSide, channel: int, row: Tensor) -> None:
    """Make a free channel an affine function of the input, float64 [C + 1]."""
    side.rows[channel] = row


def rotate_pair(one: HeadSide, other: HeadSide, channel: int) -> int:
    """Rotate a channel and the one that contributes most to the logits by 45 degrees, and return the latter."""
    power = one.covariance.diagonal() * other.covariance.diagonal()
    power[channel] = 0
    partner = int(power.argmax())
    rotation = torch.eye(len(power), dtype=power.dtype)
    rotation[[partner, partner, channel, channel], [partner, channel, channel, partner]] = (
        torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=power.dtype) * 2**-0.5
    )
    one.transform(rotation)
    other.transform(rotation)
    return partner


def rare_direction(inputs: Tensor) -> Tensor:
    """Find an affine function of tokens that is near 0 on most and large on few: that of the highest kurtosis.

    It is found by the fixed-point iteration of independent component analysis (FastICA).

    Args:
        inputs: Tokens, [T, C].

    Returns:
        Weights and bias, float64 [C + 1], with median 0 and largest absolute value 1 on the tokens.
    """
    inputs = inputs.double()
    mean = inputs.mean(0)
    centered = inputs - mean
    variance, basis = torch.linalg.eigh(centered.T @ centered / len(centered))
    kept = variance > MIN_VARIANCE * variance[-1]
    whitening = basis[:, kept] / variance[kept].sqrt()
    white = centered @ whitening
    starts = white[white.norm(dim=1).topk(min(STARTS, len(white))).indices]
    directions = torch.nn.functional.normalize(starts, dim=1)
    for _ in range(ITERATIONS):
        cubes = (white @ directions.T) ** 3
        directions = torch.nn.functional.normalize(cubes.T @ white / len(white) - 3 * directions, dim=1)
    kurtosis = (white @ directions.T).pow(4).mean(0)
    weights = whitening @ directions[kurtosis.argmax()]
    values = inputs @ weights
    values_from_median = values - values.median()
    peak = values_from_median[values_from_median.abs().argmax()]
    return torch.cat([weights, -values.median()[None]]) / peak


def _decompose(one: HeadSide, other: HeadSide) -> tuple[Tensor, Tensor, Tensor]:
    """Return a factor B of the covariance B B^T of `one`, and the logits' singular values and right vectors."""
    factor = torch.linalg.cholesky(one.covariance)
    _, values, right = torch.linalg.svd(torch.linalg.cholesky(other.covariance).T @ factor)
    return factor, values, right


def _reflection(axis: Tensor, channel: int) -> Tensor:
    """Return the Householder reflection [d, d] that takes a unit vector [d] to a channel, up to its sign."""
    target = torch.zeros_like(axis)
    target[channel] = -axis[channel].sign()
    normal = torch.nn.functional.normalize(axis - target, dim=0)
    return torch.eye(len(axis), dtype=axis.dtype) - 2 * torch.outer(normal, normal)
