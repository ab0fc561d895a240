"""Label maps of images: ground truth from a dataset or its objects, and predictions of any model in a folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from saqsam.data.ade20k import CLASSES, NO_LABEL, AdeDataset
from saqsam.data.label_png import IGNORE, LabelMap, read_label_map
from saqsam.data.paths import describe_folder, expand_home, is_hidden
from saqsam.data.types import Dataset, Sample, category_names

BACKGROUND = 0
"""Label of pixels that no object covers, in maps painted from objects; scored as a class like any other."""

MISSING_MAP = "missing label map"
DAMAGED_MAP = "damaged label map"
OTHER_SIZE_MAP = "label map of another size than the image"
UNKNOWN_LABEL = "label map with values outside the classes"


@dataclass(frozen=True)
class Unusable:
    """The reason why an image has no usable label map.

    Attributes:
        reason: Short reason, for counting.
        detail: Message that states the expected and the actual content.
    """

    reason: str
    detail: str


class LabelMaps(Protocol):
    """A source of one label map per image."""

    def options(self) -> dict[str, Any]:
        """Return the options that identify these maps, as plain values."""
        ...

    def find(self, sample: Sample, truth: LabelMap) -> LabelMap | Unusable:
        """Return the label map of an image, HW at its size, or the reason why there is none.

        Args:
            sample: The image.
            truth: Ground-truth labels of the image.
        """
        ...


class FolderLabels:
    """Label maps that another model predicted for the images of a dataset: PNG files in a folder.

    The map of `dir/name.jpg` is `FOLDER/dir/name.png`, or `FOLDER/name.png`. Labels are the numbers of the dataset
    itself: ADE20K's 1 to 150, not 0 to 149; category ids of COCO, and 0 for background. Pixels without a label have the
    largest value of the file's bit depth (`read_label_map`), or ADE20K's 0.

    Args:
        folder: Folder of the maps.
        dataset: Dataset of the images. If it lists classes, maps may hold no others.

    Raises:
        ValueError: `folder` is not a folder, or holds no PNG.
    """

    def __init__(self, folder: str | Path, dataset: Dataset) -> None:
        self._folder = expand_home(folder)
        if not self._folder.is_dir():
            problem = "a file" if self._folder.exists() else "nothing"
            raise ValueError(f"labels {folder}: expected a folder of label maps, found {problem}")
        paths = [path for path in sorted(self._folder.rglob("*")) if path.is_file()]
        names = {path.relative_to(self._folder): path for path in paths}
        self._files = {name: path for name, path in names.items() if _is_label_map(name)}
        if not self._files:
            contents = describe_folder(self._folder)
            raise ValueError(f"labels {folder}: expected label maps (.png), found none; found {contents}")
        # Names in lower case, for lookups in another case; the first of several counts.
        self._folded: dict[str, Path] = {}
        for name, path in self._files.items():
            self._folded.setdefault(name.as_posix().lower(), path)
        self._classes = label_classes(dataset)
        self._is_ade = isinstance(dataset, AdeDataset)

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, path in self._files.items():
            digest.update(name.as_posix().encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()[:12]

    def options(self) -> dict[str, Any]:
        """Return a hash of all files, as `LabelMaps.options`."""
        return {"labels": self._digest}

    def find(self, sample: Sample, truth: LabelMap) -> LabelMap | Unusable:
        """Read the map of an image, as `LabelMaps.find`."""
        named = Path(sample.file_name).with_suffix(".png")
        path = self._path_of(named)
        if path is None:
            return Unusable(
                MISSING_MAP, f"{named.name}: expected it as the map of {sample.file_name}, found none"
            )
        try:
            labels = read_label_map(path)
        except ValueError as error:
            return Unusable(DAMAGED_MAP, str(error))
        if labels.shape != truth.shape:
            expected, got = (f"{height} x {width}" for height, width in (truth.shape, labels.shape))
            return Unusable(OTHER_SIZE_MAP, f"{named.name}: expected {expected} pixels, got {got}")
        if self._is_ade:
            labels[labels == NO_LABEL] = IGNORE
        unknown = sorted({*np.unique(labels).tolist()} - self._classes - {IGNORE}) if self._classes else []
        if unknown:
            shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            return Unusable(UNKNOWN_LABEL, f"{named.name}: expected labels of the dataset, got {shown}")
        return labels

    def _path_of(self, named: Path) -> Path | None:
        """Return the label map at this path or with its last part as the name; failing that, in another case."""
        names = [named, Path(named.name)]
        paths = [self._files[name] for name in names if name in self._files]
        paths += [path for name in names if (path := self._folded.get(name.as_posix().lower())) is not None]
        return paths[0] if paths else None


def _is_label_map(name: Path) -> bool:
    is_visible = not any(is_hidden(Path(part)) for part in name.parts)
    return is_visible and name.suffix.lower() == ".png"


def label_classes(dataset: Dataset) -> frozenset[int]:
    """Return the labels of a dataset, including background; empty if it does not list them."""
    if isinstance(dataset, AdeDataset):
        return frozenset(range(1, CLASSES + 1))
    names = category_names(dataset)
    return frozenset({BACKGROUND, *names}) if names else frozenset()


def truth_labels(sample: Sample) -> LabelMap:
    """Return the ground-truth labels of an image: its own label map, or one painted from its objects.

    Larger objects are painted first, so that smaller ones lie on top; among equal areas the first object lies on top.
    Ignored pixels, and pixels of crowd regions that no object covers, have no label. All others are `BACKGROUND`.

    Returns:
        HW at the size of the image.

    Raises:
        ValueError: A category id cannot be a label: it is below 1 or above 65534.
    """
    if sample.labels is not None:
        return sample.labels
    labels = np.full(sample.image.shape[:2], BACKGROUND, dtype=np.uint16)
    counted = sample.counted()
    if counted is not None:
        labels[~counted] = IGNORE
    for crowd in (one for one in sample.instances if one.is_crowd):
        labels[crowd.mask()] = IGNORE
    objects = [one for one in sample.instances if not one.is_crowd]
    order = sorted(range(len(objects)), key=lambda place: (-objects[place].area, -place))
    for one in (objects[place] for place in order):
        if not BACKGROUND < one.category_id < IGNORE:
            raise ValueError(
                f"{sample.file_name}: expected category ids 1 to {IGNORE - 1} (0 is background), got {one.category_id}"
            )
        labels[one.mask()] = one.category_id
    return labels
