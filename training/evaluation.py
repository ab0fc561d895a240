"""Mean IoU on held-back training pictures, the metric for all choices in training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch

from augmentation import MEAN, STD
from packs import Pack

SIZES = (6, 12, 24, 48, math.inf)
"""Upper ends of the size classes of `iou_by_size`, in pixels of the model's input."""


@dataclass(frozen=True)
class Score:
    """Result of one object and prompt.

    Attributes:
        source: Source of the picture.
        kind: "box" or "point".
        iou: IoU of the predicted mask.
        box_fill: IoU of the object's box, used as the mask.
        size: Square root of its box's area in pixels of the model's input.
    """

    source: str
    kind: str
    iou: float
    box_fill: float
    size: float


def held_back_iou(
    model: Any, packs: list[Pack], canvas: Literal["pad", "stretch"] = "pad"
) -> dict[str, float]:
    """Return the mean IoU per source, for exact boxes (`SOURCE_box`) and for the innermost point (`SOURCE_point`)."""
    return mean_iou(held_back_scores(model, packs, canvas=canvas))


def mean_iou(scores: Iterable[Score]) -> dict[str, float]:
    """Return the mean IoU per source and kind of prompt (`SOURCE_KIND`)."""
    ious: dict[str, list[float]] = {}
    for score in scores:
        ious.setdefault(f"{score.source}_{score.kind}", []).append(score.iou)
    return {name: float(np.mean(values)) for name, values in ious.items()}


def iou_by_size(scores: Iterable[Score]) -> list[dict[str, object]]:
    """Return one row per source, kind of prompt and size class: count, mean IoU and that of the box-fill baseline."""
    groups: dict[tuple[str, str, float], list[Score]] = {}
    for score in scores:
        upper = next(end for end in SIZES if score.size <= end)
        groups.setdefault((score.source, score.kind, upper), []).append(score)
    return [
        {
            "source": source,
            "prompt": kind,
            "size_up_to": upper,
            "objects": len(group),
            "iou": round(float(np.mean([score.iou for score in group])), 4),
            "box_fill": round(float(np.mean([score.box_fill for score in group])), 4),
        }
        for (source, kind, upper), group in sorted(groups.items())
    ]


@torch.inference_mode()
def held_back_scores(
    model: Any, packs: list[Pack], most_prompts: int = 24, canvas: Literal["pad", "stretch"] = "pad"
) -> list[Score]:
    """Score exact boxes and innermost points on the pictures of the packs.

    Pictures are placed as the model's processor places them: long side to the frame and padded at the bottom or right
    ("pad", a `SamModel`), or stretched to the frame ("stretch", a `Sam2Model`). Masks are compared at the pack's
    resolution. At most `most_prompts` objects of a picture count.
    """
    scores: list[Score] = []
    for pack in packs:
        for source, numbers in pack.images_of.items():
            for number in numbers.tolist():
                instances = pack.instances_of[number][:most_prompts]
                scores += _picture(model, pack, number, source, instances, canvas)
    return scores


def _picture(
    model: Any, pack: Pack, number: int, source: str, instances: list[int], canvas: str
) -> list[Score]:
    device = next(model.parameters()).device
    frame = model.config.prompt_encoder_config.image_size
    image = pack.read(number)
    height, width = image.shape[:2]
    scale = np.full(2, frame / max(height, width)) if canvas == "pad" else frame / np.array([width, height])
    inner = (round(width * scale[0]), round(height * scale[1]))
    pixels = np.zeros((frame, frame, 3), np.float32)
    resized = cv2.resize(image, inner, interpolation=cv2.INTER_AREA if scale.min() < 1 else cv2.INTER_LINEAR)
    pixels[: inner[1], : inner[0]] = (resized.astype(np.float32) / 255 - MEAN) / STD
    embeddings = model.get_image_embeddings(torch.from_numpy(pixels.transpose(2, 0, 1))[None].to(device))
    truths, boxes, points = [], [], []
    for instance in instances:
        crop, x, y = pack.read_mask(instance)
        truth = np.zeros((height, width), np.uint8)
        truth[y : y + crop.shape[0], x : x + crop.shape[1]] = crop > 127
        truths.append(truth.astype(bool))
        bx, by, bw, bh = cv2.boundingRect(truth)
        boxes.append([bx, by, bx + bw, by + bh])
        distance = cv2.distanceTransform(np.pad(truth, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        row, column = np.unravel_index(int(distance.argmax()), distance.shape)
        points.append([[column, row]])

    def to_frame(places: np.ndarray) -> torch.Tensor:
        return torch.tensor(places[None] * scale, dtype=torch.float32, device=device)

    coords = {
        "box": {"input_boxes": to_frame(np.array(boxes).reshape(-1, 2, 2)).flatten(2)},
        "point": {"input_points": to_frame(np.array(points))},
    }
    scores = []
    for kind, prompt in coords.items():
        out = model(image_embeddings=embeddings, multimask_output=kind == "point", **prompt)
        best = out.iou_scores[0].argmax(-1)
        logits = out.pred_masks[0, torch.arange(len(best)), best].float().cpu()
        side = logits.shape[-1]
        cells = (max(1, round(inner[1] * side / frame)), max(1, round(inner[0] * side / frame)))
        for logit, truth, (x0, y0, x1, y1) in zip(logits.numpy(), truths, boxes, strict=True):
            mask = (
                cv2.resize(logit[: cells[0], : cells[1]], (width, height), interpolation=cv2.INTER_LINEAR) > 0
            )
            iou = float((mask & truth).sum() / max(1, (mask | truth).sum()))
            box_area = max(1, (x1 - x0) * (y1 - y0))
            box_fill = int(truth.sum()) / box_area
            scores.append(Score(source, kind, iou, box_fill, float(scale.prod() * box_area) ** 0.5))
    return scores
