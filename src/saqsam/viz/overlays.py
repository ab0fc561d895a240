"""Draw masks over an image."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]
"""RGB in [0, 255]."""

PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (0, 114, 178),
    (213, 94, 0),
)
"""Colors of Okabe and Ito, which most color-blind readers can tell apart."""


def overlay_masks(
    image: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    *,
    colors: Sequence[Color] = PALETTE,
    alpha: float = 0.5,
) -> NDArray[np.uint8]:
    """Lay masks over an image, each in its own color with a solid outline.

    Args:
        image: HWC uint8 RGB.
        masks: [P, H, W] bool at the size of the image; later ones lie on top.
        colors: Taken in turn.
        alpha: Opacity of the inside, in [0, 1].

    Returns:
        A new HWC uint8 RGB image.

    Raises:
        ValueError: The masks have another size than the image, or no color is given.
    """
    if masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
        raise ValueError(f"masks: expected [P, {image.shape[0]}, {image.shape[1]}], got {masks.shape}")
    if not colors:
        raise ValueError("colors: expected at least one, got none")
    canvas = image.copy()
    for index, mask in enumerate(masks):
        draw_mask(canvas, mask, colors[index % len(colors)], alpha)
    return canvas


def draw_mask(canvas: NDArray[np.uint8], mask: NDArray[np.bool_], color: Color, alpha: float = 0.5) -> None:
    """Draw one mask HW, with a solid outline, over an image HWC uint8 RGB of its size, in place."""
    thickness = max(1, round(max(canvas.shape[:2]) / 300))
    canvas[mask] = np.rint((1 - alpha) * canvas[mask] + alpha * np.array(color)).astype(np.uint8)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, outlines, -1, color, thickness, cv2.LINE_AA)
