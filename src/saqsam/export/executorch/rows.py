"""Rows of tokens in modules to be traced: maps, windows, and the heads of an attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from saqsam.export.windows import Window


def partition(rows: Tensor, window: Window, side: int) -> Tensor:
    """Sort rows [1, h * w, C] of a square grid by window, with zero padding: [W, L, C]."""
    channels = rows.shape[-1]
    if window.count == 1 and not any(window.pad):
        return rows
    (high, wide), (down, right) = window.size, window.pad
    grid = rows.reshape(side, side, channels)
    if down or right:
        grid = F.pad(grid, (0, 0, 0, right, 0, down))
    grid = grid.reshape(window.rows, high, window.columns, wide, channels).transpose(1, 2)
    return grid.reshape(window.count, window.tokens, channels)


def unpartition(rows: Tensor, window: Window, side: int) -> Tensor:
    """Undo `partition`: [W, L, C] to [1, h * w, C]."""
    channels = rows.shape[-1]
    if window.count == 1 and not any(window.pad):
        return rows
    grid = rows.reshape(window.rows, window.columns, *window.size, channels).transpose(1, 2)
    grid = grid.reshape(side + window.pad[0], side + window.pad[1], channels)
    return grid[:side, :side].reshape(1, side * side, channels)


def to_map(rows: Tensor, side: int) -> Tensor:
    """Turn rows [1, h * w, C] of a square grid into a map [1, C, h, w]."""
    return rows.transpose(1, 2).reshape(1, -1, side, side)


def to_rows(image: Tensor) -> Tensor:
    """Turn a map [1, C, h, w] into rows [1, h * w, C]."""
    return image.permute(0, 2, 3, 1).reshape(1, image.shape[2] * image.shape[3], image.shape[1])


def split_heads(rows: Tensor, heads: int) -> Tensor:
    """Separate the heads of windows: [W, L, N * D] to [W * N, L, D]."""
    count, tokens, _ = rows.shape
    return rows.reshape(count, tokens, heads, -1).transpose(1, 2).reshape(count * heads, tokens, -1)


def split_qkv(qkv: Tensor) -> list[Tensor]:
    """Return queries, keys and values [W, L, C] of a joint projection [W, L, 3 * C]."""
    width = qkv.shape[-1] // 3
    return [qkv[..., start : start + width] for start in (0, width, 2 * width)]


def merge_heads(average: Tensor, heads: int) -> Tensor:
    """Undo `split_heads`: [W * N, L, D] to [W, L, N * D]."""
    tokens = average.shape[1]
    joined = average.reshape(-1, heads, tokens, average.shape[2]).transpose(1, 2)
    return joined.reshape(joined.shape[0], tokens, -1)


def average_in_blocks(
    average: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *by_query: Tensor, block: int
) -> Tensor:
    """Average the values of one window head by head and block by block, so that not all logits are in memory at once.

    Args:
        average: Function of queries [1, Q, D], keys, values and what belongs to the queries, to [1, Q, D].
        query: [N, L, D].
        key: [N, ...].
        value: [N, L, D].
        by_query: Further tensors [N, L, ...], which are cut like the queries.
        block: Queries in a block.

    Returns:
        [N, L, D].
    """
    joined = []
    for head in range(query.shape[0]):
        own = slice(head, head + 1)
        blocks = [
            average(
                query[own, start : start + block],
                key[own],
                value[own],
                *(tensor[own, start : start + block] for tensor in by_query),
            )
            for start in range(0, query.shape[1], block)
        ]
        joined.append(torch.cat(blocks, dim=1))
    return torch.cat(joined)
