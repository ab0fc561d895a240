"""Segment images in tiles at their own resolution: aerial photographs, slides and other images of many pixels.

A prompt goes to the one tile that shows it best. Everything in an image is segmented tile by tile, and masks that meet
across a seam are joined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as rle_codec
from numpy.typing import NDArray

from saqsam.data.rle import encode_part
from saqsam.inference.encoded_image import EncodedImage
from saqsam.inference.generated_mask import GeneratedMask
from saqsam.inference.mask_generator import MaskGenerator
from saqsam.inference.predictor import Predictor
from saqsam.inference.tiles import Tile, assign_tiles, tile_starts
from saqsam.segmentation.objects import SegmentedObject
from saqsam.segmentation.prompts import Prompt, segment_prompts

LEAST_AGREEMENT = 0.5
"""IoU, within the overlap of two tiles, above which a mask of each shows the same object."""


@dataclass(frozen=True)
class Tiling:
    """Size and overlap of the tiles of an image.

    Attributes:
        side: Side of a tile in pixels.
        overlap: Pixels that neighbors share.

    Raises:
        ValueError: The overlap is negative, or as large as a tile.
    """

    side: int = 1024
    overlap: int = 128

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"tile: expected at least 1 pixel, got {self.side}")
        if not 0 <= self.overlap < self.side:
            raise ValueError(f"overlap: expected 0 to {self.side - 1} pixels, got {self.overlap}")

    def tiles(self, size: tuple[int, int]) -> list[Tile]:
        """Return the tiles of an image of `size` (height, width), row by row."""
        rows, columns = (tile_starts(length, self.side, self.overlap) for length in size)
        height, width = size
        return [
            Tile(x, y, min(x + self.side, width), min(y + self.side, height)) for y in rows for x in columns
        ]


def segment_prompts_in_tiles(
    predictor: Predictor, image: NDArray[np.uint8], prompts: Sequence[Prompt], tiling: Tiling
) -> list[SegmentedObject]:
    """Return the mask of each prompt, predicted in the tile that shows it best.

    Args:
        predictor: The predictor; its current image does not change.
        image: HWC uint8 RGB.
        prompts: The prompts, in pixels of the image. An object larger than a tile gets a tile as large as it.
        tiling: How to cut the image.

    Raises:
        ValueError: As for `segment_prompts`.
    """
    size = image.shape[:2]
    boxes = np.array([prompt.extent() for prompt in prompts]).reshape(-1, 4)
    found: dict[int, SegmentedObject] = {}
    for tile, places in assign_tiles(boxes, size, tiling.side, tiling.overlap).items():
        part = image[tile.y0 : tile.y1, tile.x0 : tile.x1]
        local = [prompts[place].shifted(tile.x0, tile.y0, part.shape[:2]) for place in places]
        for place, one in zip(places, segment_prompts(predictor, predictor.encode(part), local), strict=True):
            rle = encode_part(one.mask(), tile.x0, tile.y0, size)
            found[place] = SegmentedObject(
                rle,
                one.predicted_iou,
                one.stability_score,
                str(prompts[place]),
                one.category_id,
                one.score,
            )
    return [found[place] for place in range(len(prompts))]


def segment_everything_in_tiles(
    generator: MaskGenerator, image: NDArray[np.uint8], tiling: Tiling, encoded: EncodedImage | None = None
) -> list[SegmentedObject]:
    """Generate the masks of all tiles, and join those that show the same object.

    Two masks of different tiles show the same object if their IoU within the overlap of the tiles is at least
    `LEAST_AGREEMENT`. The joined mask is their union; its scores are their means, weighted by area.

    Args:
        generator: The generator; the current image of its predictor changes.
        image: HWC uint8 RGB.
        tiling: How to cut the image.
        encoded: The image from `Predictor.encode`, if there is but one tile.
    """
    size = image.shape[:2]
    parts: list[_Part] = []
    for tile in tiling.tiles(size):
        masks = generator.generate(image[tile.y0 : tile.y1, tile.x0 : tile.x1], encoded=encoded)
        parts += [_Part(tile, mask) for mask in masks]
    return [_join(group, size) for group in _groups(parts)]


@dataclass(frozen=True)
class _Part:
    """A mask of a tile."""

    tile: Tile
    mask: GeneratedMask

    def within(self, area: Tile) -> NDArray[np.bool_]:
        """Return the part of the mask within an area of the image that its tile contains."""
        x, y = area.x0 - self.tile.x0, area.y0 - self.tile.y0
        return self.mask.mask()[y : y + area.y1 - area.y0, x : x + area.x1 - area.x0]

    def meets(self, area: Tile) -> bool:
        """Return whether the mask's box meets an area of the image."""
        x0, y0, x1, y1 = self.mask.box
        x, y = self.tile.x0, self.tile.y0
        return x0 + x < area.x1 and area.x0 < x1 + x and y0 + y < area.y1 and area.y0 < y1 + y


def _groups(parts: Sequence[_Part]) -> list[list[_Part]]:
    """Return the masks of each object, in the order of their first ones."""
    leaders = list(range(len(parts)))

    def leader(place: int) -> int:
        while leaders[place] != place:
            place = leaders[place]
        return place

    for first, second in _neighbors(parts):
        low, high = sorted((leader(first), leader(second)))
        if low != high and _agree(parts[first], parts[second]):
            leaders[high] = low
    groups: dict[int, list[_Part]] = {}
    for place, part in enumerate(parts):
        groups.setdefault(leader(place), []).append(part)
    return list(groups.values())


def _neighbors(parts: Sequence[_Part]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of masks of different tiles whose boxes both meet the overlap of the tiles."""
    by_tile: dict[Tile, list[int]] = {}
    for place, part in enumerate(parts):
        by_tile.setdefault(part.tile, []).append(place)
    tiles = list(by_tile)
    for number, tile in enumerate(tiles):
        for other in tiles[number + 1 :]:
            shared = _overlap(tile, other)
            if shared is None:
                continue
            firsts, seconds = (
                [place for place in by_tile[one] if parts[place].meets(shared)] for one in (tile, other)
            )
            yield from ((first, second) for first in firsts for second in seconds)


def _overlap(first: Tile, second: Tile) -> Tile | None:
    """Return the area that two tiles share, or None."""
    x0, y0 = max(first.x0, second.x0), max(first.y0, second.y0)
    x1, y1 = min(first.x1, second.x1), min(first.y1, second.y1)
    return Tile(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _agree(first: _Part, second: _Part) -> bool:
    """Return whether two masks show the same object where their tiles overlap."""
    shared = _overlap(first.tile, second.tile)
    assert shared is not None
    one, other = first.within(shared), second.within(shared)
    union = np.count_nonzero(one | other)
    return bool(union) and bool(np.count_nonzero(one & other) >= LEAST_AGREEMENT * union)


def _join(group: Sequence[_Part], size: tuple[int, int]) -> SegmentedObject:
    """Return the object of which each mask shows a part."""
    rles = [encode_part(part.mask.mask(), part.tile.x0, part.tile.y0, size) for part in group]
    areas = [part.mask.area for part in group]

    def mean(values: Sequence[float]) -> float:
        return float(np.average(values, weights=areas))

    x, y = group[0].mask.point
    return SegmentedObject(
        rles[0] if len(rles) == 1 else rle_codec.merge(rles),
        mean([part.mask.predicted_iou for part in group]),
        mean([part.mask.stability_score for part in group]),
        f"point {x + group[0].tile.x0:g},{y + group[0].tile.y0:g}",
    )
