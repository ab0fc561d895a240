"""How the tokens of an encoder lie in windows, and how many queries of a global attention are computed at once."""

from __future__ import annotations

from dataclasses import dataclass

CACHED_BLOCK_LOGITS = 2**22
"""16 MiB of float32: what stays in a processor's caches while it is added to, normalised and multiplied."""


@dataclass(frozen=True)
class Window:
    """How tokens lie in windows: `size` on a side, padded grid of `rows` x `columns` windows; one, if global."""

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


def window_of(size: int, side: int) -> Window:
    """The windows of a block; a size of 0 is global attention."""
    if size == 0:
        return Window((side, side), 1, 1, (0, 0))
    count = -(-side // size)
    return Window((size, size), count, count, (count * size - side,) * 2)


def queries_per_block(heads: int, window: Window, max_block_logits: int | None) -> int | None:
    """None for all at once; else so many queries of one head that their logits are no more than wanted."""
    logits = window.count * heads * window.tokens**2
    if window.count > 1 or max_block_logits is None or logits <= max_block_logits:
        return None
    queries = window.tokens
    while queries % 2 == 0 and queries * window.tokens > max_block_logits:
        queries //= 2
    return queries
