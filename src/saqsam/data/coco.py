"""COCO instance annotations as a dataset, and LVIS, which adds a few fields to that format."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Self

from saqsam.data.coco_folders import CocoFolder, find_images
from saqsam.data.coco_instances import EMPTY_MASK, OTHER_SIZE, orient, read_instance
from saqsam.data.coco_records import (
    Annotation,
    ImageRecord,
    check_content,
    read_annotations,
    read_categories,
    read_images,
)
from saqsam.data.image_finder import FoundImage, ImageFinder
from saqsam.data.images import read_image_with_notes, read_size
from saqsam.data.json_fields import parse_id, read_json
from saqsam.data.types import Instance, Sample
from saqsam.utils.counts import skipped_phrase

__all__ = ["EMPTY_MASK", "OTHER_SIZE", "CocoDataset"]

SIZE_FROM_FILE = "image size taken from its file"


class CocoDataset:
    """Images with object masks from a COCO or LVIS instance file.

    Only the index is held in memory; each image is read, and its masks are checked, on access. Unusable entries are
    skipped and counted by reason: missing image files; annotations whose mask is missing, damaged or of another size;
    boxes without area or outside the image; missing categories. Unusual forms with a single meaning are accepted and
    noted: ids written as text, absent boxes, polygons in other forms.

    LVIS (Gupta et al., CVPR 2019) names an image by its `coco_url`, whose last two parts are the path of the file in a
    COCO root. It states for each image which categories were looked for, and which of them are not fully annotated.

    Args:
        images_dir: Folder that the `file_name`s are relative to; no file outside it is read. None searches for it with
            `coco_folders.find_images`.
        annotations_json: COCO instance file. Masks as run lengths or polygons; boxes are `bbox` (x, y, width,
            height), or derived from the mask if absent.
        name: Name in tables; by default that of the folder that holds the annotations.
        limit: Keep the first `limit` images that exist, in the order of the file; None keeps all.

    Attributes:
        name: Name in tables.
        image_ids: Ids of the kept images, in order.
        digest: Hash of the annotation file.
        category_names: Name of each category id; empty if the file lists none.
        category_frequencies: LVIS's `r`, `c` or `f` (rare, common, frequent) by category id; empty in other files.

    Raises:
        ValueError: A file or folder is missing, the file is not COCO instance JSON, ids are not unique
            integers, or no image is left.
    """

    def __init__(
        self,
        images_dir: str | Path | None,
        annotations_json: str | Path,
        *,
        name: str | None = None,
        limit: int | None = None,
    ) -> None:
        path = Path(annotations_json)
        if images_dir is not None and not Path(images_dir).is_dir():
            raise ValueError(f"{images_dir}: expected the folder of the images, found none")
        self._index_skips: Counter[str] = Counter()
        self._index_notes: Counter[str] = Counter()
        content = check_content(read_json(path, self._index_notes), path)
        self.name = name if name is not None else path.resolve().parent.name
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        categories = read_categories(content.get("categories"), path, self._index_notes)
        self.category_names, self.category_frequencies = categories.names, categories.frequencies
        images = read_images(content["images"], path, self._index_notes)
        names = [image.name for image in images]
        finder = find_images(names, path) if images_dir is None else ImageFinder(Path(images_dir))
        self._images_dir = finder.folder
        self._records = {image.id: image for image in images}
        self._images, self._files = self._keep_found(images, finder, limit)
        if not self._images:
            raise ValueError(
                f"{path}: expected images in {finder.folder}, found none of {len(images)}"
                f"{skipped_phrase(self._index_skips)}"
            )
        self.image_ids: tuple[int, ...] = tuple(image.id for image in self._images)
        self._annotations = read_annotations(
            content.get("annotations"),
            path,
            known=self._records,
            kept=self.image_ids,
            notes=self._index_notes,
            skips=self._index_skips,
        )
        self._sample_skips: dict[int, dict[str, int]] = {}

    @classmethod
    def in_folder(cls, folder: CocoFolder, *, limit: int | None = None) -> Self:
        """Open a folder in COCO format; an annotation file in an unusual place is noted by its name."""
        dataset = cls(folder.images, folder.annotations, name=folder.name, limit=limit)
        if not folder.is_usual:
            dataset._index_notes[f"annotation file {folder.annotations.name} read"] += 1
        return dataset

    def _keep_found(
        self, images: list[ImageRecord], finder: ImageFinder, limit: int | None
    ) -> tuple[list[ImageRecord], dict[int, str]]:
        """Return the first `limit` images that have a file, and their file names by image id."""
        kept: list[ImageRecord] = []
        files: dict[int, str] = {}
        for image, match in zip(images, finder.find_all([image.name for image in images]), strict=True):
            if limit is not None and len(kept) == limit:
                break
            if isinstance(match, FoundImage):
                kept.append(image)
                files[image.id] = match.name
                if match.note is not None:
                    self._index_notes[match.note] += 1
            else:
                self._index_skips[match] += 1
        return kept, files

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        """Read one image and check its instances.

        Raises:
            ValueError: The image file cannot be read.
        """
        record = self._images[index]
        annotations = self._annotations[record.id]
        path = self._images_dir / self._files[record.id]
        skips: Counter[str] = Counter()
        image, image_notes = read_image_with_notes(path)
        notes = Counter(image_notes)
        if record.size is None:
            notes[SIZE_FROM_FILE] += 1
        image, size = orient(image, path, record.size, annotations, notes)
        instances: list[Instance] = []
        for annotation in annotations:
            instance = read_instance(annotation, size, self.category_names, notes)
            if isinstance(instance, Instance):
                instances.append(instance)
            else:
                skips[instance] += 1
        self._sample_skips[record.id] = dict(skips)
        return Sample(
            record.id,
            self._files[record.id],
            image,
            tuple(instances),
            dict(skips),
            judged=_judged(record, annotations),
            incomplete=record.incomplete,
            notes=dict(notes),
        )

    def image_size(self, image_id: int) -> tuple[int, int]:
        """Return the (height, width) of a kept image, from the annotation file or else from the header of its file.

        Raises:
            ValueError: The annotation file does not state it, and the file is not an image.
        """
        stated = self._records[image_id].size
        return read_size(self._images_dir / self._files[image_id]) if stated is None else stated

    def file_of(self, image_id: int) -> tuple[str, Path]:
        """Return the name of a kept image, relative to the folder of the images, and its path."""
        name = self._files[image_id]
        return name, self._images_dir / name

    def has_image(self, image_id: int) -> bool:
        """Return whether the annotation file lists this image, kept or not."""
        return image_id in self._records

    @property
    def index_skipped(self) -> dict[str, int]:
        """Number of entries skipped during indexing, by reason: missing files, unknown images."""
        return dict(self._index_skips)

    @property
    def index_notes(self) -> dict[str, int]:
        """Number of irregularities accepted during indexing, by kind."""
        return dict(self._index_notes)

    @property
    def skipped(self) -> dict[str, int]:
        """Number of all skipped entries so far, by reason: `index_skipped` and instances of images read so far."""
        total = Counter(self._index_skips)
        for skips in self._sample_skips.values():
            total.update(skips)
        return dict(total)


def _judged(record: ImageRecord, annotations: list[Annotation]) -> frozenset[int] | None:
    """Return the categories that LVIS annotated in an image or states as absent; None in other files."""
    if record.negative is None:
        return None
    ids = (parse_id(annotation.content.get("category_id"), Counter()) for annotation in annotations)
    return record.negative | {number for number in ids if number is not None}
