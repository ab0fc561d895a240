"""A folder of images and a folder of masks as a dataset, as in Kvasir-SEG, CVC-ClinicDB and ISIC."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle_codec
from numpy.typing import NDArray

from saqsam.data.coco import EMPTY_MASK, OTHER_SIZE
from saqsam.data.images import list_images, read_image_with_notes
from saqsam.data.mask_pair_folders import MASK_FOLDERS, find_pair_folders, mask_names
from saqsam.data.mask_values import (
    IGNORE_HINT,
    WHITE,
    IgnoreLabel,
    MaskFile,
    UnclearMask,
    check_ignore_label,
    interpret_mask,
    read_channels,
)
from saqsam.data.orientation import TRANSPOSED, apply_orientation, read_orientation
from saqsam.data.paths import describe_folder, expand_home, unique_stems
from saqsam.data.rle import encode_mask
from saqsam.data.segmentations import DAMAGED_MASK
from saqsam.data.types import Instance, Sample

NO_MASK = "image without a mask file"
NO_IMAGE = "mask file without an image"

TURNED = "mask rotated by the EXIF orientation of its image"
AS_SHOWN = "mask assumed to match the upright image, whose EXIF orientation keeps its size"
OTHER_CASE = "mask matched by its name in another case"

_SAMPLED_MASKS = 32
"""Number of masks that are read on opening."""


class MaskPairDataset:
    """Images with one mask each, in two folders: the mask of `NAME.jpg` is `NAME.png` or another of `mask_names`.

    Each image has one instance of category 1, its mask as `mask_values.interpret_mask` reads it. Ids count from 1 in
    the order of the sorted image names. Images without a mask, masks without an image, and masks that are damaged,
    empty or of another size than their image are skipped and counted by reason.

    The object must have the same value in all files, and so must the pixels to ignore. A sample of the masks is read on
    opening to find both values, which then settle masks that are unclear by themselves.

    Args:
        root: Folder that holds both folders; `mask_pair_folders` lists the names that they may have.
        limit: Keep the first `limit` images that have masks; None keeps all.
        ignore_label: Value of the mask pixels that are neither object nor background, 0 to 65535; None for no value.
            "auto" ignores 255 (65535 in 16 bits) in masks with the values 0, 1 and 255.

    Attributes:
        name: Name of the root folder.
        digest: Hash of the names and sizes of all mask files, and of `ignore_label` unless it is "auto".
        index_notes: Number of masks that were matched by their name in another case.

    Raises:
        ValueError: `root` holds no or several pairs of folders, no image with a mask, two files that differ only in
            their suffix, or label maps.
    """

    def __init__(
        self, root: str | Path, *, limit: int | None = None, ignore_label: IgnoreLabel = "auto"
    ) -> None:
        check_ignore_label(ignore_label)
        root = expand_home(root)
        folders = find_pair_folders(root)
        if folders is None:
            contents = describe_folder(root) if root.is_dir() else "no such folder"
            raise ValueError(
                f"{root}: expected folders images/ and masks/, found none; masks may also be in "
                f"{', '.join(MASK_FOLDERS[1:])}; found {contents}"
            )
        images, masks = (list_images(folder) for folder in folders)
        pairs = match_masks(images, masks)
        if not pairs:
            raise ValueError(
                f"{folders[1]}: expected masks named as the images in {folders[0]}, such as "
                f"{images[0].stem}.png, found {masks[0].name}"
            )
        self._index_skips = Counter({NO_MASK: len(images) - len(pairs), NO_IMAGE: len(masks) - len(pairs)})
        other_case = sum(mask.stem not in mask_names(image) for image, mask in pairs)
        self.index_notes = {OTHER_CASE: other_case} if other_case else {}
        self.name = root.resolve().name
        listed = "\n".join(f"{path.name} {path.stat().st_size}" for path in masks)
        listed += "" if ignore_label == "auto" else f"\nignore {ignore_label}"
        self.digest = hashlib.sha256(listed.encode()).hexdigest()[:12]
        self._ignore_label = ignore_label
        self._object_value: int | None = None
        self._detected_label: int | None = None
        self._object_example = ""
        self._detect_values([mask for _, mask in pairs])
        self._pairs = pairs[:limit]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        """Read one image and its mask.

        Raises:
            ValueError: The image cannot be read, or the mask is a label map.
        """
        image_path, mask_path = self._pairs[index]
        image_id = index % len(self) + 1
        image, image_notes = read_image_with_notes(image_path)
        mask_file, notes = self._read_mask(mask_path, image_path, image.shape[:2])
        notes.update(image_notes)
        if isinstance(mask_file, str):
            return Sample(image_id, image_path.name, image, skipped={mask_file: 1}, notes=dict(notes))
        ignored = None
        if mask_file.ignored is not None:
            ignored = encode_mask(mask_file.ignored)
            notes[f"mask with pixels of the ignore label {mask_file.ignore_value}"] += 1
        sample = Sample(image_id, image_path.name, image, notes=dict(notes), ignored=ignored)
        if not mask_file.mask.any():
            return replace(sample, skipped={EMPTY_MASK: 1})
        rle = encode_mask(mask_file.mask)
        x, y, width, height = rle_codec.toBbox(rle).tolist()
        instance = Instance(image_id, rle, (x, y, x + width, y + height), category_id=1)
        return replace(sample, instances=(instance,))

    def _read_mask(
        self, path: Path, image: Path, size: tuple[int, ...]
    ) -> tuple[MaskFile | str, Counter[str]]:
        """Return the mask of an image of `size`, or the reason why it cannot be used; and notes."""
        try:
            channels = read_channels(path)
        except ValueError:
            return DAMAGED_MASK, Counter()
        mask_file = self._interpret(path, channels)
        mask_file, notes = _as_shown(mask_file, image, size)
        return (mask_file if mask_file.mask.shape == size else OTHER_SIZE), Counter(notes)

    @property
    def index_skipped(self) -> dict[str, int]:
        """Number of files skipped when the folders were listed, by reason."""
        return dict(+self._index_skips)

    def _detect_values(self, masks: Sequence[Path]) -> None:
        """Find the values of the object and of the pixels to ignore from a sample of the masks."""
        places = np.linspace(0, len(masks) - 1, min(_SAMPLED_MASKS, len(masks))).astype(int)
        for path in (masks[place] for place in places.tolist()):
            try:
                channels = read_channels(path)
            except ValueError:
                continue  # Counted when its image is read.
            try:
                mask_file = interpret_mask(path, channels, self._ignore_label)
            except UnclearMask:
                continue  # The other masks may settle it.
            if self._object_value is None:
                self._object_value = self._value_of(mask_file)
                self._object_example = f"{mask_file.object_value} as in {path.name}"
            self._check_object_value(mask_file, path)
            self._detected_label = self._detected_label or mask_file.ignore_value

    def _interpret(self, path: Path, channels: NDArray[Any]) -> MaskFile:
        """Interpret a mask by the values that were detected on opening."""
        label = self._ignore_label
        if label == "auto" and self._detected_label is not None:
            label = self._detected_label
        elif label == "auto" and self._object_value == WHITE:
            label = None
        mask_file = interpret_mask(path, channels, label)
        if label != self._ignore_label and mask_file.ignored is not None and not mask_file.mask.any():
            # 255 alone: the ignore label of the other files, or an object with another value than theirs.
            self._check_object_value(MaskFile(mask_file.ignored, object_value=WHITE), path)
        self._check_object_value(mask_file, path)
        return mask_file

    def _check_object_value(self, mask_file: MaskFile, path: Path) -> None:
        value = self._value_of(mask_file)
        if value in (None, self._object_value) or self._object_value is None:
            return
        raise ValueError(
            f"{path}: expected objects of value {self._object_example}, got {mask_file.object_value}; {IGNORE_HINT}"
            + ("" if self._ignore_label is None else ", or None (none) if no value does")
        )

    def _value_of(self, mask_file: MaskFile) -> int | None:
        # Masks of 0 and 1 may be mixed with masks of 0 and 255 unless 255 may be an ignore label.
        is_one = mask_file.object_value == 1 and self._ignore_label != "auto"
        return WHITE if is_one else mask_file.object_value


def read_mask(path: str | Path, *, ignore_label: IgnoreLabel = "auto") -> NDArray[np.bool_]:
    """Return the object in a mask file as HW bool, as `mask_values.interpret_mask` reads it.

    Raises:
        ValueError: The file cannot be read, or its values are not those of a mask.
    """
    check_ignore_label(ignore_label)
    return interpret_mask(path, read_channels(path), ignore_label).mask


def match_masks(images: Sequence[Path], masks: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Return pairs of an image and its mask in the order of the images, without files that have no counterpart.

    Equal names are matched first, then the other `mask_names`, then the same names in another case. Each mask is
    used once.

    Raises:
        ValueError: Two images or two masks differ only in their suffix.
    """
    unique_stems(images, "image")
    free = unique_stems(masks, "mask")
    matched: dict[Path, Path] = {}
    for image in images:
        if image.stem in free:
            matched[image] = free.pop(image.stem)
    for image in images:
        name = next((name for name in mask_names(image) if name in free), None)
        if image not in matched and name is not None:
            matched[image] = free.pop(name)
    folded = {name.casefold(): path for name, path in free.items()}
    for image in images:
        name = next((name for name in map(str.casefold, mask_names(image)) if name in folded), None)
        if image not in matched and name is not None:
            matched[image] = folded.pop(name)
    return [(image, matched[image]) for image in images if image in matched]


def _as_shown(mask_file: MaskFile, image: Path, size: tuple[int, ...]) -> tuple[MaskFile, dict[str, int]]:
    """Return the mask of an upright image, and a note if the image has an EXIF orientation.

    A mask with the size of the stored image is rotated as the image was. If the orientation does not change the size,
    the mask is assumed to be upright.
    """
    orientation = read_orientation(image)
    if orientation == 1:
        return mask_file, {}
    if mask_file.mask.shape == size:
        could_be_stored = orientation not in TRANSPOSED or size[0] == size[1]
        return mask_file, {AS_SHOWN: 1} if could_be_stored else {}
    if orientation not in TRANSPOSED or mask_file.mask.shape != size[::-1]:
        return mask_file, {}
    ignored = None if mask_file.ignored is None else apply_orientation(mask_file.ignored, orientation)
    mask = apply_orientation(mask_file.mask, orientation)
    return MaskFile(mask, ignored, mask_file.object_value, mask_file.ignore_value), {TURNED: 1}
