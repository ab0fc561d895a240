"""The types of a dataset: `Instance`, `Sample` and the `Dataset` protocol."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from saqsam.data.rle import EncodedMask, decode_mask


@dataclass(frozen=True)
class Instance(EncodedMask):
    """One object of one image.

    Attributes:
        id: Number of the instance, unique in its dataset.
        rle: COCO compressed run-length encoding `{"size": [H, W], "counts": bytes}` at image resolution.
        box: xyxy in original-image pixels; x1 and y1 are exclusive ends (COCO's x + w, y + h).
        category_id: Category number of the dataset; 1 in a dataset with a single class.
        is_crowd: True for a COCO crowd region, which stands for many objects and is never a prompt.
        corners: Corners x, y of the outline in the frame of `box`, if the dataset states them: the four of DOTA's
            quadrilateral, or those of all polygons of a COCO annotation.
        is_difficult: True for objects that DOTA calls difficult, which the task `oriented` skips.
    """

    id: int
    rle: dict[str, Any]
    box: tuple[float, float, float, float]
    category_id: int
    is_crowd: bool = False
    corners: tuple[tuple[float, float], ...] | None = None
    is_difficult: bool = False


@dataclass(frozen=True)
class Sample:
    """One image and its objects.

    Attributes:
        image_id: Number of the image, unique in its dataset.
        file_name: Name of the file, relative to the dataset, or a generated name for images without a file.
        image: HWC uint8 RGB in [0, 255], original resolution.
        instances: The objects; empty for a bare folder of images.
        skipped: Number of skipped objects of this image, by reason.
        judged: Categories that the annotators looked for in this image, in datasets such as LVIS; None means all.
        incomplete: Judged categories of which not every object is annotated.
        labels: HW uint16, the class of each pixel (`label_png.LabelMap`), in datasets of label maps.
        ignored: COCO run lengths, as `Instance.rle`, of the pixels that count neither as object nor as background; None
            if all pixels count.
        notes: Number of accepted irregularities in this image's files, by kind, such as "box derived from
            segmentation".
    """

    image_id: int
    file_name: str
    image: NDArray[np.uint8]
    instances: tuple[Instance, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    judged: frozenset[int] | None = None
    incomplete: frozenset[int] = frozenset()
    labels: NDArray[np.uint16] | None = None
    notes: Mapping[str, int] = field(default_factory=dict)
    ignored: dict[str, Any] | None = None

    def counted(self) -> NDArray[np.bool_] | None:
        """Decode the complement of `ignored`: HW bool, the pixels that count; None if all do."""
        return None if self.ignored is None else ~decode_mask(self.ignored)


@runtime_checkable
class Dataset(Protocol):
    """A sequence of samples. Each is read or made on access, so memory does not grow with their number."""

    @property
    def name(self) -> str:
        """Short name for tables and files, such as `scenes` or `coco_val`."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class Indexed(Protocol):
    """A dataset that reports skipped images and annotations when it is opened."""

    @property
    def index_skipped(self) -> dict[str, int]:
        """Number of skipped images or annotations, by reason."""
        ...


@runtime_checkable
class Noted(Protocol):
    """A dataset that reports accepted irregularities when it is opened."""

    @property
    def index_notes(self) -> dict[str, int]:
        """Number of irregularities, by kind."""
        ...


@runtime_checkable
class Categorized(Protocol):
    """A dataset whose objects have named classes."""

    @property
    def category_names(self) -> Mapping[int, str]:
        """Name of each category id."""
        ...


def category_names(dataset: Dataset) -> Mapping[int, str]:
    """Return the class names of a dataset by category id; empty where it has none."""
    return dataset.category_names if isinstance(dataset, Categorized) else {}
