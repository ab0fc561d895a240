"""Window layout of the encoder's tokens, and block sizes for its global attentions."""

from __future__ import annotations

from dataclasses import dataclass

CACHED_BLOCK_LOGITS = 2**22
"""Logits of one block of a global attention: 16 MiB of float32, which stay in a CPU's cache from addition to softmax to
matrix product."""


@dataclass(frozen=True)
class Window:
    """Window layout of a block; a global block has one window.

    Attributes:
        size: (height, width) of a window in tokens.
        rows: Windows along the height of the padded grid.
        columns: Windows along its width.
        pad: Padding at the bottom and at the right, in tokens.
    """

    size: tuple[int, int]
    rows: int
    columns: int
    pad: tuple[int, int]

    @property
    def count(self) -> int:
        """Number of windows."""
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        """Tokens of one window."""
        return self.size[0] * self.size[1]

    def pooled(self, stride: int) -> Window:
        """Return the layout of the windows after their tokens were pooled, by a stride that divides their size."""
        (high, wide), (down, right) = self.size, self.pad
        return Window(
            (high // stride, wide // stride), self.rows, self.columns, (down // stride, right // stride)
        )


def window_of(size: int, side: int) -> Window:
    """Return the window layout of a block.

    Args:
        size: Side of a window in tokens; 0 for global attention.
        side: Side of the token grid.
    """
    if size == 0:
        return Window((side, side), 1, 1, (0, 0))
    count = -(-side // size)
    return Window((size, size), count, count, (count * size - side,) * 2)


def queries_per_block(heads: int, window: Window, max_block_logits: int | None) -> int | None:
    """Return the number of queries per block of a global attention; None to compute all heads and queries at once.

    Args:
        heads: Number of attention heads.
        window: Window layout of the block. Windowed attention is never split.
        max_block_logits: Largest number of logits of a block, which has queries of one head; None for no limit.
    """
    logits = window.count * heads * window.tokens**2
    if window.count > 1 or max_block_logits is None or logits <= max_block_logits:
        return None
    queries = window.tokens
    while queries % 2 == 0 and queries * window.tokens > max_block_logits:
        queries //= 2
    return queries
