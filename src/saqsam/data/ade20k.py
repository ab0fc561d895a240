"""ADE20K's scene parsing benchmark as a dataset: images with one label map each and without objects."""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import cached_property
from pathlib import Path

import numpy as np

from saqsam.data.images import list_images, read_image_with_notes
from saqsam.data.label_png import IGNORE, LabelMap, NoLabels, read_label_map
from saqsam.data.paths import describe_folder, expand_home, is_hidden, unique_stems
from saqsam.data.types import Sample

CLASSES = 150
"""Number of classes, whose labels are 1 to 150."""
NO_LABEL = 0
"""Label of pixels outside all classes, which are ignored."""

MISSING_ANNOTATION = "missing annotation"
DAMAGED_ANNOTATION = "damaged annotation"
COLOR_ANNOTATION = "annotation in colors or other values than 8 or 16 bits"
OTHER_SIZE_ANNOTATION = "annotation of another size than the image"
UNKNOWN_ANNOTATION = "annotation with values above 150"


class AdeDataset:
    """Images of `ROOT/images/SPLIT` with label maps of `ROOT/annotations/SPLIT`, PNG files of the same stem.

    Labels are 1 to 150; 0 marks pixels outside all classes. Images without an annotation are skipped and counted. An
    annotation that is damaged, in colors, of another size or with other values is counted too; the image is kept
    without any labeled pixel.

    Args:
        root: The folder unpacked from ADEChallengeData2016.zip.
        split: `validation` or `training`.
        limit: Keep the first `limit` images, in the order of their names; None keeps all.

    Attributes:
        name: `ade20k_` and the split.
        category_names: Name of each label, from `ROOT/objectInfo150.txt`; empty without that file.
        index_skipped: Number of images skipped when the folder was listed, by reason.

    Raises:
        ValueError: A folder is missing, two files have one name, no image is left, or objectInfo150.txt is not the
            table of the classes.
    """

    def __init__(self, root: str | Path, split: str = "validation", *, limit: int | None = None) -> None:
        root = expand_home(root)
        folder = root / "annotations" / split
        if not folder.is_dir():
            raise ValueError(
                f"{folder}: expected the folder of ADE20K's label maps, found none; the root is that of "
                "ADEChallengeData2016.zip, not of the full ADE20K release"
            )
        images = list_images(root / "images" / split)
        unique_stems(images, "image")
        label_maps = sorted(
            path for path in folder.iterdir() if path.suffix.lower() == ".png" and not is_hidden(path)
        )
        self._annotations = unique_stems(label_maps, "label map")
        self.name = f"ade20k_{split}"
        self.index_skipped: dict[str, int] = {}
        self._images: list[Path] = []
        for path in images:
            if len(self._images) == limit:
                break
            if path.stem in self._annotations:
                self._images.append(path)
            else:
                self.index_skipped[MISSING_ANNOTATION] = self.index_skipped.get(MISSING_ANNOTATION, 0) + 1
        if not self._images:
            raise ValueError(
                f"{folder}: expected label maps named as the images, such as {images[0].stem}.png, found none of "
                f"{len(images)}; found {label_maps[0].name if label_maps else describe_folder(folder)}"
            )
        table = root / "objectInfo150.txt"
        self.category_names = _read_names(table) if table.is_file() else {}

    @cached_property
    def digest(self) -> str:
        """Hash of the label maps of the kept images."""
        digest = hashlib.sha256()
        for image in self._images:
            digest.update(image.stem.encode() + b"\0" + self._annotations[image.stem].read_bytes())
        return digest.hexdigest()[:12]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        """Read one image and its label map; image ids count from 1.

        Raises:
            ValueError: The image file cannot be read.
        """
        path = self._images[index]
        image, notes = read_image_with_notes(path)
        labels = _read_annotation(self._annotations[path.stem], image.shape[:2])
        skipped: Counter[str] = Counter()
        if isinstance(labels, str):
            skipped[labels] += 1
            labels = np.full(image.shape[:2], IGNORE, dtype=np.uint16)
        return Sample(
            index % len(self) + 1,
            path.name,
            image,
            skipped=dict(skipped),
            labels=labels,
            notes=Counter(notes),
        )


def _read_annotation(path: Path, size: tuple[int, ...]) -> LabelMap | str:
    """Return the label map, or the reason why it cannot be used."""
    try:
        labels = read_label_map(path)
    except NoLabels:
        return COLOR_ANNOTATION
    except ValueError:
        return DAMAGED_ANNOTATION
    if labels.shape != size:
        return OTHER_SIZE_ANNOTATION
    labels[labels == NO_LABEL] = IGNORE
    if labels[labels != IGNORE].max(initial=0) > CLASSES:
        return UNKNOWN_ANNOTATION
    return labels


def _read_names(table: Path) -> dict[int, str]:
    """Return class names by label. Rows are tab-separated, with the number first and the name last."""
    try:
        text = table.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{table}: expected UTF-8 text ({error})") from error
    rows = [line.split("\t") for line in text.splitlines()]
    names = {int(row[0]): row[-1].strip() for row in rows if _is_number(row[0].strip())}
    if sorted(names) != list(range(1, CLASSES + 1)):
        raise ValueError(
            f"{table}: expected a row for each of {CLASSES} classes, got {len(names)}; rows are number, tabs and name"
        )
    return names


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 9


def find_ade(folder: Path) -> tuple[Path, str] | None:
    """Return the root and split of an ADE20K folder: the root itself or one of its image folders; None for others.

    Raises:
        ValueError: The folder is another part of such a root.
    """
    whole = folder.resolve()
    root, split = whole.parent.parent, whole.name
    if (folder / "images" / "ADE").is_dir():
        raise ValueError(
            f"{folder}: expected the folder of ADEChallengeData2016.zip, got the full ADE20K release"
        )
    if (folder / "images" / "validation").is_dir():
        return folder, "validation"
    if whole.parent.name == "images" and (root / "annotations" / split).is_dir():
        return root, split
    if whole.parent.name == "annotations" and (root / "images" / split).is_dir():
        raise ValueError(
            f"{folder}: expected images, got label maps; give {root} or {root / 'images' / split}"
        )
    if whole.name in ("images", "annotations") and (folder / "validation").is_dir():
        raise ValueError(f"{folder}: expected the root of ADE20K or an image folder; give {whole.parent}")
    return None
