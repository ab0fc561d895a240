"""Find folders of images and masks by their names, and the names of mask files."""

from __future__ import annotations

import re
from pathlib import Path

from saqsam.data.images import has_images
from saqsam.data.paths import is_hidden

USUAL_FOLDERS = (("images", "masks"), ("Original", "Ground Truth"), ("*_Input", "*_GroundTruth"))
"""Pairs of names (glob patterns) that take precedence: Kvasir-SEG and many others, CVC-ClinicDB, ISIC."""
IMAGE_FOLDERS = (
    "images",
    "image",
    "imgs",
    "img",
    "JPEGImages",
    "Original",
    "imagesTr",
    "imagesTs",
    "imagesVal",
)
MASK_FOLDERS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "gt", "ground_truth", "segmentations"),
    *("segmentation", "seg", "masks_png", "labels_png", "manual", "1st_manual", "SegmentationClass"),
    *("SegmentationClassPNG", "SegmentationObject", "labelsTr", "labelsTs", "labelsVal"),
)
"""Other names of mask folders. Case and separators do not matter, also in `IMAGE_FOLDERS`."""
_ADE_LABELS = "annotations"  # whose folders of splits hold ADE20K's label maps
_SPLIT = re.compile(r"(images|labels)(tr|ts|val)")

MASK_ENDINGS = ("", "_segmentation", "_mask", "_seg", "_masks", "_gt", "_label", "-mask", "_groundtruth")
"""Endings that the name of a mask file may add to that of its image (`_segmentation`: ISIC)."""
_CHANNEL = "_0000"
"""Ending of nnU-Net's image files (the first channel), which their mask files lack."""


def find_pair_folders(root: str | Path) -> tuple[Path, Path] | None:
    """Return the folders of images and of masks in `root`; None if there is no such pair.

    `root` may also be the image folder of one of several splits, such as `imagesTr` beside `labelsTr`, or `images/val`
    beside `masks/val`.

    Raises:
        ValueError: There are several pairs.
    """
    root = Path(root)
    if not root.is_dir():
        return None
    for patterns in USUAL_FOLDERS:
        images, masks = ([p for p in sorted(root.glob(pattern)) if p.is_dir()] for pattern in patterns)
        if len(images) == len(masks) == 1:
            return images[0], masks[0]
    pairs = _pairs(root)
    if len(pairs) > 1:
        names = " and ".join(f"{images.name}/ + {masks.name}/" for images, masks in pairs)
        raise ValueError(
            f"{root}: expected one pair of folders of images and masks, got {names}; keep one in a folder of its own"
            + (f", or give {pairs[0][0]}" if len({images for images, _ in pairs}) == len(pairs) else "")
        )
    return pairs[0] if pairs else _split_pair(root)


def has_image_folder(root: Path) -> bool:
    """Return whether a folder holds one of `IMAGE_FOLDERS` with images in it."""
    return bool(_known_folders(root, _PLAIN_IMAGES))


def mask_names(image: Path) -> list[str]:
    """Return the names without suffix that the mask file of an image may have, the most likely first."""
    stems = [image.stem, image.stem.removesuffix(_CHANNEL), image.name]
    return list(dict.fromkeys(stem + ending for stem in stems for ending in MASK_ENDINGS))


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    """Return all pairs of folders in `root` that have known names of the same split and hold images."""
    images, masks = _known_folders(root, _PLAIN_IMAGES), _known_folders(root, _PLAIN_MASKS)
    return [(one, other) for one in images for other in masks if _split(one) == _split(other)]


def _split_pair(images: Path) -> tuple[Path, Path] | None:
    """Return an image folder that is one of several splits, and its mask folder."""
    whole = images.resolve()
    if _SPLIT.fullmatch(_plain(whole.name)):
        masks = [other for one, other in _pairs(whole.parent) if one.name == whole.name]
    elif _plain(whole.parent.name) in _PLAIN_IMAGES:
        named = [path for path in whole.parent.parent.iterdir() if _plain(path.name) in _PLAIN_MASKS]
        masks = [path / whole.name for path in named if path.name != _ADE_LABELS]
        masks = [path for path in masks if path.is_dir() and has_images(path)]
    else:
        return None
    return (images, masks[0]) if len(masks) == 1 and has_images(images) else None


def _known_folders(root: Path, names: frozenset[str]) -> list[Path]:
    """Return the folders in `root` that have one of the plain names and hold images."""
    folders = [path for path in sorted(root.iterdir()) if _plain(path.name) in names and not is_hidden(path)]
    return [path for path in folders if path.is_dir() and has_images(path)]


def _plain(name: str) -> str:
    return re.sub(r"[\s_.-]", "", name).lower()


def _split(folder: Path) -> str:
    """Return nnU-Net's split, such as `tr` for training; empty for all other folders."""
    match = _SPLIT.fullmatch(_plain(folder.name))
    return match[2] if match else ""


_PLAIN_IMAGES = frozenset(map(_plain, IMAGE_FOLDERS))
_PLAIN_MASKS = frozenset(map(_plain, MASK_FOLDERS))
