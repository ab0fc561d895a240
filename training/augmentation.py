"""Map pictures and masks into a training window, change colors, and measure boxes and regions."""

from __future__ import annotations

import cv2
import numpy as np

from packs import Pack

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)

MIN_PIXELS = 3.0
"""Area in window pixels below which objects are skipped."""

FINE = 2
"""Masks are made at this multiple of the window's resolution: objects of a few pixels have edges between them."""

REGION = 28
"""Samples on each side of the grid over an object's surroundings, see `cut_region`."""


def subpixel_box(mask: np.ndarray) -> np.ndarray:
    """Return the box (x0, y0, x1, y1) of fine coverage HW in window pixels, interpolated where it crosses one half."""

    def ends(cover: np.ndarray) -> tuple[float, float]:
        over = np.flatnonzero(cover >= 0.5)
        first, last = int(over[0]), int(over[-1])
        low, high = float(first), float(last + 1)
        if first > 0:
            low += 0.5 - (cover[first] - 0.5) / (cover[first] - cover[first - 1])
        if last + 1 < len(cover):
            high += (cover[last] - 0.5) / (cover[last] - cover[last + 1]) - 0.5
        return low, high

    x0, x1 = ends(mask.max(0).astype(np.float32) / 255)
    y0, y1 = ends(mask.max(1).astype(np.float32) / 255)
    return np.array([x0, y0, x1, y1]) / FINE


def cut_region(rng: np.random.Generator, mask: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask around an object, resampled to a grid of its own.

    Returns:
        (x0, y0, x1, y1) in window pixels: the box and a margin of about a quarter on each side, at least 1.5 pixels.
        uint8 [REGION, REGION] in {0, 255}: the mask at the centers of a grid of that many cells.
    """
    size = box[2:] - box[:2]
    margin = np.maximum(rng.uniform(0.15, 0.35, (2, 2)) * size, 1.5)
    low, high = box[:2] - margin[0], box[2:] + margin[1]
    cell = (high - low) * FINE / REGION
    # Index i of the grid lies at low + (i + 0.5) * cell; index j of the mask at j + 0.5.
    inverse = np.array(
        [[cell[0], 0, low[0] * FINE + 0.5 * cell[0] - 0.5], [0, cell[1], low[1] * FINE + 0.5 * cell[1] - 0.5]]
    )
    cut = cv2.warpAffine(mask, inverse, (REGION, REGION), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return np.concatenate([low, high]).astype(np.float32), np.where(cut > 127, 255, 0).astype(np.uint8)


def to_indices(matrix: np.ndarray) -> np.ndarray:
    """Convert a matrix between continuous coordinates to OpenCV's convention, between pixel indices."""
    offset = matrix[:, 2] + matrix[:, :2] @ np.array([0.5, 0.5]) - 0.5
    return np.concatenate([matrix[:, :2], offset[:, None]], 1)


def fill_window(rng: np.random.Generator, low: np.ndarray, high: np.ndarray, window: int) -> np.ndarray:
    """Draw a shift (x, y) of a picture spanning low..high that leaves no margin, or places a smaller one inside."""
    shift = np.zeros(2)
    for axis in range(2):
        if high[axis] - low[axis] <= window:
            shift[axis] = -low[axis] + rng.random() * (window - high[axis] + low[axis])
        else:
            shift[axis] = max(0.0, window - high[axis]) + min(0.0, -low[axis])
    return shift


def reduce_first(picture: np.ndarray, matrix: np.ndarray, below: float) -> tuple[np.ndarray, np.ndarray]:
    """Average a picture that the matrix makes smaller than `below`, so that it does not alias; the matrix left."""
    scale = abs(float(np.linalg.det(matrix[:, :2]))) ** 0.5
    height, width = picture.shape[:2]
    if scale >= below or min(height, width) * scale < 2:
        return picture, matrix
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    left = matrix[:, :2] @ np.diag([width / size[0], height / size[1]])
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.concatenate([left, matrix[:, 2:]], 1)


def warp_image(image: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """Map a picture into the window; large reductions are averaged first so that they do not alias."""
    image, matrix = reduce_first(image, matrix, 0.75)
    border = tuple(float(v) for v in MEAN * 255)
    return cv2.warpAffine(image, to_indices(matrix), (side, side), flags=cv2.INTER_LINEAR, borderValue=border)


def warp_masks(
    pack: Pack, instances: list[int], matrix: np.ndarray, content: tuple[int, int], window: int
) -> list[np.ndarray]:
    """Return the masks of instances with at least a quarter in the window: HW uint8 coverage (0..255).

    The matrix maps the picture to fine pixels, and the masks are FINE times the window in size.
    """
    side = window * FINE
    area_scale = abs(float(np.linalg.det(matrix[:, :2])))
    masks = []
    for instance in instances:
        x, y, w, h = (float(v) for v in pack.instance[instance, 1:])
        corners = matrix[:, :2] @ np.array([[x, x + w, x, x + w], [y, y, y + h, y + h]]) + matrix[:, 2:]
        if corners.max(1).min() < 2 * FINE or corners.min(1).max() > side - 2 * FINE:
            continue
        crop, x0, y0 = pack.read_mask(instance)
        full = int(np.count_nonzero(crop > 127)) * area_scale
        local = matrix.copy()
        local[:, 2] += matrix[:, :2] @ np.array([x0, y0])
        crop, local = reduce_first(crop, local, 0.6)
        mask = cv2.warpAffine(crop, to_indices(local), (side, side), flags=cv2.INTER_LINEAR)
        mask[content[1] * FINE :] = 0
        mask[:, content[0] * FINE :] = 0
        if np.count_nonzero(mask > 127) >= max(MIN_PIXELS * FINE**2, 0.25 * full):
            masks.append(mask)
    return masks


def photometric(rng: np.random.Generator, image: np.ndarray, *, microscopy: bool) -> np.ndarray:
    """Augment color, contrast, blur and noise."""
    x = image.astype(np.float32)
    if rng.random() < 0.8:
        x = (x - 128) * rng.uniform(0.65, 1.35) + 128 + rng.uniform(-30, 30)
    if rng.random() < 0.5:
        x = x * rng.uniform(0.8, 1.2, 3).astype(np.float32)
    if rng.random() < 0.15:
        x = np.repeat(x.mean(2, keepdims=True), 3, 2)
    if microscopy and rng.random() < 0.25:
        x = 255 - x
    x = np.clip(x, 0, 255)
    if rng.random() < 0.3:
        x = 255 * (x / 255) ** np.float32(rng.uniform(0.6, 1.6))
    if rng.random() < 0.2:
        x = cv2.GaussianBlur(x, (0, 0), float(rng.uniform(0.4, 1.3)))
    if rng.random() < 0.2:
        x = x + rng.standard_normal(x.shape, np.float32) * np.float32(rng.uniform(2, 12))
    return np.clip(x, 0, 255).astype(np.uint8)
