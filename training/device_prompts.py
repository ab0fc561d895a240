"""Boxes, points and regions of a batch of objects on a device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from augmentation import REGION
from device_batches import CROP, Crops, Draw


def profile_ends(profile: Tensor) -> tuple[Tensor, Tensor]:
    """Return where profiles [M, L] in 0..1 first and last cross one half, interpolated between pixels."""
    length = profile.shape[1]
    place = torch.arange(length, device=profile.device)
    # A mask that is thinner than a pixel may stay below one half everywhere.
    over = profile >= profile.amax(1, keepdim=True).clamp(max=0.5)
    first = torch.where(over, place, length).amin(1, keepdim=True)
    last = torch.where(over, place, -1).amax(1, keepdim=True)
    at_first, at_last = profile.gather(1, first), profile.gather(1, last)
    before = profile.gather(1, (first - 1).clamp(min=0))
    after = profile.gather(1, (last + 1).clamp(max=length - 1))
    part = 0.5 - ((at_first - 0.5) / (at_first - before).clamp(min=1e-3)).clamp(0, 1)
    low = first + torch.where(first > 0, part, 0.0)
    part = ((at_last - 0.5) / (at_last - after).clamp(min=1e-3)).clamp(0, 1) - 0.5
    high = last + 1 + torch.where(last + 1 < length, part, 0.0)
    return low[:, 0], high[:, 0]


def surroundings(draw: Draw, boxes: Tensor) -> Tensor:
    """Return regions around boxes [n, P, 4], as `samples.cut_region` does: a margin on each side."""
    size = boxes[..., 2:] - boxes[..., :2]
    low, high = ((draw.uniform(*size.shape, low=0.15, high=0.35) * size).clamp(min=1.5) for _ in range(2))
    return torch.cat([boxes[..., :2] - low, boxes[..., 2:] + high], -1)


def cell_centers(regions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the x and the y of the centers of the cells of regions [n, P, 4], each float [n, P, REGION]."""
    steps = (torch.arange(REGION, device=regions.device) + 0.5) / REGION
    size = regions[..., 2:] - regions[..., :2]
    return regions[..., :1] + steps * size[..., :1], regions[..., 1:2] + steps * size[..., 1:]


def innermost(regions: Tensor, inside: Tensor) -> Tensor:
    """Return the cell center farthest from the outside of masks on the grids of regions.

    The distances are exact: along the columns first, then along the rows.

    Args:
        regions: float [n, P, 4].
        inside: bool [n, P, REGION, REGION].

    Returns:
        (x, y) in window pixels, float [n, P, 2].
    """
    cell = (regions[..., 2:] - regions[..., :2])[..., None, None] / REGION
    outside = F.pad(~inside, (1, 1, 1, 1), value=True)
    place = torch.arange(REGION + 2, device=inside.device)
    apart = (place[:, None] - place).square()
    along_x, along_y = (apart * cell[..., axis, :, :].square() for axis in (0, 1))
    # The squared distance to the outside within each column, then over all columns: [n, P, y, x].
    column = torch.where(outside[:, :, None], along_y[..., None], torch.inf).amin(3)
    distance = (column[:, :, :, None] + along_x[:, :, None]).amin(4)
    best = distance[:, :, 1:-1, 1:-1].flatten(2).argmax(2, keepdim=True)
    x, y = cell_centers(regions)
    return torch.cat([x.gather(2, best % REGION), y.gather(2, best // REGION)], 2)


def random_inside(draw: Draw, crops: Crops) -> Tensor:
    """Return the center of a random covered cell, (x, y) in window pixels, float [n, P, 2]."""
    most = crops.cover.amax((2, 3), keepdim=True)
    hard = crops.cover >= most.clamp(max=0.5)
    in_rows = hard.sum(3)
    rank = draw.index(in_rows.sum(2))[..., None]
    row_ends = in_rows.cumsum(2)
    row = (row_ends <= rank).sum(2, keepdim=True).clamp(max=CROP - 1)
    rank = rank - (row_ends - in_rows).gather(2, row)
    chosen = hard.gather(2, row[..., None].expand(-1, -1, 1, CROP))[:, :, 0]
    column = (chosen.cumsum(2) <= rank).sum(2, keepdim=True).clamp(max=CROP - 1)
    x, y = crops.centers()
    return torch.cat([x.gather(2, column), y.gather(2, row)], 2)
