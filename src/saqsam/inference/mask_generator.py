"""Masks of all that is in an image, from a grid of points (Kirillov et al., "Segment Anything", 2023, appendix B).

Each point of the grid gives three masks. Kept are those that the model itself rates high and that hardly change when
the threshold does; of masks with nearly the same box the one that is rated highest. With crop layers the same is done
in overlapping crops, and masks of smaller crops go before those of larger ones.

The crops, the grid and the filters on masks are those of transformers' image processor. Its suppression of duplicates
needs torchvision, so that is `suppress`. From the official `SamAutomaticMaskGenerator` this differs in three points:
the stability has to be above its threshold, not at least that (transformers' filter); a mask without any pixel is left
out; boxes have exclusive ends, though boxes are compared as the official code does, without the last pixel.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as rle_codec
import torch
from numpy.typing import NDArray
from transformers import SamImageProcessorPil

from saqsam.data.image_input import ImageInput, as_rgb
from saqsam.data.images import ImageNote
from saqsam.data.rle import decode_mask, encode_mask, segmentation_to_rle
from saqsam.inference.encoded_image import EncodedImage
from saqsam.inference.nms import suppress
from saqsam.inference.predictor import MASK_THRESHOLD, Predictor, check_finite

Box = tuple[int, int, int, int]
"""xyxy in pixels of the image, with exclusive ends."""

_TRANSFORMERS = SamImageProcessorPil()
"""For its grid and filters, which do not depend on how it is set."""

_PIXELS_AT_ONCE = 2**24
"""Logits filtered in one go: 64 MiB of float32, whatever the number of masks."""


@dataclass(frozen=True)
class GeneratorOptions:
    """How masks are made and chosen; names and defaults are the official ones.

    Attributes:
        points_per_side: The grid has the square of it.
        pred_iou_thresh: The model's own estimate of a mask's IoU has to be above; 0 lets all pass.
        stability_score_thresh: The stability score has to be above; 0 lets all pass.
        stability_score_offset: The score is the IoU of a mask's pixels above this logit and above its negative.
        box_nms_thresh: IoU of boxes above which the lower rated of two masks of a crop is left out.
        crop_n_layers: Layer k has 4^k overlapping crops; 0 looks at the whole image alone. A layer is passed over whose
            grid has no point, or where the image is smaller than 4^k pixels.
        crop_nms_thresh: As `box_nms_thresh`, for masks of different crops.
        crop_overlap_ratio: Overlap of the crops of layer 1, as a share of the image's shorter side.
        crop_n_points_downscale_factor: Layer k has a grid of points_per_side / factor^k points a side.
        min_mask_region_area: Smaller holes are filled, smaller islands removed; 0 leaves masks as they are.

    Raises:
        ValueError: A value out of its range.
    """

    points_per_side: int = 32
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0

    def __post_init__(self) -> None:
        least = {
            "points_per_side": 1,
            "crop_n_points_downscale_factor": 1,
            "crop_n_layers": 0,
            "min_mask_region_area": 0,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}: expected at least {low}, got {getattr(self, name)}")
        for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "crop_nms_thresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)}")
        if not 0 <= self.crop_overlap_ratio < 1:
            raise ValueError(
                f"crop_overlap_ratio: expected 0 or more and below 1, got {self.crop_overlap_ratio}"
            )
        if not (math.isfinite(self.stability_score_offset) and self.stability_score_offset >= 0):
            raise ValueError(
                f"stability_score_offset: expected at least 0, got {self.stability_score_offset}"
            )


@dataclass(frozen=True)
class GeneratedMask:
    """One mask and what is known of it.

    Attributes:
        rle: COCO compressed run-length encoding `{"size": [H, W], "counts": bytes}` at image resolution.
        box: Around it.
        predicted_iou: The model's own estimate of its IoU.
        stability_score: IoU of its pixels above `stability_score_offset` and above the negative of it, in [0, 1].
        point: x, y in pixels of the image, the prompt.
        crop_box: What of the image the model saw.
    """

    rle: dict[str, Any]
    box: Box
    predicted_iou: float
    stability_score: float
    point: tuple[float, float]
    crop_box: Box

    def mask(self) -> NDArray[np.bool_]:
        """Decode the mask: HW bool at image resolution."""
        return decode_mask(self.rle)

    @property
    def area(self) -> int:
        """Number of pixels, from the run lengths alone."""
        return int(rle_codec.area(self.rle))


class MaskGenerator:
    """Finds masks of everything in an image.

    Args:
        predictor: Any backend's; its `prompts_at_once` bounds the memory.
        options: See there.
    """

    def __init__(self, predictor: Predictor, options: GeneratorOptions | None = None) -> None:
        self.predictor = predictor
        self.options = GeneratorOptions() if options is None else options

    def generate(self, image: ImageInput, *, is_set: bool = False) -> list[GeneratedMask]:
        """Generate the masks of an image.

        Args:
            image: As `Predictor.set_image` takes it. The predictor is set to it and stays so.
            is_set: The predictor is set to this image already.

        Returns:
            The masks; of one crop by falling predicted IoU, smaller crops first.

        Raises:
            ValueError: The image is not one that `Predictor.set_image` takes, or the model's outputs are not finite.
        """
        picture, notes = as_rgb(image)
        if notes:
            warnings.warn(f"image: {'; '.join(notes)}", ImageNote, stacklevel=2)
        if not is_set:
            self.predictor.set_image(picture)
        options, whole = self.options, self.predictor.image
        size = whole.original_size
        crops = [
            (crop, points)
            for layer in range(options.crop_n_layers + 1)
            for crop, points in _crops(size, layer, options)
        ]
        found: list[GeneratedMask] = []
        for crop, points in crops:
            encoded = whole
            if len(crops) > 1 and crop != (0, 0, size[1], size[0]):
                encoded = self.predictor.encode(picture[crop[1] : crop[3], crop[0] : crop[2]])
            masks = list(self._process_crop(encoded, crop, points, size))
            found += _distinct(masks, [mask.predicted_iou for mask in masks], options.box_nms_thresh)
        if len(crops) > 1:
            found = _distinct(found, [1 / _area(mask.crop_box) for mask in found], options.crop_nms_thresh)
        if options.min_mask_region_area > 0:
            found = self._without_small_regions(found)
        return found

    def _process_crop(
        self, image: EncodedImage, crop: Box, points: NDArray[np.float64], size: tuple[int, int]
    ) -> Iterator[GeneratedMask]:
        """Yield the masks from the points [P, 2] of a crop, in its pixels, that pass the filters."""
        threshold = self.options.pred_iou_thresh
        offset = np.array(crop[:2])
        chunks = self.predictor.predict_low_res(
            points=points[:, None], labels=np.ones((len(points), 1)), image=image
        )
        start = 0
        for low_res, predicted in chunks:
            check_finite(low_res, predicted)
            each = predicted.shape[1]
            logits, rated = low_res.flatten(0, 1), predicted.flatten()
            # Before upscaling, which is most of the work.
            passed = torch.nonzero(rated > threshold if threshold > 0 else torch.ones_like(rated))[:, 0]
            for part in torch.split(passed, max(1, _PIXELS_AT_ONCE // _area(crop))):
                upscaled = self.predictor.upscale(logits[part][:, None], return_logits=True, image=image)
                for place, rle, box, stability in _filter(upscaled, crop, size, self.options):
                    number = int(part[place])
                    x, y = (points[start + number // each] + offset).tolist()
                    yield GeneratedMask(rle, box, float(rated[number]), stability, (x, y), crop)
            start += len(low_res)

    def _without_small_regions(self, found: Sequence[GeneratedMask]) -> list[GeneratedMask]:
        """The masks without small holes and islands; of duplicates that this makes, one that was not changed."""
        cleaned, unchanged = [], []
        for one in found:
            mask, is_changed = remove_small_regions(one.mask(), self.options.min_mask_region_area)
            cleaned.append(replace(one, rle=encode_mask(mask), box=_box_around(mask)) if is_changed else one)
            unchanged.append(float(not is_changed))
        return _distinct(cleaned, unchanged, max(self.options.box_nms_thresh, self.options.crop_nms_thresh))


def _crops(
    size: tuple[int, int], layer: int, options: GeneratorOptions
) -> Iterator[tuple[Box, NDArray[np.float64]]]:
    """The crops of a layer, and the points [P, 2] of each, x, y in its own pixels."""
    height, width = size
    side = int(options.points_per_side / options.crop_n_points_downscale_factor**layer)
    # Layer by layer, because transformers cannot put grids of different sizes into one array. Of the image only the
    # size counts, and a target of its own size leaves points in its pixels. Without a point there is nothing to do,
    # and below this size some crops would have no pixel.
    if side < 1 or min(size) < 4**layer:
        return
    boxes, points, _, _ = _TRANSFORMERS.generate_crop_boxes(
        np.broadcast_to(np.uint8(0), (3, height, width)),
        max(height, width),
        crop_n_layers=layer,
        overlap_ratio=options.crop_overlap_ratio,
        points_per_crop=side,
    )
    grid = points[0, :, 0].double().numpy() / (width, height)  # the whole image comes first
    for box in boxes[-(4**layer) :].long().tolist():
        yield tuple(box), grid * (box[2] - box[0], box[3] - box[1])


def _filter(
    logits: torch.Tensor, crop: Box, size: tuple[int, int], options: GeneratorOptions
) -> Iterator[tuple[int, dict[str, Any], Box, float]]:
    """Of logits [M, 1, h, w] in a crop those stable masks that no edge of the crop cuts off.

    Yields:
        Position, run lengths at the size of the image, box, stability score.
    """
    # The filter returns the scores of what it keeps: given positions as scores, it says what that is.
    positions = torch.arange(len(logits), dtype=torch.float32, device=logits.device)
    rles, kept, boxes = _TRANSFORMERS.filter_masks(
        logits,
        positions[:, None],
        size,
        crop,
        pred_iou_thresh=0.0,
        stability_score_thresh=options.stability_score_thresh,
        mask_threshold=MASK_THRESHOLD,
        stability_score_offset=options.stability_score_offset,
    )
    for rle, place, (x0, y0, x1, y1) in zip(rles, kept.long().tolist(), boxes.tolist(), strict=True):
        compressed = segmentation_to_rle(rle, size)
        if rle_codec.area(compressed):
            one, offset = logits[place], options.stability_score_offset
            high, low = (int((one > MASK_THRESHOLD + sign * offset).sum()) for sign in (1, -1))
            yield place, compressed, (x0, y0, x1 + 1, y1 + 1), high / low


def _distinct(
    masks: Sequence[GeneratedMask], scores: Sequence[float], threshold: float
) -> list[GeneratedMask]:
    # Boxes end at their last pixel here, as in the official code: it decides about small masks.
    boxes = np.array([mask.box for mask in masks], dtype=np.float64).reshape(-1, 4) - (0, 0, 1, 1)
    return [masks[place] for place in suppress(boxes, scores, threshold)]


def remove_small_regions(mask: NDArray[np.bool_], least: int) -> tuple[NDArray[np.bool_], bool]:
    """Fill the holes and then remove the islands of a mask that have fewer than `least` pixels.

    Regions are connected over edges and corners. Whatever lies outside the mask is a hole, at the image's border
    too. Of a mask that is small islands alone, the largest stays.

    Args:
        mask: HW bool.
        least: In pixels.

    Returns:
        The mask, HW bool, and whether it differs.
    """
    filled = mask | _small_regions(~mask, least, keep_largest=False)
    islands = _small_regions(filled, least, keep_largest=True)
    cleaned = filled & ~islands
    return cleaned, bool((cleaned != mask).any())


def _small_regions(mask: NDArray[np.bool_], least: int, *, keep_largest: bool) -> NDArray[np.bool_]:
    """The pixels of the small regions of a mask; if all are and it is asked for, without the largest."""
    count, regions, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    small = stats[:, cv2.CC_STAT_AREA] < least
    small[0] = False  # what is not mask
    if keep_largest and count > 1 and small[1:].all():
        small[1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))] = False
    chosen: NDArray[np.bool_] = small[regions]
    return chosen


def _box_around(mask: NDArray[np.bool_]) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
