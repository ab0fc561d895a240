"""DOTA's folders as a dataset: large aerial images, with objects as quadrilaterals in text files.

`ROOT/images/P0003.png` goes with `ROOT/labelTxt/P0003.txt`, whose lines are `x1 y1 x2 y2 x3 y3 x4 y4 category
difficult`, after header lines such as `imagesource:...` and `gsd:...`. Words are separated by spaces, tabs or commas.
Other datasets in this format work as well.
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
from saqsam.data.images import list_images, read_image_with_notes, read_size
from saqsam.data.json_fields import touches
from saqsam.data.paths import describe_folder, expand_home, is_hidden, unique_stems
from saqsam.data.polygons import convex_hull
from saqsam.data.rle import segmentation_to_rle
from saqsam.data.types import Instance, Sample
from saqsam.utils.errors import shorten

CATEGORIES = (
    *("plane", "ship", "storage-tank", "baseball-diamond", "tennis-court", "basketball-court"),
    *("ground-track-field", "harbor", "bridge", "large-vehicle", "small-vehicle", "helicopter"),
    *("roundabout", "soccer-ball-field", "swimming-pool"),
    "container-crane",  # since v1.5
    *("airport", "helipad"),  # since v2.0
)
"""Classes 1, 2, ... of a `DotaDataset`; other names in its files follow in alphabetical order."""

WITHOUT_LABELS = "image without label file"
WITHOUT_IMAGE = "label file without image"
NO_AREA = "quadrilateral without area"
OUTSIDE = "quadrilateral outside the image"
FAR_OUTSIDE = "quadrilateral with a corner more than an image size outside"

OTHER_SPELLING = "category name in another spelling"

_HEADER = re.compile(r"(imagesource|gsd|acquisition ?dates?)\s*:", re.IGNORECASE)
_LABEL_FOLDER = re.compile(r"labeltxt|(annfiles|labels)$", re.IGNORECASE)
_LOOKED_AT = 20
"""Maximum number of files in `labels` that are read to tell DOTA's format from YOLO's."""

_Corners = tuple[tuple[float, float], ...]


class _Label(NamedTuple):
    """A line of a label file."""

    corners: _Corners
    category: str
    is_difficult: bool


class DotaDataset:
    """Images with quadrilaterals. The mask of an object is the area of its quadrilateral.

    All label files are read at once, the images one at a time. Unusable entries are skipped and counted by reason:
    images without a label file, label files without an image, and quadrilaterals that have no area, lie outside the
    image or cover no pixel. The mask of a quadrilateral that is not convex (corners in the wrong order, for example) is
    that of its convex hull; its `corners` are as in the file.

    Args:
        root: Folder with `images/` and `labelTxt/`, or another folder that `find_label_folder` finds.
        limit: Keep the first `limit` images that have labels, by name; None keeps all.

    Attributes:
        name: Name of the folder.
        image_ids: Ids of the kept images: positions among all image files sorted by name, counted from 1.
        digest: Hash of all label files.
        category_names: Name of each category id: `CATEGORIES`, then other names in the files. Known names are matched
            in any case, and with spaces or underscores.
        index_notes: Number of labels with a known name in another spelling.

    Raises:
        ValueError: A folder is missing, two images have the same name, a line of a label file is malformed, or no image
            has labels.
    """

    def __init__(self, root: str | Path, *, limit: int | None = None) -> None:
        folder = expand_home(root)
        self.name = folder.resolve().name
        files = unique_stems(list_images(folder / "images"), "image")
        label_folder = find_label_folder(folder) or folder / "labelTxt"
        labels, self.digest = _read_labels(label_folder)
        known = [stem for stem in files if stem in labels]
        if not known:
            present = f"{next(iter(labels))}.txt" if labels else describe_folder(label_folder)
            raise ValueError(
                f"{folder}: expected label files of images, found none for {len(files)} images; expected names such "
                f"as {next(iter(files))}.txt in {label_folder.name}/, found {present}"
            )
        self._index_skips = {
            WITHOUT_LABELS: len(files) - len(known),
            WITHOUT_IMAGE: len(labels) - len(known),
        }
        ids = {stem: number for number, stem in enumerate(files, start=1)}
        self.image_ids = tuple(ids[stem] for stem in known[:limit])
        self._files = {ids[stem]: path for stem, path in files.items()}
        self._labels = {ids[stem]: labels[stem] for stem in known}
        self._first_ids = {}  # id of each image's first object, which does not depend on the limit
        count = 1
        for image_id, own in self._labels.items():
            self._first_ids[image_id] = count
            count += len(own)
        lines = [label for own in labels.values() for label in own]
        names = {name: _known_name(name) for name in {label.category for label in lines}}
        others = set(names.values()) - set(CATEGORIES)
        self.category_names = dict(enumerate([*CATEGORIES, *sorted(others)], start=1))
        numbers = {name: number for number, name in self.category_names.items()}
        self._category_ids = {written: numbers[name] for written, name in names.items()}
        self._sizes: dict[int, tuple[int, int]] = {}
        respelled = sum(names[label.category] != label.category for label in lines)
        self.index_notes = {OTHER_SPELLING: respelled} if respelled else {}

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
            instance = self._instance(number, label, (height, width))
            if isinstance(instance, Instance):
                instances.append(instance)
            else:
                skipped[instance] += 1
        return Sample(image_id, path.name, image, tuple(instances), dict(skipped), notes=Counter(notes))

    def _instance(self, number: int, label: _Label, size: tuple[int, int]) -> Instance | str:
        """Return the object, or the reason why it is skipped."""
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
        """Return the (height, width) of an image, kept or not, from the header of its file.

        Raises:
            ValueError: The file is not an image.
        """
        if image_id not in self._sizes:
            self._sizes[image_id] = read_size(self._files[image_id])
        return self._sizes[image_id]

    def has_image(self, image_id: int) -> bool:
        """Return whether there is an image with this id, kept or not."""
        return image_id in self._files

    @property
    def index_skipped(self) -> dict[str, int]:
        """Number of files skipped when the folders were listed, by reason."""
        return {reason: count for reason, count in self._index_skips.items() if count}


def find_label_folder(root: Path) -> Path | None:
    """Return the folder of label files: `labelTxt`, or else the only folder of label files with another known name.

    Known names begin with `labelTxt`, such as `labelTxt-v1.5`, or are `annfiles` (MMRotate) or `labels`, if its files
    are not YOLO's. The files may also lie in the only subfolder.

    Raises:
        ValueError: There are several and none is called `labelTxt`.
    """
    if (root / "labelTxt").is_dir():
        return _with_files(root / "labelTxt")
    named = [path for path in sorted(root.iterdir()) if path.is_dir() and _LABEL_FOLDER.match(path.name)]
    folders = [(_with_files(path), path.name.lower() == "labels") for path in named]
    labeled = [path for path, may_be_yolo in folders if _holds_labels(path, may_be_yolo)]
    if len(labeled) > 1:
        names = ", ".join(f"{path.relative_to(root)}/" for path in labeled)
        raise ValueError(
            f"{root}: expected one folder of label files, got {names}; call the one to use labelTxt"
        )
    return labeled[0] if labeled else None


def _with_files(folder: Path) -> Path:
    """Return the folder, or its only subfolder if the folder has no label files, as in DOTA's archives."""
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not is_hidden(path)]
    return inside[0] if not _label_files(folder) and len(inside) == 1 else folder


def _label_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".txt" and not is_hidden(path))


def _holds_labels(folder: Path, may_be_yolo: bool) -> bool:
    """Return whether a folder has label files, and whether the first label in them is DOTA's and not YOLO's."""
    files = _label_files(folder)
    if not may_be_yolo:
        return bool(files)
    for path in files[:_LOOKED_AT]:
        text = path.read_bytes()[:4096].decode("utf-8", errors="replace").lstrip("\ufeff")
        for line in text.splitlines():
            if line.strip() and not _HEADER.match(line.strip()):
                words = line.replace(",", " ").split()
                return len(words) >= 9 and all(map(_is_number, words[:8])) and not _is_number(words[8])
    return False


def _read_labels(folder: Path) -> tuple[dict[str, list[_Label]], str]:
    """Return the labels of each file by its name without suffix, and a hash of all files."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of label files, found none")
    labels, digest = {}, hashlib.sha256()
    for path in _label_files(folder):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
        labels[path.stem] = [
            _parse(line.replace(",", " ").split(), f"{path}:{number}")
            for number, line in enumerate(_read_text(path, content).splitlines(), start=1)
            if line.strip() and not _HEADER.match(line.strip())
        ]
    return labels, digest.hexdigest()[:12]


def _read_text(path: Path, content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
        raise ValueError(f"{path}: expected UTF-8 text, got UTF-16 or binary data; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text ({error})") from error


def _parse(words: list[str], where: str) -> _Label:
    """Parse a line. Without the last word, the object is not difficult."""
    if len(words) < 9:
        raise ValueError(
            f"{where}: expected x1 y1 x2 y2 x3 y3 x4 y4 category difficult, got {len(words)} words"
        )
    for word in words[:8]:
        if not _is_number(word):
            raise ValueError(
                f"{where}: expected eight coordinates (x y of four corners), got {shorten(word)}"
            )
    numbers = [float(word) for word in words[:8]]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{where}: expected finite coordinates, got {shorten(' '.join(words[:8]))}")
    category, difficult = (words[8:], "0") if len(words) == 9 else (words[8:-1], words[-1])
    if len(category) > 1 and any(_is_number(word) for word in category):
        raise ValueError(
            f"{where}: expected x1 y1 x2 y2 x3 y3 x4 y4 category difficult, got {len(words)} words"
        )
    if not (_is_number(difficult) and float(difficult) >= 0 and float(difficult).is_integer()):
        raise ValueError(f"{where}: expected difficult as 0 or 1, got {shorten(difficult)}")
    corners = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    return _Label(corners, " ".join(category), float(difficult) > 0)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return "_" not in word  # which Python allows between digits


def _known_name(category: str) -> str:
    """Return the name in `CATEGORIES` that differs only in case and separators; any other name unchanged."""
    return _PLAIN_CATEGORIES.get(re.sub(r"[\s_-]+", "-", category).lower(), category)


_PLAIN_CATEGORIES = {name.lower(): name for name in CATEGORIES}
