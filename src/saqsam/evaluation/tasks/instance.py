"""Task `instance`: a mask for each box of a detector, as COCO mask AP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saqsam.data.detections import DetectionSource, ImageDetections
from saqsam.data.rle import encode_mask, rle_from_text, rle_text
from saqsam.data.types import Instance
from saqsam.evaluation.metrics.coco_ap import MaskAP
from saqsam.evaluation.metrics.iou import clear_ignored, rle_ious
from saqsam.evaluation.record_schema import IMAGE_SIZE, MASK_COUNTS, Schema
from saqsam.evaluation.task import ImageSession, Metrics, Record, Task
from saqsam.inference.predictor import check_finite

NOT_JUDGED = "detection: of a class that the image is not annotated for"


class InstanceTask(Task):
    """COCO mask AP on a detector's boxes: one mask a box, scored by the detector's score times the predicted IoU.

    In a set whose images are each annotated for some classes only (LVIS), boxes of other classes are left out and
    counted, and the figures are LVIS's: see `MaskAP.compute_federated`.

    Args:
        detections: Of the data set, from `load_detections`, or simulated.
        frequencies: LVIS's `r`, `c` or `f` by category id, `CocoDataset.category_frequencies`; empty for other sets.
    """

    name = "instance"
    compared = "best IoU that an object is found with"

    def __init__(self, detections: DetectionSource, frequencies: Mapping[int, str] | None = None) -> None:
        self.detections = detections
        self.frequencies = frequencies or {}

    def options(self) -> dict[str, Any]:
        """See `Task.options`."""
        shown: dict[str, Any] = {"detections": self.detections.digest()}
        return shown | ({"federated": True} if self.frequencies else {})

    def score(self, session: ImageSession) -> Record:
        """See `Task.score`; the truth goes into the record too, so that records are all that AP needs."""
        sample = session.sample
        boxes = self._asked(session)
        height, width, _ = sample.image.shape
        record: Record = {
            "size": [height, width],
            "truth": [[i.id, i.category_id, int(i.is_crowd), rle_text(i.rle)] for i in sample.instances],
            "found": [],
        }
        if sample.incomplete:
            record["incomplete"] = sorted(sample.incomplete)
        if boxes is None:
            return record
        position = 0
        predictor, counted = session.predictor, sample.counted()
        for low_res, predicted in predictor.predict_low_res(boxes=boxes.boxes, multimask_output=False):
            check_finite(low_res, predicted)
            masks = clear_ignored(predictor.upscale(low_res)[:, 0], counted).cpu().numpy()
            for mask, own in zip(masks, predicted[:, 0].tolist(), strict=True):
                # The IoU head is linear: an estimate below 0 would turn the order of the detector's scores around.
                score = float(boxes.scores[position]) * max(own, 0.0)
                category = int(boxes.category_ids[position])
                record["found"].append([category, score, own, rle_text(encode_mask(mask))])
                position += 1
        return record

    def _asked(self, session: ImageSession) -> ImageDetections | None:
        """The detector's boxes of classes that the image was annotated for; None where there is none."""
        found, judged = self.detections.of(session.sample), session.sample.judged
        if found is None or judged is None:
            return found
        kept = np.isin(found.category_ids, sorted(judged))
        if not kept.all():
            session.skipped[NOT_JUDGED] += int((~kept).sum())
        return (
            ImageDetections(found.boxes[kept], found.scores[kept], found.category_ids[kept])
            if kept.any()
            else None
        )

    def schema(self) -> Schema:
        """See `Task.schema`."""
        return {
            "size": IMAGE_SIZE,
            "truth": [(int, int, int, MASK_COUNTS)],
            "found": [(int, float, float, MASK_COUNTS)],
            "incomplete?": [int],
        }

    def reduce(self, records: Sequence[Record]) -> Metrics:
        """See `Task.reduce`: the figures of `MaskAP.compute`, of LVIS those of `MaskAP.compute_federated`."""
        mask_ap = MaskAP()
        for image_id, record in enumerate(records):
            size = record["size"]
            rles = [rle_from_text(counts, size) for *_, counts in record["found"]]
            truth = [
                Instance(number, rle_from_text(counts, size), (0, 0, 0, 0), category, bool(crowd))
                for number, category, crowd, counts in record["truth"]
            ]
            scores = [score for _, score, _, _ in record["found"]]
            categories = [category for category, *_ in record["found"]]
            incomplete = record.get("incomplete", ())
            mask_ap.update(image_id, tuple(size), truth, rles, scores, categories, incomplete)
        return dict(mask_ap.compute_federated(self.frequencies) if self.frequencies else mask_ap.compute())

    def values(self, record: Record) -> Mapping[str, float]:
        """See `Task.values`: of each object the best IoU that a mask of its class has with it."""
        values = {}
        for number, category, crowd, counts in record["truth"]:
            if not crowd:
                found = [text for other, _, _, text in record["found"] if other == category]
                values[str(number)] = max(rle_ious(found, [counts], record["size"])[:, 0], default=0.0)
        return values

    def masks(self, record: Record) -> Mapping[str, str]:
        """See `Task.masks`."""
        return {str(place): counts for place, (*_, counts) in enumerate(record["found"])}
