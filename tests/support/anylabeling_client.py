"""Steps of AnyLabeling 0.4.43 and X-AnyLabeling 4.2.1: their canvas, and prompts to click on it."""

import cv2
import numpy as np

CANVAS = (684, 1024)
SIZE = (90, 120)
"""Size of the image to be scaled into the canvas."""
MARKS = {
    "point": ([[50.0, 37.0]], [1]),
    "points": ([[50.0, 37.0], [10.0, 80.0]], [1, 0]),
    "box": ([[10.0, 12.0], [80.0, 60.0]], [2, 3]),
}
"""Points in pixels of the image, and their labels."""
SCALE = min(CANVAS[1] / SIZE[1], CANVAS[0] / SIZE[0])


def canvas_of(image: np.ndarray) -> np.ndarray:
    """Scale an HWC uint8 image of `SIZE` into the canvas, at its top left."""
    matrix = np.array([[SCALE, 0, 0], [0, SCALE, 0]])
    return cv2.warpAffine(image, matrix, CANVAS[::-1], flags=cv2.INTER_LINEAR)
