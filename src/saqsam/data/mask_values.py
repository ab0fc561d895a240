"""Read mask files, and decide which values are background, object, or to be ignored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saqsam.data.images import decode_image
from saqsam.utils.errors import shorten

IgnoreLabel = int | Literal["auto"] | None
"""Value of the pixels that are neither object nor background; `"auto"` as in `interpret_mask`; None for no value."""

WHITE = 255
"""`MaskFile.object_value` of objects within 10 % of the largest value of 8 or 16 bits."""

IGNORE_HINT = (
    "label maps are not masks; give a value that marks pixels to ignore as ignore_label (--ignore-label)"
)
"""Advice at the end of error messages."""

_LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
_IGNORE_LABELS = (255, 65535)  # of label maps of 8 and 16 bits
_LARGEST = 65535
_NEAR = 0.1
"""Values within this share of the largest value count as near it, or as near 0."""
_LEAST_NEAR = 0.8
"""Minimum share of pixels near 0 or near the largest value; soft edges take up the rest."""
_LEAST_SOFT = 128
"""Masks with a smaller largest value have no soft edges: a third value is a label."""
_NOISE = 0.03
"""Error of lossy compression in flat regions, as a share of the largest value."""
_FEW = 32
"""Lossless files with more values than this are taken for copies of lossy ones."""
_PART = 1 << 22
"""Pixels that `_histogram` counts at once, to bound its memory."""


@dataclass(frozen=True)
class MaskFile:
    """Contents of a mask file.

    Attributes:
        mask: HW bool, the object.
        ignored: HW bool, the pixels that are neither object nor background; None if there are none.
        object_value: Value of the object in the file, or `WHITE`; None if the mask is empty or has soft edges.
        ignore_value: Value of the ignored pixels in the file; None if there are none.
    """

    mask: NDArray[np.bool_]
    ignored: NDArray[np.bool_] | None = None
    object_value: int | None = None
    ignore_value: int | None = None


class UnclearMask(ValueError):
    """A mask file whose largest value may mark the object or the pixels to ignore."""


def check_ignore_label(ignore_label: object) -> None:
    """Check that a value is an `IgnoreLabel`.

    Raises:
        ValueError: It is neither "auto" nor None nor an integer from 0 to 65535.
    """
    is_value = type(ignore_label) is int and 0 <= ignore_label <= _LARGEST
    if ignore_label is not None and ignore_label != "auto" and not is_value:
        raise ValueError(
            f"ignore_label: expected 'auto', None or 0 to {_LARGEST}, got {shorten(ignore_label)}"
        )


def read_channels(path: str | Path) -> NDArray[Any]:
    """Read a mask file as HWC with 1 channel (values), 2 (gray and alpha), 3 (RGB) or 4 (RGBA).

    A palette image gives its indices, or its gray values if it shows nothing but gray up to white. One-bit images give
    0 and 255. Other types keep their values.

    Raises:
        ValueError: The file is missing or not a readable image.
    """
    return decode_image(path, _to_channels)


def interpret_mask(path: str | Path, channels: NDArray[Any], ignore_label: IgnoreLabel = "auto") -> MaskFile:
    """Interpret the values of a mask file.

    Background is 0, and the object has one other value. Lossy compression and soft edges may add values in between; the
    object is then every pixel of at least half the largest value. The largest channel counts if the
    object is colored on black. If the color is constant, the alpha channel is the mask.

    Args:
        path: The file. Its suffix tells lossy formats (JPEG, WebP) from lossless ones.
        channels: Contents of the file, from `read_channels`.
        ignore_label: Value of the pixels to ignore. "auto" ignores 255 (or 65535) in lossless files with the values 0,
            1 and 255, as in one-class label maps; None ignores no value.

    Raises:
        UnclearMask: `ignore_label` is "auto" and the values are 0, 1 and 255, but the pixels of 1 are so scattered that
            they may come from lossy compression.
        ValueError: The values are those of a label map or an image, or not integers of 8 or 16 bits.
    """
    is_lossy = Path(path).suffix.lower() in _LOSSY_SUFFIXES
    try:
        values = _single_channel(_checked(channels), is_lossy)
        label = ignore_label
        if label == "auto":
            label = None if is_lossy else _automatic_label(values)
        ignored = None
        if label is not None and (values == label).any():
            ignored = values == label
            values = np.where(ignored, 0, values).astype(np.uint16)
        mask, object_value = _binarize(values, is_lossy, may_be_classes=ignore_label is not None)
    except UnclearMask as error:
        raise UnclearMask(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return MaskFile(mask, ignored, object_value, None if ignored is None else label)


def _to_channels(image: Image.Image) -> NDArray[Any]:
    mode = image.mode
    if mode == "P":
        return _palette_values(image)[..., None]
    if mode in ("1", "CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("L" if mode == "1" else "RGB")
    elif mode in ("PA", "RGBa", "La"):
        image = image.convert("LA" if mode == "La" else "RGBA")
    channels = np.asarray(image)
    if channels.ndim == 2:
        return channels[..., None]
    is_gray = channels.shape[2] == 3 and all((channels[..., k] == channels[..., 0]).all() for k in (1, 2))
    return channels[..., :1] if is_gray else channels


def _palette_values(image: Image.Image) -> NDArray[np.uint8]:
    """Return the indices of a palette image, or its gray values if it shows nothing but gray up to white."""
    indices = np.asarray(image)
    colors = np.zeros((256, 3), dtype=np.uint8)
    listed = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)[:256]
    colors[: len(listed)] = listed
    used = colors[np.unique(indices)]
    # Class maps may have gray among their colors, but black and white are the colors of a mask.
    is_gray = (used == used[:, :1]).all() and used.max() == WHITE and len(np.unique(used[:, 0])) == len(used)
    return colors[:, 0][indices] if is_gray else indices


def _checked(channels: NDArray[Any]) -> NDArray[np.uint16]:
    """Return the values as 16-bit integers; floating-point files may hold integers, too."""
    is_whole = np.issubdtype(channels.dtype, np.integer) or (channels == np.rint(channels)).all()
    if not (is_whole and channels.min() >= 0 and channels.max() <= _LARGEST):
        raise ValueError("expected a mask with integers of 8 or 16 bits, got other numbers")
    return channels.astype(np.uint16)


def _single_channel(channels: NDArray[np.uint16], is_lossy: bool) -> NDArray[np.uint16]:
    """Return the maximum over the color channels, or alpha if the color is constant.

    Raises:
        ValueError: The channels show different objects.
    """
    has_alpha = channels.shape[2] in (2, 4)
    colors = channels[..., : channels.shape[2] - has_alpha]
    values: NDArray[np.uint16] = colors.max(axis=2)
    others = [colors[..., k] for k in range(colors.shape[2])]
    if has_alpha:
        alpha = channels[..., -1]
        if alpha.min() < alpha.max():
            if all(one.min() == one.max() for one in others):
                return alpha
            others.append(alpha)
    if len(others) == 1:
        return values
    shown = values >= _half(values)
    # Color is compressed more than brightness, so faint channels of a lossy file hold nothing but noise.
    least = max(1, int(values.max() * (0.5 if is_lossy else _NEAR)))
    for other in others:
        differs = ((other >= _half(other)) != shown).astype(np.uint8)
        if other.max() >= least and differs.any() and 1 in _even_values(differs, 9 if is_lossy else 3):
            raise ValueError(
                "expected a mask of one object color on black, got several colors or another shape in alpha"
            )
    return values


def _automatic_label(values: NDArray[np.uint16]) -> int | None:
    """Return the ignore label of a file whose values are 0 (or not), 1 and that label; None for other files.

    Raises:
        UnclearMask: No square of 3 x 3 pixels has the value 1.
    """
    present = frozenset(np.flatnonzero(_histogram(values)).tolist())
    label = next((label for label in _IGNORE_LABELS if {1, label} <= present <= {0, 1, label}), None)
    # A lossless copy of a JPEG of high quality has scattered pixels of 1.
    if label is not None and 1 not in _even_values(values, 3):
        raise UnclearMask(
            f"expected a mask of two values, got 0, 1 and {label}: either marks the object; give {label} as "
            "ignore_label (--ignore-label) if it marks pixels to ignore, else None (none)"
        )
    return label


def _binarize(
    values: NDArray[np.uint16], is_lossy: bool, may_be_classes: bool
) -> tuple[NDArray[np.bool_], int | None]:
    """Return the mask and its `MaskFile.object_value`."""
    counts = _histogram(values)
    present = np.flatnonzero(counts)
    largest = len(counts) - 1
    if largest == 0:
        return np.zeros(values.shape, dtype=bool), None
    is_hard = not ((present > 0) & (present < largest)).any()
    if not is_hard and _has_labels(values, counts, is_lossy, may_be_classes):
        raise ValueError(
            f"expected a mask of two values, got {len(present)} different ones up to {largest}; {IGNORE_HINT}"
        )
    return values >= _half(values), _object_value(largest) if is_hard else None


def _has_labels(
    values: NDArray[np.uint16], counts: NDArray[np.int64], is_lossy: bool, may_be_classes: bool
) -> bool:
    """Return whether the values between 0 and the largest are labels, not soft edges or compression noise.

    Args:
        values: HW.
        counts: Histogram of the values.
        is_lossy: Whether the format is lossy.
        may_be_classes: Whether the largest value may be an ignore label above class numbers.
    """
    present, largest = np.flatnonzero(counts), len(counts) - 1
    low, high, noise = _NEAR * largest, (1 - _NEAR) * largest, _NOISE * largest
    is_exact = not is_lossy and len(present) <= _FEW
    between = counts[present[(present > low) & (present < high)]].sum()
    if largest < _LEAST_SOFT or between > (1 - _LEAST_NEAR) * counts.sum():
        return True
    if present[0] > (0 if is_exact else noise) and present[0] < largest - noise:
        return True  # no background
    # Class numbers are small compared with an ignore label of 255. Soft edges and noise have larger values, too.
    unclear = present[(present > (0 if is_exact else noise)) & (present < largest)]
    if may_be_classes and len(unclear) and unclear.max() <= low:
        return True
    # Soft edges are ramps, and compression yields constant blocks of at most 8 x 8. Only labels fill larger squares.
    if is_exact:
        # The only value in between may be that of a narrow border, as in trimaps.
        small, large = _even_values(values, 2 if len(present) == 3 else 3), _even_values(values, 9)
        return bool(
            ((small > noise) & (small < largest - noise)).any() or ((large > 0) & (large < largest)).any()
        )
    even = _even_values(values, 9, tolerance=int(noise / 2))
    # Lossy files have one background value, except within a block of an edge (16 x 16 if color is subsampled).
    has_dark_labels = is_lossy and (_even_values(values, 17) <= noise).sum() > 1
    return bool(has_dark_labels or ((even > noise) & (even < largest - noise)).any())


def _even_values(values: NDArray[Any], side: int, *, tolerance: int = 0) -> NDArray[Any]:
    """Return the values of all squares of `side` x `side` pixels that vary by at most `tolerance`."""
    if min(values.shape) < side:
        return values[:0, 0]
    square, reach = np.ones((side, side), dtype=np.uint8), side // 2
    is_even = cv2.dilate(values, square) - cv2.erode(values, square) <= tolerance
    inside = np.s_[reach:-reach, reach:-reach]  # Squares at the border would be cut off.
    even: NDArray[Any] = np.unique(values[inside][is_even[inside]])
    return even


def _object_value(largest: int) -> int:
    full = WHITE if largest <= WHITE else _LARGEST
    return WHITE if largest >= (1 - _NEAR) * full else largest


def _half(values: NDArray[np.uint16]) -> int:
    """Return the smallest value that counts as object."""
    return (int(values.max()) + 1) // 2


def _histogram(values: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Return the number of pixels of each value from 0 to the largest."""
    counts = np.zeros(int(values.max()) + 1, dtype=np.int64)
    for start in range(0, values.size, _PART):
        counts += np.bincount(values.ravel()[start : start + _PART], minlength=len(counts))
    return counts
