"""The meaning of the values in a mask file: background, object, and pixels to ignore."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saqsam.data.images import decode_image

IgnoreLabel = int | Literal["auto"] | None
"""The value of pixels that count neither as object nor as background: `"auto"` (see `read_mask_file`), or none."""

WHITE = 255
"""`MaskFile.object_value` of objects that have the largest value of their file's type, or nearly so."""

IGNORE_HINT = (
    "label maps are not masks; give a value that marks pixels to ignore as ignore_label (--ignore-label)"
)
"""End of messages on values that are not those of a mask."""

_LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
_IGNORE_LABELS = (255, 65535)  # of label maps of 8 and 16 bits
_LARGEST = 65535
_NEAR = 0.1
"""Values this close to 0 or to the largest, as a share of it, count as background and object."""
_LEAST_NEAR = 0.8
"""Share of pixels that must be near; soft edges take up the rest."""
_LEAST_SOFT = 128
"""A mask with a smaller largest value has no soft edges: a third value is a label."""
_NOISE = 0.03
"""How far compression moves the values of flat regions, as a share of the largest."""
_FEW = 32
"""Lossless files with at most this many values are judged without allowance for compression."""
_PART = 1 << 22


@dataclass(frozen=True)
class MaskFile:
    """A mask as its file states it.

    Attributes:
        mask: HW bool, the object.
        ignored: HW bool, pixels that count neither as object nor as background; None without any.
        object_value: The value of the object; `WHITE` for the largest value of the file's type; None where the file
            does not tell, because the mask is empty or has soft edges.
        ignore_value: The value of `ignored`; None without any.
    """

    mask: NDArray[np.bool_]
    ignored: NDArray[np.bool_] | None = None
    object_value: int | None = None
    ignore_value: int | None = None


class UnclearMask(ValueError):
    """The largest value of a mask file may be that of the object or mark pixels to ignore."""


def check_ignore_label(ignore_label: object) -> None:
    """Check an option of type `IgnoreLabel`.

    Raises:
        ValueError: It is neither "auto" nor None nor an integer from 0 to 65535.
    """
    is_value = type(ignore_label) is int and 0 <= ignore_label <= _LARGEST
    if ignore_label is not None and ignore_label != "auto" and not is_value:
        raise ValueError(f"ignore_label: expected 'auto', None or 0 to {_LARGEST}, got {ignore_label!r}")


def read_channels(path: str | Path) -> NDArray[Any]:
    """Read the channels of a mask file: HWC, with 1 (values), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels.

    Palettes give their indices, or what they show if that is grey. One bit gives 0 and 255.

    Raises:
        ValueError: The file is missing or not a readable image.
    """
    return decode_image(path, _to_channels)


def interpret_mask(path: str | Path, channels: NDArray[Any], ignore_label: IgnoreLabel = "auto") -> MaskFile:
    """Interpret the values of a mask file.

    Background is 0 and the object has one other value. Lossy compression and soft edges may add values between them,
    and what has at least half the largest value is then the object. A coloured object counts by its largest channel.
    Alpha counts where the colours say nothing.

    Args:
        path: The file; JPEG and WebP are expected to be compressed with losses.
        channels: As `read_channels` returns them.
        ignore_label: The value of pixels to ignore. "auto" takes 255 (or 65535) where the file has the values 0, 1
            and that one, as label maps of one class do; None takes no value.

    Raises:
        UnclearMask: With "auto": the values are 0, 1 and 255, but those of 1 may be losses of compression.
        ValueError: The values are those of a map of several labels, of an image, or not integers of 8 or 16 bits.
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
    is_grey = channels.shape[2] == 3 and all((channels[..., k] == channels[..., 0]).all() for k in (1, 2))
    return channels[..., :1] if is_grey else channels


def _palette_values(image: Image.Image) -> NDArray[np.uint8]:
    """The indices of a palette image; what it shows instead if that is grey up to white, in any order."""
    indices = np.asarray(image)
    colours = np.zeros((256, 3), dtype=np.uint8)
    listed = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)[:256]
    colours[: len(listed)] = listed
    used = colours[np.unique(indices)]
    # Class maps may have grey among their colours, but black and white are the colours of a mask.
    is_grey = (used == used[:, :1]).all() and used.max() == WHITE and len(np.unique(used[:, 0])) == len(used)
    return colours[:, 0][indices] if is_grey else indices


def _checked(channels: NDArray[Any]) -> NDArray[np.uint16]:
    """Values as integers of 16 bits; floating-point files may hold integers too."""
    is_whole = np.issubdtype(channels.dtype, np.integer) or (channels == np.rint(channels)).all()
    if not (is_whole and channels.min() >= 0 and channels.max() <= _LARGEST):
        raise ValueError("expected a mask with integers of 8 or 16 bits, got other numbers")
    return channels.astype(np.uint16)


def _single_channel(channels: NDArray[np.uint16], is_lossy: bool) -> NDArray[np.uint16]:
    """The largest of the colour channels, which have to show the same object; alpha where the colour is constant."""
    has_alpha = channels.shape[2] in (2, 4)
    colours = channels[..., : channels.shape[2] - has_alpha]
    values: NDArray[np.uint16] = colours.max(axis=2)
    others = [colours[..., k] for k in range(colours.shape[2]) if colours.shape[2] > 1]
    if has_alpha:
        alpha = channels[..., -1]
        if alpha.min() < alpha.max():
            if all(one.min() == one.max() for one in (others or [values])):
                return alpha
            others.append(alpha)
    shown = values >= _half(values)
    # Chroma is compressed more than luma: a faint channel of a lossy file says nothing.
    least = max(1, int(values.max() * (0.5 if is_lossy else _NEAR)))
    for other in others:
        differs = ((other >= _half(other)) != shown).astype(np.uint8)
        if other.max() >= least and differs.any() and 1 in _even_values(differs, 9 if is_lossy else 3):
            raise ValueError("expected a mask of one object colour on black, got several colours")
    return values


def _automatic_label(values: NDArray[np.uint16]) -> int | None:
    """The ignore label of a lossless file whose values are 1, it and perhaps 0."""
    present = frozenset(np.flatnonzero(_histogram(values)).tolist())
    label = next((label for label in _IGNORE_LABELS if {1, label} <= present <= {0, 1, label}), None)
    # Single pixels of 1 are what a JPEG of high quality leaves behind in a lossless copy.
    if label is not None and 1 not in _even_values(values, 3):
        raise UnclearMask(
            f"expected a mask of two values, got 0, 1 and {label}: either marks the object; give {label} as "
            "ignore_label (--ignore-label) if it marks pixels to ignore, else None (none)"
        )
    return label


def _binarize(
    values: NDArray[np.uint16], is_lossy: bool, may_be_classes: bool
) -> tuple[NDArray[np.bool_], int | None]:
    """The mask, and `MaskFile.object_value`."""
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
    """Whether values between 0 and the largest are labels rather than soft edges or losses of compression.

    Args:
        values: HW.
        counts: Pixels of each value.
        is_lossy: Whether the file is compressed with losses.
        may_be_classes: Whether the largest value may be an ignore label and those below 10 % of it classes.
    """
    present, largest = np.flatnonzero(counts), len(counts) - 1
    low, high, noise = _NEAR * largest, (1 - _NEAR) * largest, _NOISE * largest
    is_exact = not is_lossy and len(present) <= _FEW
    between = counts[present[(present > low) & (present < high)]].sum()
    if largest < _LEAST_SOFT or between > (1 - _LEAST_NEAR) * counts.sum():
        return True
    if present[0] > (0 if is_exact else noise) and present[0] < largest - noise:
        return True  # no background
    unclear = present[(present > (0 if is_exact else noise)) & (present < largest)]
    if may_be_classes and len(unclear) and unclear.max() <= low:
        return True
    # Edges are ramps, and compression leaves even blocks of at most 8 x 8: only a label fills a larger region evenly.
    if is_exact:
        small, large = _even_values(values, 3), _even_values(values, 9)
        return bool(
            ((small > noise) & (small < largest - noise)).any() or ((large > 0) & (large < largest)).any()
        )
    even = _even_values(values, 9, tolerance=int(noise / 2))
    # In a file compressed with losses all background far from edges (16 px with coarser colours) has one value.
    has_dark_labels = is_lossy and (_even_values(values, 17) <= noise).sum() > 1
    return bool(has_dark_labels or ((even > noise) & (even < largest - noise)).any())


def _even_values(values: NDArray[Any], side: int, *, tolerance: int = 0) -> NDArray[Any]:
    """The values at the centres of squares of `side` pixels, an odd number, that vary by at most a tolerance."""
    if min(values.shape) < side:
        return values[:0, 0]
    square, reach = np.ones((side, side), dtype=np.uint8), side // 2
    is_even = cv2.dilate(values, square) - cv2.erode(values, square) <= tolerance
    inside = np.s_[reach:-reach, reach:-reach]  # OpenCV's squares are smaller at the border.
    even: NDArray[Any] = np.unique(values[inside][is_even[inside]])
    return even


def _object_value(largest: int) -> int:
    full = WHITE if largest <= WHITE else _LARGEST
    return WHITE if largest >= (1 - _NEAR) * full else largest


def _half(values: NDArray[np.uint16]) -> int:
    """The least value that counts as object."""
    return (int(values.max()) + 1) // 2


def _histogram(values: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Pixels of each value from 0 to the largest, counted in parts to save memory."""
    counts = np.zeros(int(values.max()) + 1, dtype=np.int64)
    for start in range(0, values.size, _PART):
        counts += np.bincount(values.ravel()[start : start + _PART], minlength=len(counts))
    return counts
