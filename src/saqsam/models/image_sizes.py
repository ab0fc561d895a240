"""Input sizes that a model can be resized to."""

from __future__ import annotations

import operator

from saqsam.utils.errors import shorten


def check_image_size(image_size: int, *, multiple: int, largest: int) -> int:
    """Return an input size as an `int`, after checking that a model can have it.

    Args:
        image_size: Side of the square input in pixels.
        multiple: Pixels that divide every possible size, such as those of a patch.
        largest: Largest size, in pixels.

    Raises:
        ValueError: The size is no integer, no multiple of `multiple`, or out of range.
    """
    largest -= largest % multiple
    expected = f"image_size: expected a multiple of {multiple} from {multiple} to {largest}"
    try:
        size = operator.index(image_size)
    except TypeError as error:
        raise ValueError(f"{expected}, got {shorten(image_size)}") from error
    if isinstance(image_size, bool) or not multiple <= size <= largest:
        raise ValueError(f"{expected}, got {image_size}")
    if size % multiple:
        below = size - size % multiple
        nearest = f"{below} and {below + multiple}" if below + multiple <= largest else str(below)
        raise ValueError(f"{expected}, such as {nearest}; got {size}")
    return size
