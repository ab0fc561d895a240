"""Task `prompt`: one mask per object, from its box, a point on it, or corrective clicks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from saqsam.data.rle import encode_mask, rle_text
from saqsam.data.types import Dataset, Instance
from saqsam.evaluation.metrics.iou import boundary_iou, clear_ignored, mask_iou, share_above_90
from saqsam.evaluation.record_schema import MASK_COUNTS, Schema
from saqsam.evaluation.registry import PromptKind
from saqsam.evaluation.results import Evaluation
from saqsam.evaluation.simulated_prompts import box_prompts, next_click, point_prompts
from saqsam.evaluation.skipped import CROWD
from saqsam.evaluation.task import ImageSession, Metrics, Record, Task, mean
from saqsam.inference.predictor import Predictor, check_finite

BELOW_MIN_AREA = "mask below the minimum area"


@dataclass(frozen=True)
class InstanceScore:
    """Score of one instance.

    Attributes:
        image_id: Id of the image.
        instance_id: Id of the instance.
        iou: IoU of the predicted mask with the true one, at the original resolution.
        predicted_iou: The model's own estimate of that IoU, from the IoU head (not bounded to [0, 1]).
    """

    image_id: int
    instance_id: int
    iou: float
    predicted_iou: float


def instance_scores(result: Evaluation) -> tuple[InstanceScore, ...]:
    """Return the score of each instance in the task `prompt`, in the order of the dataset.

    Raises:
        KeyError: The evaluation did not run the task.
    """
    return tuple(
        InstanceScore(record["image_id"], instance["id"], instance["iou"], instance["predicted_iou"])
        for record in result.records
        for instance in record[PromptTask.name]["instances"]
    )


class PromptTask(Task):
    """Mean IoU of masks from prompts that are simulated from the ground truth.

    - `box`: the instance's own box, which gives one mask.
    - `point`: the pixel deepest inside the instance, which gives three masks; the one with the highest predicted IoU
      counts.
    - `clicks`: the point, then corrective clicks. Each lies deepest inside the largest wrong region and says whether
      that belongs to the object; the decoder gets it with all earlier clicks and the logits of the last mask, and
      returns one mask.

    Masks are compared at the original resolution of the image, where the logit is above 0. Ignored pixels
    (`Sample.ignored`) are cleared from predicted masks first, so they count neither for nor against a mask. Crowd
    regions are not prompts.

    Args:
        prompt: `box`, `point` or `clicks`.
        clicks: Number of clicks, for `clicks`.
        min_area: Skip instances with fewer pixels.
        keep_masks: Keep the masks in the records, for comparisons and pictures.

    Raises:
        ValueError: The prompt is unknown, or there is less than one click.
    """

    name = "prompt"
    compared = "IoU of an object"
    needs_objects = True
    metric_labels: ClassVar = {
        "miou": "mean IoU",
        "boundary_iou": "mean boundary IoU",
        "share_above_90": "share above IoU 0.9",
        "instances": "objects",
    }

    def __init__(
        self, prompt: PromptKind = "box", *, clicks: int = 5, min_area: int = 0, keep_masks: bool = False
    ) -> None:
        if prompt not in get_args(PromptKind):
            raise ValueError(f"prompt: expected 'box', 'point' or 'clicks', got {prompt!r}")
        if clicks < 1:
            raise ValueError(f"clicks: expected at least 1, got {clicks}")
        self.prompt, self.clicks, self.min_area, self.keep_masks = prompt, clicks, min_area, keep_masks

    @classmethod
    def create(cls, dataset: Dataset, options: Mapping[str, Any], *, keep_masks: bool) -> PromptTask:
        """Create the task from its options."""
        return cls(options["prompt"], min_area=options["min_area"], keep_masks=keep_masks)

    @property
    def has_box_prompts(self) -> bool:
        """Whether the prompts are the objects' own boxes."""
        return self.prompt == "box"

    def why_nothing_was_scored(self, records: Sequence[Record]) -> Mapping[str, int]:
        """Return the number of crowd regions in images without other objects."""
        return {CROWD: sum(record.get("crowds", 0) for record in records)}

    def options(self) -> dict[str, Any]:
        """Return the options that decide about scores."""
        shown: dict[str, Any] = {"prompt": self.prompt, "min_area": self.min_area, "masks": self.keep_masks}
        return shown | ({"clicks": self.clicks} if self.prompt == "clicks" else {})

    def score(self, session: ImageSession) -> Record:
        """Score an image."""
        targets = [instance for instance in session.sample.instances if not instance.is_crowd]
        large = [instance for instance in targets if instance.area >= self.min_area]
        if len(large) < len(targets):
            session.skipped[BELOW_MIN_AREA] += len(targets) - len(large)
        record: Record = {"instances": list(self._score(session, large)) if large else []}
        crowds = len(session.sample.instances) - len(targets)
        if crowds and not targets:  # the reason, should no other image have an object either
            record["crowds"] = crowds
        return record

    def _score(self, session: ImageSession, instances: Sequence[Instance]) -> Iterator[Record]:
        predictor = session.predictor
        at_once = predictor.prompts_at_once
        counted = session.sample.counted()
        for start in range(0, len(instances), at_once):
            members = instances[start : start + at_once]
            truth = torch.from_numpy(np.stack([member.mask() for member in members]))
            truth = truth.to(predictor.features.device)
            if self.prompt == "clicks":
                masks, own, ious = _click(predictor, truth, self.clicks, counted)
            else:
                masks, own = _prompt_once(predictor, members, self.prompt)
                masks = clear_ignored(masks, counted)
                ious = [mask_iou(masks, truth).tolist()]
            for row, member in enumerate(members):
                mask = masks[row].cpu().numpy()
                record: Record = {
                    "id": member.id,
                    "iou": ious[-1][row],
                    "boundary_iou": boundary_iou(mask, truth[row].cpu().numpy()),
                    "predicted_iou": own[row],
                }
                if self.prompt == "clicks":
                    record["ious"] = [step[row] for step in ious]
                if self.keep_masks:
                    record["mask"] = rle_text(encode_mask(mask))
                yield record

    def schema(self) -> Schema:
        """Return the schema of a record."""
        instance: dict[str, Schema] = {"id": int, "iou": float, "boundary_iou": float, "predicted_iou": float}
        if self.prompt == "clicks":
            instance["ious"] = (float,) * self.clicks
        if self.keep_masks:
            instance["mask"] = MASK_COUNTS
        return {"instances": [instance]}

    def reduce(self, records: Sequence[Record]) -> Metrics:
        """Compute `miou`, `boundary_iou`, `share_above_90`, `instances`, and `miou_K` after click K."""
        instances = [instance for record in records for instance in record["instances"]]
        metrics: Metrics = {
            "miou": mean([instance["iou"] for instance in instances]),
            "boundary_iou": mean([instance["boundary_iou"] for instance in instances]),
            "share_above_90": share_above_90([instance["iou"] for instance in instances]),
            "instances": len(instances),
        }
        if self.prompt == "clicks":
            for click in range(self.clicks):
                metrics[f"miou_{click + 1}"] = mean([instance["ious"][click] for instance in instances])
        return metrics

    def is_scored(self, record: Record) -> bool:
        """Return whether the image had anything to score."""
        return bool(record["instances"])

    def values(self, record: Record) -> Mapping[str, float]:
        """Return one value per object."""
        return {str(instance["id"]): instance["iou"] for instance in record["instances"]}

    def masks(self, record: Record) -> Mapping[str, str]:
        """Return the masks that the record keeps."""
        return {
            str(instance["id"]): instance["mask"] for instance in record["instances"] if "mask" in instance
        }


def _prompt_once(
    predictor: Predictor, instances: Sequence[Instance], prompt: PromptKind
) -> tuple[torch.Tensor, list[float]]:
    """Return masks [P, H, W] bool and predicted IoUs [P]."""
    if prompt == "box":
        ((low_res, predicted),) = predictor.predict_low_res(
            boxes=box_prompts(instances), multimask_output=False
        )
    else:
        points, labels = point_prompts(instances)
        ((low_res, predicted),) = predictor.predict_low_res(
            points=points, labels=labels, multimask_output=True
        )
    chosen, own = _best(low_res, predicted)
    return predictor.upscale(chosen)[:, 0], own.tolist()


def _best(low_res: torch.Tensor, predicted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits [P, 1, 4h, 4w] of the highest predicted IoU of each prompt, and that IoU [P]."""
    check_finite(low_res, predicted)
    best = predicted.argmax(dim=1)  # of one mask: that one
    rows = torch.arange(len(best), device=best.device)
    # Choosing before upscaling saves two thirds of the work.
    return low_res[rows, best][:, None], predicted[rows, best]


def _click(
    predictor: Predictor, truth: torch.Tensor, clicks: int, counted: NDArray[np.bool_] | None
) -> tuple[torch.Tensor, list[float], list[list[float]]]:
    """Return masks [P, H, W] after the last click, their predicted IoUs, and the IoUs [P] after each click."""
    truths: NDArray[np.bool_] = truth.cpu().numpy()
    masks = torch.zeros_like(truth)
    points: list[list[tuple[int, int]]] = [[] for _ in truths]
    labels: list[list[int]] = [[] for _ in truths]
    logits: torch.Tensor | None = None
    own, ious = torch.zeros(len(truths)), []
    for step in range(clicks):
        for row, mask in enumerate(masks.cpu().numpy()):
            # A mask without errors gets its last click again.
            point, label = next_click(mask, truths[row]) or (points[row][-1], labels[row][-1])
            points[row].append(point)
            labels[row].append(label)
        ((low_res, predicted),) = predictor.predict_low_res(
            points=np.array(points, dtype=np.float64),
            labels=np.array(labels),
            mask_inputs=None if logits is None else logits[:, 0].cpu().numpy(),
            multimask_output=step == 0,  # one click may mean a part or the whole
        )
        logits, own = _best(low_res, predicted)
        masks = clear_ignored(predictor.upscale(logits)[:, 0], counted)
        ious.append(mask_iou(masks, truth).tolist())
    return masks, own.tolist(), ious
