"""Groups of channels by k-means: similar ranges together, one range for each group."""

import pytest
import torch

from saqsam.ptq.channel_groups import cluster, group_ranges

CENTERS = torch.tensor([[-1.0, 1.0], [-8.0, 0.5], [-0.1, 9.0], [-20.0, 20.0]])


def clustered(count: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends of ranges around four centers, float32 [C, 2], and the center of each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    return CENTERS[labels] + 0.05 * torch.randn(count, 2, generator=generator), labels


@pytest.mark.parametrize("seed", range(4))
def test_clear_clusters_are_found(seed: int) -> None:
    points, labels = clustered(seed=seed)
    found = cluster(points.double(), 4)
    assert found.dtype == torch.int64
    pairs = set(zip(labels.tolist(), found.tolist(), strict=True))
    assert len(pairs) == len(set(labels.tolist())) == 4


def test_channels_of_a_group_share_the_mean_range() -> None:
    points, labels = clustered()
    low, high = group_ranges(points[:, 0], points[:, 1], 4)
    assert low.dtype == high.dtype == torch.float32
    for group in range(4):
        members = labels == group
        assert len(low[members].unique()) == len(high[members].unique()) == 1
        torch.testing.assert_close(low[members][0], points[members, 0].mean())
        torch.testing.assert_close(high[members][0], points[members, 1].mean())


def test_every_point_is_in_the_nearest_cluster() -> None:
    points = torch.randn(200, 2, generator=torch.Generator().manual_seed(3)).double()
    labels = cluster(points, 5)
    centers = torch.stack([points[labels == group].mean(0) for group in range(5)])
    assert torch.equal((points[:, None] - centers).square().sum(2).argmin(1), labels)
    assert torch.equal(labels, cluster(points.clone(), 5))


def test_as_many_groups_as_channels_change_nothing() -> None:
    points, _ = clustered(6)
    for groups in (6, 7):
        low, high = group_ranges(points[:, 0], points[:, 1], groups)
        assert torch.equal(low, points[:, 0])
        assert torch.equal(high, points[:, 1])


def test_one_group_and_equal_channels_are_possible() -> None:
    low, high = group_ranges(torch.tensor([-1.0, -3.0, -2.0]), torch.tensor([1.0, 1.0, 4.0]), 1)
    assert (low.tolist(), high.tolist()) == ([-2.0] * 3, [2.0] * 3)
    low, high = group_ranges(-torch.ones(8), torch.ones(8), 4)
    assert (low.tolist(), high.tolist()) == ([-1.0] * 8, [1.0] * 8)
