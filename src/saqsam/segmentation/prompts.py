"""Prompts for objects, and their masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from saqsam.data.rle import encode_mask
from saqsam.data.tight_box import tight_box
from saqsam.inference.encoded_image import EncodedImage
from saqsam.inference.predictor import Predictor, check_finite
from saqsam.inference.processing import MASK_THRESHOLD
from saqsam.models.processing import input_side
from saqsam.segmentation.objects import OBJECT, Box, SegmentedObject

STABILITY_OFFSET = 1.0
"""Distance of the two thresholds of the stability score, as in `segment_anything`."""

MASK_LOGIT = 10.0
"""Logit of the pixels of a mask prompt, and its negative that of the others."""

_PIXELS_AT_ONCE = 2**24
"""Logits upscaled at once: 64 MiB of float32, whatever the number of masks."""


@dataclass(frozen=True)
class Prompt:
    """A prompt for one object: a box, points, a mask, or several of these.

    Attributes:
        box: Box around the object, which may reach over the border of the image, or None.
        points: x, y in pixels of the image.
        labels: One per point: 1 on the object, 0 beside it.
        mask: HW bool, an earlier mask of the object at the size of the image, or None. Without a box or points, the
            box around it is a prompt too.
        category_id: Category of the object.
        score: Confidence of the detector that gave the prompt, or None.
    """

    box: Box | None = None
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    mask: NDArray[np.bool_] | None = None
    category_id: int = OBJECT
    score: float | None = None

    def __str__(self) -> str:
        parts = []
        if self.box is not None:
            parts.append("box " + ",".join(f"{value:g}" for value in self.box))
        if self.points:
            points = [
                f"{x:g},{y:g}{'' if label else ',0'}"
                for (x, y), label in zip(self.points, self.labels, strict=True)
            ]
            parts.append(("points " if len(points) > 1 else "point ") + ";".join(points))
        if self.mask is not None:
            parts.append(f"mask of {np.count_nonzero(self.mask):,} pixels")
        return ", ".join(parts)

    def mask_box(self) -> Box | None:
        """Return the bounding box of the mask, or None without one or for an empty one."""
        return None if self.mask is None else tight_box(self.mask)

    def extent(self) -> Box:
        """Return the box around all that is given."""
        boxes = [(x, y, x, y) for x, y in self.points]
        boxes += [box for box in (self.box, self.mask_box()) if box is not None]
        low, high = np.array(boxes)[:, :2].min(0), np.array(boxes)[:, 2:].max(0)
        return (float(low[0]), float(low[1]), float(high[0]), float(high[1]))

    def shifted(self, x: int, y: int, size: tuple[int, int]) -> Prompt:
        """Return the prompt in pixels of a part of the image, `size` (height, width) from (x, y) on.

        Points outside the part are left out.
        """
        height, width = size
        box = self.box and (self.box[0] - x, self.box[1] - y, self.box[2] - x, self.box[3] - y)
        kept = [
            ((px - x, py - y), label)
            for (px, py), label in zip(self.points, self.labels, strict=True)
            if 0 <= px - x < width and 0 <= py - y < height
        ]
        mask = None if self.mask is None else self.mask[y : y + height, x : x + width]
        points, labels = tuple(point for point, _ in kept), tuple(label for _, label in kept)
        return replace(self, box=box, points=points, labels=labels, mask=mask)


def segment_prompts(
    predictor: Predictor, image: EncodedImage, prompts: Sequence[Prompt]
) -> list[SegmentedObject]:
    """Return the mask of each prompt, in order.

    A single point is ambiguous: of its three masks the one with the best predicted IoU is taken. Any other prompt gets
    the model's single mask.

    Args:
        predictor: The predictor.
        image: The image, from `predictor.encode`.
        prompts: The prompts, in pixels of the image.

    Raises:
        ValueError: A prompt lies outside the image, a mask has another size or no pixel, or the model's outputs are
            not finite.
    """
    groups: dict[tuple[bool, int, bool], list[int]] = {}
    for place, prompt in enumerate(prompts):
        kind = (prompt.box is not None, len(prompt.points), prompt.mask is not None)
        groups.setdefault(kind, []).append(place)
    found: dict[int, SegmentedObject] = {}
    for places in groups.values():
        group = [prompts[place] for place in places]
        for place, prompt, (rle, iou, stability) in zip(
            places, group, _segment_alike(predictor, image, group), strict=True
        ):
            found[place] = SegmentedObject(rle, iou, stability, str(prompt), prompt.category_id, prompt.score)
    return [found[place] for place in range(len(prompts))]


def _segment_alike(
    predictor: Predictor, image: EncodedImage, prompts: Sequence[Prompt]
) -> Iterator[tuple[dict[str, Any], float, float]]:
    """Yield run lengths, predicted IoU and stability of prompts that have the same kinds and number of points."""
    first = prompts[0]
    given: dict[str, Any] = {}
    if first.box is not None:
        given["boxes"] = [prompt.box for prompt in prompts]
    if first.points:
        given["points"] = [prompt.points for prompt in prompts]
        given["labels"] = [prompt.labels for prompt in prompts]
    if first.mask is not None:
        side = input_side(predictor.processor)
        given["mask_inputs"] = np.stack([_mask_logits(prompt, image, side) for prompt in prompts])
        if first.box is None and not first.points:
            given["boxes"] = [prompt.mask_box() for prompt in prompts]
    is_ambiguous = first.box is None and first.mask is None and len(first.points) == 1
    height, width = image.original_size
    at_once = max(1, _PIXELS_AT_ONCE // (height * width))
    for low_res, ious in predictor.predict_low_res(**given, multimask_output=is_ambiguous, image=image):
        check_finite(low_res, ious)
        best = ious.argmax(1)
        rows = torch.arange(len(best), device=best.device)
        chosen, values = low_res[rows, best][:, None], ious[rows, best].tolist()
        logits = (
            one
            for part in torch.split(chosen, at_once)
            for one in predictor.upscale(part, return_logits=True, image=image)[:, 0].cpu().numpy()
        )
        for one, iou in zip(logits, values, strict=True):
            inner, outer = (
                np.count_nonzero(one > MASK_THRESHOLD + sign * STABILITY_OFFSET) for sign in (1, -1)
            )
            yield encode_mask(one > MASK_THRESHOLD), iou, inner / outer if outer else 1.0


def _mask_logits(prompt: Prompt, image: EncodedImage, side: int) -> NDArray[np.float32]:
    """Return the mask of a prompt as the logits [4h, 4w] that the model takes, whose input has `side` pixels."""
    mask = prompt.mask
    assert mask is not None
    if mask.shape != image.original_size:
        height, width = image.original_size
        raise ValueError(
            f"mask: expected the size of the image, {width} x {height} px, got {mask.shape[1]} x {mask.shape[0]} px"
        )
    if not mask.any():
        raise ValueError("mask: expected at least one pixel, got none")
    rows, columns = image.mask_size
    inner = (
        max(1, round(image.input_size[1] * columns / side)),
        max(1, round(image.input_size[0] * rows / side)),
    )
    cover = cv2.resize(mask.astype(np.float32), inner, interpolation=cv2.INTER_AREA)
    logits = np.full(image.mask_size, -MASK_LOGIT, np.float32)
    logits[: inner[1], : inner[0]] = MASK_LOGIT * (2 * cover - 1)
    return logits
