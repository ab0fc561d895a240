"""Task `everything`: automatic masks without prompts, scored as average recall and class-agnostic AP."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from saqsam.data.rle import rle_from_text, rle_text
from saqsam.data.types import Dataset, Instance
from saqsam.evaluation.metrics.coco_ap import PROPOSALS, MaskAP
from saqsam.evaluation.metrics.iou import rle_ious
from saqsam.evaluation.record_schema import IMAGE_SIZE, MASK_COUNTS, Schema
from saqsam.evaluation.task import ImageSession, Metrics, Record, Task, mean
from saqsam.evaluation.task_inputs import generator_options
from saqsam.inference.mask_generator import GeneratorOptions


class EverythingTask(Task):
    """Average recall of objects among the masks that `MaskGenerator` generates from a grid of points.

    The 1000 masks of an image with the highest mean of predicted IoU and stability score count, as in appendix D.3 of
    "Segment Anything" (Kirillov et al., 2023). Classes and crowd regions are ignored.

    Args:
        generator: Options of the masks; None for the official ones, which suit SAM ViT-H.
    """

    name = "everything"
    # No `masks`: nothing tells which automatic masks of two models belong together.
    compared = "best IoU of a mask with an object"
    unit = "best IoU"
    has_comparable_masks = False
    metric_labels: ClassVar = {
        "ar10": "average recall, 10 masks",
        "ar100": "average recall, 100 masks",
        "ar1000": "average recall, 1000 masks",
        "masks_per_image": "masks per image",
    }

    def __init__(self, generator: GeneratorOptions | None = None) -> None:
        self.generator = GeneratorOptions() if generator is None else generator

    @classmethod
    def create(cls, dataset: Dataset, options: Mapping[str, Any], *, keep_masks: bool) -> EverythingTask:
        """Create the task from its options; records hold all masks in any case."""
        return cls(generator_options(options))

    def options(self) -> dict[str, Any]:
        """Return the options that decide about scores."""
        return shown_options(self.generator)

    def score(self, session: ImageSession) -> Record:
        """Score an image; the record holds the truth too, so that records are all that AR needs."""
        masks = session.everything(self.generator)
        scores = [(one.predicted_iou + one.stability_score) / 2 for one in masks]
        ranked = sorted(range(len(masks)), key=lambda place: -scores[place])[: PROPOSALS[-1]]
        sample = session.sample
        return {
            "size": list(sample.image.shape[:2]),
            "truth": [[i.id, int(i.is_crowd), rle_text(i.rle)] for i in sample.instances],
            "found": [[scores[place], rle_text(masks[place].rle)] for place in ranked],
        }

    def schema(self) -> Schema:
        """Return the schema of a record."""
        return {"size": IMAGE_SIZE, "truth": [(int, int, MASK_COUNTS)], "found": [(float, MASK_COUNTS)]}

    def reduce(self, records: Sequence[Record]) -> Metrics:
        """Compute the metrics of `MaskAP.compute_proposals`, `objects`, and the mean `masks_per_image`."""
        mask_ap = MaskAP()
        for image_id, record in enumerate(records):
            size = record["size"]
            truth = [
                Instance(number, rle_from_text(counts, size), (0, 0, 0, 0), 1, bool(crowd))
                for number, crowd, counts in record["truth"]
            ]
            rles = [rle_from_text(counts, size) for _, counts in record["found"]]
            scores = [score for score, _ in record["found"]]
            mask_ap.update(image_id, tuple(size), truth, rles, scores, [1] * len(rles))
        counts = [len(record["found"]) for record in records]
        return {
            **mask_ap.compute_proposals(),
            "objects": sum(not crowd for record in records for _, crowd, _ in record["truth"]),
            "masks_per_image": mean(counts),
        }

    def values(self, record: Record) -> Mapping[str, float]:
        """Return the best IoU that any mask has with each object."""
        objects = {str(number): counts for number, crowd, counts in record["truth"] if not crowd}
        ious = rle_ious([counts for _, counts in record["found"]], list(objects.values()), record["size"])
        return dict(zip(objects, ious.max(axis=0, initial=0.0).tolist(), strict=True))


def shown_options(generator: GeneratorOptions) -> dict[str, Any]:
    """Return the options as plain values: the most important ones by name, for tables, the others together."""
    others = dataclasses.asdict(generator)
    shown = ("points_per_side", "pred_iou_thresh", "stability_score_thresh")
    return {name: others.pop(name) for name in shown} | {"generator": others}
