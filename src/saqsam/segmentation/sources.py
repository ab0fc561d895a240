"""Images to segment, from all that a command line can name: files, folders, patterns, lists, datasets, URLs, stdin."""

from __future__ import annotations

import glob
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from saqsam.data.coco import CocoDataset
from saqsam.data.coco_folders import find_annotations
from saqsam.data.detections import Detections, load_detections
from saqsam.data.images import list_images, read_image_bytes, read_image_with_notes
from saqsam.data.open import SCENES, open_dataset
from saqsam.data.paths import expand_home
from saqsam.data.types import Dataset, Sample, category_names
from saqsam.segmentation.formats.registry import MASKS
from saqsam.segmentation.objects import NO_CATEGORIES, OBJECT
from saqsam.segmentation.prompts import Prompt
from saqsam.utils.errors import shorten, shorten_message

STDIN = "-"
LIST_SUFFIX = ".txt"
MAX_DOWNLOAD = 2**28
"""Largest image that is read from a URL or from standard input, in bytes."""
_TIMEOUT = 30.0
"""Seconds that a server may stay silent."""

Pixels = tuple[NDArray[np.uint8], tuple[str, ...], tuple[Prompt, ...]]
"""HWC uint8 RGB, notes on how it was read, and the prompts that come with the image."""


@dataclass(frozen=True)
class ImageSource:
    """An image to segment, which is read when it is its turn.

    Attributes:
        image_id: Number of the image, unique among the sources.
        name: Path relative to what was named, with `/`, or the last part of a URL.
        read: Reads the image.
        path: The image file, or None.
        categories: Names of the categories of its prompts by id.
        has_prompts: Whether prompts come with it.
    """

    image_id: int
    name: str
    read: Callable[[], Pixels]
    path: Path | None = None
    categories: Mapping[int, str] = field(default_factory=lambda: NO_CATEGORIES)
    has_prompts: bool = False


def find_sources(names: Sequence[str], detections: Path | None = None) -> list[ImageSource]:
    """Find the images that are named on a command line, in that order.

    Args:
        names: Each one of

            - an image file, or a folder of images;
            - a pattern such as `photos/*.jpg` or `photos/**/*.png`;
            - a text file (`.txt`) with a path on each line, relative to it;
            - an annotation file of COCO or LVIS or its folder, or `scenes`: the boxes of its objects are prompts;
            - `-`, an image from standard input;
            - a URL.
        detections: COCO results file, whose boxes are prompts in place of the annotated ones. The images come from one
            annotation file.

    Raises:
        ValueError: There is no such image, or detections come without an annotation file.
    """
    found: list[tuple[str, Path | None, Callable[[], Pixels]]] = []
    sets: list[Dataset] = []
    for name in names:
        dataset = _open_annotated(name)
        if dataset is None:
            found += _find_plain(name)
        else:
            sets.append(dataset)
    if detections is not None and (found or len(sets) != 1):
        raise ValueError("detections: expected images from one annotation file of COCO or LVIS")
    if sets and (found or len(sets) > 1):
        raise ValueError("images: expected one annotated dataset, or images and folders, not both")
    if sets:
        boxes = None if detections is None else load_detections(detections, sets[0])
        return _of_dataset(sets[0], boxes)
    return [ImageSource(number, name, read, path) for number, (name, path, read) in enumerate(found, 1)]


def _open_annotated(name: str) -> Dataset | None:
    """Open a dataset whose objects are prompts; None for anything else."""
    path = expand_home(name)
    is_annotated = path.suffix.lower() == ".json" and path.is_file()
    if name == SCENES or is_annotated or (path.is_dir() and find_annotations(path) is not None):
        return open_dataset(name)
    return None


def _of_dataset(dataset: Dataset, detections: Detections | None) -> list[ImageSource]:
    categories = category_names(dataset)

    def reader(index: int) -> Callable[[], Pixels]:
        def read() -> Pixels:
            sample = dataset[index]
            prompts = _prompts_of(sample, detections)
            if not categories:  # ids without names are those of no list
                prompts = tuple(replace(prompt, category_id=OBJECT) for prompt in prompts)
            return sample.image, tuple(sample.notes), prompts

        return read

    entries: list[tuple[int, str, Path | None]]
    if isinstance(dataset, CocoDataset):
        entries = [(image_id, *dataset.file_of(image_id)) for image_id in dataset.image_ids]
    else:
        entries = [(index + 1, f"{dataset.name}_{index + 1:04}.png", None) for index in range(len(dataset))]
    return [
        ImageSource(image_id, name, reader(index), path, categories or NO_CATEGORIES, has_prompts=True)
        for index, (image_id, name, path) in enumerate(entries)
    ]


def _prompts_of(sample: Sample, detections: Detections | None) -> tuple[Prompt, ...]:
    if detections is None:
        return tuple(
            Prompt(box=one.box, category_id=one.category_id) for one in sample.instances if not one.is_crowd
        )
    boxes = detections.of(sample)
    if boxes is None:
        return ()
    return tuple(
        Prompt(box=(box[0], box[1], box[2], box[3]), category_id=category, score=score)
        for box, category, score in zip(
            boxes.boxes.tolist(), boxes.category_ids.tolist(), boxes.scores.tolist(), strict=True
        )
    )


def _find_plain(name: str) -> list[tuple[str, Path | None, Callable[[], Pixels]]]:
    if name == STDIN:
        return [("stdin", None, lambda: _decode(_read_stdin(), "standard input"))]
    if urllib.parse.urlsplit(name).scheme in ("http", "https"):
        last = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(name).path)).name
        return [(last or "image", None, lambda: _decode(_download(name), shorten(name)))]
    files = find_files(name)
    # Pictures of masks that were written beside their images are no images to segment.
    stems = {str(PurePosixPath(relative).with_suffix("")) for relative, _ in files}
    return [
        (relative, path, _file_reader(path))
        for relative, path in files
        if not (len(files) > 1 and _is_masks_of(relative, stems))
    ]


def _is_masks_of(relative: str, stems: set[str]) -> bool:
    stem = str(PurePosixPath(relative).with_suffix(""))
    return stem.endswith(MASKS) and stem.removesuffix(MASKS) in stems


def find_files(name: str) -> list[tuple[str, Path]]:
    """Return the image files of a path, pattern or list, each with its name relative to that."""
    path = expand_home(name)
    if path.is_dir():
        return [(file.name, file) for file in list_images(path)]
    if path.suffix.lower() == LIST_SUFFIX and path.is_file():
        return _read_list(path)
    if path.exists() or not glob.has_magic(name):
        if not path.exists():
            raise ValueError(f"no image {name}: no such file or folder")
        return [(path.name, path)]
    root = Path(*_before_magic(path))
    files = sorted(file for file in root.glob(str(path.relative_to(root))) if file.is_file())
    if not files:
        raise ValueError(f"no image matches {name}")
    return [(file.relative_to(root).as_posix(), file) for file in files]


def _before_magic(path: Path) -> list[str]:
    """Return the parts of a pattern before the first with a wildcard."""
    parts: list[str] = []
    for part in path.parts:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts


def _read_list(path: Path) -> list[tuple[str, Path]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a list of paths in UTF-8 ({shorten_message(error)})") from error
    entries = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not entries:
        raise ValueError(f"{path}: expected the path of an image on each line, found none")
    files = []
    for entry in entries:
        file = path.parent / expand_home(entry)
        is_below = not PurePosixPath(entry).is_absolute() and ".." not in PurePosixPath(entry).parts
        files.append((PurePosixPath(entry).as_posix() if is_below else file.name, file))
    return files


def _file_reader(path: Path) -> Callable[[], Pixels]:
    def read() -> Pixels:
        return (*read_image_with_notes(path), ())

    return read


def _read_stdin() -> bytes:
    content = sys.stdin.buffer.read(MAX_DOWNLOAD + 1)
    if len(content) > MAX_DOWNLOAD:
        raise ValueError(f"standard input: expected an image of at most {MAX_DOWNLOAD:,} bytes")
    if not content:
        raise ValueError("standard input: expected an image, found nothing")
    return content


def _download(url: str) -> bytes:
    # Only http and https come here, so that a list of URLs opens no local file.
    request = urllib.request.Request(url, headers={"User-Agent": "saqsam"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            content: bytes = response.read(MAX_DOWNLOAD + 1)
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise ValueError(f"{shorten(url)}: cannot be read: {shorten_message(reason)}") from error
    if len(content) > MAX_DOWNLOAD:
        raise ValueError(f"{shorten(url)}: expected an image of at most {MAX_DOWNLOAD:,} bytes")
    return content


def _decode(content: bytes, name: str) -> Pixels:
    return (*read_image_bytes(content, name), ())
