"""Tiles: prompts go to the tile that shows them, and masks that meet across a seam are one object."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saqsam.data.rle import encode_mask, encode_part
from saqsam.inference.generated_mask import GeneratedMask
from saqsam.inference.mask_generator import MaskGenerator
from saqsam.inference.predictor import Predictor
from saqsam.segmentation.prompts import Prompt
from saqsam.segmentation.tiling import Tiling, segment_everything_in_tiles, segment_prompts_in_tiles
from support.coco_folder import picture, rectangle
from support.fills_boxes import FillsBoxes
from support.tiny_sam import tiny_processor


@given(st.data())
def test_a_part_is_encoded_as_the_whole_would_be(data: st.DataObject) -> None:
    height, width = data.draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    y, x = data.draw(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)))
    h, w = data.draw(st.tuples(st.integers(1, height - y), st.integers(1, width - x)))
    bits = data.draw(st.lists(st.booleans(), min_size=h * w, max_size=h * w))
    whole = np.zeros((height, width), dtype=bool)
    whole[y : y + h, x : x + w] = part = np.array(bits).reshape(h, w)
    assert encode_part(part, x, y, (height, width)) == encode_mask(whole)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(20, 120), st.data())
def test_tiles_cover_the_image_and_share_the_overlap(
    height: int, width: int, side: int, data: st.DataObject
) -> None:
    tiling = Tiling(side, data.draw(st.integers(0, side - 1)))
    tiles = tiling.tiles((height, width))
    covered = np.zeros((height, width), dtype=bool)
    for tile in tiles:
        covered[tile.y0 : tile.y1, tile.x0 : tile.x1] = True
        assert tile.x1 - tile.x0 == min(side, width)
        assert tile.y1 - tile.y0 == min(side, height)
    assert covered.all()
    columns = sorted({(tile.x0, tile.x1) for tile in tiles})
    assert all(first[1] - second[0] >= tiling.overlap for first, second in pairwise(columns))


@pytest.mark.parametrize(
    ("side", "overlap", "words"), [(0, 0, "tile"), (8, 8, "overlap"), (8, -1, "overlap")]
)
def test_impossible_tilings_are_refused(side: int, overlap: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Tiling(side, overlap)


def test_prompts_are_answered_at_the_resolution_of_their_tile() -> None:
    """Boxes at odd coordinates of the image: in a tile of 64 px at even ones, they come back exactly."""
    backend = FillsBoxes()
    predictor = Predictor(backend, tiny_processor())
    image = picture((200, 300))
    boxes = [(10, 20, 30, 44), (100, 98, 120, 130), (250, 150, 290, 190), (20, 30, 180, 90)]
    tiling = Tiling(64, 16)
    found = segment_prompts_in_tiles(predictor, image, [Prompt(box=box) for box in boxes], tiling)
    for one, box in zip(found[:3], boxes, strict=False):
        expected = rectangle((200, 300), box)
        mask = one.mask()
        assert mask.shape == expected.shape
        assert (mask & expected).sum() / (mask | expected).sum() > 0.85
    assert [one.prompt for one in found] == [str(Prompt(box=box)) for box in boxes]
    assert len(backend.encoded) == 4  # one of them larger than a tile
    x0, _, x1, _ = found[3].box
    assert (x0, x1) == pytest.approx((20, 180), abs=6)


class Finder(MaskGenerator):
    """A generator that finds the parts of known objects in each tile, by the colors of a picture."""

    def __init__(self) -> None:
        pass

    def generate(self, image: NDArray[np.uint8], **_: object) -> list[GeneratedMask]:
        found = []
        for value in np.unique(image):
            if value:
                mask = (image == value).all(axis=2)
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                box = (int(columns[0]), int(rows[0]), int(columns[-1] + 1), int(rows[-1] + 1))
                size = image.shape[:2]
                found.append(
                    GeneratedMask(
                        encode_mask(mask), box, 0.5 + value / 1000, 1.0, (0.0, 0.0), (0, 0, size[1], size[0])
                    )
                )
        return found


def test_objects_across_seams_are_whole_and_neighbors_stay_apart() -> None:
    image = np.zeros((150, 220, 3), dtype=np.uint8)
    boxes = {10: (5, 5, 20, 20), 20: (40, 30, 150, 60), 30: (60, 62, 90, 140), 40: (100, 70, 130, 75)}
    for value, (x0, y0, x1, y1) in boxes.items():
        image[y0:y1, x0:x1] = value
    found = segment_everything_in_tiles(Finder(), image, Tiling(64, 16))
    expected = {value: rectangle((150, 220), box) for value, box in boxes.items()}
    assert len(found) == len(expected)
    for one in found:
        value = round((one.predicted_iou - 0.5) * 1000)
        np.testing.assert_array_equal(one.mask(), expected[value])


def test_without_an_overlap_nothing_is_joined() -> None:
    image = np.zeros((64, 128, 3), dtype=np.uint8)
    image[10:20, 50:80] = 9
    found = segment_everything_in_tiles(Finder(), image, Tiling(64, 0))
    assert [one.box for one in found] == [(50, 10, 64, 20), (64, 10, 80, 20)]
