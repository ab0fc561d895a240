"""Read and check the lists of a COCO instance file: `images`, `categories` and `annotations`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saqsam.data.json_fields import parse_id, parse_side
from saqsam.utils.errors import shorten

UNKNOWN_IMAGE = "unknown image id"
NO_ANNOTATIONS = "annotation file without annotations"

_ID = "an integer below 2^53"


@dataclass(frozen=True)
class ImageRecord:
    """An entry of `images`.

    Attributes:
        id: Id of the image.
        name: `file_name`, or the last two parts of LVIS's `coco_url`, such as `val2017/000000000139.jpg`.
        size: (height, width) as stated; None unless the file states both.
        negative: Categories that LVIS states as absent from the image; None in other files.
        incomplete: Categories of which LVIS does not annotate every object.
    """

    id: int
    name: str
    size: tuple[int, int] | None
    negative: frozenset[int] | None
    incomplete: frozenset[int]


@dataclass(frozen=True, slots=True)
class Annotation:
    """An entry of `annotations`.

    Attributes:
        id: Id of the annotation.
        content: The whole entry.
    """

    id: int
    content: dict[str, Any]


@dataclass(frozen=True)
class Categories:
    """The list `categories`.

    Attributes:
        names: Name of each category id, in the order of the file.
        frequencies: LVIS's `r`, `c` or `f` by category id.
    """

    names: dict[int, str]
    frequencies: dict[int, str]


def check_content(content: Any, path: Path) -> dict[str, Any]:
    """Check the outermost level of an annotation file and return its content.

    Raises:
        ValueError: It is not an object with a list `images`.
    """
    expected = f"{path}: expected COCO instance JSON with a list 'images'"
    if isinstance(content, list):
        raise ValueError(f"{expected}, got a list, which is the form of a detections file")
    if not isinstance(content, dict):
        raise ValueError(f"{expected}, got {type(content).__name__}")
    if not isinstance(content.get("images"), list):
        keys = ", ".join(map(shorten, list(content)[:5])) or "no key"
        problem = f"'images' is {shorten(content['images'])}" if "images" in content else f"found {keys}"
        raise ValueError(f"{expected}; {problem}")
    return content


def read_images(records: list[Any], path: Path, notes: Counter[str]) -> list[ImageRecord]:
    """Check the list `images`.

    Raises:
        ValueError: An entry has no name, no integer id, an impossible size, or the id of another entry.
    """
    images: list[ImageRecord] = []
    seen: set[int] = set()
    for position, record in enumerate(records):
        image = _read_image(record, f"{path}: image {position}", notes)
        if image.id in seen:
            raise ValueError(f"{path}: expected unique image ids, got {image.id} twice")
        seen.add(image.id)
        images.append(image)
    return images


def _read_image(record: Any, where: str, notes: Counter[str]) -> ImageRecord:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected an object with file_name and id, got {shorten(record)}")
    number = parse_id(record.get("id"), notes)
    if number is None:
        raise ValueError(f"{where}: expected an id, {_ID}, got {shorten(record.get('id'))}")
    name, url = record.get("file_name"), record.get("coco_url")
    if not isinstance(name, str):
        if not isinstance(url, str):
            raise ValueError(f"{where}: expected file_name as text, got {shorten(name)}")
        name = "/".join(url.split("/")[-2:])
    negative = _read_ids(record, "neg_category_ids", where, notes)
    incomplete = _read_ids(record, "not_exhaustive_category_ids", where, notes)
    return ImageRecord(number, name, _read_size(record, where, notes), negative, incomplete or frozenset())


def _read_size(record: dict[str, Any], where: str, notes: Counter[str]) -> tuple[int, int] | None:
    sides = []
    for key in ("height", "width"):
        if record.get(key) is None:
            continue
        side = parse_side(record[key], notes)
        if side is None:
            raise ValueError(f"{where}: expected {key} as a positive integer, got {shorten(record[key])}")
        sides.append(side)
    return (sides[0], sides[1]) if len(sides) == 2 else None


def _read_ids(record: dict[str, Any], key: str, where: str, notes: Counter[str]) -> frozenset[int] | None:
    values = record.get(key)
    if values is None:
        return None
    ids = [parse_id(value, notes) for value in values] if isinstance(values, list) else [None]
    if any(number is None for number in ids):
        raise ValueError(f"{where}: expected {key} to be a list of integers, got {shorten(values)}")
    return frozenset(number for number in ids if number is not None)


def read_categories(listed: Any, path: Path, notes: Counter[str]) -> Categories:
    """Check the list `categories`; an absent or null one is empty.

    Raises:
        ValueError: It is not a list, an entry has no integer id, or two entries give one id different names.
    """
    if listed is None:
        return Categories({}, {})
    if not isinstance(listed, list):
        raise ValueError(f"{path}: expected 'categories' to be a list, got {type(listed).__name__}")
    names: dict[int, str] = {}
    frequencies: dict[int, str] = {}
    for category in listed:
        number = parse_id(category.get("id"), notes) if isinstance(category, dict) else None
        if number is None:
            raise ValueError(
                f"{path}: expected every category to have an integer id, got {shorten(category)}"
            )
        name = str(category.get("name", number))
        if names.setdefault(number, name) != name:
            both = f"{shorten(names[number])} and {shorten(name)}"
            raise ValueError(f"{path}: expected unique category ids, got {number} for {both}")
        if isinstance(category.get("frequency"), str):
            frequencies[number] = category["frequency"]
    return Categories(names, frequencies)


def read_annotations(
    listed: Any,
    path: Path,
    *,
    known: Container[int],
    kept: tuple[int, ...],
    notes: Counter[str],
    skips: Counter[str],
) -> dict[int, list[Annotation]]:
    """Check the list `annotations` and group it by image; an absent or null one is empty, which is noted.

    Args:
        listed: The JSON value.
        path: The file, for messages.
        known: Ids of all images of the file.
        kept: Ids of the images whose annotations are returned.
        notes: Counter of ids in unusual forms.
        skips: Counter of annotations of unknown images.

    Raises:
        ValueError: It is not a list, or an entry has no integer id or that of another entry.
    """
    if listed is None:
        notes[NO_ANNOTATIONS] += 1
        listed = []
    if not isinstance(listed, list):
        raise ValueError(f"{path}: expected 'annotations' to be a list, got {type(listed).__name__}")
    grouped: dict[int, list[Annotation]] = {image_id: [] for image_id in kept}
    seen: set[int] = set()
    for position, content in enumerate(listed):
        number = parse_id(content.get("id"), notes) if isinstance(content, dict) else None
        if number is None:
            actual = shorten(content.get("id")) if isinstance(content, dict) else shorten(content)
            raise ValueError(
                f"{path}: annotation {position}: expected an object with an integer id, got {actual}"
            )
        if number in seen:
            raise ValueError(f"{path}: expected unique annotation ids, got {number} twice")
        seen.add(number)
        image_id = parse_id(content.get("image_id"), notes)
        if image_id is None or image_id not in known:
            skips[UNKNOWN_IMAGE] += 1
        elif image_id in grouped:
            grouped[image_id].append(Annotation(number, content))
    return grouped
