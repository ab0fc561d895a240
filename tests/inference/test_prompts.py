"""Prompts: validation, and scaling of coordinates."""

from typing import Any

import numpy as np
import pytest
import torch

from saqsam.inference.prompts import Prompts

IMAGE, INPUT, MASK = (100, 200), (32, 64), (16, 16)
NAN, INF = float("nan"), float("inf")


def prompts(**kinds: Any) -> Prompts:
    return Prompts.from_image(IMAGE, INPUT, **{"mask_size": MASK, **kinds})


def test_each_axis_is_scaled_by_itself() -> None:
    result = Prompts.from_image(
        (100, 200), (50, 20), boxes=[[10, 10, 100, 90]], points=[[[150, 8]]], labels=[[1]], mask_size=MASK
    )
    torch.testing.assert_close(result.boxes, torch.tensor([[1.0, 5.0, 10.0, 45.0]]))
    torch.testing.assert_close(result.points, torch.tensor([[[15.0, 4.0]]]))
    torch.testing.assert_close(result.labels, torch.tensor([[1]]))


def test_dtypes_length_slices() -> None:
    result = prompts(
        boxes=np.array([[0, 0, 5, 5]] * 3),
        points=np.zeros((3, 2, 2), dtype=np.float32),
        labels=np.zeros((3, 2), dtype=bool),
        mask_inputs=torch.zeros(3, *MASK),
    )
    assert len(result) == 3
    assert len(result[1:]) == 2
    assert result[1:].mask_inputs is not None
    assert result[1:].mask_inputs.shape == (2, *MASK)
    assert result.boxes is not None
    assert result.boxes.dtype == torch.float32
    assert result.labels is not None
    assert result.labels.dtype == torch.int64
    assert prompts(boxes=[[0, 0, 5, 5]])[:1].points is None


def test_boxes_over_the_border_are_kept_as_they_are() -> None:
    result = prompts(boxes=[[-50, -50, 500, 500]])
    assert result.boxes is not None
    torch.testing.assert_close(result.boxes[0], torch.tensor([-16.0, -16.0, 160.0, 160.0]))


@pytest.mark.parametrize("box", [(10, 5, 5, 10), (5, 10, 10, 5), (5, 5, 5, 10), (5, 5, 10, 5)])
def test_inverted_and_empty_boxes_are_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"box: expected x0 < x1 and y0 < y1, got \(\d+, \d+, \d+, \d+\)"):
        prompts(boxes=[box])


@pytest.mark.parametrize("box", [(200, 0, 210, 10), (0, 100, 10, 110), (-9, 0, 0, 10), (0, -9, 10, 0)])
def test_boxes_outside_the_image_are_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="meets the 200 x 100 px image"):
        prompts(boxes=[(0, 0, 1, 1), box])


@pytest.mark.parametrize("point", [(-1, 5), (5, -0.5), (200, 5), (5, 100)])
def test_points_outside_the_image_are_refused(point: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="inside the 200 x 100 px image"):
        prompts(points=[[(1, 1), point]], labels=[[1, 1]])


def test_corner_points_are_inside() -> None:
    assert len(prompts(points=[[(0, 0), (199, 99), (199.5, 99.5)]], labels=[[1, 0, 1]])) == 1


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({}, "at least one of box, points and mask input, got none"),
        ({"points": [[[1, 1]]]}, "points and labels together, got points without labels"),
        ({"labels": [[1]]}, "at least one of box"),
        ({"labels": [[1]], "boxes": [[0, 0, 1, 1]]}, "got labels without points"),
        ({"points": [[[1, 1]]], "labels": [[2]]}, "expected 0 or 1, got 2"),
        ({"points": [[[1, 1]]], "labels": [[-1]]}, "expected 0 or 1, got -1"),
        ({"points": [[[1, 1]]], "labels": [[1, 0]]}, r"shape \(1, 1\), got \(1, 2\)"),
        ({"points": [[1, 1]], "labels": [[1]]}, "one or more x, y for each prompt"),
        ({"points": np.zeros((1, 0, 2)), "labels": np.zeros((1, 0))}, "one or more x, y"),
        ({"points": [[[NAN, 1]]], "labels": [[1]]}, "points: expected finite numbers"),
        ({"boxes": [[0, 0, INF, 1]]}, "boxes: expected finite numbers"),
        ({"boxes": [[NAN] * 4]}, "boxes: expected finite numbers"),
        ({"boxes": [[0, 0, 1]]}, "x0, y0, x1, y1"),
        ({"boxes": np.zeros((0, 5))}, "x0, y0, x1, y1"),
        ({"boxes": np.zeros((0, 4)), "mask_inputs": np.zeros((1, 16, 16))}, "same number of each kind"),
        ({"boxes": torch.zeros(1, 4, dtype=torch.complex64)}, "boxes: expected real numbers"),
        ({"boxes": torch.zeros(1, 4, device="meta")}, "boxes: expected an array of numbers"),
        ({"boxes": [0, 0, 1, 1]}, "x0, y0, x1, y1"),
        ({"boxes": [["a", 0, 1, 1]]}, "boxes: expected an array of numbers"),
        ({"boxes": [[0, 0, 1, 1], [0, 0, 1]]}, "boxes: expected an array of numbers"),
        ({"mask_inputs": np.zeros((1, 8, 16))}, "16 x 16 logits"),
        ({"mask_inputs": np.zeros((16, 16))}, "16 x 16 logits"),
        ({"mask_inputs": np.full((1, 16, 16), NAN)}, "mask input: expected finite numbers"),
        ({"boxes": [[0, 0, 1, 1]] * 2, "mask_inputs": np.zeros((1, 16, 16))}, "same number of each kind"),
    ],
)
def test_invalid_prompts_are_refused(kinds: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompts(**kinds)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_tensors_are_taken_with_gradients_and_of_any_dtype(dtype: torch.dtype) -> None:
    box = torch.tensor([1.0, 2.0, 30.0, 40.0]).to(dtype)
    if dtype.is_floating_point:
        box.requires_grad_()
    expected = prompts(boxes=[[1, 2, 30, 40]]).boxes
    for given in (box[None], [box], [list(box)], (tuple(box),)):
        torch.testing.assert_close(prompts(boxes=given).boxes, expected)


@pytest.mark.parametrize(
    ("kinds", "shape"),
    [
        ({"boxes": np.zeros((0, 4))}, (0, 4)),
        ({"boxes": []}, (0, 4)),
        ({"boxes": torch.zeros(0, 4)}, (0, 4)),
        ({"points": np.zeros((0, 3, 2)), "labels": np.zeros((0, 3))}, (0, 3, 2)),
        ({"points": [], "labels": []}, (0, 1, 2)),
        ({"mask_inputs": np.zeros((0, *MASK))}, (0, *MASK)),
    ],
)
def test_empty_prompts(kinds: dict[str, Any], shape: tuple[int, ...]) -> None:
    result = prompts(**kinds)
    assert len(result) == 0
    assert getattr(result, next(iter(kinds))).shape == shape
