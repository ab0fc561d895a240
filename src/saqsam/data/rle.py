"""Convert COCO segmentations (polygons, run lengths as lists or compressed strings) to checked run lengths.

`pycocotools` trusts its input: runs that end early leave uninitialized memory in the mask, and a polygon with a
far-away corner exhausts the memory. All input is therefore checked first.
"""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as rle_codec
from numpy.typing import NDArray

_MOST_DIGITS = 8
"""Characters of one number in compressed counts: 40 bits, well beyond the pixels of any image."""


class EncodedMask:
    """Base of classes that hold a mask as run lengths.

    Attributes:
        rle: COCO compressed run-length encoding `{"size": [H, W], "counts": bytes}`.
    """

    rle: dict[str, Any]

    def mask(self) -> NDArray[np.bool_]:
        """Decode the mask: HW bool at image resolution."""
        return decode_mask(self.rle)

    @property
    def area(self) -> int:
        """Number of pixels of the mask, from the run lengths alone."""
        return int(rle_codec.area(self.rle))


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a mask.

    Args:
        mask: HW bool.

    Returns:
        COCO compressed run-length encoding `{"size": [H, W], "counts": bytes}`.
    """
    pixels = np.ascontiguousarray(mask, dtype=np.bool_).view(np.uint8)
    # In the order of columns, which OpenCV transposes ten times as fast as NumPy; it cannot an empty array.
    columns = cv2.transpose(pixels).T if pixels.size else np.asfortranarray(pixels)
    rle: dict[str, Any] = rle_codec.encode(columns)
    return rle


def encode_part(mask: NDArray[np.bool_], x: int, y: int, size: tuple[int, int]) -> dict[str, Any]:
    """Encode a mask of a part of an image at the size of the image, without a mask of that size in memory.

    Args:
        mask: [h, w] bool.
        x: Column of the image at which the part begins.
        y: Its row.
        size: (height, width) of the image.

    Returns:
        COCO compressed run-length encoding `{"size": [H, W], "counts": bytes}`.
    """
    height, width = size
    columns = np.pad(mask, ((1, 1), (0, 0))).T.astype(np.int8)
    places = np.argwhere(np.diff(columns, axis=1))  # column and row at which a run begins or ends, in turn
    edges = (places[:, 0] + x) * height + places[:, 1] + y
    # A run to the bottom of the image goes on at the top of the next column.
    meets = np.flatnonzero(edges[1:-1:2] == edges[2::2])
    edges = np.delete(edges, np.concatenate([2 * meets + 1, 2 * meets + 2]))
    is_last = bool(edges.size) and edges[-1] == height * width
    ends = [0, *edges.tolist()] if is_last else [0, *edges.tolist(), height * width]
    counts = np.diff(ends).tolist()
    rle: dict[str, Any] = rle_codec.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return rle


def run_lengths(rle: dict[str, Any]) -> list[int]:
    """Return the uncompressed counts of run lengths, which go down the columns and start with background.

    Args:
        rle: COCO compressed run-length encoding `{"size": [H, W], "counts": bytes}`.

    Raises:
        ValueError: The runs do not fill the image.
    """
    height, width = rle["size"]
    counts: list[int] = _checked_runs(rle["counts"], height, width).tolist()
    return counts


def rle_text(rle: dict[str, Any]) -> str:
    """Return the compressed counts of run lengths as text for JSON; the size has to be stored beside them."""
    counts: bytes = rle["counts"]
    return counts.decode()


def rle_from_text(counts: str, size: Sequence[int]) -> dict[str, Any]:
    """Return run lengths from the text of `rle_text`.

    Args:
        counts: The text.
        size: (height, width).

    Returns:
        `{"size": [H, W], "counts": bytes}`, unchecked.
    """
    return {"size": list(size), "counts": counts.encode()}


def decode_mask(rle: dict[str, Any]) -> NDArray[np.bool_]:
    """Decode a mask. `pycocotools`' own decoder is as fast, but warns on every call with NumPy 2.

    Args:
        rle: COCO compressed run-length encoding `{"size": [H, W], "counts": bytes}`.

    Returns:
        HW bool, contiguous.

    Raises:
        ValueError: The runs do not fill the image.
    """
    height, width = rle["size"]
    runs = _checked_runs(rle["counts"], height, width)
    # Runs go down the columns and start with background.
    columns = np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(width, height)
    return np.ascontiguousarray(columns.T)


def segmentation_to_rle(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Turn the `segmentation` of a COCO annotation into compressed run lengths.

    Args:
        segmentation: A list of polygons `[x0, y0, x1, y1, ...]` in pixels, or run lengths
            `{"size": [height, width], "counts": ...}` with counts as a list of integers, a str or bytes.
        size: (height, width) that the image has; polygons are drawn at this size.

    Returns:
        `{"size": [H, W], "counts": bytes}`. The size is the run lengths' own, which may differ from `size`.

    Raises:
        ValueError: It has neither form, runs that do not fill the image, or corners far outside it.
    """
    if isinstance(segmentation, dict):
        return _runs_to_rle(segmentation)
    if isinstance(segmentation, list) and segmentation:
        height, width = size
        polygons = [check_polygon(polygon, height, width) for polygon in segmentation]
        rle: dict[str, Any] = rle_codec.merge(rle_codec.frPyObjects(polygons, height, width))
        return rle
    raise ValueError(f"segmentation: expected polygons or run lengths, got {type(segmentation).__name__}")


def _runs_to_rle(segmentation: dict[str, Any]) -> dict[str, Any]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not (
        isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
    ):
        raise ValueError(f"run lengths: expected size [height, width], got {size!r}")
    height, width = size
    if isinstance(counts, str):
        counts = counts.encode()
    if isinstance(counts, bytes):
        _checked_runs(counts, height, width)
        return {"size": [height, width], "counts": counts}
    if not isinstance(counts, list) or not all(isinstance(run, int) and 0 <= run < 2**32 for run in counts):
        raise ValueError("run lengths: expected counts as a string or a list of integers of at least 0")
    if sum(counts) != height * width:
        raise ValueError(f"run lengths: expected {height} x {width} pixels in all, got {sum(counts)}")
    rle: dict[str, Any] = rle_codec.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return rle


def _checked_runs(counts: bytes, height: int, width: int) -> NDArray[np.int64]:
    """Return the run lengths of a compressed string, which must fill an image of height x width."""
    runs = _decompress_counts(counts)
    if runs.min(initial=0) < 0 or runs.max(initial=0) > height * width or runs.sum() != height * width:
        raise ValueError(f"run lengths: expected {height} x {width} pixels in all, got others")
    return runs


def _decompress_counts(counts: bytes) -> NDArray[np.int64]:
    """Return the run lengths of a compressed string.

    Each character minus 48 holds five bits, lowest first, and a sixth bit that is set if more follow; the fifth bit of
    the last one is the sign. From the fourth run on, a number is the difference to the run two before.
    """
    digits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if digits.size == 0:
        return digits
    if digits.min() < 0 or digits.max() >= 64:
        raise ValueError("run lengths: expected compressed counts, got other characters")
    last = np.flatnonzero(digits < 0x20)  # of each number
    if last.size == 0 or last[-1] != digits.size - 1:
        raise ValueError(
            "run lengths: expected a whole number at the end of the compressed counts, got a part"
        )
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > _MOST_DIGITS:
        raise ValueError(
            f"run lengths: expected at most {_MOST_DIGITS} characters a number, got {length.max()}"
        )
    place = np.arange(digits.size) - np.repeat(first, length)
    runs: NDArray[np.int64] = np.add.reduceat((digits & 0x1F) << (5 * place), first)
    runs -= np.where(digits[last] & 0x10, 1 << (5 * length), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def check_polygon(polygon: Any, height: int, width: int) -> Sequence[float]:
    """Return a polygon `[x0, y0, x1, y1, ...]` unchanged if it can be drawn in an image of height x width pixels.

    Raises:
        ValueError: It has fewer than three corners, a number that is not finite, or a corner far outside the image.
    """
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("polygon: expected at least three corners x, y")
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in polygon):
        raise ValueError("polygon: expected finite numbers")
    # One image size beyond each border is generous; the rasteriser's memory grows with the perimeter.
    if not (
        all(-width <= x <= 2 * width for x in polygon[::2])
        and all(-height <= y <= 2 * height for y in polygon[1::2])
    ):
        raise ValueError(f"polygon: expected corners near the image of {height} x {width}")
    return polygon
