"""Task `oriented`: a mask for each horizontal box, and the smallest rectangle around it as an oriented box."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saqsam.data.detections import DetectionSource, ImageDetections
from saqsam.data.polygons import Polygon, convex_hull, mask_rectangle, polygon_area, smallest_rectangle
from saqsam.data.rle import encode_mask, rle_text
from saqsam.data.types import Instance, Sample
from saqsam.evaluation.metrics.rotated import polygon_ious
from saqsam.evaluation.metrics.rotated_ap import OrientedDetection, OrientedTruth, RotatedAP
from saqsam.evaluation.record_schema import MASK_COUNTS, AtLeast, Nullable, Schema
from saqsam.evaluation.task import ImageSession, Metrics, Record, Task, mean
from saqsam.evaluation.tiles import Tile, assign_tiles
from saqsam.inference.predictor import Predictor, check_finite

TILE = 1024
"""Side of the tiles that DOTA's images are cut into, in pixels."""
OVERLAP = 200 / 1024
"""What neighbouring tiles share, as a share of their side."""


class OrientedTask(Task):
    """Rotated AP and mean rotated IoU of the smallest rectangles around masks from horizontal boxes.

    The boxes are a detector's, or those of the objects themselves; each gives one mask, scored by the detector's score
    (1 without one) times the predicted IoU. The true oriented box of an object is its quadrilateral, where the data
    set has one; else the smallest rectangle around its polygons or its mask. Difficult objects and crowds are no
    prompts, and finding them is neither right nor wrong. Images larger than a tile are segmented tile by tile.

    Args:
        detections: Of the data set, from `load_detections` or simulated; None for the boxes of the objects.
        tile: Side of a tile in pixels.
        category_names: Of the data set, for the names of figures of single classes; ids for what is missing.
        keep_masks: Keep the masks in the records, for comparisons and pictures.

    Raises:
        ValueError: A tile without pixels.
    """

    name = "oriented"
    compared = "rotated IoU that an object is found with"

    def __init__(
        self,
        detections: DetectionSource | None = None,
        *,
        tile: int = TILE,
        category_names: Mapping[int, str] | None = None,
        keep_masks: bool = False,
    ) -> None:
        if tile < 1:
            raise ValueError(f"tile: expected at least 1 px, got {tile}")
        self.detections, self.tile, self.keep_masks = detections, tile, keep_masks
        self.category_names = category_names or {}

    def options(self) -> dict[str, Any]:
        """See `Task.options`."""
        source = None if self.detections is None else self.detections.digest()
        return {"detections": source, "tile": self.tile, "masks": self.keep_masks}

    def score(self, session: ImageSession) -> Record:
        """See `Task.score`; the truth goes into the record too, so that records are all that figures need."""
        sample = session.sample
        truth = [_truth(instance) for instance in sample.instances]
        record: Record = {
            "truth": [shown for shown, _ in truth],
            "mended": sum(is_mended for _, is_mended in truth),
            "found": [],
        }
        asked = self._ask(sample)
        if asked is None:
            return record
        found: list[Record] = [{} for _ in asked.numbers]
        size, overlap = sample.image.shape[:2], min(round(self.tile * OVERLAP), self.tile - 1)
        for tile, places in assign_tiles(asked.boxes, size, self.tile, overlap).items():
            predictor, corner = _look(session, tile)
            boxes = asked.boxes[places] - np.tile(corner, 2)
            for place, (polygon, own, counts) in zip(
                places, self._segment(predictor, boxes, tile, sample), strict=True
            ):
                found[place] = {
                    "id": asked.numbers[place],
                    "category": asked.categories[place],
                    # As in the task `instance`: below 0 an estimate would turn the order of scores around.
                    "score": asked.scores[place] * max(own, 0.0),
                    "predicted_iou": own,
                    "corners": None if polygon is None else (polygon + corner).tolist(),
                } | ({"mask": counts} if self.keep_masks else {})
        record["found"] = found
        return record

    def _ask(self, sample: Sample) -> _Asked | None:
        """What the model is asked of an image; None where that is nothing."""
        if self.detections is None:
            members = [one for one in sample.instances if not (one.is_crowd or one.is_difficult)]
            boxes = np.array([one.box for one in members], dtype=np.float64).reshape(-1, 4)
            categories = [one.category_id for one in members]
            asked = _Asked(boxes, [1.0] * len(members), categories, [one.id for one in members])
        else:
            found = self.detections.of(sample) or ImageDetections.none()
            asked = _Asked(
                found.boxes, found.scores.tolist(), found.category_ids.tolist(), [None] * len(found.boxes)
            )
        return asked if asked.numbers else None

    def _segment(
        self, predictor: Predictor, boxes: NDArray[np.float64], tile: Tile, sample: Sample
    ) -> Iterator[tuple[Polygon | None, float, str | None]]:
        """The rectangle in the tile, the predicted IoU and, if kept, the mask in the image, of each box."""
        for low_res, predicted in predictor.predict_low_res(boxes=boxes, multimask_output=False):
            check_finite(low_res, predicted)
            masks = predictor.upscale(low_res)[:, 0].cpu().numpy()
            for mask, own in zip(masks, predicted[:, 0].tolist(), strict=True):
                counts = _in_image(mask, tile, sample) if self.keep_masks else None
                yield mask_rectangle(mask), own, counts

    def schema(self) -> Schema:
        """See `Task.schema`."""
        corners = AtLeast(3, (float, float))
        truth = {"id": int, "category": int, "difficult": bool, "crowd": bool, "corners": corners}
        found: dict[str, Schema] = {
            "id": Nullable(int),
            "category": int,
            "score": float,
            "predicted_iou": float,
            "corners": Nullable(corners),
        }
        if self.keep_masks:
            found["mask"] = MASK_COUNTS
        return {"truth": [truth], "mended": int, "found": [found]}

    def reduce(self, records: Sequence[Record]) -> Metrics:
        """See `Task.reduce`.

        `rotated_miou` is the mean of `values`; then come the figures of `RotatedAP.compute`; of several classes the
        `rotated_ap50` of each; how many objects were to be found (`objects`), how many were difficult or crowds
        (`ignored`), how many quadrilaterals were not convex, so that their hull was taken (`mended`); how many boxes
        were asked for (`boxes`), and how many of them gave no pixel (`empty_masks`), which counts as wrong.
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
            for category, figures in by_class.items():
                name = self.category_names.get(category, str(category))
                metrics[f"rotated_ap50/{name}"] = figures["rotated_ap50"]
        found = [one for record in records for one in record["found"]]
        return metrics | {
            "objects": len(values),
            "ignored": sum(len(record["truth"]) for record in records) - len(values),
            "mended": sum(record["mended"] for record in records),
            "boxes": len(found),
            "empty_masks": sum(one["corners"] is None for one in found),
        }

    def values(self, record: Record) -> Mapping[str, float]:
        """See `Task.values`: the rotated IoU of each object with what its own box gave, or with the best of its class.

        0 where nothing was found; without difficult objects and crowds.
        """
        truth = [one for one in record["truth"] if _true(one).counts]
        found = [one for one in record["found"] if one["corners"] is not None]
        # A box of an object belongs to it, a detector's to all objects of its class.
        key = "category" if any(one["id"] is None for one in found) else "id"
        is_own = np.array([[one[key] == other[key] for other in truth] for one in found], dtype=bool)
        ious = polygon_ious(
            [np.array(one["corners"]) for one in found], [np.array(one["corners"]) for one in truth]
        )
        best = np.where(is_own.reshape(ious.shape), ious, 0.0).max(axis=0, initial=0.0)
        return {str(one["id"]): value for one, value in zip(truth, best.tolist(), strict=True)}

    def masks(self, record: Record) -> Mapping[str, str]:
        """See `Task.masks`: by the object's id or, of a detector's boxes, by their place."""
        return {
            str(place if one["id"] is None else one["id"]): one["mask"]
            for place, one in enumerate(record["found"])
            if "mask" in one
        }


@dataclass(frozen=True)
class _Asked:
    """Boxes that are prompts.

    Attributes:
        boxes: [P, 4] float64 xyxy in pixels of the image.
        scores: P confidences.
        categories: P classes.
        numbers: P ids of objects; None where a box is a detector's.
    """

    boxes: NDArray[np.float64]
    scores: list[float]
    categories: list[int]
    numbers: Sequence[int | None]


def _look(session: ImageSession, tile: Tile) -> tuple[Predictor, NDArray[np.float64]]:
    """A predictor that is set to a tile, and the tile's upper left corner x, y in the image."""
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
    """An object as a record has it, and whether its quadrilateral had to be mended."""
    polygon, is_mended = true_polygon(instance)
    return {
        "id": instance.id,
        "category": instance.category_id,
        "difficult": instance.is_difficult,
        "crowd": instance.is_crowd,
        "corners": polygon.tolist(),
    }, is_mended


def true_polygon(instance: Instance) -> tuple[Polygon, bool]:
    """The true oriented box of an object.

    Returns:
        Of four corners their convex hull, of another number the smallest rectangle around them; without corners, or if
        they have no area, the smallest rectangle around the mask. And whether four corners were not convex as they
        stood: crossed, or one within the triangle of the others.
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
