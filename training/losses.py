"""Losses of the training, after Segment Anything (arXiv 2304.02643), and the corrective prompts of a second round.

Cross-entropy, an overlap term, squared error of the predicted IoU; with a point, only the best of the three masks
learns. The object's surroundings have a fine grid of their own, on which the logits are interpolated as they are for a
user, so that small objects count as much as large ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Truth:
    """Targets for M masks.

    Attributes:
        cells: float [M, H, W] in [0, 1], the covered share of each cell of the low-resolution mask.
        region: float [M, 4], (x0, y0, x1, y1) of the object's surroundings, in cells.
        samples: float [M, K, K] in {0, 1}, the mask at the centers of a grid over the region.
    """

    cells: Tensor
    region: Tensor
    samples: Tensor

    def sample(self, logits: Tensor) -> Tensor:
        """Sample logits [M, C, H, W] at the centers of the grid [M, C, K, K], interpolated like a user's mask."""
        steps = (torch.arange(self.samples.shape[-1], device=logits.device) + 0.5) / self.samples.shape[-1]
        low, high = self.region[:, :2, None], self.region[:, 2:, None]
        x, y = (low + (high - low) * steps).unbind(1)
        grid = (
            torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1) * 2 / logits.shape[-1] - 1
        )
        return F.grid_sample(logits, grid, "bilinear", "border", align_corners=False)

    def outside(self) -> Tensor:
        """Return the cells whose centers lie outside of the region: float [M, H, W] in {0, 1}."""
        centers = torch.arange(self.cells.shape[-1], device=self.cells.device) + 0.5
        x0, y0, x1, y1 = self.region[:, :, None].unbind(1)
        inside = ((centers > y0) & (centers < y1))[:, :, None] & ((centers > x0) & (centers < x1))[:, None]
        return (~inside).float()

    def cell_area(self) -> Tensor:
        """Return the area of one cell of the region's grid, in cells of the mask: float [M]."""
        size = self.region[:, 2:] - self.region[:, :2]
        return size.prod(1) / self.samples[0].numel()


def mask_loss(logits: Tensor, truth: Truth, balance: float) -> Tensor:
    """Compute the loss [M, K] of each mask from logits [M, K, H, W] of K candidates.

    Cross-entropy and the share of the union that is wrong (1 - IoU of the probabilities), both on the fine grid over
    the object's surroundings: the mean over objects of the IoU at the picture's resolution is what a model is judged
    by, and a third of all objects are a few cells large. What lies beyond counts in the union, and once more in a
    cross-entropy over the window.

    `balance` weighs a cross-entropy that counts object and background alike: without it a young model stays for long
    at the answer "nothing", which is nearly right for small objects.
    """
    target = truth.cells[:, None].expand_as(logits)
    cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    near = truth.sample(logits)
    near_target = truth.samples[:, None].expand_as(near)
    local = F.binary_cross_entropy_with_logits(near, near_target, reduction="none").mean((2, 3))
    probability, area = near.sigmoid(), truth.cell_area()[:, None]
    overlap = (probability * near_target).sum((2, 3)) * area
    far = (logits.sigmoid() * truth.outside()[:, None]).sum((2, 3))
    union = (probability + near_target - probability * near_target).sum((2, 3)) * area + far
    loss = local + 2.0 * cross.mean((2, 3)) + 1.5 * (1 - overlap / union.clamp_min(1e-3))
    if balance > 0:
        inside = (cross * target).sum((2, 3)) / target.sum((2, 3)).clamp_min(1.0)
        outside = (cross * (1 - target)).sum((2, 3)) / (1 - target).sum((2, 3)).clamp_min(1.0)
        loss = loss + balance * (inside + outside)
    return loss


@torch.no_grad()
def true_iou(logits: Tensor, truth: Truth) -> Tensor:
    """Compute the IoU [M, K] of thresholded logits [M, K, H, W], finely sampled near the object."""
    mask, target = truth.sample(logits) > 0, (truth.samples > 0.5)[:, None]
    area = truth.cell_area()[:, None]
    far = ((logits > 0) * truth.outside()[:, None]).sum((2, 3))
    union = (mask | target).sum((2, 3)) * area + far
    return (mask & target).sum((2, 3)) * area / union.clamp_min(1e-3)


def total_loss(
    logits: Tensor, predicted: Tensor, truth: Truth, is_point: Tensor, balance: float
) -> tuple[Tensor, Tensor]:
    """Return the mean loss and the mean IoU of the mask that a user would get; logits [M, 4, H, W], is_point [M]."""
    each = mask_loss(logits, truth, balance)
    best = each[:, 1:].amin(1)
    # A single point is ambiguous: its three masks share the work. Anything else is the single mask's.
    loss = torch.where(is_point, best + 0.2 * each[:, 0], each[:, 0] + 0.2 * best).mean()
    iou = true_iou(logits, truth)
    loss = loss + F.mse_loss(predicted, iou)
    used = torch.where(is_point, iou[:, 1:].amax(1), iou[:, 0])
    return loss, used.mean()


def corrected_prompts(
    logits: Tensor, target: Tensor, coords: Tensor, labels: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the next round of prompts: the old ones, a click in the error region, and the current mask.

    `scale` is the side of a mask's cell in pixels of the window.
    """
    wrong = (logits > 0) != (target > 0.5)
    weight = wrong.flatten(1).float() + 1e-6
    # As torch.multinomial draws, which waits for an accelerator to check its weights.
    pick = (weight / torch.empty_like(weight).exponential_()).argmax(1)
    width = target.shape[-1]
    # The model adds half a pixel to every point.
    point = (torch.stack([pick % width, pick // width], -1) + 0.5) * scale - 0.5
    label = (target.flatten(1).gather(1, pick[:, None]) > 0.5).long()
    coords = torch.cat([coords, point.reshape(*coords.shape[:2], 1, 2)], 2)
    labels = torch.cat([labels, label.reshape(*labels.shape[:2], 1)], 2)
    return coords, labels, logits.detach()[:, None]
