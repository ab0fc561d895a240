"""DOTA's folders as a data set: large aerial images, and objects as quadrilaterals in text files.

`ROOT/images/P0003.png` goes with `ROOT/labelTxt/P0003.txt`, whose lines are `x1 y1 x2 y2 x3 y3 x4 y4 category
difficult`, after up to two header lines, `imagesource:...` and `gsd:...`. Other data sets that come in this format
open just as well.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pycocotools.mask as rle_codec

from saqsam.data.coco import EMPTY_MASK
from saqsam.data.datasets import Instance, Sample
from saqsam.data.images import list_images, read_image_with_notes, read_size
from saqsam.data.json_fields import touches
from saqsam.data.polygons import convex_hull
from saqsam.data.rle import segmentation_to_rle

CATEGORIES = (
    *("plane", "ship", "storage-tank", "baseball-diamond", "tennis-court", "basketball-court"),
    *("ground-track-field", "harbor", "bridge", "large-vehicle", "small-vehicle", "helicopter"),
    *("roundabout", "soccer-ball-field", "swimming-pool"),
    "container-crane",  # since v1.5
    *("airport", "helipad"),  # since v2.0
)
"""Class 1, 2, ... of a `DotaDataset`; other names that its files hold follow, sorted."""

WITHOUT_LABELS = "image without label file"
WITHOUT_IMAGE = "label file without image"
NO_AREA = "quadrilateral without area"
OUTSIDE = "quadrilateral outside the image"
FAR_OUTSIDE = "quadrilateral with a corner more than an image size outside"

_HEADER = re.compile(r"(imagesource|gsd):", re.IGNORECASE)

_Corners = tuple[tuple[float, float], ...]


class _Label(NamedTuple):
    """A line of a label file."""

    corners: _Corners
    category: str
    is_difficult: bool


class DotaDataset:
    """Images with quadrilaterals; the mask of an object is what its quadrilateral covers.

    All label files are read at once, the images one at a time. What cannot be used is left out and counted by reason:
    images without label file and label files without image; quadrilaterals without area, outside the image or that
    cover no pixel. The mask of one that is not convex (four corners in a wrong order, say) is that of its convex
    hull; its `corners` are as in the file.

    Args:
        root: Folder with `images/` and `labelTxt/`.
        limit: Keep the first `limit` images that have labels, by name; None keeps all.

    Attributes:
        name: Of the folder.
        image_ids: Of the kept images: the place of each among all image files, sorted by name, from 1.
        digest: Of all label files.
        category_names: Name of each category id: `CATEGORIES`, and others that the files hold.

    Raises:
        ValueError: A folder is missing, two images have the same name, a line of a label file is none, with its number,
            or no image has labels.
    """

    def __init__(self, root: str | Path, *, limit: int | None = None) -> None:
        folder = Path(root)
        self.name = folder.resolve().name
        files = _by_stem(list_images(folder / "images"), folder)
        labels, self.digest = _read_labels(folder / "labelTxt")
        known = [stem for stem in files if stem in labels]
        if not known:
            raise ValueError(f"{folder}: expected label files of images, found none for {len(files)} images")
        self._index_skips = {
            WITHOUT_LABELS: len(files) - len(known),
            WITHOUT_IMAGE: len(labels) - len(known),
        }
        ids = {stem: number for number, stem in enumerate(files, start=1)}
        self.image_ids = tuple(ids[stem] for stem in known[:limit])
        self._files = {ids[stem]: path for stem, path in files.items()}
        self._labels = {ids[stem]: labels[stem] for stem in known}
        self._first_ids = {}  # of each image's first object: the same with every limit
        count = 1
        for image_id, own in self._labels.items():
            self._first_ids[image_id] = count
            count += len(own)
        others = {label.category for own in labels.values() for label in own} - set(CATEGORIES)
        self.category_names = dict(enumerate([*CATEGORIES, *sorted(others)], start=1))
        self._category_ids = {name: number for number, name in self.category_names.items()}
        self._sizes: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        """Read one image.

        Raises:
            ValueError: The image file cannot be read.
        """
        image_id = self.image_ids[index]
        path = self._files[image_id]
        image, notes = read_image_with_notes(path)
        height, width, _ = image.shape
        skipped: Counter[str] = Counter()
        instances = []
        for number, label in enumerate(self._labels[image_id], start=self._first_ids[image_id]):
            found = self._instance(number, label, (height, width))
            if isinstance(found, Instance):
                instances.append(found)
            else:
                skipped[found] += 1
        return Sample(image_id, path.name, image, tuple(instances), dict(skipped), notes=Counter(notes))

    def _instance(self, number: int, label: _Label, size: tuple[int, int]) -> Instance | str:
        """The object, or the reason why it is left out."""
        hull = convex_hull(label.corners)
        if len(hull) < 3:
            return NO_AREA
        (x0, y0), (x1, y1) = hull.min(axis=0).tolist(), hull.max(axis=0).tolist()
        if not touches((x0, y0, x1, y1), size):
            return OUTSIDE
        try:
            rle = segmentation_to_rle([hull.ravel().tolist()], size)
        except ValueError:
            return FAR_OUTSIDE
        if rle_codec.area(rle) == 0:
            return EMPTY_MASK
        return Instance(
            id=number,
            rle=rle,
            box=(x0, y0, x1, y1),
            category_id=self._category_ids[label.category],
            corners=label.corners,
            is_difficult=label.is_difficult,
        )

    def image_size(self, image_id: int) -> tuple[int, int]:
        """(height, width) of an image, kept or not, from the head of its file.

        Raises:
            ValueError: The file is no image.
        """
        if image_id not in self._sizes:
            self._sizes[image_id] = read_size(self._files[image_id])
        return self._sizes[image_id]

    def has_image(self, image_id: int) -> bool:
        """Whether there is an image of this id, kept or not."""
        return image_id in self._files

    @property
    def index_skipped(self) -> dict[str, int]:
        """What was left out when the folders were listed, by reason."""
        return {reason: count for reason, count in self._index_skips.items() if count}


def _by_stem(files: list[Path], folder: Path) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in files:
        other = named.setdefault(path.stem, path)
        if other is not path:
            raise ValueError(f"{folder}: expected one image of a name, got {other.name} and {path.name}")
    return named


def _read_labels(folder: Path) -> tuple[dict[str, list[_Label]], str]:
    """The labels of each file, by its name without ending, and a digest of all files."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of label files, found none")
    labels, digest = {}, hashlib.sha256()
    for path in sorted(folder.glob("*.txt")):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
        try:
            lines = content.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected UTF-8 text ({error})") from error
        labels[path.stem] = [
            _parse(line.split(), f"{path}:{number}")
            for number, line in enumerate(lines, start=1)
            if line.strip() and not _HEADER.match(line.strip())
        ]
    return labels, digest.hexdigest()[:12]


def _parse(words: list[str], where: str) -> _Label:
    """A line; without its last word, as some files have it, an object is not difficult."""
    if len(words) not in (9, 10):
        raise ValueError(
            f"{where}: expected x1 y1 x2 y2 x3 y3 x4 y4 category difficult, got {len(words)} words"
        )
    try:
        numbers = [float(word) for word in words[:8]]
    except ValueError as error:
        raise ValueError(f"{where}: expected eight coordinates ({error})") from error
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{where}: expected finite coordinates, got {' '.join(words[:8])}")
    difficult = words[9] if len(words) == 10 else "0"
    if not (difficult.isascii() and difficult.isdigit()):
        raise ValueError(f"{where}: expected difficult as 0 or 1, got {difficult!r}")
    corners = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    return _Label(corners, words[8], int(difficult) > 0)
