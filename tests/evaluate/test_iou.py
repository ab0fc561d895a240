"""Mask IoU, box filling and the streaming mean."""

import numpy as np
import pytest
import torch

from saqsam.evaluate.iou import MeanIoU, fill_box, mask_iou


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
def test_a_filled_box_covers_the_pixels_whose_centre_it_holds(
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
