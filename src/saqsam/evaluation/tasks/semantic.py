"""Task `semantic`: label maps of any semantic model, refined by automatic masks, scored as mean IoU of the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from saqsam.data.label_maps import LabelMaps, Unusable, truth_labels
from saqsam.data.label_png import IGNORE, LabelMap
from saqsam.data.rle import encode_mask, rle_text
from saqsam.data.types import Dataset
from saqsam.evaluation.record_schema import MASK_COUNTS, MapOf, OneOf, Schema
from saqsam.evaluation.task import ImageSession, Metrics, Record, Task, mean
from saqsam.evaluation.task_inputs import generator_options
from saqsam.evaluation.tasks.everything import shown_options
from saqsam.inference.mask_generator import GeneratedMask, GeneratorOptions
from saqsam.utils.counts import skipped_phrase


class SemanticTask(Task):
    """Mean IoU and pixel accuracy of label maps before and after each automatic mask takes its majority label.

    The refinement is that of Semantic-Segment-Anything (Chen et al., 2023), see `refine`. Pixels whose true label is
    `IGNORE` do not count; pixels without a label in the map are wrong. Images without a usable map are skipped.

    Args:
        labels: Label maps to refine.
        generator: Options of the masks; None for the official ones, which suit SAM ViT-H.
        keep_masks: Keep the refined map in the records, one mask per class, for comparisons and pictures.
    """

    name = "semantic"
    compared = "IoU of a class in an image"
    unit = "IoU of the classes"
    scored = "labeled pixels"
    metric_labels: ClassVar = {
        "semantic_miou": "mean IoU of classes",
        "pixel_accuracy": "pixel accuracy",
        "unrefined_miou": "mean IoU, unrefined",
        "unrefined_pixel_accuracy": "pixel accuracy, unrefined",
        "label_maps": "label maps",
        "masks_per_image": "masks per image",
    }

    def __init__(
        self, labels: LabelMaps, generator: GeneratorOptions | None = None, *, keep_masks: bool = False
    ) -> None:
        self.labels = labels
        self.generator = GeneratorOptions() if generator is None else generator
        self.keep_masks = keep_masks

    @classmethod
    def create(cls, dataset: Dataset, options: Mapping[str, Any], *, keep_masks: bool) -> SemanticTask:
        """Create the task from its options."""
        return cls(options["labels"], generator_options(options), keep_masks=keep_masks)

    def check_dataset(self, dataset: Dataset) -> None:
        """Accept any dataset: objects and label maps both give labels."""

    def options(self) -> dict[str, Any]:
        """Return the options that decide about scores."""
        return {**self.labels.options(), **shown_options(self.generator), "masks": self.keep_masks}

    def score(self, session: ImageSession) -> Record:
        """Count the pixels of each class in the truth, in both maps, and where a map agrees with the truth."""
        truth = truth_labels(session.sample)
        coarse = self.labels.find(session.sample, truth)
        if isinstance(coarse, Unusable):
            session.skipped[coarse.reason] += 1
            return {"left_out": coarse.detail, "reason": coarse.reason, "classes": {}}
        masks = session.everything(self.generator)
        refined = refine(coarse, masks)
        record: Record = {"masks_found": len(masks), "classes": _count(truth, coarse, refined)}
        if self.keep_masks:
            labels = np.unique(refined[refined != IGNORE]).tolist()
            record["masks"] = {str(k): rle_text(encode_mask(refined == k)) for k in labels}
        return record

    def schema(self) -> Schema:
        """Return the schema of a record."""
        counts = dict.fromkeys(("truth", "coarse", "coarse_hits", "refined", "refined_hits"), int)
        scored: dict[str, Schema] = {"masks_found": int, "classes": MapOf(counts)}
        if self.keep_masks:
            scored["masks"] = MapOf(MASK_COUNTS)
        return OneOf((scored, {"left_out": str, "reason": str, "classes": {}}))

    def reduce(self, records: Sequence[Record]) -> Metrics:
        """Compute `semantic_miou`, `pixel_accuracy`, both before refinement (`unrefined_`), and counts.

        Classes are those that occur in the truth of any image. Pixels are summed over all images first.

        Raises:
            ValueError: No image had a usable label map.
        """
        scored = [record for record in records if "left_out" not in record]
        if records and not scored:
            reasons = Counter(record.get("reason", "unusable label map") for record in records)
            raise ValueError(
                f"labels: expected a usable label map of an image, found none for {len(records)}; the first: "
                f"{records[0]['left_out']}{skipped_phrase(reasons)}"
            )
        total: dict[str, Counter[str]] = {}
        for record in scored:
            for label, counts in record["classes"].items():
                total.setdefault(label, Counter()).update(counts)
        present = {label: counts for label, counts in total.items() if counts["truth"]}
        metrics: Metrics = {}
        for prefix, which in (("", "refined"), ("unrefined_", "coarse")):
            metrics[f"{prefix or 'semantic_'}miou"] = mean([_iou(c, which) for c in present.values()])
            pixels = sum(counts["truth"] for counts in present.values())
            hits = sum(counts[f"{which}_hits"] for counts in present.values())
            metrics[f"{prefix}pixel_accuracy"] = hits / pixels if pixels else None
        return metrics | {
            "classes": len(present),
            "label_maps": len(scored),
            "masks_per_image": mean([record["masks_found"] for record in scored]),
        }

    def is_scored(self, record: Record) -> bool:
        """Return whether the image had anything to score."""
        return any(counts["truth"] for counts in record["classes"].values())

    def values(self, record: Record) -> Mapping[str, float]:
        """Return the IoU, within the image, of each class that occurs in it."""
        return {
            label: _iou(counts, "refined") for label, counts in record["classes"].items() if counts["truth"]
        }

    def masks(self, record: Record) -> Mapping[str, str]:
        """Return the mask of each label after refinement, if the record keeps masks."""
        return dict(record.get("masks", {}))


def refine(coarse: LabelMap, masks: Sequence[GeneratedMask]) -> LabelMap:
    """Give each mask the majority label of its pixels in a coarse label map.

    Larger masks are applied first, so that the smallest decides where masks overlap. Pixels vote with their coarse
    label, whatever other masks have changed; the lowest label wins a tie, and pixels without a label have no vote.
    Pixels outside all masks, and masks without votes, keep their labels.

    Args:
        coarse: HW label map of classes or `IGNORE`.
        masks: Masks of the same size.

    Returns:
        The refined label map, HW.
    """
    refined = coarse.copy()
    for one in sorted(masks, key=lambda one: -one.area):
        x0, y0, x1, y1 = one.box
        inside = one.mask()[y0:y1, x0:x1]
        votes = coarse[y0:y1, x0:x1][inside]
        votes = votes[votes != IGNORE]
        if len(votes):
            refined[y0:y1, x0:x1][inside] = np.bincount(votes).argmax()
    return refined


def _count(truth: LabelMap, coarse: LabelMap, refined: LabelMap) -> dict[str, dict[str, int]]:
    """Count the pixels with a true label by class: in the truth, in each map, and in both truth and map."""
    valid = truth != IGNORE
    true = truth[valid]
    pixels = {"truth": true}
    for name, labels in (("coarse", coarse[valid]), ("refined", refined[valid])):
        pixels |= {name: labels, f"{name}_hits": true[labels == true]}
    columns = {name: np.bincount(labels, minlength=IGNORE + 1)[:IGNORE] for name, labels in pixels.items()}
    occurring = np.flatnonzero(np.any(list(columns.values()), axis=0)).tolist()
    return {str(k): {name: int(column[k]) for name, column in columns.items()} for k in occurring}


def _iou(counts: Mapping[str, int], which: str) -> float:
    return counts[f"{which}_hits"] / (counts["truth"] + counts[which] - counts[f"{which}_hits"])
