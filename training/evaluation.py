"""Mean IoU on held-back training pictures, the metric for all choices in training."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from transformers import SamModel

from samples import MEAN, STD, Pack


@torch.inference_mode()
def held_back_iou(model: SamModel, packs: list[Pack], most_prompts: int = 24) -> dict[str, float]:
    """Return the mean IoU per source, for exact boxes (`SOURCE_box`) and for the innermost point (`SOURCE_point`).

    Pictures are placed as `SamProcessor` places them (long side to the frame, padded at the bottom or right); masks
    are compared at the pack's resolution. At most `most_prompts` objects of a picture count.
    """
    device = next(model.parameters()).device
    scores: dict[str, list[float]] = {}
    for pack in packs:
        for source, numbers in pack.images_of.items():
            for number in numbers.tolist():
                instances = pack.instances_of[number][:most_prompts]
                for kind, values in _picture(model, pack, number, instances, device).items():
                    scores.setdefault(f"{source}_{kind}", []).extend(values)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _picture(
    model: SamModel, pack: Pack, number: int, instances: list[int], device: torch.device
) -> dict[str, list[float]]:
    frame = model.config.vision_config.image_size
    image = pack.read(number)
    height, width = image.shape[:2]
    scale = frame / max(height, width)
    inner = (round(width * scale), round(height * scale))
    pixels = np.zeros((frame, frame, 3), np.float32)
    resized = cv2.resize(image, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
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
    coords = {
        "box": {"input_boxes": torch.tensor([boxes], dtype=torch.float32, device=device) * scale},
        "point": {"input_points": torch.tensor([points], dtype=torch.float32, device=device) * scale},
    }
    ious: dict[str, list[float]] = {}
    for kind, prompt in coords.items():
        out = model(image_embeddings=embeddings, multimask_output=kind == "point", **prompt)
        best = out.iou_scores[0].argmax(-1)
        logits = out.pred_masks[0, torch.arange(len(best)), best].float().cpu()
        side = logits.shape[-1]
        cells = (max(1, round(inner[1] * side / frame)), max(1, round(inner[0] * side / frame)))
        for logit, truth in zip(logits.numpy(), truths, strict=True):
            mask = (
                cv2.resize(logit[: cells[0], : cells[1]], (width, height), interpolation=cv2.INTER_LINEAR) > 0
            )
            ious.setdefault(kind, []).append(float((mask & truth).sum() / max(1, (mask | truth).sum())))
    return ious
