"""How far a runtime is from torch on the same deployed checkpoint: tensors, and masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import SamModel, SamProcessor

from saqsam.backend import Backend, TorchBackend
from saqsam.data.datasets import Dataset
from saqsam.evaluate.iou import mask_iou
from saqsam.evaluate.prompts import box_prompts
from saqsam.predictor import Predictor


@dataclass
class TensorDifference:
    """How far a tensor of the runtime is from torch's.

    Attributes:
        name: As the exported files name it.
        shape: Of the first one that was compared.
        largest: Largest absolute difference.
        relative: Norm of the differences over the norm of torch's, over all images.
    """

    name: str
    shape: tuple[int, ...]
    largest: float = 0.0
    relative: float = 0.0
    _error: float = 0.0
    _norm: float = 0.0

    def add(self, wanted: Tensor, found: Tensor) -> None:
        """Count one more pair."""
        difference = found.double() - wanted.double()
        self.largest = max(self.largest, float(difference.abs().max()))
        self._error += float(difference.square().sum())
        self._norm += float(wanted.double().square().sum())
        self.relative = (self._error / self._norm) ** 0.5 if self._norm else 0.0


@dataclass(frozen=True)
class Parity:
    """What `compare_with_torch` found.

    Attributes:
        tensors: By name: the embedding, and what the decoder gives for it.
        mask_iou: Mean IoU between the masks of both, each from its own embedding, at the image's resolution.
        least_mask_iou: The least of them.
        masks: How many were compared.
        images: On how many images.
    """

    tensors: tuple[TensorDifference, ...]
    mask_iou: float
    least_mask_iou: float
    masks: int
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        tensors = [{k: v for k, v in asdict(t).items() if not k.startswith("_")} for t in self.tensors]
        return {**asdict(self), "tensors": tensors}


def compare_with_torch(
    backend: Backend,
    model: SamModel,
    processor: SamProcessor,
    dataset: Dataset,
    *,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Parity:
    """Segment the objects of a data set from their boxes in a runtime and in torch, and compare.

    Args:
        backend: The runtime.
        model: The deployed checkpoint that was exported.
        processor: Its processor.
        dataset: Images with objects.
        limit: Look at the first `limit` images only.
        progress: Called after each image with the number done and the number of all.

    Raises:
        ValueError: If there is no object to segment.
    """
    found, wanted = Predictor(backend, processor), Predictor(TorchBackend(model), processor)
    differences: dict[str, TensorDifference] = {}
    ious: list[Tensor] = []

    def count(name: str, one: Tensor, other: Tensor) -> None:
        entry = differences.setdefault(name, TensorDifference(name, tuple(one.shape)))
        entry.add(one, other)

    images = len(dataset) if limit is None else min(limit, len(dataset))
    for index in range(images):
        sample = dataset[index]
        instances = [instance for instance in sample.instances if not instance.is_crowd]
        if instances:
            wanted.set_image(sample.image)
            found.set_image(sample.image)
            count("image_embeddings", wanted.features, found.features)
            boxes = box_prompts(instances)
            pairs = zip(
                wanted.predict_low_res(boxes=boxes, multimask_output=False),
                found.predict_low_res(boxes=boxes, multimask_output=False),
                strict=True,
            )
            for (logits, scores), (own_logits, own_scores) in pairs:
                count("low_res_masks", logits, own_logits)
                count("iou_predictions", scores, own_scores)
                ious.append(mask_iou(wanted.upscale(logits)[:, 0], found.upscale(own_logits)[:, 0]))
        if progress is not None:
            progress(index + 1, images)
    if not ious:
        raise ValueError(f"data {dataset.name!r}: expected objects to compare masks of, found none")
    joined = torch.cat(ious)
    return Parity(tuple(differences.values()), float(joined.mean()), float(joined.min()), len(joined), images)
