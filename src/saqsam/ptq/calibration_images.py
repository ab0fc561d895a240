"""Draw calibration images from a dataset, and box prompts for them."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import SamModel, SamProcessor

from saqsam.data.coco_records import UNKNOWN_IMAGE
from saqsam.data.detections import Detections
from saqsam.data.types import Dataset, Indexed, Noted, Sample
from saqsam.inference.predictor import Predictor
from saqsam.inference.processing import preprocess
from saqsam.inference.prompts import Prompts
from saqsam.ptq.box_proposals import propose_boxes
from saqsam.recipes.specs import Calibration
from saqsam.utils import ranks
from saqsam.utils.counts import count_phrase, skipped_phrase
from saqsam.utils.progress import Progress

OWN_BOXES = "image without annotations prompted with the model's own boxes"
"""Note about an image whose prompts `propose_boxes` made."""


class CalibrationWarning(UserWarning):
    """Calibration uses fewer images or prompts than requested."""


@dataclass(frozen=True)
class _Entry:
    index: int
    boxes: NDArray[np.float64]
    digest: bytes


class CalibrationImages:
    """Calibration images with their prompts; pixels are read from the dataset on each access.

    An item is pixel values, float32 [1, 3, S, S], and P box prompts in pixels of the S x S input.

    Attributes:
        skipped: Number of skipped images and objects of the dataset, by reason.
        notes: Number of accepted peculiarities of the dataset, by description.
    """

    def __init__(
        self,
        dataset: Dataset,
        processor: SamProcessor,
        entries: Sequence[_Entry],
        skipped: Mapping[str, int],
        notes: Mapping[str, int],
    ) -> None:
        self._dataset, self._processor, self._entries = dataset, processor, entries
        self.skipped, self.notes = dict(skipped), dict(notes)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> tuple[Tensor, Prompts]:
        entry = self._entries[index]
        image = self._dataset[entry.index].image
        pixel_values, input_size = preprocess(self._processor, image)
        size = (image.shape[0], image.shape[1])
        # There are no mask prompts, so their size does not matter.
        return pixel_values, Prompts.from_image(size, input_size, boxes=entry.boxes, mask_size=(1, 1))

    @property
    def prompt_counts(self) -> list[int]:
        """Number of box prompts on each image, at least 1."""
        return [len(entry.boxes) for entry in self._entries]

    @property
    def prompts(self) -> int:
        """Number of box prompts on all images."""
        return sum(self.prompt_counts)

    def fingerprint(self) -> str:
        """Return the SHA-256 of all images and boxes, in order."""
        digest = hashlib.sha256()
        for entry in self._entries:
            digest.update(entry.digest)
            digest.update(np.ascontiguousarray(entry.boxes).tobytes())
        return digest.hexdigest()


def choose_calibration_images(
    model: SamModel,
    processor: SamProcessor,
    dataset: Dataset,
    spec: Calibration,
    *,
    detections: Detections | None = None,
    progress: Progress | None = None,
) -> CalibrationImages:
    """Draw calibration images by the seed, and box prompts for each of them. Several ranks share the images.

    An image has at most `spec.prompts` prompts: with `detections`, the boxes with the highest scores; else the boxes of
    its objects, drawn by the seed; for an image without annotated objects, the boxes of the model's own most confident
    masks. An image whose annotations were all skipped has no prompts, since it does have objects.

    Args:
        model: Float model.
        processor: Processor of the model.
        dataset: Images, with or without annotated objects.
        spec: Numbers of images and prompts, and the seed.
        detections: Detected boxes on the images of the dataset.
        progress: Progress callback; its phase is "choosing prompts".

    Raises:
        ValueError: The dataset is empty, no image has a prompt, or all annotated objects were skipped.

    Warns:
        CalibrationWarning: The dataset has fewer images than requested, or some images have no prompt.
    """
    chosen = choose_images(len(dataset), spec)
    predictor = Predictor(model, processor, prompts_at_once=spec.prompts)
    found = ranks.shared_map(
        lambda position: _find_prompts(predictor, dataset, chosen[position], spec, detections),
        len(chosen),
        "choosing prompts",
        progress,
    )
    tally = _Tally(dataset, detections)
    entries = []
    for image in found:
        tally.add(image)
        if len(image.entry.boxes):
            entries.append(image.entry)
    if not entries or tally.all_objects_lost:
        why = ": none of its annotations can be used" if tally.all_objects_lost else ""
        raise ValueError(
            f"none of the {len(chosen)} calibration images of {dataset.name} gives a prompt{why}"
            f"{skipped_phrase(tally.skipped)}"
        )
    if len(entries) < len(chosen) and ranks.rank() == 0:
        warnings.warn(
            f"{len(chosen) - len(entries)} of {len(chosen)} calibration images gave no prompt"
            f"{skipped_phrase(tally.skipped)}",
            CalibrationWarning,
            stacklevel=2,
        )
    return CalibrationImages(dataset, processor, entries, tally.skipped, tally.notes)


@dataclass(frozen=True)
class _Found:
    """An image with its prompts, and counts of its objects.

    Attributes:
        entry: The image; it may have no prompt.
        skipped: Skipped images and objects, by reason.
        notes: Accepted peculiarities, by description.
        objects: Number of usable objects.
        lost_objects: Number of skipped objects.
    """

    entry: _Entry
    skipped: Mapping[str, int]
    notes: Mapping[str, int]
    objects: int
    lost_objects: int


def _find_prompts(
    predictor: Predictor, dataset: Dataset, index: int, spec: Calibration, detections: Detections | None
) -> _Found:
    """Read an image and find its prompts; arguments are those of `choose_calibration_images`."""
    sample = dataset[index]
    notes = Counter(sample.notes)
    if detections is not None:
        boxes = _detected_boxes(sample, spec, detections)
    elif _is_without_objects(sample):
        boxes = propose_boxes(predictor, sample.image, spec.prompts)
        notes[OWN_BOXES] += 1
    else:
        boxes = _boxes(sample, spec)
    entry = _Entry(index, boxes, _digest(sample.image))
    return _Found(entry, dict(sample.skipped), notes, len(sample.instances), _count_lost(sample))


class _Tally:
    """Counts of skipped objects and of notes, added up image by image."""

    def __init__(self, dataset: Dataset, detections: Detections | None) -> None:
        self.skipped = Counter(dataset.index_skipped) if isinstance(dataset, Indexed) else Counter()
        self.notes = Counter(dataset.index_notes) if isinstance(dataset, Noted) else Counter()
        self._objects = 0
        self._lost_objects = self.skipped[UNKNOWN_IMAGE]
        self._are_objects_needed = detections is None
        if detections is not None:
            self.skipped.update({f"detection: {reason}": n for reason, n in detections.skipped.items()})
            self.notes.update({f"detection: {note}": n for note, n in detections.notes.items()})

    def add(self, image: _Found) -> None:
        """Count the skipped objects and the notes of an image."""
        self.skipped.update(image.skipped)
        self.notes.update(image.notes)
        self._objects += image.objects
        self._lost_objects += image.lost_objects

    @property
    def all_objects_lost(self) -> bool:
        """Whether prompts come from annotated objects, there are some, and all of them were skipped."""
        return self._are_objects_needed and self._objects == 0 and self._lost_objects > 0


def _count_lost(sample: Sample) -> int:
    """Return the number of skipped objects of an image; classes of a label map are not objects."""
    return sum(sample.skipped.values()) if sample.labels is None else 0


def _is_without_objects(sample: Sample) -> bool:
    """Return whether an image has no annotated objects, skipped ones included, other than crowds."""
    return not _count_lost(sample) and all(instance.is_crowd for instance in sample.instances)


def _digest(image: NDArray[np.uint8]) -> bytes:
    """Return the SHA-256 of an image's size and pixels."""
    return hashlib.sha256(f"{image.shape}\0".encode() + np.ascontiguousarray(image).tobytes()).digest()


def choose_images(available: int, spec: Calibration) -> list[int]:
    """Draw the indices of calibration images without replacement, in ascending order.

    Args:
        available: Number of images in the dataset.
        spec: Number of images to draw, and the seed.

    Raises:
        ValueError: There is no image.

    Warns:
        CalibrationWarning: There are fewer images than requested; all are taken.
    """
    if available < 1:
        raise ValueError("the calibration data holds no image")
    if available < spec.images:
        if ranks.rank() == 0:
            warnings.warn(
                f"the calibration set has {count_phrase(available, 'images')}, fewer than the recipe's {spec.images}",
                CalibrationWarning,
                stacklevel=3,
            )
        return list(range(available))
    drawn = np.random.default_rng(spec.seed).choice(available, spec.images, replace=False)
    return sorted(drawn.tolist())


def _detected_boxes(sample: Sample, spec: Calibration, detections: Detections) -> NDArray[np.float64]:
    """Return the detected boxes with the highest scores, [P, 4] (xyxy, original-image pixels)."""
    detected = detections.of(sample)
    return np.zeros((0, 4)) if detected is None else detected.best(spec.prompts).boxes


def _boxes(sample: Sample, spec: Calibration) -> NDArray[np.float64]:
    """Return the boxes of at most `spec.prompts` random objects, [P, 4] (xyxy, original-image pixels)."""
    boxes = np.array([i.box for i in sample.instances if not i.is_crowd], dtype=np.float64).reshape(-1, 4)
    if len(boxes) > spec.prompts:
        keep = np.random.default_rng((spec.seed, sample.image_id)).choice(
            len(boxes), spec.prompts, replace=False
        )
        boxes = boxes[np.sort(keep)]
    return boxes
