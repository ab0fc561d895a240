"""Pixels of a batch of samples on a device: pictures in their windows, and their colors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from device_batches import Draw
from device_pictures import Pyramids


def area_scale(matrix: Tensor) -> Tensor:
    """Return the factor by which matrices [..., 2, 3] change areas."""
    return (matrix[..., 0, 0] * matrix[..., 1, 1] - matrix[..., 0, 1] * matrix[..., 1, 0]).abs()


def warp_images(images: Pyramids, item: Tensor, matrix: Tensor, side: int, border: Tensor) -> Tensor:
    """Map pictures [n] into windows by matrix [n, 2, 3]: float [n, 3, side, side], 0 to 255."""
    level = images.level(area_scale(matrix).sqrt(), 0.75)
    a, b, c, d = (matrix[:, i, j, None, None] for i in (0, 1) for j in (0, 1))
    steps = torch.arange(side, device=matrix.device) + 0.5
    u, v = steps - matrix[:, 0, 2, None, None], steps[:, None] - matrix[:, 1, 2, None, None]
    determinant = a * d - b * c
    x, y = (d * u - b * v) / determinant, (a * v - c * u) / determinant
    return images.sample(item, level, x, y, border).round().permute(0, 3, 1, 2)


def fill_windows(draw: Draw, low: Tensor, high: Tensor, window: float) -> Tensor:
    """Draw shifts [n, 2] of pictures spanning low..high that leave no margin, or place smaller ones inside."""
    size = high - low
    inside = draw.uniform(*low.shape) * (window - size) - low
    covering = (window - high).clamp(min=0) + (-low).clamp(max=0)
    return torch.where(size <= window, inside, covering)


def photometric(draw: Draw, image: Tensor, microscopy: Tensor) -> Tensor:
    """Augment color, contrast, blur and noise of images [n, 3, S, S] (0 to 255), as `samples.photometric` does."""
    count = len(image)

    def some(share: float, changed: Tensor, image: Tensor) -> Tensor:
        return torch.where(draw.chance(share, count, 1, 1, 1), changed, image)

    def level(low: float, high: float) -> Tensor:
        return draw.uniform(count, 1, 1, 1, low=low, high=high)

    x = some(0.8, (image - 128) * level(0.65, 1.35) + 128 + level(-30, 30), image)
    x = some(0.5, x * draw.uniform(count, 3, 1, 1, low=0.8, high=1.2), x)
    x = some(0.15, x.mean(1, keepdim=True).expand_as(x), x)
    x = torch.where(draw.chance(0.25, count, 1, 1, 1) & microscopy[:, None, None, None], 255 - x, x)
    x = x.clamp(0, 255)
    x = some(0.3, 255 * (x / 255) ** level(0.6, 1.6), x)
    x = some(0.2, blur(x, level(0.4, 1.3)), x)
    x = some(0.2, x + draw.normal(*x.shape) * level(2, 12), x)
    return x.clamp(0, 255).floor()


def blur(image: Tensor, sigma: Tensor, radius: int = 5) -> Tensor:
    """Convolve images [n, 3, S, S] with Gaussians of standard deviations sigma [n, 1, 1, 1]."""
    steps = torch.arange(-radius, radius + 1, device=image.device)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    weights = (weights / weights.sum(-1, keepdim=True)).unbind(-1)
    side = image.shape[-1]
    padded = F.pad(image, (radius,) * 4, mode="reflect")
    rows = sum(w[..., None] * padded[:, :, i : i + side] for i, w in enumerate(weights))
    return sum(w[..., None] * rows[..., i : i + side] for i, w in enumerate(weights))
