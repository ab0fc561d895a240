"""Non-maximum suppression against brute force, and its edge cases."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from saqsam.inference.nms import suppress


def brute_force(boxes: list[tuple[int, ...]], scores: list[float], threshold: float) -> list[int]:
    """One box at a time, over pixels."""

    def pixels(box: tuple[int, ...]) -> set[tuple[int, int]]:
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        mine = pixels(boxes[i])
        shares = [len(mine & pixels(boxes[j])) / max(1, len(mine | pixels(boxes[j]))) for j in kept]
        if all(share <= threshold for share in shares):
            kept.append(i)
    return kept


@st.composite
def some_boxes(draw: st.DrawFn) -> list[tuple[int, ...]]:
    edge = st.integers(0, 6)
    corners = draw(st.lists(st.tuples(edge, edge, edge, edge), max_size=12))
    return [(x, y, x + w, y + h) for x, y, w, h in corners]


@given(some_boxes(), st.data(), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
def test_suppression_equals_brute_force(
    boxes: list[tuple[int, ...]], data: st.DataObject, threshold: float
) -> None:
    scores = [data.draw(st.sampled_from([0.1, 0.5, 0.9])) for _ in boxes]
    assert suppress(boxes, scores, threshold).tolist() == brute_force(boxes, scores, threshold)


def test_an_iou_at_the_threshold_is_kept() -> None:
    boxes = [(0, 0, 90, 1), (0, 0, 63, 1), (0, 0, 64, 1)]  # 63/90 is 0.7, though 0.7 * 90 is below 63
    assert suppress(boxes, [3, 2, 1], 0.7).tolist() == [0, 1]
    assert suppress(boxes, [3, 1, 2], 0.7).tolist() == [0, 1]


def test_no_boxes_and_boxes_without_area() -> None:
    assert suppress(np.zeros((0, 4)), [], 0.5).tolist() == []
    assert suppress([(3, 3, 3, 9), (3, 3, 3, 9)], [1, 2], 0.0).tolist() == [1, 0]
