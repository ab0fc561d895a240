"""Prompts of many images in one file, JSON or CSV."""

from __future__ import annotations

import csv
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saqsam.data.json_fields import is_finite, read_json
from saqsam.data.mask_pairs import read_mask
from saqsam.data.paths import expand_home
from saqsam.segmentation.objects import NO_CATEGORIES, OBJECT
from saqsam.segmentation.prompts import Prompt
from saqsam.utils.errors import shorten, shorten_names

_FIELDS = ("box", "points", "mask", "category")
_BOX_COLUMNS = ("x0", "y0", "x1", "y1")
_POINT_COLUMNS = ("x", "y")
_COLUMNS = ("image", "object", "category", *_BOX_COLUMNS, *_POINT_COLUMNS, "label")


@dataclass(frozen=True)
class PromptFile:
    """Prompts by image.

    Attributes:
        prompts: Prompts by the name of their image in the file.
        categories: Names of the categories by id.
        path: The file.
    """

    prompts: Mapping[str, tuple[Prompt, ...]]
    categories: Mapping[int, str]
    path: Path

    def of(self, name: str) -> tuple[Prompt, ...]:
        """Return the prompts of an image by its name or, where that is unique in the file, the last part of it."""
        if name in self.prompts:
            return self.prompts[name]
        given = self._by_last_part.get(PurePosixPath(name).name, [])
        return self.prompts[given[0]] if len(given) == 1 else ()

    @functools.cached_property
    def _by_last_part(self) -> Mapping[str, Sequence[str]]:
        return _by_last_part(self.prompts)

    def match(self, names: Sequence[str]) -> list[tuple[Prompt, ...]]:
        """Return the prompts of each of the images, none for images that the file does not list.

        Args:
            names: Names of the images. The file may give the whole name, or its last part where that is unique.

        Raises:
            ValueError: An image of the file is not among them, or its name fits several.
        """
        found: dict[str, tuple[Prompt, ...]] = {}
        missing = []
        whole, last_parts = set(names), _by_last_part(names)
        for given, prompts in self.prompts.items():
            fits = [given] if given in whole else last_parts.get(PurePosixPath(given).name, [])
            if len(set(fits)) > 1:
                raise ValueError(f"{self.path}: {shorten(given)} fits several images: {shorten_names(fits)}")
            if not fits:
                missing.append(given)
                continue
            found[fits[0]] = (*found.get(fits[0], ()), *prompts)
        if missing:
            raise ValueError(
                f"{self.path}: has prompts for images that are not given: {shorten_names(missing)}"
            )
        return [found.get(name, ()) for name in names]


def _by_last_part(names: Iterable[str]) -> dict[str, list[str]]:
    """Return names by their last part."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(PurePosixPath(name).name, []).append(name)
    return found


def read_prompts(path: str | Path) -> PromptFile:
    """Read a file of prompts.

    A JSON file is an object with a list of prompts for each image, or a list of prompts that name their `image`. A
    prompt is an object with one or more of

    - `box`: [x0, y0, x1, y1];
    - `points`: a list of [x, y] on the object, or [x, y, 0] beside it;
    - `mask`: the path of a picture of an earlier mask, relative to the file;

    and optionally a `category`, a name. A CSV file has a column `image`, the columns `x0, y0, x1, y1` of a box or
    `x, y` of a point or both, and optionally `label` (1 on the object, 0 beside it), `category` and `object`: rows
    with the same image and object describe one object. Coordinates are pixels of the image.

    Raises:
        ValueError: The file is missing or has another form.
    """
    path = expand_home(path)
    if path.suffix.lower() not in (".json", ".csv"):
        raise ValueError(f"{path}: expected prompts as .json or .csv")
    reader = _read_json if path.suffix.lower() == ".json" else _read_csv
    numbers: dict[str, int] = {}
    prompts: dict[str, list[Prompt]] = {}
    for image, category, prompt in reader(path):
        prompts.setdefault(image, []).append(_numbered(prompt, category, numbers))
    if not prompts:
        raise ValueError(f"{path}: expected at least one prompt, found none")
    categories = {number: name for name, number in numbers.items()}
    return PromptFile({image: tuple(several) for image, several in prompts.items()}, categories, path)


def parse_prompts(entries: Sequence[Any], where: str) -> tuple[tuple[Prompt, ...], Mapping[int, str]]:
    """Parse the prompts of one image, in the form of a JSON file's list for it, without masks.

    Args:
        entries: Plain values of JSON.
        where: Where they come from, for messages.

    Returns:
        The prompts, and the names of their categories by id.

    Raises:
        ValueError: A prompt has another form, or is a mask.
    """
    numbers: dict[str, int] = {}
    prompts = []
    for number, entry in enumerate(entries, 1):
        category, prompt = _parse_prompt(entry, None, f"{where}, prompt {number}")
        prompts.append(_numbered(prompt, category, numbers))
    return tuple(prompts), {number: name for name, number in numbers.items()} or NO_CATEGORIES


def parse_coco_box(bbox: Any, where: str) -> Prompt:
    """Parse the `bbox` of a COCO annotation as a prompt.

    Args:
        bbox: [x, y, width, height] in pixels.
        where: What the box belongs to, for messages.

    Raises:
        ValueError: The box has another form.
    """
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_finite, bbox)):
        raise ValueError(f"{where}: expected a bbox [x, y, width, height], got {shorten(bbox)}")
    x, y, width, height = map(float, bbox)
    return Prompt(box=(x, y, x + width, y + height))


def _numbered(prompt: Prompt, category: str, numbers: dict[str, int]) -> Prompt:
    """Return a prompt with the number of its category, which gets the next number if it is new."""
    return replace(prompt, category_id=numbers.setdefault(category, len(numbers) + 1))


def _read_json(path: Path) -> Iterator[tuple[str, str, Prompt]]:
    """Yield image, category and prompt."""
    content = read_json(path, Counter())
    entries: list[tuple[str, Any, str]] = []
    if isinstance(content, dict):
        for image, several in content.items():
            if not isinstance(several, list):
                raise ValueError(
                    f"{path}: {shorten(image)}: expected a list of prompts, got {type(several).__name__}"
                )
            entries += [
                (image, one, f"{path}: {shorten(image)}, prompt {i}") for i, one in enumerate(several, 1)
            ]
    elif isinstance(content, list):
        for number, one in enumerate(content, 1):
            where = f"{path}: prompt {number}"
            if not isinstance(one, dict) or not isinstance(one.get("image"), str):
                raise ValueError(f"{where}: expected an object with the name of an image in 'image'")
            entries.append((one["image"], {key: one[key] for key in one if key != "image"}, where))
    else:
        raise ValueError(f"{path}: expected an object or a list, got {type(content).__name__}")
    for image, one, where in entries:
        yield (image, *_parse_prompt(one, path.parent, where))


def _parse_prompt(content: Any, folder: Path | None, where: str) -> tuple[str, Prompt]:
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected an object, got {type(content).__name__}")
    unknown = sorted(set(content) - set(_FIELDS))
    if unknown:
        raise ValueError(f"{where}: expected {', '.join(_FIELDS)}, got {shorten_names(unknown)}")
    category = content.get("category", NO_CATEGORIES[OBJECT])
    if not isinstance(category, str) or not category:
        raise ValueError(f"{where}: expected the name of a category, got {shorten(category)}")
    box, points, mask = content.get("box"), content.get("points"), content.get("mask")
    if box is None and points is None and mask is None:
        raise ValueError(f"{where}: expected a box, points or a mask, got none")
    placed = [] if points is None else _parse_points(points, where)
    return category, Prompt(
        box=None if box is None else _parse_box(box, where),
        points=tuple((x, y) for x, y, _ in placed),
        labels=tuple(label for _, _, label in placed),
        mask=None if mask is None else _read_mask(mask, folder, where),
    )


def _parse_box(value: Any, where: str) -> tuple[float, float, float, float]:
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_finite, value)):
        raise ValueError(f"{where}: expected a box [x0, y0, x1, y1], got {shorten(value)}")
    x0, y0, x1, y1 = map(float, value)
    return (x0, y0, x1, y1)


def _parse_points(value: Any, where: str) -> list[tuple[float, float, int]]:
    """Return x, y and label of points; a single [x, y] counts as a list of one."""
    points = [value] if isinstance(value, list) and value and is_finite(value[0]) else value
    if not isinstance(points, list) or not points:
        raise ValueError(f"{where}: expected a list of points, got {shorten(value)}")
    parsed = []
    for point in points:
        is_point = isinstance(point, list) and len(point) in (2, 3) and all(map(is_finite, point))
        if not is_point or (len(point) == 3 and point[2] not in (0, 1)):
            raise ValueError(f"{where}: expected a point [x, y] or [x, y, 0], got {shorten(point)}")
        parsed.append((float(point[0]), float(point[1]), int(point[2]) if len(point) == 3 else 1))
    return parsed


def _read_mask(value: Any, folder: Path | None, where: str) -> NDArray[np.bool_]:
    if folder is None:
        raise ValueError(f"{where}: expected a box or points, got a mask")
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected the path of a mask, got {shorten(value)}")
    return read_mask(folder / expand_home(value))


def _read_csv(path: Path) -> Iterator[tuple[str, str, Prompt]]:
    """Yield image, category and prompt."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, restkey="", restval=""))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected CSV in UTF-8 ({error})") from error
    columns = set(rows[0]) if rows else set()
    has_box, has_point = columns.issuperset(_BOX_COLUMNS), columns.issuperset(_POINT_COLUMNS)
    unknown = sorted(columns - set(_COLUMNS))
    if unknown or "image" not in columns or not (has_box or has_point):
        found = f", found {shorten_names(sorted(columns))}" if columns else ", found no row"
        raise ValueError(f"{path}: expected the columns image and x0, y0, x1, y1 or x, y{found}")
    merged: dict[tuple[str, str], tuple[str, Prompt]] = {}
    for number, row in enumerate(rows, 2):
        where = f"{path}: line {number}"
        image, category = row["image"].strip(), row.get("category", "").strip() or NO_CATEGORIES[OBJECT]
        if not image:
            raise ValueError(f"{where}: expected the name of an image, got none")
        prompt = _parse_row(row, where)
        key = (image, row.get("object", "").strip() or f"line {number}")
        if key in merged:
            category, prompt = _merge(*merged[key], category, prompt, where)
        merged[key] = (category, prompt)
    for (image, _), (category, prompt) in merged.items():
        yield image, category, prompt


def _parse_row(row: Mapping[str, str], where: str) -> Prompt:
    box = _numbers(row, _BOX_COLUMNS, where)
    point = _numbers(row, _POINT_COLUMNS, where)
    corners = None if box is None else (box[0], box[1], box[2], box[3])
    label = row.get("label", "").strip() or "1"
    if box is None and point is None:
        raise ValueError(f"{where}: expected a box or a point, got none")
    if label not in ("0", "1"):
        raise ValueError(f"{where}: expected a label 0 or 1, got {shorten(label)}")
    if point is None:
        return Prompt(box=corners)
    return Prompt(box=corners, points=((point[0], point[1]),), labels=(int(label),))


def _numbers(row: Mapping[str, str], columns: tuple[str, ...], where: str) -> list[float] | None:
    """Return the numbers in some columns, or None if all are empty."""
    texts = [row.get(column, "").strip() for column in columns]
    if not any(texts):
        return None
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        numbers = []
    if not numbers or not all(map(is_finite, numbers)):
        raise ValueError(
            f"{where}: expected numbers in {', '.join(columns)}, got {shorten(', '.join(texts))}"
        )
    return numbers


def _merge(
    category: str, first: Prompt, other_category: str, second: Prompt, where: str
) -> tuple[str, Prompt]:
    """Return the prompt that two rows of the same object give."""
    if first.box is not None and second.box is not None:
        raise ValueError(f"{where}: expected one box for an object, got a second one")
    if category != other_category:
        raise ValueError(
            f"{where}: expected one category for an object, got {shorten(category)} and {shorten(other_category)}"
        )
    return category, replace(
        first,
        box=first.box or second.box,
        points=first.points + second.points,
        labels=first.labels + second.labels,
    )
