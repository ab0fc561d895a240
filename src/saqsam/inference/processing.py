"""Conversion between images and the model's square input, by the model's processor."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import SamProcessor

from saqsam.models.processing import input_side, is_stretched

MASK_THRESHOLD = 0.0
"""A pixel belongs to a mask where its logit is above this, as in the original SAM."""

MAX_UPSCALED_PIXELS = 2**25
"""Logits upscaled at once: 128 MiB of float32, whatever the number of masks."""

_MOST_OPENCV_PIXELS = 2**15 - 1
"""Largest side of an image that OpenCV resizes."""

_RANGE_TOLERANCE = 0.5
"""Distance that resized pixels may lie outside [0, 255]: half a gray level."""


def preprocess(processor: SamProcessor, image: NDArray[np.uint8]) -> tuple[torch.Tensor, tuple[int, int]]:
    """Resize and normalize an image for the model, and make it square.

    Args:
        processor: The model's processor.
        image: HWC uint8 RGB in [0, 255], of any size.

    Returns:
        Pixel values [1, 3, S, S] float32, and (height, width) of the resized image in them.
    """
    side = input_side(processor)
    inputs = processor.image_processor(
        image if is_stretched(processor) else repeat_thin_sides(image, side),
        input_data_format="channels_last",  # else a height of 1 or 3 px passes for channels
        return_tensors="pt",
    )
    if is_stretched(processor):
        return inputs["pixel_values"], (side, side)
    height, width = inputs["reshaped_input_sizes"][0].tolist()
    return inputs["pixel_values"], (height, width)


def preprocess_resized(processor: SamProcessor, image: torch.Tensor) -> torch.Tensor:
    """Normalize an image that has been resized for the model already, and make it square.

    Args:
        processor: The model's processor.
        image: [1, 3, h, w] RGB in [0, 255], of any dtype and device, whose longest side is that of the input;
            where images are stretched, both sides.

    Returns:
        Pixel values [1, 3, S, S] float32 on the CPU.

    Raises:
        ValueError: The tensor has another shape, or values that are not finite or outside [0, 255].
    """
    image_processor = processor.image_processor
    longest = input_side(processor)
    is_square = not is_stretched(processor) or image.shape[-1] == image.shape[-2]
    if (
        image.ndim != 4
        or tuple(image.shape[:2]) != (1, 3)
        or max(image.shape[2:]) != longest
        or not is_square
    ):
        sides = "with a longest side" if not is_stretched(processor) else "with both sides"
        raise ValueError(
            f"transformed_image: expected shape [1, 3, h, w] {sides} of {longest}, "
            f"got {tuple(image.shape)}; resize it with predictor.transform.apply_image"
        )
    if min(image.shape[2:]) < 1:
        raise ValueError(f"transformed_image: expected at least one pixel, got shape {tuple(image.shape)}")
    pixels = image.detach()[0].permute(1, 2, 0).to("cpu", torch.float32)
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -_RANGE_TOLERANCE and high <= 255 + _RANGE_TOLERANCE):  # false for NaN as well
        raise ValueError(
            f"transformed_image: expected RGB in [0, 255] before normalization, got {low:g} to {high:g}"
        )
    inputs = image_processor(
        pixels.numpy(), do_resize=False, input_data_format="channels_last", return_tensors="pt"
    )
    pixel_values: torch.Tensor = inputs["pixel_values"]
    return pixel_values


def repeat_thin_sides(image: NDArray[np.uint8], longest_edge: int) -> NDArray[np.uint8]:
    """Repeat the rows or columns of an image so thin that the processor would resize its short side to 0.

    The processor rounds `short * longest_edge / long` to the nearest integer, so the short side has to be at least
    `long / (2 * longest_edge)`. Prompts and masks still refer to the original image, because scales are per axis.

    Args:
        image: HWC uint8.
        longest_edge: Longest side of the resized image.

    Returns:
        HWC uint8; the input itself if no side is too short.
    """
    needed = max(image.shape[:2]) // (2 * longest_edge) + 1
    for axis in (0, 1):
        if image.shape[axis] < needed:
            image = np.repeat(image, -(-needed // image.shape[axis]), axis=axis)
    return image


def upscale_logits(
    processor: SamProcessor,
    low_res_masks: torch.Tensor,
    original_size: tuple[int, int],
    input_size: tuple[int, int],
    *,
    return_logits: bool,
) -> torch.Tensor:
    """Upscale low-resolution logits to masks of the original image, a few at a time.

    On a CPU, OpenCV does what the processor does with torch, five to ten times as fast; logits differ by less than
    1e-4.

    Args:
        processor: The model's processor.
        low_res_masks: [P, C, 4h, 4w] float32 logits.
        original_size: (height, width) of the image.
        input_size: (height, width) of the resized image within the square input.
        return_logits: Return logits instead of masks.

    Returns:
        [P, C, H, W], bool (logit > `MASK_THRESHOLD`) or float32.
    """
    height, width = original_size
    flat = low_res_masks.flatten(0, 1)[:, None]  # [P * C, 1, 4h, 4w]
    dtype = torch.float32 if return_logits else torch.bool
    result = torch.empty((len(flat), height, width), dtype=dtype, device=flat.device)
    if flat.device.type == "cpu" and max(height, width) <= _MOST_OPENCV_PIXELS:
        side = None if is_stretched(processor) else input_side(processor)
        for one, upscaled in zip(flat[:, 0].detach().float().numpy(), result.numpy(), strict=True):
            logits = _upscale_by_opencv(one, side, input_size, original_size)
            upscaled[:] = logits if return_logits else logits > MASK_THRESHOLD
        return result.reshape(*low_res_masks.shape[:2], height, width)
    at_once = max(1, MAX_UPSCALED_PIXELS // max(height * width, input_side(processor) ** 2))
    for start in range(0, len(flat), at_once):
        (masks,) = processor.image_processor.post_process_masks(
            [flat[start : start + at_once]],
            [original_size],
            *([] if is_stretched(processor) else [[input_size]]),
            mask_threshold=MASK_THRESHOLD,
            binarize=not return_logits,
        )
        result[start : start + at_once] = masks[:, 0]
    return result.reshape(*low_res_masks.shape[:2], height, width)


def _upscale_by_opencv(
    logits: NDArray[np.float32], side: int | None, input_size: tuple[int, int], original_size: tuple[int, int]
) -> NDArray[np.float32]:
    """Upscale the logits [4h, 4w] of one mask to [H, W].

    Args:
        logits: The logits.
        side: Side of the square input that they cover; None where images are stretched to it.
        input_size: (height, width) of the resized image within the square input.
        original_size: (height, width) of the image.
    """
    if side is not None:
        square = cv2.resize(logits, (side, side), interpolation=cv2.INTER_LINEAR)
        logits = square[: input_size[0], : input_size[1]]
    height, width = original_size
    upscaled: NDArray[np.float32] = cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR)
    return upscaled
