"""Layouts of plain values, to check records that come back from a file.

A layout is one of

- `int`, `float` (integers too), `str` or `bool`: a value of that type;
- `ANY`: any value;
- `RUNS`: run lengths of a mask of the image's size, as `rle_text` writes them; `SIZE`: that size, [height, width];
- `[layout]`: a list; `(layout, layout)`: a list of exactly these; `AtLeast(n, layout)`: of n or more;
- `{"name": layout, "other?": layout}`: an object with these names, those with a question mark optional;
- `Each(layout)`: an object with any names;
- `Maybe(layout)`: null as well; `OneOf((layout, layout))`: any of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from saqsam.data.rle import segmentation_to_rle
from saqsam.utils.errors import shorten

Layout = Any
RUNS = "run lengths"
SIZE = "the size of the image"
ANY = "anything"
MAX_PIXELS = 2**28
"""Pixels of an image that a record may claim; images are refused far below."""


@dataclass(frozen=True)
class Each:
    """An object with any names, all of whose values have one layout."""

    layout: Layout


@dataclass(frozen=True)
class OneOf:
    """A value of one of several layouts."""

    layouts: tuple[Layout, ...]


@dataclass(frozen=True)
class AtLeast:
    """A list of at least `least` values of one layout."""

    least: int
    layout: Layout


@dataclass(frozen=True)
class Maybe:
    """A value of a layout, or null."""

    layout: Layout


def check_layout(value: Any, layout: Layout, size: tuple[int, int], where: str) -> None:
    """Check plain values against a layout.

    Args:
        value: What a JSON parser returned.
        layout: See the module.
        size: Height and width of the image, for run lengths.
        where: What the value is, for messages.

    Raises:
        ValueError: The value has another layout.
    """
    if isinstance(layout, Maybe):
        if value is not None:
            check_layout(value, layout.layout, size, where)
    elif isinstance(layout, OneOf):
        _check_alternatives(value, layout, size, where)
    elif isinstance(layout, AtLeast):
        check_layout(value, [layout.layout], size, where)
        if len(value) < layout.least:
            raise _unexpected(where, f"{layout.least} values or more", value)
    elif isinstance(layout, Each | dict):
        _check_object(value, layout, size, where)
    elif isinstance(layout, list | tuple):
        _check_list(value, layout, size, where)
    elif layout == ANY:
        return
    elif layout == SIZE:
        if value != list(size):
            raise _unexpected(where, f"the size of the image, {list(size)}", value)
    elif layout == RUNS:
        if not isinstance(value, str):
            raise _unexpected(where, RUNS, value)
        segmentation_to_rle({"size": list(size), "counts": value}, size)
    else:
        accepted = (int, float) if layout is float else layout
        if not isinstance(value, accepted) or (isinstance(value, bool) and layout is not bool):
            raise _unexpected(where, layout.__name__, value)


def check_size(value: Any) -> tuple[int, int]:
    """Return the size of an image, height and width, from plain values.

    Raises:
        ValueError: It is not the size of an image.
    """
    check_layout(value, (int, int), (0, 0), "size")
    height, width = value
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise _unexpected("size", "height and width of an image", value)
    return height, width


def _check_object(value: Any, layout: Each | dict[str, Layout], size: tuple[int, int], where: str) -> None:
    if not isinstance(value, dict):
        raise _unexpected(where, "an object", value)
    if isinstance(layout, Each):
        for name, one in value.items():
            check_layout(one, layout.layout, size, f"{where}.{shorten(name)}")
        return
    known = {name.removesuffix("?"): one for name, one in layout.items()}
    required = {name for name in layout if not name.endswith("?")}
    if not required <= value.keys() <= known.keys():
        raise _unexpected(where, ", ".join(known), list(value))
    for name, one in value.items():
        check_layout(one, known[name], size, f"{where}.{name}")


def _check_alternatives(value: Any, layout: OneOf, size: tuple[int, int], where: str) -> None:
    for one in layout.layouts[:-1]:
        try:
            return check_layout(value, one, size, where)
        except ValueError:
            continue
    return check_layout(value, layout.layouts[-1], size, where)


def _check_list(
    value: Any, layout: list[Layout] | tuple[Layout, ...], size: tuple[int, int], where: str
) -> None:
    if not isinstance(value, list):
        raise _unexpected(where, "a list", value)
    if isinstance(layout, tuple) and len(value) != len(layout):
        raise _unexpected(where, f"{len(layout)} values", value)
    layouts = layout if isinstance(layout, tuple) else layout * len(value)
    for place, (one, expected) in enumerate(zip(value, layouts, strict=True)):
        check_layout(one, expected, size, f"{where}[{place}]")


def _unexpected(where: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{where}: expected {expected}, got {shorten(value)}")
