"""Differences between a runtime and torch on the same deployed checkpoint: tensors, and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import SamModel, SamProcessor

from saqsam.data.types import Dataset, Sample
from saqsam.evaluation.metrics.iou import agreement_iou
from saqsam.evaluation.simulated_prompts import box_prompts
from saqsam.inference.backend import Backend, TorchBackend
from saqsam.inference.encoded_image import EncodedImage
from saqsam.inference.predictor import Predictor
from saqsam.models.registry import family_of
from saqsam.utils.progress import Progress

UNDECIDED = 0.05
"""Share of the root mean square of a mask's logits below which rounding may flip a pixel: as far as the logits of two
sound runtimes are apart where a value on the border of two codes falls to either side."""
MAX_KEPT_IMAGES = 64
"""Images whose results a `TorchReference` keeps: 4 MiB of embedding each at 1024 px. Those of others are computed again
for each runtime."""


class ParityError(ValueError):
    """A runtime does not compute what torch computes."""


@dataclass
class TensorDifference:
    """Difference between a tensor of the runtime and torch's.

    Attributes:
        name: Name of the tensor in the exported files.
        shape: Shape in the first image compared.
        largest: Largest absolute difference.
        relative: Norm of the differences over the norm of torch's, over all images.
    """

    name: str
    shape: tuple[int, ...]
    largest: float = 0.0
    relative: float = 0.0
    _error: float = 0.0
    _norm: float = 0.0

    def add(self, expected: Tensor, actual: Tensor) -> None:
        """Add the difference of one more pair of tensors."""
        difference = actual.double() - expected.double()
        self.largest = max(self.largest, float(difference.abs().max()))
        self._error += float(difference.square().sum())
        self._norm += float(expected.double().square().sum())
        self.relative = (self._error / self._norm) ** 0.5 if self._norm else 0.0


@dataclass(frozen=True)
class Parity:
    """Result of `compare_with_torch`.

    Attributes:
        tensors: Differences of the embedding, and of the decoder's outputs for it.
        mask_iou: Mean IoU between the masks of both, each from its own embedding, at the image's resolution; 1 where
            both masks are empty.
        least_mask_iou: Lowest of these IoUs.
        decided_iou: As `mask_iou`, with the pixels that torch leaves undecided counted as equal: those whose logit is
            less than `UNDECIDED` of the logits' root mean square away from 0. Rounding alone flips them; masks
            of an untrained model have many.
        masks: Number of masks compared.
        images: Number of images.
    """

    tensors: tuple[TensorDifference, ...]
    mask_iou: float
    least_mask_iou: float
    decided_iou: float
    masks: int
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON types."""
        tensors = [{k: v for k, v in asdict(t).items() if not k.startswith("_")} for t in self.tensors]
        return {**asdict(self), "tensors": tensors}


@dataclass(frozen=True)
class TorchResults:
    """Results of torch for one image.

    Attributes:
        encoded: Encoded image.
        prompts: Prompts by kind, as `Predictor.predict_low_res` takes them.
        chunks: Logits [p, 1, 4h, 4w] and predicted IoUs [p, 1] of each chunk of the prompts.
    """

    encoded: EncodedImage
    prompts: Mapping[str, Any]
    chunks: Sequence[tuple[Tensor, Tensor]]


class TorchReference:
    """Torch's results for the objects of a dataset, computed when first needed and shared by all runtimes.

    Args:
        model: The deployed checkpoint that was exported.
        processor: Its processor.
        dataset: Images with objects, which are segmented from their boxes.
        single_mask: The decoder was exported to return one mask. Prompts are then boxes with their centers: for a box
            alone it returns whichever of three masks it rates best, which rounding may change.
        limit: Look at the first `limit` images only.

    Attributes:
        predictor: The predictor of the model.
        feature_names: Names of the encoder's outputs in exported files.
    """

    def __init__(
        self,
        model: SamModel,
        processor: SamProcessor,
        dataset: Dataset,
        *,
        single_mask: bool = False,
        limit: int | None = None,
    ) -> None:
        self.predictor = Predictor(TorchBackend(model), processor)
        self.dataset, self._single_mask = dataset, single_mask
        self._images = len(dataset) if limit is None else min(limit, len(dataset))
        self._kept: dict[int, TorchResults] = {}
        self.feature_names = tuple(family_of(model.config).input_spec(model.config).features)

    def __len__(self) -> int:
        """Return the number of images."""
        return self._images

    def results(self, index: int, sample: Sample) -> TorchResults | None:
        """Return torch's results for a sample of the dataset; None if it has no object."""
        if index in self._kept:
            return self._kept[index]
        instances = [instance for instance in sample.instances if not instance.is_crowd]
        if not instances:
            return None
        size = sample.image.shape[:2]
        prompts = parity_prompts(box_prompts(instances), size, single_mask=self._single_mask)
        encoded = self.predictor.encode(sample.image)
        chunks = self.predictor.predict_low_res(**prompts, multimask_output=False, image=encoded)
        results = TorchResults(encoded, prompts, list(chunks))
        if len(self._kept) < MAX_KEPT_IMAGES:
            self._kept[index] = results
        return results


def compare_with_torch(
    backend: Backend,
    processor: SamProcessor,
    reference: TorchReference,
    *,
    progress: Progress | None = None,
) -> Parity:
    """Segment the objects of a dataset from their boxes in a runtime, and compare the results with torch's.

    Args:
        backend: The runtime.
        processor: Processor of the runtime.
        reference: Torch's results.
        progress: Progress callback, called after each image.

    Raises:
        ParityError: The runtime returns NaN or infinity.
        ValueError: There is no object to segment, or torch returns NaN or infinity.
    """
    predictor, torchs = Predictor(backend, processor), reference.predictor
    comparison, images = _Comparison(), len(reference)
    if progress is not None:
        progress("comparing with torch", 0, images)
    for index in range(images):
        sample = reference.dataset[index]
        expected = reference.results(index, sample)
        if expected is not None:
            encoded = predictor.encode(sample.image)
            pairs = zip(expected.encoded.encoding.maps, encoded.encoding.maps, strict=True)
            for name, (map_, own_map) in zip(reference.feature_names, pairs, strict=True):
                comparison.add(name, map_, own_map)
            chunks = predictor.predict_low_res(**expected.prompts, multimask_output=False, image=encoded)
            for (logits, scores), (own_logits, own_scores) in zip(expected.chunks, chunks, strict=True):
                comparison.add("low_res_masks", logits, own_logits)
                comparison.add("iou_predictions", scores, own_scores)
                upscaled = torchs.upscale(logits, return_logits=True, image=expected.encoded)
                comparison.add_masks(upscaled[:, 0], predictor.upscale(own_logits, image=encoded)[:, 0])
        if progress is not None:
            progress("comparing with torch", index + 1, images)
    if not comparison.ious:
        raise ValueError(f"data {reference.dataset.name!r}: expected objects to compare masks of, found none")
    return comparison.result(images)


class _Comparison:
    """Differences of tensors and masks between a runtime and torch, over all images."""

    def __init__(self) -> None:
        self.differences: dict[str, TensorDifference] = {}
        self.ious: list[Tensor] = []
        self.decided: list[Tensor] = []

    def add(self, name: str, expected: Tensor, actual: Tensor) -> None:
        """Add a tensor of both, by its name in the exported graph."""
        if not expected.isfinite().all():
            raise ValueError(f"{name}: expected finite values of torch, got NaN or infinity")
        if not actual.isfinite().all():
            raise ParityError(f"{name}: expected finite values, got NaN or infinity")
        entry = self.differences.setdefault(name, TensorDifference(name, tuple(expected.shape)))
        entry.add(expected, actual)

    def add_masks(self, expected_logits: Tensor, actual: Tensor) -> None:
        """Add torch's logits [P, H, W] and the runtime's masks, bool [P, H, W]."""
        expected = expected_logits > 0
        self.ious.append(agreement_iou(actual, expected))
        self.decided.append(
            agreement_iou(torch.where(_undecided(expected_logits), expected, actual), expected)
        )

    def result(self, images: int) -> Parity:
        """Return the comparison of a number of images, with at least one mask."""
        ious = torch.cat(self.ious)
        return Parity(
            tensors=tuple(self.differences.values()),
            mask_iou=float(ious.mean()),
            least_mask_iou=float(ious.min()),
            decided_iou=float(torch.cat(self.decided).mean()),
            masks=len(ious),
            images=images,
        )


def parity_prompts(
    boxes: NDArray[np.float64], image_size: tuple[int, ...], *, single_mask: bool
) -> dict[str, Any]:
    """Return boxes [P, 4] as prompts by kind, with their centers as points where the decoder returns one mask."""
    if not single_mask:
        return {"boxes": boxes}
    height, width = image_size
    centers = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    inside = np.clip(centers, 0, np.array([width - 1, height - 1]))
    return {"boxes": boxes, "points": inside, "labels": np.ones(inside.shape[:2])}


def _undecided(logits: Tensor) -> Tensor:
    """Return which pixels of masks [P, H, W] have a logit that rounding may carry across 0."""
    scale = logits.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return logits.abs() < UNDECIDED * scale
