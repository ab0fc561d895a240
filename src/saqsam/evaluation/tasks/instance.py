"""Task `instance`: one mask per box of a detector, scored as COCO mask AP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saqsam.data.coco import CocoDataset
from saqsam.data.detections import DetectionSource, ImageDetections
from saqsam.data.rle import encode_mask, rle_from_text, rle_text
from saqsam.data.types import Dataset, Instance
from saqsam.evaluation.metrics.coco_ap import MaskAP
from saqsam.evaluation.metrics.iou import clear_ignored, rle_ious
from saqsam.evaluation.record_schema import IMAGE_SIZE, MASK_COUNTS, Schema
from saqsam.evaluation.task import ImageSession, Metrics, Record, Task
from saqsam.inference.predictor import check_finite

NOT_JUDGED = "detection: of a class that the image is not annotated for"


class InstanceTask(Task):
    """COCO mask AP on the boxes of a detector: one mask per box, scored by detection score times predicted IoU.

    Where each image is annotated for some classes alone, as in LVIS, boxes of other classes are skipped and counted,
    and the metrics are those of LVIS: see `MaskAP.compute_federated`.

    Args:
        detections: Detections of the dataset, from `load_detections` or simulated.
        frequencies: LVIS's `r`, `c` or `f` by category id, see `CocoDataset.category_frequencies`; empty for other
            datasets.
    """

    name = "instance"
    compared = "best IoU of a mask with an object"
    unit = "best IoU"

    def __init__(self, detections: DetectionSource, frequencies: Mapping[int, str] | None = None) -> None:
        self.detections = detections
        self.frequencies = frequencies or {}

    @classmethod
    def create(cls, dataset: Dataset, options: Mapping[str, Any], *, keep_masks: bool) -> InstanceTask:
        """Create the task from its options; records hold masks in any case."""
        frequencies = dataset.category_frequencies if isinstance(dataset, CocoDataset) else None
        return cls(options["detections"], frequencies)

    def input_skipped(self) -> Mapping[str, int]:
        """Return the detections that were skipped, by reason."""
        return self.detections.skipped

    def input_notes(self) -> Mapping[str, int]:
        """Return what was unusual in the detections."""
        return self.detections.notes

    def options(self) -> dict[str, Any]:
        """Return the options that decide about scores."""
        shown: dict[str, Any] = {"detections": self.detections.digest}
        return shown | ({"federated": True} if self.frequencies else {})

    def score(self, session: ImageSession) -> Record:
        """Score an image; the record holds the truth too, so that records are all that AP needs."""
        sample = session.sample
        boxes = self._prompts(session)
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
                # The IoU head is linear: an estimate below 0 would reverse the order of the detection scores.
                score = float(boxes.scores[position]) * max(own, 0.0)
                category = int(boxes.category_ids[position])
                record["found"].append([category, score, own, rle_text(encode_mask(mask))])
                position += 1
        return record

    def _prompts(self, session: ImageSession) -> ImageDetections | None:
        """Return the detections of classes that the image was annotated for; None where there are none."""
        boxes, judged = self.detections.of(session.sample), session.sample.judged
        if boxes is None or judged is None:
            return boxes
        kept = np.isin(boxes.category_ids, sorted(judged))
        if not kept.all():
            session.skipped[NOT_JUDGED] += int((~kept).sum())
        return (
            ImageDetections(boxes.boxes[kept], boxes.scores[kept], boxes.category_ids[kept])
            if kept.any()
            else None
        )

    def schema(self) -> Schema:
        """Return the schema of a record."""
        return {
            "size": IMAGE_SIZE,
            "truth": [(int, int, int, MASK_COUNTS)],
            "found": [(int, float, float, MASK_COUNTS)],
            "incomplete?": [int],
        }

    def reduce(self, records: Sequence[Record]) -> Metrics:
        """Compute the metrics of `MaskAP.compute`, or for LVIS those of `MaskAP.compute_federated`."""
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
        """Return the best IoU that a mask of its class has with each object."""
        values = {}
        for number, category, crowd, counts in record["truth"]:
            if not crowd:
                masks = [text for other, _, _, text in record["found"] if other == category]
                values[str(number)] = max(rle_ious(masks, [counts], record["size"])[:, 0], default=0.0)
        return values

    def masks(self, record: Record) -> Mapping[str, str]:
        """Return the masks that the record keeps."""
        return {str(place): counts for place, (*_, counts) in enumerate(record["found"])}
