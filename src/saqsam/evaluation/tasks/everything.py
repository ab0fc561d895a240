"""Task `everything`: masks of all that is in an image without any prompt, as average recall and class-agnostic AP."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from saqsam.data.rle import rle_from_text, rle_text
from saqsam.data.types import Instance
from saqsam.evaluation.metrics.coco_ap import PROPOSALS, MaskAP
from saqsam.evaluation.metrics.iou import rle_ious
from saqsam.evaluation.record_schema import IMAGE_SIZE, MASK_COUNTS, Schema
from saqsam.evaluation.task import ImageSession, Metrics, Record, Task, mean
from saqsam.inference.mask_generator import GeneratorOptions


class EverythingTask(Task):
    """Average recall of objects among the masks that `MaskGenerator` makes from a grid of points.

    Of an image the 1000 masks count that are scored highest, by the mean of predicted IoU and stability score, as in
    appendix D.3 of "Segment Anything" (Kirillov et al., 2023). Classes do not count, neither do crowd regions.

    Args:
        generator: How masks are made; None for the official options, which are those of SAM ViT-H.
    """

    name = "everything"
    # No `masks`: two models' masks of everything have nothing in common that would tell which belong together.
    compared = "best IoU that an object is found with"

    def __init__(self, generator: GeneratorOptions | None = None) -> None:
        self.generator = GeneratorOptions() if generator is None else generator

    def options(self) -> dict[str, Any]:
        """See `Task.options`."""
        return shown_options(self.generator)

    def score(self, session: ImageSession) -> Record:
        """See `Task.score`; the truth goes into the record too, so that records are all that AR needs."""
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
        """See `Task.schema`."""
        return {"size": IMAGE_SIZE, "truth": [(int, int, MASK_COUNTS)], "found": [(float, MASK_COUNTS)]}

    def reduce(self, records: Sequence[Record]) -> Metrics:
        """See `Task.reduce`: what `MaskAP.compute_proposals` gives, `objects`, and `masks_per_image` on average."""
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
        """See `Task.values`: of each object the best IoU that any mask has with it."""
        objects = {str(number): counts for number, crowd, counts in record["truth"] if not crowd}
        ious = rle_ious([counts for _, counts in record["found"]], list(objects.values()), record["size"])
        return dict(zip(objects, ious.max(axis=0, initial=0.0).tolist(), strict=True))


def shown_options(generator: GeneratorOptions) -> dict[str, Any]:
    """All options as plain values: those that matter most by themselves, for tables, and the others together."""
    others = dataclasses.asdict(generator)
    shown = ("points_per_side", "pred_iou_thresh", "stability_score_thresh")
    return {name: others.pop(name) for name in shown} | {"generator": others}
