"""Task `prompt`: one mask for each object, from its box, a point on it, or clicks that mend the mask step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from saqsam.data.rle import encode_mask, rle_text
from saqsam.data.types import Instance
from saqsam.evaluation.metrics.iou import boundary_iou, clear_ignored, mask_iou
from saqsam.evaluation.record_schema import MASK_COUNTS, Schema
from saqsam.evaluation.simulated_prompts import box_prompts, next_click, point_prompts
from saqsam.evaluation.task import ImageSession, Metrics, Record, Task, mean
from saqsam.inference.predictor import Predictor, check_finite

PromptKind = Literal["box", "point", "clicks"]

BELOW_MIN_AREA = "mask below the least area"
GOOD_IOU = 0.9


class PromptTask(Task):
    """Mean IoU of masks from prompts that are made of the ground truth.

    A box prompt (the instance's own box) gives one mask. A point prompt (the pixel deepest inside the instance) gives
    three, of which the one with the highest predicted IoU counts. Clicks start as the point; each further one lies
    deepest inside the largest region where the mask is wrong, says whether it belongs to the object, and goes in with
    all clicks before it and the logits of the last mask; these give one mask. Masks are compared at the image's
    original resolution, where the logit is above 0. Ignored pixels (`Sample.ignored`) are cleared from the predicted
    masks first, so they count neither for nor against them. Crowd regions are not prompts.

    Args:
        prompt: `box`, `point` or `clicks`.
        clicks: How many clicks, for `clicks`.
        min_area: Leave out instances with fewer pixels than this.
        keep_masks: Keep the masks in the records, for comparisons and pictures.

    Raises:
        ValueError: An unknown prompt, or fewer than one click.
    """

    name = "prompt"
    compared = "IoU of an object"
    needs_objects = True

    def __init__(
        self, prompt: PromptKind = "box", *, clicks: int = 5, min_area: int = 0, keep_masks: bool = False
    ) -> None:
        if prompt not in get_args(PromptKind):
            raise ValueError(f"prompt: expected 'box', 'point' or 'clicks', got {prompt!r}")
        if clicks < 1:
            raise ValueError(f"clicks: expected at least 1, got {clicks}")
        self.prompt, self.clicks, self.min_area, self.keep_masks = prompt, clicks, min_area, keep_masks

    def options(self) -> dict[str, Any]:
        """See `Task.options`."""
        shown: dict[str, Any] = {"prompt": self.prompt, "min_area": self.min_area, "masks": self.keep_masks}
        return shown | ({"clicks": self.clicks} if self.prompt == "clicks" else {})

    def score(self, session: ImageSession) -> Record:
        """See `Task.score`."""
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
        """See `Task.schema`."""
        instance: dict[str, Schema] = {"id": int, "iou": float, "boundary_iou": float, "predicted_iou": float}
        if self.prompt == "clicks":
            instance["ious"] = (float,) * self.clicks
        if self.keep_masks:
            instance["mask"] = MASK_COUNTS
        return {"instances": [instance]}

    def reduce(self, records: Sequence[Record]) -> Metrics:
        """See `Task.reduce`: `miou`, `boundary_iou`, `share_above_90`, `instances`, and `miou_K` after click K."""
        found = [instance for record in records for instance in record["instances"]]
        metrics: Metrics = {
            "miou": mean([instance["iou"] for instance in found]),
            "boundary_iou": mean([instance["boundary_iou"] for instance in found]),
            "share_above_90": mean([float(instance["iou"] > GOOD_IOU) for instance in found]),
            "instances": len(found),
        }
        if self.prompt == "clicks":
            for click in range(self.clicks):
                metrics[f"miou_{click + 1}"] = mean([instance["ious"][click] for instance in found])
        return metrics

    def is_scored(self, record: Record) -> bool:
        """See `Task.is_scored`."""
        return bool(record["instances"])

    def values(self, record: Record) -> Mapping[str, float]:
        """See `Task.values`."""
        return {str(instance["id"]): instance["iou"] for instance in record["instances"]}

    def masks(self, record: Record) -> Mapping[str, str]:
        """See `Task.masks`."""
        return {
            str(instance["id"]): instance["mask"] for instance in record["instances"] if "mask" in instance
        }


def _prompt_once(
    predictor: Predictor, instances: Sequence[Instance], prompt: PromptKind
) -> tuple[torch.Tensor, list[float]]:
    """Masks [P, H, W] bool and predicted IoUs [P]."""
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
    """Of each prompt the logits [P, 1, 4h, 4w] with the highest predicted IoU, and that [P]."""
    check_finite(low_res, predicted)
    best = predicted.argmax(dim=1)  # of one mask: that one
    rows = torch.arange(len(best), device=best.device)
    # Choosing before upscaling saves two thirds of the work.
    return low_res[rows, best][:, None], predicted[rows, best]


def _click(
    predictor: Predictor, truth: torch.Tensor, clicks: int, counted: NDArray[np.bool_] | None
) -> tuple[torch.Tensor, list[float], list[list[float]]]:
    """Masks [P, H, W] after the last click, their predicted IoUs, and the IoUs [P] after each click."""
    truths: NDArray[np.bool_] = truth.cpu().numpy()
    masks = torch.zeros_like(truth)
    points: list[list[tuple[int, int]]] = [[] for _ in truths]
    labels: list[list[int]] = [[] for _ in truths]
    logits: torch.Tensor | None = None
    own, ious = torch.zeros(len(truths)), []
    for step in range(clicks):
        for row, mask in enumerate(masks.cpu().numpy()):
            # A mask without any error keeps its last click, said twice.
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
