"""What a data set is here (`Instance`, `Sample`, `Dataset`) and how one is opened by name or path."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pycocotools.mask as rle_codec
from numpy.typing import NDArray

from saqsam.data.paths import expand_home
from saqsam.data.rle import decode_mask

SCENES = "scenes"
"""Name under which `open_dataset` gives the bundled generator."""

SIMULATED = "simulated"
"""What stands where a detector's file or a folder of label maps is expected, for those made of the truth."""

SCENES_COUNT = 100
"""Scenes in the bundled evaluation set; the first N of a longer or shorter set are the same."""


@dataclass(frozen=True)
class Instance:
    """One object of one image.

    Attributes:
        id: Number of the instance, unique in its data set.
        rle: COCO compressed run-length encoding `{"size": [H, W], "counts": bytes}` at image resolution.
        box: xyxy in original-image pixels; x1 and y1 are exclusive ends (COCO's x + w, y + h).
        category_id: Category number of the data set; 1 where the set has only one class.
        is_crowd: True for a COCO crowd region, which stands for many objects and is never a prompt.
        corners: Corners x, y of its outline, in the pixels of `box`, where the data set has them beside the pixels
            of the mask: the four of DOTA's quadrilateral, or those of all polygons of a COCO annotation.
        is_difficult: True for what DOTA calls difficult, which the task `oriented` leaves out.
    """

    id: int
    rle: dict[str, Any]
    box: tuple[float, float, float, float]
    category_id: int
    is_crowd: bool = False
    corners: tuple[tuple[float, float], ...] | None = None
    is_difficult: bool = False

    def mask(self) -> NDArray[np.bool_]:
        """Decode the mask: HW bool at image resolution."""
        return decode_mask(self.rle)

    @property
    def area(self) -> int:
        """Number of pixels of the mask, from the run lengths alone."""
        return int(rle_codec.area(self.rle))


@dataclass(frozen=True)
class Sample:
    """One image and its objects.

    Attributes:
        image_id: Number of the image, unique in its data set.
        file_name: Name of the file, relative to the data set, or a made-up one for generated images.
        image: HWC uint8 RGB in [0, 255], original resolution.
        instances: The objects; empty for a bare folder of images.
        skipped: How many objects of this image were left out, by reason; empty when none was.
        judged: Categories that the annotators looked for in this image, in sets such as LVIS; None: all.
        incomplete: Those of them of which not every object is annotated.
        labels: HW uint16, the class of each pixel, of data sets that have label maps instead of objects; see
            `label_png.LabelMap`.
        ignored: COCO run lengths, as `Instance.rle`, of the pixels that count neither as object nor as background; None
            where all pixels count.
        notes: How often something unusual in this image's files was accepted, by what it was, such as "box derived
            from segmentation"; empty when nothing was.
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
        """Decode the complement of `ignored`: HW bool, the pixels that count; None where all do."""
        return None if self.ignored is None else ~decode_mask(self.ignored)


class Dataset(Protocol):
    """A sequence of samples; each is read or made when it is asked for, so memory does not grow with it."""

    @property
    def name(self) -> str:
        """Short name for tables and files, such as `scenes` or `coco_val`."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class Indexed(Protocol):
    """A data set that says what it left out when it was opened."""

    @property
    def index_skipped(self) -> dict[str, int]:
        """How many images or annotations, by reason."""
        ...


@runtime_checkable
class Noted(Protocol):
    """A data set that says what it accepted although it was unusual when it was opened."""

    @property
    def index_notes(self) -> dict[str, int]:
        """How often, by what it was."""
        ...


def open_dataset(
    spec: str | Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    ignore_label: int | Literal["auto"] | None = "auto",
) -> Dataset:
    """Open a data set by name or path.

    Args:
        spec: One of
            - `scenes`: the bundled generator, 100 scenes (or `limit`) made from `seed`;
            - a folder with `images/` and `annotations.json` (COCO instance format), or the exports of Roboflow, Label
              Studio and CVAT in that format (`saqsam.data.coco_layout`);
            - an image folder of a COCO root, such as `ROOT/val2017` beside
              `ROOT/annotations/instances_val2017.json`;
            - the annotation file itself of COCO or LVIS, its images beside it, in a COCO root, or in `images/`;
            - a folder with `images/` and `masks/`, one mask an image, or other names of the two folders
              (`saqsam.data.pair_folders`);
            - a folder with `images/` and `labelTxt/` (DOTA's format);
            - a root of ADE20K's layout with `images/validation` and `annotations/validation`, or one of its image
              folders, such as `ROOT/images/training`: label maps, no instances;
            - a folder of images, which carries no instances: for calibration only.
            A leading `~` is the home folder.
        limit: Keep the first `limit` images; None keeps all.
        seed: Of the generated scenes; without meaning for files.
        ignore_label: For folders of images and masks: the value of mask pixels that count neither as object nor as
            background, or None; see `MaskPairDataset`.

    Returns:
        The data set; images are read or made one at a time, when asked for.

    Raises:
        ValueError: `spec` is none of these, holds no image or no valid annotations, or `limit` is below 1.
    """
    # The readers import the types above, so they cannot be imported at the top of this file.
    from saqsam.data.coco import CocoDataset
    from saqsam.data.coco_layout import find_annotations, name_of
    from saqsam.data.folder_layout import check_unused, open_folder
    from saqsam.data.scenes import ScenesDataset

    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1 image, got {limit}")
    if str(spec) == SCENES:
        check_unused(ignore_label, spec)
        return ScenesDataset(count=SCENES_COUNT if limit is None else limit, seed=seed)
    folder = expand_home(spec)
    if folder.suffix.lower() == ".json" and folder.is_file():
        check_unused(ignore_label, spec)
        return CocoDataset(None, folder, name=name_of(folder), limit=limit)
    if not folder.is_dir():
        problem = "it is a file" if folder.exists() else "no such folder"
        raise ValueError(
            f"data {str(spec)!r}: expected {SCENES!r}, a folder of images, a folder with images/ and "
            f"annotations.json, labelTxt/ or masks/, ROOT/SPLIT of a COCO root, an annotation file of COCO or LVIS, "
            f"or the root of ADE20K; {problem}"
        )
    coco = find_annotations(folder)
    if coco is not None:
        check_unused(ignore_label, spec)
        return CocoDataset.in_folder(coco, limit=limit)
    return open_folder(folder, limit=limit, ignore_label=ignore_label)
