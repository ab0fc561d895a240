"""Draw the masks of two models and their difference, one row per image."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from saqsam.viz.overlays import PALETTE, Color, overlay_masks

ONLY_FLOAT: Color = (0, 114, 178)
ONLY_QUANTIZED: Color = (213, 94, 0)

_INK: Color = (32, 32, 32)
_FAINT_INK: Color = (110, 110, 110)
_PAPER: Color = (255, 255, 255)
_GAP = 10
_FONT_SIZE = 16


@dataclass(frozen=True)
class ComparisonRow:
    """One row of a comparison picture.

    Attributes:
        image: HWC uint8 RGB.
        boxes: [P, 4] xyxy in pixels of the image, the box prompts; may be empty.
        float_masks: [P, H, W] bool.
        quantized_masks: [P, H, W] bool.
        caption: Line under the row, such as the mean IoU of the two models; empty for none.
        points: [P', 2] x, y in pixels of the image, further prompts; may be empty.
    """

    image: NDArray[np.uint8]
    boxes: ArrayLike
    float_masks: NDArray[np.bool_]
    quantized_masks: NDArray[np.bool_]
    caption: str = ""
    points: ArrayLike = ()


def comparison_picture(
    rows: Sequence[ComparisonRow],
    *,
    cell_width: int = 300,
    titles: tuple[str, str, str, str] = ("image and prompts", "float", "quantized", "difference"),
    names: tuple[str, str] = ("float", "quantized"),
) -> NDArray[np.uint8]:
    """Draw image, float masks, quantized masks and their difference, one row per image.

    In the difference a pixel is colored where a prompt's float and quantized mask disagree; the legend names
    the colors. Images are scaled to the width of a cell, and to at most one and a half times it in height.

    Args:
        rows: One per image.
        cell_width: Width of each of the four columns, in pixels.
        titles: Titles of the four columns.
        names: Names of the two models in the legend.

    Returns:
        HWC uint8 RGB, ready to be written as PNG.

    Raises:
        ValueError: There is no row, a cell is narrower than 80 px, or masks do not fit their image or each other.
    """
    if not rows:
        raise ValueError("rows: expected at least one image to compare, got none")
    if cell_width < 80:
        raise ValueError(f"cell_width: expected at least 80 px, got {cell_width}")
    strips = [_title_strip(titles, cell_width)]
    for row in rows:
        strips.append(np.concatenate(_spread(_cells(row, cell_width)), axis=1))
        width = strips[-1].shape[1]
        strips.append(_text_strip(row.caption, width) if row.caption else _blank(_GAP, width))
    strips.append(_legend(strips[0].shape[1], names))
    return np.pad(np.concatenate(strips), ((_GAP, _GAP), (0, 0), (0, 0)), constant_values=255)


def comparison_cells(row: ComparisonRow, width: int) -> list[NDArray[np.uint8]]:
    """Draw the four cells of a row: image with prompts, masks of each model, and their difference.

    Args:
        row: What to draw.
        width: Width of each cell in pixels; smaller for an image more than one and a half times as high as wide.

    Returns:
        Four HWC uint8 RGB images of one size.

    Raises:
        ValueError: Masks do not fit their image or each other.
    """
    if row.float_masks.shape != row.quantized_masks.shape or row.float_masks.shape[1:] != row.image.shape[:2]:
        raise ValueError(
            f"masks: expected two of [P, {row.image.shape[0]}, {row.image.shape[1]}], "
            f"got {row.float_masks.shape} and {row.quantized_masks.shape}"
        )
    scale = min(width / row.image.shape[1], 1.5 * width / row.image.shape[0])
    size = (max(1, round(row.image.shape[0] * scale)), max(1, round(row.image.shape[1] * scale)))
    image = _resize(row.image, size)
    prompts = _draw_prompts(image, row, scale)
    if not len(row.float_masks):
        return [prompts, image, image, _faded(image)]
    # Masks are scaled before they are drawn, so that edges stay crisp on images of any size.
    float_masks, quantized_masks = (
        np.stack([_resize_mask(mask, size) for mask in masks])
        for masks in (row.float_masks, row.quantized_masks)
    )
    return [
        prompts,
        overlay_masks(image, float_masks),
        overlay_masks(image, quantized_masks),
        _difference(image, float_masks, quantized_masks),
    ]


def _cells(row: ComparisonRow, width: int) -> list[NDArray[np.uint8]]:
    """Return the four cells of a row, each `width` wide and all of one height."""
    return [_centered(cell, width) for cell in comparison_cells(row, width)]


def _difference(
    image: NDArray[np.uint8], float_masks: NDArray[np.bool_], quantized_masks: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    canvas = _faded(image)
    canvas[(float_masks & ~quantized_masks).any(axis=0)] = ONLY_FLOAT
    canvas[(quantized_masks & ~float_masks).any(axis=0)] = ONLY_QUANTIZED
    return canvas


def _faded(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image as a pale gray background on which two colors stand out."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    pale: NDArray[np.uint8] = np.rint(150 + gray * (105 / 255)).astype(np.uint8)
    return np.repeat(pale[:, :, None], 3, axis=2)


def _draw_prompts(image: NDArray[np.uint8], row: ComparisonRow, scale: float) -> NDArray[np.uint8]:
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    bottom, right = image.shape[0] - 1, image.shape[1] - 1
    for index, box in enumerate(np.asarray(row.boxes, dtype=np.float64).reshape(-1, 4) * scale):
        x0, y0, x1, y1 = (round(edge) for edge in box.tolist())
        corners = (
            min(max(x0, 0), right),
            min(max(y0, 0), bottom),
            min(max(x1 - 1, 0), right),
            min(max(y1 - 1, 0), bottom),
        )
        draw.rectangle(corners, outline=PALETTE[index % len(PALETTE)], width=2)
    for index, (x, y) in enumerate((np.asarray(row.points, dtype=np.float64).reshape(-1, 2) + 0.5) * scale):
        draw.circle((x, y), 5, fill=PALETTE[index % len(PALETTE)], outline=_PAPER, width=1)
    return np.array(canvas)


def _resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = size
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def _resize_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    height, width = size
    smooth = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(smooth) >= 128


def _centered(cell: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    left = (width - cell.shape[1]) // 2
    margins = ((0, 0), (left, width - cell.shape[1] - left), (0, 0))
    return np.pad(cell, margins, constant_values=255)


def _spread(cells: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Return the cells with white gaps between them and at both ends."""
    gap = _blank(cells[0].shape[0], _GAP)
    spread = [gap]
    for cell in cells:
        spread += [cell, gap]
    return spread


def _blank(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 255, dtype=np.uint8)


def _title_strip(titles: Sequence[str], cell_width: int) -> NDArray[np.uint8]:
    strip = Image.fromarray(_blank(_FONT_SIZE + 10, len(titles) * (cell_width + _GAP) + _GAP))
    draw = ImageDraw.Draw(strip)
    for column, title in enumerate(titles):
        x = _GAP + column * (cell_width + _GAP) + cell_width / 2
        draw.text((x, 2), title, fill=_INK, font=_font(), anchor="ma")
    return np.array(strip)


def _text_strip(text: str, width: int) -> NDArray[np.uint8]:
    strip = Image.fromarray(_blank(_FONT_SIZE + 18, width))
    ImageDraw.Draw(strip).text((_GAP, 4), text, fill=_FAINT_INK, font=_font(), anchor="la")
    return np.array(strip)


def _legend(width: int, names: tuple[str, str]) -> NDArray[np.uint8]:
    strip = Image.fromarray(_blank(_FONT_SIZE + 12, width))
    draw = ImageDraw.Draw(strip)
    x: float = _GAP
    for color, label in (
        (ONLY_FLOAT, f"only in the {names[0]} mask"),
        (ONLY_QUANTIZED, f"only in the {names[1]} mask"),
    ):
        draw.rectangle((x, 7, x + _FONT_SIZE, 7 + _FONT_SIZE), fill=color)
        x += _FONT_SIZE + 6
        draw.text((x, 6), label, fill=_INK, font=_font(), anchor="la")
        x += draw.textlength(label, font=_font()) + 24
    return np.array(strip)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, which is the same on every machine."""
    return ImageFont.load_default(_FONT_SIZE)
