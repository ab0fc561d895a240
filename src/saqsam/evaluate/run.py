"""Scoring a model on a data set: mean IoU of prompted masks, and mask AP on a detector's boxes."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from transformers import SamModel, SamProcessor

from saqsam.backend import Backend
from saqsam.data.coco import CocoDataset
from saqsam.data.datasets import Dataset, Instance, Sample
from saqsam.data.detections import Detections, ImageDetections, load_detections
from saqsam.data.rle import encode_mask
from saqsam.evaluate.coco_ap import MaskAP
from saqsam.evaluate.iou import MeanIoU, fill_box, mask_iou
from saqsam.evaluate.prompts import box_prompts, point_prompts
from saqsam.predictor import Predictor

PromptKind = Literal["box", "point"]

BELOW_MIN_AREA = "mask below the least area"


@dataclass(frozen=True)
class InstanceScore:
    """How well one instance was segmented.

    Attributes:
        image_id: Of its image.
        instance_id: Of the instance.
        iou: IoU of the predicted mask with the true one, at the original resolution.
        predicted_iou: The model's own estimate of it, as it comes from the IoU head (not bounded to [0, 1]).
    """

    image_id: int
    instance_id: int
    iou: float
    predicted_iou: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on a data set.

    Attributes:
        dataset: Name of the data set.
        prompt: `box` or `point`.
        miou: Mean IoU over the instances, each weighing the same.
        instances: How many were scored: all but crowds and what was skipped.
        images: How many images were looked at.
        scores: One entry per instance, in the order of the data set.
        skipped: How much was left out, by reason.
        ap: With detections, COCO mask AP under the names of `MaskAP.compute`; else empty.
    """

    dataset: str
    prompt: PromptKind
    miou: float
    instances: int
    images: int
    scores: tuple[InstanceScore, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    ap: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def segm_ap(self) -> float | None:
        """COCO mask AP over IoU 0.50 to 0.95 with the detector's classes; None without detections."""
        return self.ap.get("segm_ap")

    @property
    def segm_ap50(self) -> float | None:
        """COCO mask AP at IoU 0.50 with the detector's classes; None without detections."""
        return self.ap.get("segm_ap50")

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values; those of `ap` stand beside the others, under their own names."""
        return {
            "dataset": self.dataset,
            "prompt": self.prompt,
            "miou": self.miou,
            "instances": self.instances,
            "images": self.images,
            **self.ap,
            "skipped": dict(self.skipped),
            "scores": [asdict(score) for score in self.scores],
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def evaluate(
    model: SamModel | Backend,
    processor: SamProcessor | None,
    dataset: Dataset,
    *,
    prompt: PromptKind = "box",
    detections: str | Path | Detections | None = None,
    limit: int | None = None,
    min_area: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Segment every instance of a data set from a prompt, and compare.

    Masks are compared at the image's original resolution, where the logit is above 0. A box prompt (the
    instance's own box) gives one mask. A point prompt (the pixel deepest inside the instance) gives three, of
    which the one with the highest predicted IoU counts. Crowd regions are not prompts. With detections, each
    detected box is segmented too (one mask, whatever `prompt` is), scored with the detector's score times the
    predicted IoU, and the masks go into COCO's AP.

    Args:
        model: The model, or another backend; evaluated in eval mode, and left as it was.
        processor: Its processor; None builds the one that fits the model.
        dataset: What to segment; read one image at a time.
        prompt: `box` or `point`.
        detections: A detector's boxes, or their COCO results file, which needs a `CocoDataset`.
        limit: Look at the first `limit` images only.
        min_area: Leave out instances with fewer pixels than this; they stay in the ground truth of AP.
        progress: Called after each image with the number done and the number of all.

    Returns:
        The scores. The same model, data and machine give the same scores, bit by bit.

    Raises:
        ValueError: An unknown prompt, a limit below 1, no instance to score, unreadable data, or outputs of
            the model that are not finite.
    """
    if prompt not in get_args(PromptKind):
        raise ValueError(f"prompt: expected 'box' or 'point', got {prompt!r}")
    count = _count(dataset, limit)
    if isinstance(detections, str | Path):
        detections = load_detections(detections, dataset)
    predictor = Predictor(model, processor)
    mean_iou, mask_ap = MeanIoU(), MaskAP()
    scores: list[InstanceScore] = []
    skipped = _index_skips(dataset, detections)
    with _eval_mode(model):
        for index in range(count):
            sample = dataset[index]
            skipped.update(sample.skipped)
            targets = _targets(sample, min_area, skipped)
            boxes = None if detections is None else detections.by_image.get(sample.image_id)
            if targets or boxes is not None:
                predictor.set_image(sample.image)
            scores.extend(_score_instances(predictor, sample.image_id, targets, prompt))
            if detections is not None:
                _add_detections(mask_ap, predictor, sample, boxes)
            if progress is not None:
                progress(index + 1, count)
    mean_iou.update(torch.tensor([score.iou for score in scores], dtype=torch.float64))
    if not scores:
        raise ValueError(f"data {dataset.name!r}: expected instances to score, found none in {count} images")
    return Evaluation(
        dataset=dataset.name,
        prompt=prompt,
        miou=mean_iou.compute(),
        instances=len(scores),
        images=count,
        scores=tuple(scores),
        skipped=dict(skipped),
        ap={} if detections is None else mask_ap.compute(),
    )


def fill_box_iou(dataset: Dataset, *, limit: int | None = None, min_area: int = 0) -> float:
    """Mean IoU of a predictor that answers a box prompt with the box itself: what a useful model has to beat.

    Args:
        dataset: As for `evaluate`.
        limit: As for `evaluate`.
        min_area: As for `evaluate`.

    Raises:
        ValueError: No instance to score, or a limit below 1.
    """
    mean_iou = MeanIoU()
    for index in range(_count(dataset, limit)):
        sample = dataset[index]
        for instance in _targets(sample, min_area, Counter()):
            filled = fill_box(instance.box, sample.image.shape[:2])
            mean_iou.update(mask_iou(torch.from_numpy(filled)[None], torch.from_numpy(instance.mask())[None]))
    return mean_iou.compute()


def _count(dataset: Dataset, limit: int | None) -> int:
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1 image, got {limit}")
    return len(dataset) if limit is None else min(limit, len(dataset))


def _index_skips(dataset: Dataset, detections: Detections | None) -> Counter[str]:
    skipped = Counter(dataset.index_skipped) if isinstance(dataset, CocoDataset) else Counter()
    if detections is not None:
        skipped.update({f"detection: {reason}": number for reason, number in detections.skipped.items()})
    return skipped


def _targets(sample: Sample, min_area: int, skipped: Counter[str]) -> list[Instance]:
    """The instances to score; those that are too small are counted in `skipped`."""
    targets = [instance for instance in sample.instances if not instance.is_crowd]
    large = [instance for instance in targets if instance.area >= min_area]
    if len(large) < len(targets):
        skipped[BELOW_MIN_AREA] += len(targets) - len(large)
    return large


def _score_instances(
    predictor: Predictor, image_id: int, instances: Sequence[Instance], prompt: PromptKind
) -> Iterator[InstanceScore]:
    if not instances:
        return
    if prompt == "box":
        chunks = predictor.predict_low_res(boxes=box_prompts(instances), multimask_output=False)
    else:
        points, labels = point_prompts(instances)
        chunks = predictor.predict_low_res(points=points, labels=labels, multimask_output=True)
    position = 0
    for low_res, predicted in chunks:
        _check_finite(low_res, predicted)
        best = predicted.argmax(dim=1)  # of one mask: that one
        rows = torch.arange(len(best), device=best.device)
        # Choosing before upscaling saves two thirds of the work.
        masks = predictor.upscale(low_res[rows, best][:, None])[:, 0]
        members = instances[position : position + len(best)]
        truth = torch.from_numpy(np.stack([member.mask() for member in members])).to(masks.device)
        ious = mask_iou(masks, truth).tolist()
        for member, iou, own in zip(members, ious, predicted[rows, best].tolist(), strict=True):
            yield InstanceScore(image_id, member.id, iou, own)
        position += len(members)


def _add_detections(
    mask_ap: MaskAP, predictor: Predictor, sample: Sample, detections: ImageDetections | None
) -> None:
    """Segment the detected boxes of an image, which is set, and add it to the AP; None means no boxes."""
    height, width, _ = sample.image.shape
    if detections is None:
        mask_ap.update(sample.image_id, (height, width), sample.instances, [], [], [])
        return
    rles: list[dict[str, Any]] = []
    own: list[float] = []
    for low_res, predicted in predictor.predict_low_res(boxes=detections.boxes, multimask_output=False):
        _check_finite(low_res, predicted)
        masks = predictor.upscale(low_res)[:, 0].cpu().numpy()
        rles.extend(encode_mask(mask) for mask in masks)
        own.extend(predicted[:, 0].tolist())
    # The IoU head is linear: an estimate below 0 would turn the order of the detector's scores around.
    scores = (detections.scores * np.maximum(own, 0.0)).tolist()
    categories = detections.category_ids.tolist()
    mask_ap.update(sample.image_id, (height, width), sample.instances, rles, scores, categories)


def _check_finite(low_res: torch.Tensor, predicted: torch.Tensor) -> None:
    if not (torch.isfinite(low_res).all() and torch.isfinite(predicted).all()):
        raise ValueError("model: expected finite masks and predicted IoUs, got NaN or infinity")


@contextmanager
def _eval_mode(model: SamModel | Backend) -> Iterator[None]:
    if not isinstance(model, SamModel) or not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()
