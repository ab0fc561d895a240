"""Task `oriented`: oriented boxes, the smallest rectangles around masks from horizontal boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from saqsam.data.detections import DetectionSource, ImageDetections
from saqsam.data.polygons import Polygon, convex_hull, mask_rectangle, polygon_area, smallest_rectangle
from saqsam.data.rle import encode_mask, rle_text
from saqsam.data.types import Dataset, Instance, Sample, category_names
from saqsam.evaluation.metrics.rotated import polygon_ious
from saqsam.evaluation.metrics.rotated_ap import OrientedDetection, OrientedTruth, RotatedAP
from saqsam.evaluation.record_schema import MASK_COUNTS, AtLeast, Nullable, Schema
from saqsam.evaluation.registry import DEFAULT_TILE
from saqsam.evaluation.task import ImageSession, Metrics, Record, Task, mean
from saqsam.inference.predictor import Predictor, check_finite
from saqsam.inference.tiles import Tile, assign_tiles

OVERLAP = 200 / 1024
"""Overlap of neighboring tiles as a share of their side, as DOTA's images are cut."""


class OrientedTask(Task):
    """Rotated AP and mean rotated IoU of the smallest rectangles around masks from horizontal boxes.

    The boxes are those of a detector, or of the objects themselves. Each gives one mask, scored by the detection score
    (1 without a detector) times the predicted IoU. The true oriented box of an object is its quadrilateral where the
    dataset has one, otherwise the smallest rectangle around its polygons or its mask. Difficult objects and crowds are
    not prompts, and finding them is neither right nor wrong. Images larger than a tile are segmented tile by tile.

    Args:
        detections: Detections of the dataset, from `load_detections` or simulated; None for the boxes of the objects.
        tile: Side of a tile in pixels.
        category_names: Class names by id, for the names of per-class metrics; missing ones are named by their id.
        keep_masks: Keep the masks in the records, for comparisons and pictures.

    Raises:
        ValueError: A tile has no pixels.
    """

    name = "oriented"
    compared = "best rotated IoU of an oriented box with an object"
    unit = "rotated IoU"
    metric_labels: ClassVar = {
        "rotated_miou": "mean rotated IoU",
        "ignored": "difficult objects, crowds",
        "mended": "non-convex truth, hull taken",
        "boxes": "box prompts",
        "empty_masks": "box prompts with empty mask",
    }

    def __init__(
        self,
        detections: DetectionSource | None = None,
        *,
        tile: int = DEFAULT_TILE,
        category_names: Mapping[int, str] | None = None,
        keep_masks: bool = False,
    ) -> None:
        if tile < 1:
            raise ValueError(f"tile: expected at least 1 px, got {tile}")
        self.detections, self.tile, self.keep_masks = detections, tile, keep_masks
        self.category_names = category_names or {}

    @classmethod
    def create(cls, dataset: Dataset, options: Mapping[str, Any], *, keep_masks: bool) -> OrientedTask:
        """Create the task from its options."""
        return cls(
            options["detections"],
            tile=options["tile"],
            category_names=category_names(dataset),
            keep_masks=keep_masks,
        )

    def input_skipped(self) -> Mapping[str, int]:
        """Return the detections that were skipped, by reason."""
        return {} if self.detections is None else self.detections.skipped

    def input_notes(self) -> Mapping[str, int]:
        """Return what was unusual in the detections."""
        return {} if self.detections is None else self.detections.notes

    def options(self) -> dict[str, Any]:
        """Return the options that decide about scores."""
        source = None if self.detections is None else self.detections.digest
        return {"detections": source, "tile": self.tile, "masks": self.keep_masks}

    def score(self, session: ImageSession) -> Record:
        """Score an image; the record holds the truth too, so that records are all that metrics need."""
        sample = session.sample
        truth = [_truth(instance) for instance in sample.instances]
        record: Record = {
            "truth": [shown for shown, _ in truth],
            "mended": sum(is_mended for _, is_mended in truth),
            "found": [],
        }
        prompts = self._prompts(sample)
        if prompts is None:
            return record
        detections: list[Record] = [{} for _ in prompts.object_ids]
        size, overlap = sample.image.shape[:2], min(round(self.tile * OVERLAP), self.tile - 1)
        for tile, places in assign_tiles(prompts.boxes, size, self.tile, overlap).items():
            predictor, corner = _set_to_tile(session, tile)
            boxes = prompts.boxes[places] - np.tile(corner, 2)
            for place, (polygon, own, counts) in zip(
                places, self._segment(predictor, boxes, tile, sample), strict=True
            ):
                detections[place] = {
                    "id": prompts.object_ids[place],
                    "category": prompts.categories[place],
                    # As in the task `instance`: an estimate below 0 would reverse the order of scores.
                    "score": prompts.scores[place] * max(own, 0.0),
                    "predicted_iou": own,
                    "corners": None if polygon is None else (polygon + corner).tolist(),
                } | ({"mask": counts} if self.keep_masks else {})
        record["found"] = detections
        return record

    def _prompts(self, sample: Sample) -> _BoxPrompts | None:
        """Return the box prompts of an image; None where there are none."""
        if self.detections is None:
            members = [one for one in sample.instances if not (one.is_crowd or one.is_difficult)]
            boxes = np.array([one.box for one in members], dtype=np.float64).reshape(-1, 4)
            categories = [one.category_id for one in members]
            prompts = _BoxPrompts(boxes, [1.0] * len(members), categories, [one.id for one in members])
        else:
            own = self.detections.of(sample) or ImageDetections.none()
            prompts = _BoxPrompts(
                own.boxes, own.scores.tolist(), own.category_ids.tolist(), [None] * len(own.boxes)
            )
        return prompts if prompts.object_ids else None

    def _segment(
        self, predictor: Predictor, boxes: NDArray[np.float64], tile: Tile, sample: Sample
    ) -> Iterator[tuple[Polygon | None, float, str | None]]:
        """Yield the rectangle in the tile, the predicted IoU and, if kept, the mask in the image, of each box."""
        for low_res, predicted in predictor.predict_low_res(boxes=boxes, multimask_output=False):
            check_finite(low_res, predicted)
            masks = predictor.upscale(low_res)[:, 0].cpu().numpy()
            for mask, own in zip(masks, predicted[:, 0].tolist(), strict=True):
                counts = _in_image(mask, tile, sample) if self.keep_masks else None
                yield mask_rectangle(mask), own, counts

    def schema(self) -> Schema:
        """Return the schema of a record."""
        corners = AtLeast(3, (float, float))
        truth = {"id": int, "category": int, "difficult": bool, "crowd": bool, "corners": corners}
        detection: dict[str, Schema] = {
            "id": Nullable(int),
            "category": int,
            "score": float,
            "predicted_iou": float,
            "corners": Nullable(corners),
        }
        if self.keep_masks:
            detection["mask"] = MASK_COUNTS
        return {"truth": [truth], "mended": int, "found": [detection]}

    def reduce(self, records: Sequence[Record]) -> Metrics:
        """Compute the metrics.

        `rotated_miou` is the mean of `values`. The metrics of `RotatedAP.compute` follow, and with several classes the
        `rotated_ap50` of each. Then come counts: objects to find (`objects`), difficult objects and crowds (`ignored`),
        quadrilaterals that were not convex and replaced by their hull (`mended`), box prompts (`boxes`), and those
        whose mask was empty (`empty_masks`), which count as wrong.
        """
        average = RotatedAP()
        for record in records:
            average.update(
                [_detection(one) for one in record["found"]], [_true(one) for one in record["truth"]]
            )
        values = [value for record in records for value in self.values(record).values()]
        metrics: Metrics = {"rotated_miou": mean(values)}
        metrics |= average.compute()
        by_class = average.by_class()
        if len(by_class) > 1:
            for category, own_metrics in by_class.items():
                name = self.category_names.get(category, str(category))
                metrics[f"rotated_ap50/{name}"] = own_metrics["rotated_ap50"]
        detections = [one for record in records for one in record["found"]]
        return metrics | {
            "objects": len(values),
            "ignored": sum(len(record["truth"]) for record in records) - len(values),
            "mended": sum(record["mended"] for record in records),
            "boxes": len(detections),
            "empty_masks": sum(one["corners"] is None for one in detections),
        }

    def values(self, record: Record) -> Mapping[str, float]:
        """Return the rotated IoU of each object with the detection of its own box, or with the best of its class.

        The value is 0 where nothing was detected; difficult objects and crowds have no value.
        """
        truth = [one for one in record["truth"] if _true(one).counts]
        detections = [one for one in record["found"] if one["corners"] is not None]
        # A box of an object belongs to it, a detector's to all objects of its class.
        key = "category" if any(one["id"] is None for one in detections) else "id"
        is_own = np.array([[one[key] == other[key] for other in truth] for one in detections], dtype=bool)
        ious = polygon_ious(
            [np.array(one["corners"]) for one in detections], [np.array(one["corners"]) for one in truth]
        )
        best = np.where(is_own.reshape(ious.shape), ious, 0.0).max(axis=0, initial=0.0)
        return {str(one["id"]): value for one, value in zip(truth, best.tolist(), strict=True)}

    def masks(self, record: Record) -> Mapping[str, str]:
        """Return the masks that the record keeps, by object id or, with detections, by position."""
        return {
            str(place if one["id"] is None else one["id"]): one["mask"]
            for place, one in enumerate(record["found"])
            if "mask" in one
        }


@dataclass(frozen=True)
class _BoxPrompts:
    """Boxes of P prompts in an image.

    Attributes:
        boxes: [P, 4] float64 xyxy in pixels of the image.
        scores: P confidences.
        categories: P classes.
        object_ids: P ids of objects; None for a box of a detector.
    """

    boxes: NDArray[np.float64]
    scores: list[float]
    categories: list[int]
    object_ids: Sequence[int | None]


def _set_to_tile(session: ImageSession, tile: Tile) -> tuple[Predictor, NDArray[np.float64]]:
    """Return a predictor that is set to a tile, and the upper left corner x, y of the tile in the image."""
    height, width, _ = session.sample.image.shape
    if tile == (0, 0, width, height):
        return session.predictor, np.zeros(2)
    predictor = session.new_predictor()
    part = session.sample.image[tile.y0 : tile.y1, tile.x0 : tile.x1]
    predictor.set_image(np.ascontiguousarray(part))
    return predictor, np.array([tile.x0, tile.y0], dtype=np.float64)


def _in_image(mask: NDArray[np.bool_], tile: Tile, sample: Sample) -> str:
    whole = np.zeros(sample.image.shape[:2], dtype=bool)
    whole[tile.y0 : tile.y1, tile.x0 : tile.x1] = mask
    return rle_text(encode_mask(whole))


def _truth(instance: Instance) -> tuple[Record, bool]:
    """Return an object as records hold it, and whether its quadrilateral was not convex."""
    polygon, is_mended = true_polygon(instance)
    return {
        "id": instance.id,
        "category": instance.category_id,
        "difficult": instance.is_difficult,
        "crowd": instance.is_crowd,
        "corners": polygon.tolist(),
    }, is_mended


def true_polygon(instance: Instance) -> tuple[Polygon, bool]:
    """Return the true oriented box of an object.

    Returns:
        The convex hull of four corners, or the smallest rectangle around any other number of corners; without corners,
        or if they have no area, the smallest rectangle around the mask. And whether four corners were not convex:
        crossed, or one inside the triangle of the others.
    """
    corners = instance.corners
    if corners is not None:
        if len(corners) == 4:
            hull = convex_hull(corners)
            if len(hull) >= 3:
                area = polygon_area(hull)
                return hull, abs(abs(polygon_area(corners)) - area) > 1e-9 * area
        else:
            rectangle = smallest_rectangle(corners)
            if rectangle is not None:
                return rectangle, False
    rectangle = mask_rectangle(instance.mask())
    assert rectangle is not None, f"instance {instance.id} has an empty mask"
    return rectangle, False


def _true(shown: Record) -> OrientedTruth:
    corners = np.array(shown["corners"], dtype=np.float64)
    return OrientedTruth(corners, shown["category"], shown["difficult"], shown["crowd"])


def _detection(shown: Record) -> OrientedDetection:
    corners = shown["corners"]
    polygon = None if corners is None else np.array(corners, dtype=np.float64)
    return OrientedDetection(polygon, shown["category"], shown["score"])
