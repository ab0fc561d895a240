"""Attention maps of a report cover the image, and nothing of its padding."""

import torch

from saqsam.report.focus import token_map


def test_padding_is_left_out_where_there_is_any() -> None:
    attention = torch.rand(1, 2, 3, 64)
    padded = token_map(attention, 1, (50, 100))
    stretched = token_map(attention, 1, (50, 100), stretched=True)
    assert (padded.shape, stretched.shape) == ((4, 8), (8, 8))
    torch.testing.assert_close(padded, stretched[:4])
    torch.testing.assert_close(stretched, attention[0, :, 1].mean(0).reshape(8, 8))
