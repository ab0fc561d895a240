"""Map a function over items in other threads, a few calls ahead of their turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

_Item = TypeVar("_Item")
_Value = TypeVar("_Value")


def map_ahead(
    pool: Executor, function: Callable[[_Item], _Value], items: Iterable[_Item], ahead: int
) -> Iterator[_Value]:
    """Yield the function's values in the order of the items.

    Unlike `Executor.map`, this reads items only as they are needed, and holds few values.

    Args:
        pool: Runs the calls.
        function: The function.
        items: Its arguments.
        ahead: Calls that are submitted before their turn; 0 makes one call at a time.
    """
    waiting: deque[Future[_Value]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
