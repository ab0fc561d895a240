"""Open a dataset by name or path, or from a list of images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from saqsam.data.coco import CocoDataset
from saqsam.data.coco_folders import find_annotations, name_of
from saqsam.data.format_detection import check_unused, open_folder
from saqsam.data.image_list import ImageList, ImageSource
from saqsam.data.images import IMAGE_SUFFIXES
from saqsam.data.mask_values import IgnoreLabel
from saqsam.data.paths import expand_home
from saqsam.data.scenes.dataset import ScenesDataset
from saqsam.data.types import Dataset

SCENES = "scenes"
"""Name under which `open_dataset` returns the bundled generator."""

SIMULATED = "simulated"
"""Name that stands in for a detector's file or a folder of label maps, for those simulated from the ground truth."""

SCENES_COUNT = 100
"""Scenes in the bundled evaluation set; the first N of a longer or shorter set are the same."""

DatasetSource = str | Path | Sequence[ImageSource] | Dataset
"""Everything that `open_dataset` and `as_dataset` take."""


def open_dataset(
    source: DatasetSource,
    *,
    limit: int | None = None,
    seed: int = 0,
    ignore_label: IgnoreLabel = "auto",
) -> Dataset:
    """Open a dataset by name or path, or from a list of images.

    Args:
        source: One of
            - `scenes`: the bundled generator, 100 scenes (or `limit`) made from `seed`;
            - a folder with `images/` and `annotations.json` (COCO instance format), or the exports of Roboflow, Label
              Studio and CVAT in that format (`saqsam.data.coco_folders`);
            - an image folder of a COCO root, such as `ROOT/val2017` beside
              `ROOT/annotations/instances_val2017.json`;
            - the annotation file itself of COCO or LVIS, its images beside it, in a COCO root, or in `images/`;
            - a folder with `images/` and `masks/`, one mask an image, or other names of the two folders
              (`saqsam.data.mask_pair_folders`);
            - a folder with `images/` and `labelTxt/` (DOTA's format);
            - a root of ADE20K's layout with `images/validation` and `annotations/validation`, or one of its image
              folders, such as `ROOT/images/training`: label maps, no instances;
            - a folder of images, which carries no instances: for calibration only;
            - a list of images (arrays, tensors, PIL images and paths, mixed; see `ImageList`), also for calibration
              only;
            - a dataset that is already open, which is returned unchanged.
            A leading `~` of a path is the home folder.
        limit: Keep the first `limit` images; None keeps all.
        seed: Seed of the generated scenes; ignored for everything else.
        ignore_label: For folders of images and masks: the value of mask pixels that count neither as object nor as
            background, or None; see `MaskPairDataset`.

    Returns:
        The dataset; images are read or made one at a time, on access.

    Raises:
        ValueError: `source` is none of these, holds no image or no valid annotations, `limit` is below 1, or an option
            does not apply to `source`.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1 image, got {limit}")
    if not isinstance(source, (str, os.PathLike)):
        check_unused(ignore_label, f"data of type {type(source).__name__}")
        return _open_object(source, limit)
    if str(source) == SCENES:
        check_unused(ignore_label, source)
        return ScenesDataset(count=SCENES_COUNT if limit is None else limit, seed=seed)
    path = expand_home(source)
    if path.suffix.lower() == ".json" and path.is_file():
        check_unused(ignore_label, source)
        return CocoDataset(None, path, name=name_of(path), limit=limit)
    if not path.is_dir():
        raise ValueError(_describe_missing(source, path))
    coco = find_annotations(path)
    if coco is not None:
        check_unused(ignore_label, source)
        return CocoDataset.in_folder(coco, limit=limit)
    return open_folder(path, limit=limit, ignore_label=ignore_label)


def as_dataset(source: DatasetSource) -> Dataset:
    """Return a dataset for anything that `open_dataset` takes, with its default options.

    Args:
        source: A name, a path, a list of images, or a dataset, which is returned unchanged.

    Raises:
        ValueError: `source` is none of these.
    """
    return open_dataset(source)


def _open_object(source: Sequence[ImageSource] | Dataset, limit: int | None) -> Dataset:
    """Open a list of images, or pass a dataset through."""
    if isinstance(source, (list, tuple)):
        return ImageList(source, limit=limit)
    problem = f"got {type(source).__name__}"
    if isinstance(source, (np.ndarray, torch.Tensor, Image.Image)):
        is_batch = not isinstance(source, Image.Image) and source.ndim == 4
        problem = "got a batch; pass list(batch)" if is_batch else "got one image; pass [image]"
    elif isinstance(source, Dataset):
        if limit is None:
            return source
        problem = "got an open dataset with limit; pass limit where it is opened"
    elif isinstance(source, Sequence) and not isinstance(source, (bytes, bytearray)):
        return ImageList(source, limit=limit)
    elif isinstance(source, Iterator):
        problem = f"got a {type(source).__name__}, which can be read only once; pass list(images)"
    raise ValueError(f"data: expected a name, a path, a list of images or a dataset, {problem}")


def _describe_missing(source: str | Path, path: Path) -> str:
    """Return the message for a path that is neither a folder nor an annotation file."""
    problem = "it is a file" if path.exists() else "no such folder"
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        problem = f"it is one image; pass a list of paths, such as [{str(source)!r}]"
    return (
        f"data {str(source)!r}: expected {SCENES!r}, a folder of images, a folder with images/ and "
        "annotations.json, labelTxt/ or masks/, ROOT/SPLIT of a COCO root, an annotation file of COCO or LVIS, "
        f"or the root of ADE20K; {problem}"
    )
