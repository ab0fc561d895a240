"""Mask IoU, box filling and the streaming mean."""

import numpy as np
import pytest
import torch

from saqsam.data.rle import encode_mask
from saqsam.evaluation.metrics.iou import (
    MeanIoU,
    boundary_iou,
    clear_ignored,
    differing_pixels,
    fill_box,
    mask_iou,
    rle_ious,
)


def test_known_pairs() -> None:
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :2] = True  # 8 pixels
    masks[1, 1:3] = True  # 8 pixels, 4 of them shared with the first
    pairs = [(0, 0, 1.0), (0, 1, 4 / 12), (1, 0, 4 / 12), (0, 2, 0.0), (2, 2, 0.0)]
    first = torch.stack([masks[a] for a, _, _ in pairs])
    second = torch.stack([masks[b] for _, b, _ in pairs])
    assert mask_iou(first, second).tolist() == [value for _, _, value in pairs]


def test_large_masks_are_counted_exactly() -> None:
    # A float32 sum would be off beyond 2^24 pixels.
    mask = torch.ones(1, 4100, 4100, dtype=torch.bool)
    other = mask.clone()
    other[0, 0, 0] = False
    assert mask_iou(mask, other).item() == (4100**2 - 1) / 4100**2


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ((1.0, 2.0, 4.0, 5.0), range(2, 5), range(1, 4)),
        ((1.4, 2.4, 4.4, 5.4), range(2, 5), range(1, 4)),
        ((1.6, 2.6, 4.6, 5.6), range(3, 6), range(2, 5)),
        ((-3.0, -3.0, 90.0, 90.0), range(6), range(8)),
    ],
)
def test_a_filled_box_covers_the_pixels_whose_center_it_holds(
    box: tuple[float, float, float, float], rows: range, columns: range
) -> None:
    expected = np.zeros((6, 8), dtype=bool)
    expected[np.ix_(list(rows), list(columns))] = True
    np.testing.assert_array_equal(fill_box(box, (6, 8)), expected)


def test_mean_over_instances_not_images() -> None:
    metric = MeanIoU()
    metric.update(torch.tensor([1.0, 0.5, 0.0]))
    metric.update(torch.tensor([0.5]))
    metric.update(torch.tensor([]))
    assert metric.compute() == 0.5
    assert len(metric) == 4
    metric.reset()
    with pytest.raises(ValueError, match="at least one instance"):
        metric.compute()


def boundary_by_hand(mask: np.ndarray, reach: int) -> np.ndarray:
    """Pixels of a mask with one outside it in the square of `reach` around them, the border being outside."""
    padded = np.pad(mask, reach)
    near = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        near[y, x] = not padded[y : y + 2 * reach + 1, x : x + 2 * reach + 1].all()
    return near


@pytest.mark.parametrize("seed", range(4))
def test_boundary_iou_is_that_of_the_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = (40, 60)
    masks = []
    for _ in range(2):
        mask = np.zeros(shape, dtype=bool)
        for _ in range(3):
            y, x = random.integers(0, 30, 2)
            mask[y : y + random.integers(4, 25), x : x + random.integers(4, 25)] = True
        masks.append(mask)
    reach = round(0.05 * np.hypot(*shape))
    one, other = (boundary_by_hand(mask, reach) for mask in masks)
    expected = (one & other).sum() / (one | other).sum()
    assert boundary_iou(*masks, dilation_ratio=0.05) == expected


def test_boundary_iou_of_equal_empty_and_disjoint_masks() -> None:
    mask, empty = np.zeros((30, 30), dtype=bool), np.zeros((30, 30), dtype=bool)
    mask[5:20, 5:20] = True
    assert boundary_iou(mask, mask) == 1
    assert boundary_iou(mask, empty) == boundary_iou(empty, mask) == boundary_iou(empty, empty) == 0
    # At least one pixel wide: here the outlines of two squares of 15 and 13 that share no pixel.
    inner = np.zeros_like(mask)
    inner[6:19, 6:19] = True
    assert boundary_iou(mask, inner) == 0
    assert mask_iou(torch.from_numpy(mask)[None], torch.from_numpy(inner)[None]).item() == pytest.approx(
        169 / 225
    )


def test_ious_of_run_lengths_are_those_of_masks() -> None:
    random = np.random.default_rng(0)
    masks = random.random((5, 20, 30)) > 0.6
    counts = [encode_mask(mask)["counts"].decode() for mask in masks]
    found = rle_ious(counts[:2], counts[2:], (20, 30))
    for i in range(2):
        expected = mask_iou(torch.from_numpy(masks[i]).expand(3, 20, 30), torch.from_numpy(masks[2:]))
        np.testing.assert_allclose(found[i], expected, atol=1e-12)
    assert rle_ious([], counts, (20, 30)).shape == (0, 5)


def test_pixels_of_one_mask_alone() -> None:
    one, other = np.zeros((6, 8), dtype=bool), np.zeros((6, 8), dtype=bool)
    one[1:4, 1:5], other[2:6, 3:8] = True, True
    counts = [encode_mask(mask)["counts"].decode() for mask in (one, other)]
    assert differing_pixels(*counts, one.shape) == np.count_nonzero(one ^ other) == 24
    assert differing_pixels(counts[0], counts[0], one.shape) == 0


def test_ignored_pixels_count_neither_for_nor_against_a_mask() -> None:
    truth = torch.zeros(1, 8, 8, dtype=torch.bool)
    truth[:, 2:6, 2:6] = True
    ring = np.ones((8, 8), dtype=bool)
    ring[1:7, 1:7] = False
    counted = ring | truth[0].numpy()
    predicted = torch.zeros_like(truth)
    predicted[:, 1:7, 1:7] = True
    assert mask_iou(predicted, truth).item() == pytest.approx(16 / 36)
    assert mask_iou(clear_ignored(predicted, counted), truth).item() == 1.0
    assert clear_ignored(predicted, None) is predicted
    predicted[:, 0] = True  # beyond the ignored ring
    assert mask_iou(clear_ignored(predicted, counted), truth).item() == pytest.approx(16 / 24)
