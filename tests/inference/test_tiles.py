"""Which tile shows which box."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saqsam.inference.tiles import Tile, assign_tiles


def assign(*boxes: tuple[float, ...], size: tuple[int, int] = (2000, 3000)) -> dict[Tile, list[int]]:
    return assign_tiles(np.array(boxes, dtype=np.float64), size, 1024, 200)


def test_an_image_no_larger_than_a_tile_is_one() -> None:
    assert assign((5, 5, 9, 9), (-3, 0, 1024, 700), size=(700, 1024)) == {Tile(0, 0, 1024, 700): [0, 1]}


def test_a_box_goes_to_the_tile_in_whose_middle_it_is() -> None:
    # Along x tiles start at 0, 824, 1648 and 1976, along y at 0, 824 and 976.
    found = assign((10, 10, 50, 50), (830, 10, 900, 50), (970, 10, 1000, 50), (2990, 1990, 3100, 2100))
    assert found == {
        Tile(0, 0, 1024, 1024): [0, 1],  # the second lies in two tiles, and nearer to the middle of the first
        Tile(824, 0, 1848, 1024): [2],
        Tile(1976, 976, 3000, 2000): [3],
    }


def test_a_box_that_no_tile_holds_has_its_own() -> None:
    # 300 px across a border, with 200 px of overlap; and one larger than a tile.
    found = assign((800, 100, 1100, 200), (100, 100, 1300, 300))
    assert found == {Tile(438, 0, 1462, 1024): [0], Tile(0, 0, 1400, 1024): [1]}
    assert assign((0, 0, 3000, 2000)) == {Tile(0, 0, 3000, 2000): [0]}


@settings(max_examples=300)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    tile=st.integers(1, 40),
    share=st.floats(0, 0.9),
    x=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    y=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_every_box_is_wholly_in_a_tile_within_the_image(
    size: tuple[int, int], tile: int, share: float, x: tuple[float, float], y: tuple[float, float]
) -> None:
    height, width = size
    box = np.array([[min(x) * width, min(y) * height, max(x) * width, max(y) * height]])
    ((found, places),) = assign_tiles(box, size, tile, int(tile * share)).items()
    assert places == [0]
    assert 0 <= found.x0 <= box[0, 0]
    assert 0 <= found.y0 <= box[0, 1]
    assert box[0, 2] <= found.x1 <= width
    assert box[0, 3] <= found.y1 <= height
    assert found.x1 - found.x0 >= min(tile, width)
    assert found.y1 - found.y0 >= min(tile, height)


def test_all_boxes_are_assigned_once() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, (2800, 1800), (500, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 200, (500, 2))], axis=1)
    places = [place for own in assign_tiles(boxes, (2000, 3000), 1024, 200).values() for place in own]
    assert sorted(places) == list(range(500))
    assert len(assign_tiles(boxes, (2000, 3000), 1024, 200)) == pytest.approx(12, abs=0)
