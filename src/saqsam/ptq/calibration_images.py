"""Which images a model is calibrated on, and with which prompts."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import SamModel, SamProcessor

from saqsam.data.coco_records import UNKNOWN_IMAGE
from saqsam.data.detections import Detections
from saqsam.data.types import Dataset, Indexed, Noted, Sample
from saqsam.inference.predictor import Predictor
from saqsam.inference.processing import preprocess
from saqsam.inference.prompts import Prompts
from saqsam.recipes.specs import Calibration
from saqsam.utils.counts import left_out_phrase
from saqsam.utils.progress import Progress

OWN_BOXES = "image without annotations prompted with the model's own boxes"


class CalibrationWarning(UserWarning):
    """Calibration went on with less than was asked for."""


@dataclass(frozen=True)
class _Entry:
    index: int
    boxes: NDArray[np.float64]
    digest: bytes


class CalibrationImages:
    """The chosen images and their prompts; pixels are read again each time they are asked for.

    Each item is pixel values [1, 3, S, S] float32 and P box prompts in pixels of the S x S input.

    Attributes:
        skipped: How many images and objects of the data were left out, by reason.
        notes: How often something unusual in the data was accepted, by what it was.
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
        # Boxes alone: the size of mask inputs does not matter.
        return pixel_values, Prompts.from_image(size, input_size, boxes=entry.boxes, mask_size=(1, 1))

    @property
    def prompts(self) -> int:
        """Number of box prompts in all images."""
        return sum(len(entry.boxes) for entry in self._entries)

    def fingerprint(self) -> str:
        """SHA-256 of all images and boxes, in their order."""
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
    """Draw images by the seed, and box prompts for each.

    Prompts are, at most `spec.prompts` of them: the boxes of `detections` with the best scores, if given; else those of
    the image's objects, drawn by the seed; for images without annotated objects, of the model's own confident masks.
    An image whose annotations all had to be left out gives no prompt: the model's boxes never stand in for them.

    Args:
        model: The float model.
        processor: Its processor.
        dataset: Images, with objects or without.
        spec: Says how many images and prompts, and the seed.
        detections: A detector's boxes for the data set.
        progress: Called with ("choosing prompts", images done, images in all).

    Raises:
        ValueError: If there is no image, none gives a prompt, or all annotated objects had to be left out.
    """
    chosen = choose_images(len(dataset), spec)
    predictor = Predictor(model, processor, prompts_at_once=spec.prompts)
    entries = []
    tally = _Tally(dataset, detections)
    for step, index in enumerate(chosen):
        sample = dataset[index]
        tally.add(sample)
        if detections is not None:
            boxes = _detected_boxes(sample, spec, detections)
        elif _is_without_objects(sample):
            boxes = propose_boxes(predictor, sample.image, spec.prompts)
            tally.notes[OWN_BOXES] += 1
        else:
            boxes = _boxes(sample, spec)
        if len(boxes):
            entries.append(_Entry(index, boxes, _digest(sample.image)))
        if progress is not None:
            progress("choosing prompts", step + 1, len(chosen))
    if not entries or tally.all_objects_lost:
        why = ": none of its annotations can be used" if tally.all_objects_lost else ""
        raise ValueError(
            f"none of the {len(chosen)} calibration images of {dataset.name} gives a prompt{why}"
            f"{left_out_phrase(tally.skipped)}"
        )
    if len(entries) < len(chosen):
        warnings.warn(
            f"{len(chosen) - len(entries)} of {len(chosen)} calibration images gave no prompt"
            f"{left_out_phrase(tally.skipped)}",
            CalibrationWarning,
            stacklevel=2,
        )
    return CalibrationImages(dataset, processor, entries, tally.skipped, tally.notes)


class _Tally:
    """Counts of skipped objects and of notes in calibration data, image by image."""

    def __init__(self, dataset: Dataset, detections: Detections | None) -> None:
        self.skipped = Counter(dataset.index_skipped) if isinstance(dataset, Indexed) else Counter()
        self.notes = Counter(dataset.index_notes) if isinstance(dataset, Noted) else Counter()
        self._objects = 0
        self._lost_objects = self.skipped[UNKNOWN_IMAGE]
        self._are_objects_needed = detections is None
        if detections is not None:
            self.skipped.update({f"detection: {what}": n for what, n in detections.skipped.items()})
            self.notes.update({f"detection: {what}": n for what, n in detections.notes.items()})

    def add(self, sample: Sample) -> None:
        """Count what is left out and noted in an image."""
        self.skipped.update(sample.skipped)
        self.notes.update(sample.notes)
        self._objects += len(sample.instances)
        self._lost_objects += _count_lost(sample)

    @property
    def all_objects_lost(self) -> bool:
        """Return whether there were annotated objects to take prompts from, and none could be used."""
        return self._are_objects_needed and self._objects == 0 and self._lost_objects > 0


def _count_lost(sample: Sample) -> int:
    """Return how many annotated objects of an image were skipped; label maps are not objects."""
    return sum(sample.skipped.values()) if sample.labels is None else 0


def _is_without_objects(sample: Sample) -> bool:
    """Whether an image has no annotated object but crowds, usable or not."""
    return not _count_lost(sample) and all(instance.is_crowd for instance in sample.instances)


def _digest(image: NDArray[np.uint8]) -> bytes:
    """SHA-256 of size and pixels."""
    return hashlib.sha256(f"{image.shape}\0".encode() + np.ascontiguousarray(image).tobytes()).digest()


def choose_images(available: int, spec: Calibration) -> list[int]:
    """Indices of the calibration images, drawn without replacement by the recipe's seed, ascending."""
    if available < 1:
        raise ValueError("the calibration data holds no image")
    if available < spec.images:
        warnings.warn(
            f"calibrating on {available} images, not {spec.images}: there are no more",
            CalibrationWarning,
            stacklevel=3,
        )
        return list(range(available))
    drawn = np.random.default_rng(spec.seed).choice(available, spec.images, replace=False)
    return sorted(drawn.tolist())


def _detected_boxes(sample: Sample, spec: Calibration, detections: Detections) -> NDArray[np.float64]:
    """The boxes [P, 4] (xyxy, original-image pixels) of the best scores; none where nothing was detected."""
    found = detections.by_image.get(sample.image_id)
    if found is None:
        return np.zeros((0, 4))
    best = np.argsort(-found.scores, kind="stable")[: spec.prompts]
    return found.boxes[np.sort(best)]


def _boxes(sample: Sample, spec: Calibration) -> NDArray[np.float64]:
    """Boxes [P, 4] (xyxy, original-image pixels) of at most `spec.prompts` objects."""
    boxes = np.array([i.box for i in sample.instances if not i.is_crowd], dtype=np.float64).reshape(-1, 4)
    if len(boxes) > spec.prompts:
        keep = np.random.default_rng((spec.seed, sample.image_id)).choice(
            len(boxes), spec.prompts, replace=False
        )
        boxes = boxes[np.sort(keep)]
    return boxes


def propose_boxes(
    predictor: Predictor, image: NDArray[np.uint8], most: int, *, grid: int = 8
) -> NDArray[np.float64]:
    """Boxes of the model's own most confident masks, for images without labels.

    Args:
        predictor: Of the model; its image becomes this one.
        image: HWC uint8 RGB.
        most: How many boxes at most.
        grid: Points a side that ask for masks.

    Returns:
        Boxes [P, 4] (xyxy, original-image pixels), most confident first, no two of IoU above 0.7.
    """
    height, width = image.shape[:2]
    steps = (np.arange(grid) + 0.5) / grid
    points = np.stack([np.tile(steps * width, grid), np.repeat(steps * height, grid)], 1)
    predictor.set_image(image)
    chunks = list(predictor.predict_low_res(points=points[:, None], labels=np.ones((grid * grid, 1))))
    scores = torch.cat([predicted for _, predicted in chunks]).flatten()
    logits = torch.cat([low_res for low_res, _ in chunks]).flatten(0, 1)
    kept: list[Tensor] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        box = _mask_box(logits[index] > 0)
        if box is None or any(_box_iou(box, other) > 0.7 for other in kept):
            continue
        kept.append(box)
        if len(kept) == most:
            break
    if not kept:
        return np.zeros((0, 4))
    # Cells of the padded square -> pixels of the image; what lies in the padding is cut off.
    cell = predictor.processor.image_processor.pad_size["height"] / logits.shape[-1]
    input_height, input_width = predictor.input_size
    scale = np.array([width / input_width, height / input_height] * 2)
    boxes = torch.stack(kept).double().cpu().numpy() * cell * scale
    boxes = np.minimum(boxes, np.array([width, height] * 2))
    kept_inside: NDArray[np.float64] = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    return kept_inside


def _mask_box(mask: Tensor) -> Tensor | None:
    """Tight box [4] (xyxy, cells) of a mask [h, w]; None for an empty one or one of less than four cells."""
    ys, xs = torch.nonzero(mask, as_tuple=True)
    if len(ys) < 4:
        return None
    return torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()


def _box_iou(a: Tensor, b: Tensor) -> float:
    inter = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp_min(0).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inter
    return float(inter / union)
