"""Channel-aware grouping (AHCPTQ, arXiv 2503.03088): channels of similar ranges share one range.

K-means clusters the channels of a layer input by the ends of their ranges, which determine scale and zero point. Each
channel then takes the mean range of its group. Where the input comes from a normalization, equalization with the shared
ranges folds the scales and zero points of the groups into it exactly.

Deviations: the paper refines its groups while it learns, and weights do not see the scales of the groups. Here groups
are formed once, from calibration, and folding multiplies the columns of the weight by the ranges of their groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_STEPS = 100
"""Most steps of k-means; it usually converges within ten."""


def group_ranges(low: Tensor, high: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Replace the range of each channel by the mean range of its group.

    Args:
        low: Smallest values, float32 [C].
        high: Largest values, float32 [C].
        groups: Number of groups; with at least C groups, each channel keeps its range.

    Returns:
        The shared ends, float32 [C] each.
    """
    ends = torch.stack([low, high], 1).double().cpu()
    labels = cluster(ends, groups)
    count = int(labels.max()) + 1
    sizes = torch.bincount(labels, minlength=count).clamp_min(1)
    centers = torch.zeros(count, 2).double().index_add_(0, labels, ends) / sizes[:, None]
    shared_low, shared_high = centers[labels].to(low).unbind(1)
    return shared_low, shared_high


def cluster(points: Tensor, groups: int) -> Tensor:
    """Return the cluster of each point by k-means, which is deterministic.

    K-means runs from quantiles of the widths and from points far apart, and the clusters of less variance are taken.

    Args:
        points: Lower and upper ends, float64 [C, 2].
        groups: Number of clusters.

    Returns:
        Labels from 0, int64 [C]; clusters may stay empty if points coincide.
    """
    if groups >= len(points):
        return torch.arange(len(points))
    order = (points[:, 1] - points[:, 0]).argsort(stable=True)
    quantiles = points[order[(torch.arange(groups) * 2 + 1) * len(points) // (2 * groups)]]
    found = [_k_means(points, centers) for centers in (quantiles, _far_apart(points, groups))]
    return min(found, key=lambda result: result[1])[0]


def _far_apart(points: Tensor, count: int) -> Tensor:
    """Return points [count, 2]: the one nearest to the mean, then always the farthest from those before it."""
    distances = (points - points.mean(0)).square().sum(1)
    chosen = [int(distances.argmin())]
    distances = torch.full_like(distances, torch.inf)
    while len(chosen) < count:
        distances = distances.minimum((points - points[chosen[-1]]).square().sum(1))
        chosen.append(int(distances.argmax()))
    return points[chosen]


def _k_means(points: Tensor, centers: Tensor) -> tuple[Tensor, float]:
    """Return labels, int64 [C], and the sum of squared distances to the centers; empty clusters keep their center."""
    centers, labels = centers.clone(), torch.full((len(points),), -1)
    for _ in range(_MAX_STEPS):
        distances, nearest = (points[:, None] - centers).square().sum(2).min(1)
        if torch.equal(nearest, labels):
            break
        labels = nearest
        for group in sorted(set(labels.tolist())):
            centers[group] = points[labels == group].mean(0)
    return labels, float(distances.sum())
