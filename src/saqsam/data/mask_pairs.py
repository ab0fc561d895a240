"""Images and masks in two folders, file by file, as medical sets come (Kvasir-SEG, CVC-ClinicDB, ISIC)."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pycocotools.mask as rle_codec
from numpy.typing import NDArray

from saqsam.data.coco import EMPTY_MASK, OTHER_SIZE
from saqsam.data.datasets import Instance, Sample
from saqsam.data.images import list_images, read_image_with_notes, read_values
from saqsam.data.rle import encode_mask

NO_MASK = "image without a mask file"
NO_IMAGE = "mask file without an image"

FOLDERS = (("images", "masks"), ("Original", "Ground Truth"), ("*_Input", "*_GroundTruth"))
"""Names of the two folders, as patterns: Kvasir-SEG and many others, CVC-ClinicDB, ISIC."""
MASK_ENDINGS = ("", "_segmentation", "_mask", "_seg")
"""What the name of a mask file may have after that of its image (`_segmentation`: ISIC)."""

_NEAR = 0.1
"""Values this close to 0 or to the largest, as a share of it, are what lossy compression makes of the two."""
_LEAST_NEAR = 0.9
"""Share of pixels that must be, for the image to be a mask: soft edges take up the rest."""
_LEAST_WHITE = 128
"""Below it, a third value is no shade of an edge but a label of its own."""


class MaskPairDataset:
    """Images with one mask each, in two folders: the mask of `NAME.jpg` is `NAME.png`, or another of `MASK_ENDINGS`.

    A mask is an image of two values (0 and 1, or 0 and 255, in any channel), possibly compressed with losses: what
    has at least half its largest value is the object. An image has one instance, all that its mask marks, of
    category 1. Ids count from 1 in the order of the sorted image names. Images without a mask, masks without an
    image, empty masks and those of another size than their image are left out and counted by reason.

    Args:
        root: The folder that holds both, named as in `FOLDERS`.
        limit: Keep the first `limit` images that have masks; None keeps all.

    Attributes:
        name: That of the root.
        digest: Of the names and sizes of all mask files.

    Raises:
        ValueError: `root` holds no such pair of folders, or no image with a mask.
    """

    def __init__(self, root: str | Path, *, limit: int | None = None) -> None:
        folders = find_pair_folders(root)
        if folders is None:
            raise ValueError(f"{root}: expected folders images/ and masks/, found none")
        images, masks = (list_images(folder) for folder in folders)
        by_stem = {path.stem: path for path in masks}
        pairs = [(image, _mask_of(image, by_stem)) for image in images]
        self._pairs = [(image, mask) for image, mask in pairs if mask is not None]
        if not self._pairs:
            raise ValueError(
                f"{folders[1]}: expected masks named as the images in {folders[0]}, such as "
                f"{images[0].stem}.png, found {masks[0].name}"
            )
        self._index_skips = Counter(
            {NO_MASK: len(pairs) - len(self._pairs), NO_IMAGE: len(masks) - len(self._pairs)}
        )
        self._pairs = self._pairs[:limit]
        self.name = Path(root).resolve().name
        listed = "\n".join(f"{path.name} {path.stat().st_size}" for path in masks)
        self.digest = hashlib.sha256(listed.encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        """Read one image and its mask.

        Raises:
            ValueError: A file cannot be read, or the mask's values are not two.
        """
        image_path, mask_path = self._pairs[index]
        image_id = index % len(self) + 1
        image, found = read_image_with_notes(image_path)
        mask, notes = read_mask(mask_path), Counter(found)
        if mask.shape != image.shape[:2]:
            return Sample(image_id, image_path.name, image, skipped={OTHER_SIZE: 1}, notes=notes)
        if not mask.any():
            return Sample(image_id, image_path.name, image, skipped={EMPTY_MASK: 1}, notes=notes)
        rle = encode_mask(mask)
        x, y, width, height = rle_codec.toBbox(rle).tolist()
        instance = Instance(image_id, rle, (x, y, x + width, y + height), category_id=1)
        return Sample(image_id, image_path.name, image, (instance,), notes=notes)

    @property
    def index_skipped(self) -> dict[str, int]:
        """What was left out when the folders were listed, by reason."""
        return dict(+self._index_skips)


def find_pair_folders(root: str | Path) -> tuple[Path, Path] | None:
    """The folders of images and of masks in `root`; None where there is no one such pair."""
    for patterns in FOLDERS:
        found = [[path for path in sorted(Path(root).glob(pattern)) if path.is_dir()] for pattern in patterns]
        if all(len(paths) == 1 for paths in found):
            return found[0][0], found[1][0]
    return None


def read_mask(path: str | Path) -> NDArray[np.bool_]:
    """Read an image of two values as a mask.

    Args:
        path: An image file; values of several channels count by the largest, alpha not at all.

    Returns:
        HW bool: at least half the largest value.

    Raises:
        ValueError: The file cannot be read, or its values are not two, up to soft edges and losses of compression: a
            map of many labels, say.
    """
    values = read_values(path)
    largest = int(values.max())
    if largest == 0:
        return np.zeros(values.shape, dtype=bool)
    share = values / largest
    count = len(np.unique(values))
    near = np.mean((share <= _NEAR) | (share >= 1 - _NEAR))
    if count > 2 and (largest < _LEAST_WHITE or near < _LEAST_NEAR):
        raise ValueError(f"{path}: expected a mask of two values, got {count} different ones up to {largest}")
    mask: NDArray[np.bool_] = share >= 0.5
    return mask


def _mask_of(image: Path, masks: dict[str, Path]) -> Path | None:
    return next((masks[name] for ending in MASK_ENDINGS if (name := image.stem + ending) in masks), None)
