"""Task `semantic`: label maps of any semantic model, refined by masks of everything, as mean IoU of the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saqsam.data.label_maps import LabelMaps, Unusable, truth_labels
from saqsam.data.label_png import IGNORE, LabelMap
from saqsam.data.rle import encode_mask, rle_text
from saqsam.evaluation.record_schema import MASK_COUNTS, MapOf, OneOf, Schema
from saqsam.evaluation.task import ImageSession, Metrics, Record, Task, mean
from saqsam.evaluation.tasks.everything import shown_options
from saqsam.inference.mask_generator import GeneratedMask, GeneratorOptions
from saqsam.utils.counts import left_out_phrase


class SemanticTask(Task):
    """Mean IoU and pixel accuracy of label maps before and after each mask has taken the label of its majority.

    The refinement is that of Semantic-Segment-Anything (Chen et al., 2023): see `refine`. Pixels whose true label is
    `IGNORE` do not count; pixels without a label in the map are wrong. Images without a usable map are left out.

    Args:
        labels: The maps to refine.
        generator: How masks are made; None for the official options, which are those of SAM ViT-H.
        keep_masks: Keep the refined map in the records, a mask a class, for comparisons and pictures.
    """

    name = "semantic"
    compared = "IoU of a class in an image"
    scored = "labelled pixels"

    def __init__(
        self, labels: LabelMaps, generator: GeneratorOptions | None = None, *, keep_masks: bool = False
    ) -> None:
        self.labels = labels
        self.generator = GeneratorOptions() if generator is None else generator
        self.keep_masks = keep_masks

    def options(self) -> dict[str, Any]:
        """See `Task.options`."""
        return {**self.labels.options(), **shown_options(self.generator), "masks": self.keep_masks}

    def score(self, session: ImageSession) -> Record:
        """See `Task.score`: for each class that occurs its pixels in the truth, in both maps, and where they agree."""
        truth = truth_labels(session.sample)
        coarse = self.labels.find(session.sample, truth)
        if isinstance(coarse, Unusable):
            session.skipped[coarse.reason] += 1
            return {"left_out": coarse.detail, "reason": coarse.reason, "classes": {}}
        masks = session.everything(self.generator)
        refined = refine(coarse, masks)
        record: Record = {"masks_found": len(masks), "classes": _count(truth, coarse, refined)}
        if self.keep_masks:
            found = np.unique(refined[refined != IGNORE]).tolist()
            record["masks"] = {str(k): rle_text(encode_mask(refined == k)) for k in found}
        return record

    def schema(self) -> Schema:
        """See `Task.schema`."""
        counts = dict.fromkeys(("truth", "coarse", "coarse_hits", "refined", "refined_hits"), int)
        scored: dict[str, Schema] = {"masks_found": int, "classes": MapOf(counts)}
        if self.keep_masks:
            scored["masks"] = MapOf(MASK_COUNTS)
        return OneOf((scored, {"left_out": str, "classes": {}}))

    def reduce(self, records: Sequence[Record]) -> Metrics:
        """See `Task.reduce`: `semantic_miou`, `pixel_accuracy`, the same `unrefined_`, and what they are taken over.

        Classes are those that occur in the truth of some image. Pixels are added up over all images first.

        Raises:
            ValueError: No image had a label map that could be used.
        """
        scored = [record for record in records if "left_out" not in record]
        if records and not scored:
            reasons = Counter(record.get("reason", "unusable label map") for record in records)
            raise ValueError(
                f"labels: expected a usable label map of an image, found none for {len(records)}; the first: "
                f"{records[0]['left_out']}{left_out_phrase(reasons)}"
            )
        total: dict[str, Counter[str]] = {}
        for record in scored:
            for label, counts in record["classes"].items():
                total.setdefault(label, Counter()).update(counts)
        present = {label: counts for label, counts in total.items() if counts["truth"]}
        figures: Metrics = {}
        for prefix, which in (("", "refined"), ("unrefined_", "coarse")):
            figures[f"{prefix or 'semantic_'}miou"] = mean([_iou(c, which) for c in present.values()])
            pixels = sum(counts["truth"] for counts in present.values())
            hits = sum(counts[f"{which}_hits"] for counts in present.values())
            figures[f"{prefix}pixel_accuracy"] = hits / pixels if pixels else None
        return figures | {
            "classes": len(present),
            "label_maps": len(scored),
            "masks_per_image": mean([record["masks_found"] for record in scored]),
        }

    def is_scored(self, record: Record) -> bool:
        """See `Task.is_scored`."""
        return any(counts["truth"] for counts in record["classes"].values())

    def values(self, record: Record) -> Mapping[str, float]:
        """See `Task.values`: the IoU of each class that occurs in the image, within the image."""
        return {
            label: _iou(counts, "refined") for label, counts in record["classes"].items() if counts["truth"]
        }

    def masks(self, record: Record) -> Mapping[str, str]:
        """See `Task.masks`: what has each label after refinement."""
        return dict(record.get("masks", {}))


def refine(coarse: LabelMap, masks: Sequence[GeneratedMask]) -> LabelMap:
    """A label map in which each mask has one label: that of most of its pixels in the coarse map.

    Larger masks go first, so that where masks overlap the smallest decides. Votes are those of the coarse map,
    whatever other masks have changed; of labels with equally many the lowest wins, and pixels without a label have no
    vote. Where no mask lies, and where nobody votes, the map stays as it is.

    Args:
        coarse: HW, classes or `IGNORE`.
        masks: Of the same size.

    Returns:
        HW, a new map.
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
    """Pixels with a true label, by class: in the truth, in each map, and in both truth and map."""
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
