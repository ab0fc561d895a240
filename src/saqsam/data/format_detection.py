"""Detect the format of a folder without COCO's usual annotation file, by the names of its contents."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from saqsam.data.ade20k import AdeDataset, find_ade
from saqsam.data.coco import CocoDataset
from saqsam.data.coco_folders import find_export
from saqsam.data.dota import DotaDataset, find_label_folder
from saqsam.data.images import ImageFolder, has_images
from saqsam.data.mask_pair_folders import MASK_FOLDERS, find_pair_folders, has_image_folder
from saqsam.data.mask_pairs import MaskPairDataset
from saqsam.data.mask_values import IgnoreLabel
from saqsam.data.paths import describe_folder, is_hidden
from saqsam.data.types import Dataset

KNOWN = (
    "images (.jpg, .png, ...) or images/ with annotations.json (COCO), labelTxt/ (DOTA), masks/ or another folder of "
    "masks (labels/, gt/, SegmentationClass/, ...) or annotations/validation/ (ADE20K)"
)


def open_folder(folder: Path, *, limit: int | None = None, ignore_label: IgnoreLabel = "auto") -> Dataset:
    """Open a folder of DOTA, images and masks, ADE20K, an export of a labeling tool, or images, tried in this order.

    Args:
        folder: The folder.
        limit: As for `open_dataset`.
        ignore_label: As for `open_dataset`.

    Raises:
        ValueError: The folder is none of these, could be several, is incomplete, or is in YOLO's format; or
            `ignore_label` is set for another format than images and masks.
    """
    if find_label_folder(folder) is not None:
        check_unused(ignore_label, folder)
        return DotaDataset(folder, limit=limit)
    if find_pair_folders(folder) is not None:
        return MaskPairDataset(folder, limit=limit, ignore_label=ignore_label)
    check_unused(ignore_label, folder)
    yolo = None if has_images(folder) else _yolo_labels(folder)
    if yolo is not None:
        raise ValueError(
            f"{folder}: YOLO text labels are not read ({yolo.relative_to(folder)}); convert them to COCO"
        )
    ade = find_ade(folder)
    if ade is not None:
        return AdeDataset(*ade, limit=limit)
    export = find_export(folder)
    if export is not None:
        return CocoDataset.in_folder(export, limit=limit)
    if not has_images(folder):
        contents = describe_folder(folder)
        if has_image_folder(folder):
            names = ", ".join(MASK_FOLDERS)
            raise ValueError(
                f"{folder}: expected annotations beside the images: annotations.json (COCO), labelTxt/ (DOTA), or a "
                f"folder of masks ({names}); found {contents}"
            )
        raise ValueError(f"{folder}: expected {KNOWN}, found none; found {contents}")
    return ImageFolder(folder, limit=limit)


def check_unused(ignore_label: IgnoreLabel, spec: str | Path) -> None:
    """Refuse an ignore label for data other than images and masks.

    Raises:
        ValueError: It is not "auto".
    """
    if ignore_label != "auto":
        raise ValueError(
            f"{spec}: expected a folder of images and masks with ignore_label, found another format"
        )


def _yolo_labels(folder: Path) -> Path | None:
    """Return a text file in `labels/` or its subfolders."""
    files = (path for path in (folder / "labels").rglob("*.txt") if not is_hidden(path))
    return next(islice(files, 1), None)
