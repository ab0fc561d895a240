"""Generate masks for everything in an image from a grid of points (Kirillov et al., "Segment Anything", 2023, app. B).

Each point of the grid prompts three masks. A mask is kept if its predicted IoU and its stability score are high; of
masks with nearly the same box only the one with the highest predicted IoU is kept. With crop layers, overlapping crops
are processed in the same way, and masks of smaller crops take precedence over those of larger ones.

Crops, grids and filters are those of transformers' image processor. Its non-maximum suppression needs torchvision, so
`nms.suppress` stands in. The results differ from those of the official `SamAutomaticMaskGenerator` in three points:
the stability score has to exceed its threshold, where the official code accepts equality (transformers' filter); masks
without any pixel are dropped; boxes have exclusive ends, although suppression compares boxes without their last pixel,
as the official code does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import pycocotools.mask as rle_codec
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import SamImageProcessorPil, SamModel, SamProcessor

from saqsam.data.image_input import ImageInput, as_rgb
from saqsam.data.images import ImageNote
from saqsam.data.rle import encode_mask, segmentation_to_rle
from saqsam.data.tight_box import tight_box
from saqsam.inference.backend import Backend
from saqsam.inference.encoded_image import EncodedImage
from saqsam.inference.generated_mask import OUTPUT_MODES, Box, GeneratedMask, OutputMode
from saqsam.inference.generator_options import GeneratorOptions, OptionKeywords, check_grids, merge_options
from saqsam.inference.mask_regions import remove_small_regions
from saqsam.inference.nms import suppress
from saqsam.inference.predictor import Predictor, check_finite
from saqsam.inference.processing import MASK_THRESHOLD
from saqsam.utils.errors import shorten

__all__ = ["GeneratedMask", "GeneratorOptions", "MaskGenerator"]

_TRANSFORMERS = SamImageProcessorPil()
"""Source of grids and filters, which do not depend on its settings."""

_PIXELS_AT_ONCE = 2**24
"""Logits filtered at once: 64 MiB of float32, whatever the number of masks."""


class MaskGenerator:
    """Generates masks for everything in an image.

    Has the keywords and the result of `segment_anything.SamAutomaticMaskGenerator`:

        generator = MaskGenerator(model, points_per_side=16, min_mask_region_area=100)
        masks = sorted(generator.generate(image), key=lambda mask: mask["area"])

    Args:
        model: A model, a `Backend`, or a `Predictor` to share.
        options: Options that the keywords change; None for the defaults.
        processor: Processor of a model or backend, as for `Predictor`.
        points_per_batch: Points per decoder call, which bounds the memory; None for the predictor's own number.
        point_grids: Points x, y in [0, 1) for each crop layer, [P, 2] each, instead of regular grids.
        output_mode: Form of `mask["segmentation"]`: `binary_mask`, `uncompressed_rle` or `coco_rle`.
        **keywords: Fields of `GeneratorOptions`, such as `points_per_side`.

    Raises:
        ValueError: A value is out of its range, or `points_per_side` and `point_grids` are both given or both None.
        TypeError: A keyword is unknown.
    """

    def __init__(
        self,
        model: SamModel | Backend | Predictor,
        options: GeneratorOptions | None = None,
        *,
        processor: SamProcessor | None = None,
        points_per_batch: int | None = None,
        point_grids: Sequence[ArrayLike] | None = None,
        output_mode: OutputMode = "binary_mask",
        **keywords: Unpack[OptionKeywords],
    ) -> None:
        if points_per_batch is not None and points_per_batch < 1:
            raise ValueError(f"points_per_batch: expected at least 1, got {points_per_batch}")
        if output_mode not in OUTPUT_MODES:
            raise ValueError(f"output_mode: expected {', '.join(OUTPUT_MODES)}, got {shorten(output_mode)}")
        if isinstance(model, Predictor) and processor is not None:
            raise ValueError("processor: expected None with a Predictor, which has its own")
        self.predictor = model if isinstance(model, Predictor) else Predictor(model, processor)
        self.options = merge_options(options, keywords, has_grids=point_grids is not None)
        self.points_per_batch = points_per_batch
        self.point_grids = None if point_grids is None else check_grids(point_grids, self.options)
        self.output_mode: OutputMode = output_mode

    def generate(self, image: ImageInput, *, encoded: EncodedImage | None = None) -> list[GeneratedMask]:
        """Generate the masks of an image.

        Args:
            image: As `Predictor.set_image` takes it. It becomes the current image of the predictor, unless it comes
                encoded.
            encoded: The same image from `predictor.encode`, so that it is not encoded again.

        Returns:
            The masks, those of smaller crops first, and within a crop by descending predicted IoU.

        Raises:
            ValueError: The image is not one that `Predictor.set_image` takes, or the model's outputs are not finite.
        """
        picture, notes = as_rgb(image)
        if notes:
            warnings.warn(f"image: {'; '.join(notes)}", ImageNote, stacklevel=2)
        if encoded is None:
            self.predictor.set_image(picture)
        whole = encoded or self.predictor.image
        size = whole.original_size
        crops = [
            (crop, points)
            for layer in range(self.options.crop_n_layers + 1)
            for crop, points in _crops(size, layer, self.options, self.point_grids)
        ]
        kept: list[GeneratedMask] = []
        for crop, points in crops:
            encoded = whole
            if len(crops) > 1 and crop != (0, 0, size[1], size[0]):
                encoded = self.predictor.encode(picture[crop[1] : crop[3], crop[0] : crop[2]])
            masks = list(self._process_crop(encoded, crop, points, size))
            kept += _distinct(masks, [mask.predicted_iou for mask in masks], self.options.box_nms_thresh)
        if len(crops) > 1:
            kept = _distinct(kept, [1 / _area(mask.crop_box) for mask in kept], self.options.crop_nms_thresh)
        if self.options.min_mask_region_area > 0:
            kept = self._clean(kept)
        return kept

    def _process_crop(
        self, image: EncodedImage, crop: Box, points: NDArray[np.float64], size: tuple[int, int]
    ) -> Iterator[GeneratedMask]:
        """Yield the masks that pass the filters, from points [P, 2] in pixels of a crop."""
        threshold = self.options.pred_iou_thresh
        offset = np.array(crop[:2])
        chunks = self.predictor.predict_low_res(
            points=points[:, None],
            labels=np.ones((len(points), 1)),
            image=image,
            prompts_at_once=self.points_per_batch,
        )
        start = 0
        for low_res, predicted in chunks:
            check_finite(low_res, predicted)
            masks_per_point = predicted.shape[1]
            logits, ious = low_res.flatten(0, 1), predicted.flatten()
            # Filtering comes before upscaling, which is most of the work.
            passed = torch.nonzero(ious > threshold if threshold > 0 else torch.ones_like(ious))[:, 0]
            for part in torch.split(passed, max(1, _PIXELS_AT_ONCE // _area(crop))):
                upscaled = self.predictor.upscale(logits[part][:, None], return_logits=True, image=image)
                for place, rle, box, stability in _filter(upscaled, crop, size, self.options):
                    number = int(part[place])
                    x, y = (points[start + number // masks_per_point] + offset).tolist()
                    iou = float(ious[number])
                    yield GeneratedMask(rle, box, iou, stability, (x, y), crop, self.output_mode)
            start += len(low_res)

    def _clean(self, masks: Sequence[GeneratedMask]) -> list[GeneratedMask]:
        """Remove small holes and islands, then duplicates, of which unchanged masks are kept first."""
        cleaned, unchanged = [], []
        for one in masks:
            mask, is_changed = remove_small_regions(one.mask(), self.options.min_mask_region_area)
            box = tight_box(mask)
            assert box is not None  # of a mask's regions, the largest stays
            cleaned.append(replace(one, rle=encode_mask(mask), box=box) if is_changed else one)
            unchanged.append(float(not is_changed))
        return _distinct(cleaned, unchanged, max(self.options.box_nms_thresh, self.options.crop_nms_thresh))


def _crops(
    size: tuple[int, int],
    layer: int,
    options: GeneratorOptions,
    grids: Sequence[NDArray[np.float64]] | None,
) -> Iterator[tuple[Box, NDArray[np.float64]]]:
    """Yield the crops of a layer, and the points [P, 2] of each, x, y in pixels of the crop."""
    height, width = size
    side = 1 if grids else int(options.points_per_side / options.crop_n_points_downscale_factor**layer)
    # A layer at a time, because transformers cannot put grids of different sizes into one array. Only the size of the
    # image matters, and a target of that size leaves points in its pixels. Without a point there is nothing to do, and
    # below this size some crops would have no pixel.
    if side < 1 or min(size) < 4**layer:
        return
    boxes, points, _, _ = _TRANSFORMERS.generate_crop_boxes(
        np.broadcast_to(np.uint8(0), (3, height, width)),
        max(height, width),
        crop_n_layers=layer,
        overlap_ratio=options.crop_overlap_ratio,
        points_per_crop=side,
    )
    # The whole image comes first.
    grid = grids[layer] if grids else points[0, :, 0].double().numpy() / (width, height)
    if not len(grid):
        return
    for box in boxes[-(4**layer) :].long().tolist():
        yield tuple(box), grid * (box[2] - box[0], box[3] - box[1])


def _filter(
    logits: torch.Tensor, crop: Box, size: tuple[int, int], options: GeneratorOptions
) -> Iterator[tuple[int, dict[str, Any], Box, float]]:
    """Yield the stable masks among logits [M, 1, h, w] of a crop that no edge of the crop cuts off.

    Yields:
        Position in the logits, run lengths at the size of the image, box, stability score.
    """
    # The filter returns the scores of the masks that it keeps: with positions as scores, it returns their positions.
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
    """Suppress masks whose box nearly equals that of a mask with a higher score."""
    # Boxes end at their last pixel here, as in the official code, which matters for small masks.
    boxes = np.array([mask.box for mask in masks], dtype=np.float64).reshape(-1, 4) - (0, 0, 1, 1)
    return [masks[place] for place in suppress(boxes, scores, threshold)]


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
