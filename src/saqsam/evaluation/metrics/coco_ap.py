"""COCO mask AP and AR from `pycocotools`, with the detector's classes and class-agnostic."""

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pycocotools.mask as rle_codec
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from saqsam.data.rle import encode_mask
from saqsam.data.types import Instance

_STATISTICS = {
    "segm_ap": 0,
    "segm_ap50": 1,
    "segm_ap75": 2,
    "segm_ap_small": 3,
    "segm_ap_medium": 4,
    "segm_ap_large": 5,
    "segm_ar100": 8,
}
"""Names of metrics, and their positions in `COCOeval.stats`."""

AGNOSTIC_SUFFIX = "_agnostic"
"""Suffix of metrics that ignore classes."""

PROPOSALS = (10, 100, 1000)
"""Numbers of highest-scored masks per image that average recall is computed for."""

FEDERATED_MOST = 300
"""Masks per image, over all classes, that LVIS counts."""
_FREQUENCIES = {"rare": "r", "common": "c", "frequent": "f"}


@dataclass
class MaskAP:
    """COCO average precision of masks, updated image by image; keeps run lengths alone.

    As in COCO, crowd regions are not objects, and detections in one are neither right nor wrong. Sizes (small up to
    32^2 pixels, medium up to 96^2) are those of the masks.
    """

    _sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    _truth: list[dict[str, Any]] = field(default_factory=list)
    _predicted: list[dict[str, Any]] = field(default_factory=list)
    _incomplete: list[tuple[int, int]] = field(default_factory=list)

    def update(
        self,
        image_id: int,
        size: tuple[int, int],
        instances: Sequence[Instance],
        rles: Sequence[dict[str, Any]],
        scores: Sequence[float],
        category_ids: Sequence[int],
        incomplete: Iterable[int] = (),
    ) -> None:
        """Add one image.

        Args:
            image_id: Id of the image; each image is added once.
            size: (height, width) of the image and of all masks.
            instances: All objects of the image, crowds included.
            rles: D predicted masks as COCO compressed run lengths at image resolution.
            scores: D confidences, of which only the order counts.
            category_ids: D classes.
            incomplete: Classes of which the image may hold objects that are not among `instances`.
        """
        assert image_id not in self._sizes
        assert len(rles) == len(scores) == len(category_ids)
        self._sizes[image_id] = size
        self._incomplete.extend((image_id, category) for category in incomplete)
        for instance in instances:
            self._truth.append(
                {
                    "id": len(self._truth) + 1,  # COCOeval takes a match with id 0 for no match
                    "image_id": image_id,
                    "category_id": instance.category_id,
                    "segmentation": instance.rle,
                    "area": instance.area,
                    "iscrowd": int(instance.is_crowd),
                }
            )
        for rle, score, category_id in zip(rles, scores, category_ids, strict=True):
            self._predicted.append(
                {
                    "id": len(self._predicted) + 1,
                    "image_id": image_id,
                    "category_id": int(category_id),
                    "segmentation": rle,
                    "area": int(rle_codec.area(rle)),
                    "iscrowd": 0,
                    "score": float(score),
                }
            )

    def compute(self) -> dict[str, float | None]:
        """Compute the metrics over all images so far.

        Returns:
            `segm_ap` (mean over IoU thresholds 0.50 to 0.95), `segm_ap50`, `segm_ap75`, `segm_ap_small`,
            `segm_ap_medium`, `segm_ap_large`, `segm_ar100`, in [0, 1], and each with the suffix `_agnostic` with all
            classes merged into one. None where there are no objects.
        """
        metrics: dict[str, float | None] = {}
        for use_categories, suffix in ((True, ""), (False, AGNOSTIC_SUFFIX)):
            evaluation = self._evaluate(use_categories)
            for name, place in _STATISTICS.items():
                value = float(evaluation.stats[place])
                metrics[name + suffix] = None if value < 0 else value
        return metrics

    def compute_proposals(self) -> dict[str, float | None]:
        """Compute how well masks without classes cover the objects of all images so far.

        Returns:
            Average recall (mean over IoU thresholds 0.50 to 0.95) of the 10, 100 and 1000 highest scored masks of an
            image, `ar10`, `ar100`, `ar1000`; of 1000 for objects of each size, `ar1000_small`, `ar1000_medium`,
            `ar1000_large`; and average precision of 100, as `compute` has it, `segm_ap_agnostic`,
            `segm_ap50_agnostic`, `segm_ap75_agnostic`. In [0, 1]; None where there are no objects.
        """
        evaluation = self._evaluate(False, PROPOSALS)
        recall = evaluation.eval["recall"]  # [T thresholds, 1 class, 4 sizes, 3 numbers of masks]
        precision = evaluation.eval["precision"]  # [T, R recalls, 1, 4, 3]
        thresholds = evaluation.params.iouThrs.round(2).tolist()
        metrics = {f"ar{count}": _mean(recall[:, :, 0, m]) for m, count in enumerate(PROPOSALS)}
        for size, name in enumerate(("small", "medium", "large"), start=1):
            metrics[f"ar{PROPOSALS[-1]}_{name}"] = _mean(recall[:, :, size, -1])
        at_100 = precision[:, :, :, 0, PROPOSALS.index(100)]
        metrics[f"segm_ap{AGNOSTIC_SUFFIX}"] = _mean(at_100)
        metrics[f"segm_ap50{AGNOSTIC_SUFFIX}"] = _mean(at_100[thresholds.index(0.5)])
        metrics[f"segm_ap75{AGNOSTIC_SUFFIX}"] = _mean(at_100[thresholds.index(0.75)])
        return metrics

    def compute_federated(self, frequencies: Mapping[int, str]) -> dict[str, float | None]:
        """Compute the metrics of LVIS (Gupta et al., CVPR 2019), whose images are annotated for some classes each.

        Masks of classes that an image was not annotated for must not have been added. Masks of a class that may have
        more objects than the annotated ones are right where they match one, otherwise neither right nor wrong. The 300
        highest-scored masks of an image count, over all classes.

        Args:
            frequencies: `r`, `c` or `f` for rare, common and frequent classes, by category id.

        Returns:
            `segm_ap`, `segm_ap50`, `segm_ap75`, those of each size as `compute` has them, and `segm_ap_rare`,
            `segm_ap_common`, `segm_ap_frequent`. In [0, 1]; None where there are no objects.
        """
        evaluation = self._evaluate(
            True, (1, 10, FEDERATED_MOST), self._whole_crowds(), self._best(FEDERATED_MOST)
        )
        precision = evaluation.eval["precision"][..., -1]  # [T thresholds, R recalls, K classes, 4 sizes]
        thresholds = evaluation.params.iouThrs.round(2).tolist()
        metrics = {"segm_ap": _mean(precision[..., 0])}
        for name, threshold in (("segm_ap50", 0.5), ("segm_ap75", 0.75)):
            metrics[name] = _mean(precision[thresholds.index(threshold), ..., 0])
        for size, name in enumerate(("small", "medium", "large"), start=1):
            metrics[f"segm_ap_{name}"] = _mean(precision[..., size])
        kinds = np.array([frequencies.get(category, "") for category in evaluation.params.catIds], dtype=str)
        for name, kind in _FREQUENCIES.items():
            metrics[f"segm_ap_{name}"] = _mean(precision[:, :, kinds == kind, 0])
        return metrics

    def _whole_crowds(self) -> list[dict[str, Any]]:
        """Return a crowd over the whole image for each incomplete class, so that unmatched masks are not errors.

        COCOeval matches objects before crowds, and measures overlap with a crowd as a share of the mask: 1 here.
        """
        crowds = []
        for number, (image_id, category) in enumerate(self._incomplete):
            height, width = self._sizes[image_id]
            rle = encode_mask(np.ones((height, width), dtype=bool))
            crowds.append(
                {
                    "id": len(self._truth) + 1 + number,
                    "image_id": image_id,
                    "category_id": category,
                    "segmentation": rle,
                    "area": height * width,
                    "iscrowd": 1,
                }
            )
        return crowds

    def _best(self, most: int) -> list[dict[str, Any]]:
        """Return the `most` highest-scored masks of each image."""
        by_image: dict[int, list[dict[str, Any]]] = {}
        for one in self._predicted:
            by_image.setdefault(one["image_id"], []).append(one)
        return [one for masks in by_image.values() for one in sorted(masks, key=lambda o: -o["score"])[:most]]

    def reset(self) -> None:
        """Forget all images."""
        self._incomplete.clear()
        self._sizes.clear()
        self._truth.clear()
        self._predicted.clear()

    def _evaluate(
        self,
        use_categories: bool,
        most: Sequence[int] | None = None,
        more_truth: Sequence[dict[str, Any]] = (),
        predicted: Sequence[dict[str, Any]] | None = None,
    ) -> COCOeval:
        """Run COCO's evaluation of all images so far, on the `most` highest-scored masks per image."""
        truth = [*self._truth, *more_truth]
        # COCOeval reports by printing, which a library must not.
        with contextlib.redirect_stdout(io.StringIO()):
            detections = self._as_coco(self._predicted if predicted is None else predicted)
            evaluation = COCOeval(self._as_coco(truth), detections, iouType="segm")
            evaluation.params.useCats = int(use_categories)
            evaluation.params.imgIds = sorted(self._sizes)
            if most is not None:
                evaluation.params.maxDets = list(most)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation

    def _as_coco(self, annotations: Sequence[dict[str, Any]]) -> Any:
        coco = COCO()
        # Even when it ignores classes, COCOeval looks only at listed ones: so list those only detected, too.
        # When it does not, they change nothing: AP is a mean over the classes that have objects.
        used = {annotation["category_id"] for annotation in [*self._truth, *self._predicted]}
        categories = sorted(used | {category for _, category in self._incomplete})
        coco.dataset = {
            "images": [
                {"id": image_id, "height": height, "width": width}
                for image_id, (height, width) in self._sizes.items()
            ],
            # COCOeval writes into the annotations, so each use gets its own.
            "annotations": [dict(annotation) for annotation in annotations],
            "categories": [{"id": category} for category in categories],
        }
        coco.createIndex()
        return coco


def _mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean of the measured values; COCOeval marks others with -1."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None
