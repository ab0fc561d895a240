"""Fuzz COCO annotation files and detections: every mutant must be read or refused with one short line."""

from __future__ import annotations

import copy
import functools
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fuzz.harness import VALID, Tally, arguments, report, run
from saqsam.data.detections import load_detections
from saqsam.data.open import open_dataset

_HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**53, 2**64, 10**400, -(10**18)),
    *(0.0, -0.0, 0.5, 7.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf")),
    *("", " ", "0", "1", "7", "7.0", "-3", "1e3", "nan", "one", "٣", "a" * 5000, "\ud800", "\0", "\n"),
    *("../../etc/passwd", "/etc/passwd", "..\\..\\a.png", "images/a.png", "http://[", "s3://x/a.png?y=1"),
    *("a/" * 5000 + "a.png", "/" * 9000, "a.PNG", "b", "%2e%2e/%2e%2e/etc/passwd", "a%20b.png"),
    *([], {}, [[]], [None], [[1, 2]], [[1, 2], [3, 4], [5, 1]], [1, 2, 30, 2, 30, 30], ["1", "2", "9", "9"]),
    *([{"x": 1, "y": 2}, {"x": 20, "y": 2}, {"x": 3, "y": 30}], [10, 5, 20, 20], [0, 0, 1e308, 1e308]),
    *({"size": [48, 64], "counts": [3072]}, {"size": [10**9, 10**9], "counts": [10**18]}),
    *({"size": ["48", 64.0], "counts": [0.0, "3072"]}, {"size": [48, 64], "counts": "~~~~"}),
)


def mutants(folder: Path, count: int, seed: int) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield mutants of an annotation file and of detections, written into `folder` when they are used."""
    _write_images(folder / "images")
    for number in range(count):
        yield f"mutant {number} of seed {seed}", functools.partial(_read, folder, f"{seed} {number}")


def _read(folder: Path, seed: str) -> str:
    rng = random.Random(seed)
    annotations, found = valid_annotations(), valid_detections()
    is_annotation_file = rng.random() < 0.75
    content = _mutate(annotations if is_annotation_file else found, rng)
    other = json.dumps(found if is_annotation_file else annotations).encode()
    (folder / "annotations.json").write_bytes(content if is_annotation_file else other)
    (folder / "found.json").write_bytes(other if is_annotation_file else content)
    dataset = open_dataset(folder / "annotations.json" if rng.random() < 0.5 else folder)
    for index in range(len(dataset)):
        _check_sample(dataset[index], folder)
    load_detections(folder / "found.json", dataset)
    return VALID


def _check_sample(sample: Any, folder: Path) -> None:
    """What is read is sound: every mask fits its image, every number is finite, no file lies elsewhere."""
    assert (folder / "images" / sample.file_name).resolve().is_relative_to(folder.resolve())
    for instance in sample.instances:
        mask = instance.mask()
        assert mask.shape == sample.image.shape[:2]
        assert mask.any()
        assert np.isfinite(instance.box).all()
        assert type(instance.category_id) is int
        assert type(instance.id) is int
        assert type(instance.is_crowd) is bool
    assert all(
        type(count) is int and count > 0 for count in (*sample.skipped.values(), *sample.notes.values())
    )
    json.dumps(sample.file_name).encode()


def _write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels).save(folder / "b.jpg", exif=exif)


def valid_annotations() -> dict[str, Any]:
    """An annotation file in every form that is accepted, with two images, one of them with EXIF rotation."""
    ring = [8, 6, 40, 6, 40, 30, 8, 30]
    runs = {"size": [48, 64], "counts": [100, 200, 2772]}
    segmentations: list[Any] = [[ring], ring, [ring, [1, 1, 2, 2]], [[[8, 6], [40, 6], [9, 30]]], runs]
    boxes: list[Any] = [[8, 6, 32, 24], None, ["8", "6", "32", "24"], [], [2.5, 4, 5.5, 40]]
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "height": 48, "width": 64},
            {"id": "2", "file_name": "images\\b.jpg", "height": 48.0, "width": "64"},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog", "frequency": "r"}],
        "annotations": [
            {
                "id": number,
                "image_id": 1 + number % 2,
                "category_id": 7,
                "segmentation": segmentation,
                "bbox": box,
                "iscrowd": 0,
            }
            for number, (segmentation, box) in enumerate(zip(segmentations, boxes, strict=True), start=1)
        ],
    }


def valid_detections() -> list[Any]:
    """Detections in the images of `valid_annotations`, one of them without a box."""
    ring = [8, 6, 40, 6, 40, 30, 8, 30]
    return [
        {"image_id": 1, "category_id": 7, "bbox": [8, 6, 32, 24], "score": 0.5},
        {"image_id": "2", "category_id": 7.0, "bbox": ["8", 6, 32, 24], "score": "0.25"},
        {"image_id": 1, "category_id": 1, "segmentation": [ring], "score": 1},
    ]


def _mutate(content: Any, rng: random.Random) -> bytes:
    """Content with one to four changed values, and sometimes changed bytes, as a file."""
    content = [copy.deepcopy(content)]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _change(content, rng)
    text = json.dumps(content[0])
    encoded = bytearray(text.encode(rng.choice(("utf-8",) * 8 + ("utf-8-sig", "utf-16"))))
    if rng.random() < 0.15:
        _damage(encoded, rng)
    return bytes(encoded)


def _change(content: list[Any], rng: random.Random) -> None:
    """Replace, remove, repeat or wrap one value somewhere below `content`."""
    container, key = rng.choice(list(_places(content)))
    change: Callable[[Any], Any] = rng.choice(_CHANGES)
    if rng.random() < 0.15 and container is not content:
        del container[key]
    elif rng.random() < 0.6:
        container[key] = copy.deepcopy(rng.choice(_HOSTILE))
    else:
        container[key] = change(container[key])


def _places(container: Any) -> Iterator[tuple[Any, Any]]:
    """All containers and keys below a value; a stack, since values may be nested deeply."""
    stack = [container]
    while stack:
        one = stack.pop()
        for key in list(one) if isinstance(one, dict) else range(len(one)):
            yield one, key
            if isinstance(one[key], dict | list):
                stack.append(one[key])


def _nest(value: Any) -> Any:
    for _ in range(300):
        value = [value]
    return value


_CHANGES: tuple[Callable[[Any], Any], ...] = (
    str,
    lambda value: [value],
    lambda value: {"value": value},
    lambda value: [value, value],
    lambda value: value * 3 if isinstance(value, list | str) else value,
    lambda value: -value if isinstance(value, int | float) else value,
    lambda value: float(value) if isinstance(value, int) and abs(value) < 2**60 else value,
    lambda value: value[::-1] if isinstance(value, list | str) else value,
    lambda value: value[:-1] if isinstance(value, list | str) else value,
    _nest,
)


def _damage(encoded: bytearray, rng: random.Random) -> None:
    """Flip, cut, insert or repeat bytes in place."""
    place = rng.randrange(len(encoded))
    action = rng.randrange(5)
    if action == 0:
        encoded[place] ^= 1 << rng.randrange(8)
    elif action == 1:
        del encoded[place:]
    elif action == 2:
        encoded[place:place] = rng.randbytes(3)
    elif action == 3:
        encoded += bytes(encoded)  # two values, as in JSON lines
    else:
        encoded[place:place] = b"[" * rng.choice((10, 100_000))


def fuzz(count: int, seed: int) -> list[Tally]:
    """Run `count` mutants."""
    with tempfile.TemporaryDirectory() as folder:
        return [run("annotations and detections", mutants(Path(folder), count, seed))]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the long fuzz and print its table."""
    options = arguments(argv, count=5000)
    return report(fuzz(options.count, options.seed))


if __name__ == "__main__":
    sys.exit(main())
