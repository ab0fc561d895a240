"""Resizing of images, points and boxes to the model's input, with the calls of `segment_anything`'s transform."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch.nn import functional

from saqsam.data.image_input import ImageInput, as_rgb
from saqsam.inference.processing import repeat_thin_sides
from saqsam.utils.arrays import to_array
from saqsam.utils.errors import shorten

Size = tuple[int, ...]
"""(height, width) in pixels; `image.shape[:2]` of an array fits."""


class ResizeLongestSide:
    """Resizes to a longest side of `target_length` pixels, keeping the aspect ratio.

    Has the calls of `segment_anything.utils.transforms.ResizeLongestSide`, and returns the same values. Two details
    differ: the short side of a thin image is at least 1 px, and `apply_image_torch` reads height and width from the
    last two axes, where the official code reads them from the first two.

    Args:
        target_length: Longest side of the result in pixels, at least 1.
        resample: Pillow's filter for `apply_image`.
    """

    def __init__(
        self, target_length: int, resample: Image.Resampling | int = Image.Resampling.BILINEAR
    ) -> None:
        if target_length < 1:
            raise ValueError(f"target_length: expected at least 1, got {target_length}")
        self.target_length = target_length
        self.resample = Image.Resampling(resample)

    def apply_image(self, image: ImageInput) -> NDArray[np.uint8]:
        """Resize an image.

        Args:
            image: As `Predictor.set_image` takes it.

        Returns:
            [h, w, 3] uint8 RGB, the pixels that `set_image` passes on to normalization.

        Raises:
            ValueError: `image` is not an image.
        """
        rgb = as_rgb(image)[0]
        height, width = self.get_preprocess_shape(rgb.shape[0], rgb.shape[1], self.target_length)
        picture = Image.fromarray(self._with_resizable_sides(rgb))
        return np.array(picture.resize((width, height), self.resample))

    def _with_resizable_sides(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return an image, HWC, whose short side is not rounded to 0."""
        return repeat_thin_sides(image, self.target_length)

    def apply_coords(self, coords: ArrayLike, original_size: Size) -> NDArray[np.float64]:
        """Scale points to the resized image.

        Args:
            coords: [..., 2] x, y in pixels of the original image.
            original_size: (height, width) of the original image.

        Returns:
            [..., 2] float64 x, y in pixels of the resized image; a new array.

        Raises:
            ValueError: The last axis does not hold x, y, or a side of the size is below 1.
        """
        array = to_array(coords, "coords")
        _check_last_axis(array.shape, 2, "coords: expected x, y")
        return np.asarray(array.astype(np.float64) * self._scale(original_size))

    def apply_boxes(self, boxes: ArrayLike, original_size: Size) -> NDArray[np.float64]:
        """Scale boxes to the resized image.

        Args:
            boxes: [B, 4] or [4] xyxy in pixels of the original image.
            original_size: (height, width) of the original image.

        Returns:
            [B, 4] float64 xyxy in pixels of the resized image; a new array.

        Raises:
            ValueError: The last axis does not hold x0, y0, x1, y1, or a side of the size is below 1.
        """
        array = to_array(boxes, "boxes")
        _check_last_axis(array.shape, 4, "boxes: expected x0, y0, x1, y1")
        return self.apply_coords(array.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_image_torch(self, image: torch.Tensor) -> torch.Tensor:
        """Resize a batch of images with antialiased bilinear interpolation.

        The result differs slightly from that of `apply_image`, which is what the model was trained on.

        Args:
            image: [B, C, H, W] of a floating dtype.

        Returns:
            [B, C, h, w] of the same dtype and device.

        Raises:
            ValueError: The tensor has another number of axes or an integer dtype.
        """
        if image.ndim != 4 or not image.is_floating_point():
            raise ValueError(
                f"image: expected floats of shape [B, C, H, W], got {image.dtype} of shape {tuple(image.shape)}"
            )
        size = self.get_preprocess_shape(image.shape[2], image.shape[3], self.target_length)
        return functional.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)

    def apply_coords_torch(self, coords: torch.Tensor, original_size: Size) -> torch.Tensor:
        """Scale points as `apply_coords` does; takes a tensor, and returns float32 on its device."""
        _check_last_axis(coords.shape, 2, "coords: expected x, y")
        scale_x, scale_y = self._scale(original_size)
        points = coords.to(torch.float32)
        # Each axis is multiplied by a Python float, as in the official code: rounding is the same.
        return torch.stack([points[..., 0] * float(scale_x), points[..., 1] * float(scale_y)], dim=-1)

    def apply_boxes_torch(self, boxes: torch.Tensor, original_size: Size) -> torch.Tensor:
        """Scale boxes as `apply_boxes` does; takes a tensor, and returns [B, 4] float32 on its device."""
        _check_last_axis(boxes.shape, 4, "boxes: expected x0, y0, x1, y1")
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    @classmethod
    def get_preprocess_shape(cls, oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """Return the (height, width) of a resized image.

        Args:
            oldh: Height of the original image.
            oldw: Width of the original image.
            long_side_length: Longest side of the resized image.

        Returns:
            (height, width), rounded to the nearest integer and at least 1.
        """
        scale = long_side_length / max(oldh, oldw)
        return max(1, int(oldh * scale + 0.5)), max(1, int(oldw * scale + 0.5))

    def check_original_size(self, original_size: Size, input_size: tuple[int, int]) -> tuple[int, int]:
        """Return the size of an image after a check that it can have been resized to another size.

        Args:
            original_size: (height, width) before resizing.
            input_size: (height, width) after resizing; 1 px off is accepted, because libraries round in several ways.

        Raises:
            ValueError: The sizes do not belong together, for example because height and width are swapped.
        """
        size = tuple(int(side) for side in original_size)
        if len(size) == 2 and min(size) >= 1:
            expected = self.get_preprocess_shape(size[0], size[1], self.target_length)
            if all(abs(a - b) <= 1 for a, b in zip(expected, input_size, strict=True)):
                return size[0], size[1]
        raise ValueError(
            f"original_size: expected the (height, width) of an image that is resized to {input_size[0]} x "
            f"{input_size[1]}, got {shorten(size)}"
        )

    def _scale(self, original_size: Size) -> NDArray[np.float64]:
        """Return the factors of x and y."""
        size = tuple(int(side) for side in original_size)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"original_size: expected (height, width), got {shorten(tuple(original_size))}")
        height, width = self.get_preprocess_shape(size[0], size[1], self.target_length)
        return np.array([width / size[1], height / size[0]])


class StretchToSquare(ResizeLongestSide):
    """Resizes to a square of `target_length` pixels, whatever the aspect ratio, as SAM 2 does.

    Has the calls of `ResizeLongestSide`.
    """

    @classmethod
    def get_preprocess_shape(cls, oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """Return (`long_side_length`, `long_side_length`), the size of every resized image."""
        return long_side_length, long_side_length

    def _with_resizable_sides(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return image


def _check_last_axis(shape: tuple[int, ...], length: int, expected: str) -> None:
    if not shape or shape[-1] != length:
        raise ValueError(f"{expected} in the last axis, got shape {tuple(shape)}")
