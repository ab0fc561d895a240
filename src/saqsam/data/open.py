"""Open a dataset by name or path."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from saqsam.data.paths import expand_home
from saqsam.data.types import Dataset

SCENES = "scenes"
"""Name under which `open_dataset` gives the bundled generator."""


SIMULATED = "simulated"
"""What stands where a detector's file or a folder of label maps is expected, for those made of the truth."""


SCENES_COUNT = 100
"""Scenes in the bundled evaluation set; the first N of a longer or shorter set are the same."""


DatasetSource = str | Path | Sequence[Any] | Dataset
"""Everything that `as_dataset` takes."""


def as_dataset(source: DatasetSource) -> Dataset:
    """Return a dataset for a name, a path, or a dataset, which is returned unchanged.

    Raises:
        ValueError: `source` is none of these.
    """
    if isinstance(source, str | Path):
        return open_dataset(source)
    if isinstance(source, Dataset):
        return source
    raise ValueError(f"data: expected a name, a path or a dataset, got {type(source).__name__}")


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
    from saqsam.data.scenes.dataset import ScenesDataset

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
