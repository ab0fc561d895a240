"""Schemas of records, which check the plain values that come back from a file.

A schema is one of

- `int`, `float` (integers too), `str` or `bool`: a value of that type;
- `ANY`: any value;
- `MASK_COUNTS`: run lengths of a mask of the image's size, as `rle_text` writes them; `IMAGE_SIZE`: that size as
  [height, width];
- `[schema]`: a list; `(schema, schema)`: a list of exactly these; `AtLeast(n, schema)`: a list of n or more;
- `{"name": schema, "other?": schema}`: an object with these keys; a question mark makes a key optional;
- `MapOf(schema)`: an object with any keys;
- `Nullable(schema)`: a value or null; `OneOf((schema, schema))`: a value of any of these.

Records stay plain values from the model to the file and back, so a schema beside each task is shorter than a class and
a parser for every nested object, and as strict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from saqsam.data.rle import segmentation_to_rle
from saqsam.utils.errors import shorten

Schema = Any
MASK_COUNTS = "run lengths"
IMAGE_SIZE = "the size of the image"
ANY = "anything"
MAX_PIXELS = 2**28
"""Largest image, in pixels, that a record may claim; readers refuse images far below."""


@dataclass(frozen=True)
class MapOf:
    """Object with any keys, whose values have one schema."""

    schema: Schema


@dataclass(frozen=True)
class OneOf:
    """Value of one of several schemas."""

    schemas: tuple[Schema, ...]


@dataclass(frozen=True)
class AtLeast:
    """List of at least `least` values of one schema."""

    least: int
    schema: Schema


@dataclass(frozen=True)
class Nullable:
    """Value of a schema, or null."""

    schema: Schema


def check_schema(value: Any, schema: Schema, size: tuple[int, int], where: str) -> None:
    """Check plain values against a schema.

    Args:
        value: Value as a JSON parser returned it.
        schema: One of the forms listed above.
        size: Height and width of the image, for run lengths.
        where: Name of the value in error messages.

    Raises:
        ValueError: The value does not match the schema.
    """
    if isinstance(schema, Nullable):
        if value is not None:
            check_schema(value, schema.schema, size, where)
    elif isinstance(schema, OneOf):
        _check_alternatives(value, schema, size, where)
    elif isinstance(schema, AtLeast):
        check_schema(value, [schema.schema], size, where)
        if len(value) < schema.least:
            raise _unexpected(where, f"{schema.least} values or more", value)
    elif isinstance(schema, MapOf | dict):
        _check_object(value, schema, size, where)
    elif isinstance(schema, list | tuple):
        _check_list(value, schema, size, where)
    elif schema == ANY:
        return
    elif schema == IMAGE_SIZE:
        if value != list(size):
            raise _unexpected(where, f"the size of the image, {list(size)}", value)
    elif schema == MASK_COUNTS:
        if not isinstance(value, str):
            raise _unexpected(where, MASK_COUNTS, value)
        segmentation_to_rle({"size": list(size), "counts": value}, size)
    else:
        accepted = (int, float) if schema is float else schema
        if not isinstance(value, accepted) or (isinstance(value, bool) and schema is not bool):
            raise _unexpected(where, schema.__name__, value)


def check_size(value: Any) -> tuple[int, int]:
    """Return an image size as (height, width) from plain values.

    Raises:
        ValueError: The value is not the size of an image.
    """
    check_schema(value, (int, int), (0, 0), "size")
    height, width = value
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise _unexpected("size", "height and width of an image", value)
    return height, width


def _check_object(value: Any, schema: MapOf | dict[str, Schema], size: tuple[int, int], where: str) -> None:
    if not isinstance(value, dict):
        raise _unexpected(where, "an object", value)
    if isinstance(schema, MapOf):
        for name, one in value.items():
            check_schema(one, schema.schema, size, f"{where}.{shorten(name)}")
        return
    known = {name.removesuffix("?"): one for name, one in schema.items()}
    required = {name for name in schema if not name.endswith("?")}
    if not required <= value.keys() <= known.keys():
        raise _unexpected(where, ", ".join(known), list(value))
    for name, one in value.items():
        check_schema(one, known[name], size, f"{where}.{name}")


def _check_alternatives(value: Any, schema: OneOf, size: tuple[int, int], where: str) -> None:
    for one in schema.schemas[:-1]:
        try:
            return check_schema(value, one, size, where)
        except ValueError:
            continue
    return check_schema(value, schema.schemas[-1], size, where)


def _check_list(
    value: Any, schema: list[Schema] | tuple[Schema, ...], size: tuple[int, int], where: str
) -> None:
    if not isinstance(value, list):
        raise _unexpected(where, "a list", value)
    if isinstance(schema, tuple) and len(value) != len(schema):
        raise _unexpected(where, f"{len(schema)} values", value)
    schemas = schema if isinstance(schema, tuple) else schema * len(value)
    for place, (one, expected) in enumerate(zip(value, schemas, strict=True)):
        check_schema(one, expected, size, f"{where}[{place}]")


def _unexpected(where: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{where}: expected {expected}, got {shorten(value)}")
