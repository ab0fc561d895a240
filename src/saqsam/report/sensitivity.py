"""Sensitivity of each part or layer: quantized alone with all else float, and left float with all else quantized.

The two measure different things. Quantized alone, a layer's errors meet exact neighbors. Left float, it shows the
gain of more bits; with reconstruction that gain can be negative, because later layers have learned to compensate for
the layer's errors. The checkpoint's layers are exchanged with those of the float reference; everything else
(normalizations, relative positions, embeddings) stays with the surrounding model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import SamModel, SamProcessor

from saqsam.convert.plan import QuantizationPlan, plan_quantization
from saqsam.data.types import Dataset
from saqsam.evaluation.metrics.iou import agreement_iou, clear_ignored, mask_iou
from saqsam.evaluation.simulated_prompts import box_prompts
from saqsam.inference.predictor import Predictor
from saqsam.models.structure import SLOTS, replace_module
from saqsam.recipes.recipe import Recipe
from saqsam.report.choices import Level
from saqsam.report.content import GroupSensitivity, Sensitivity
from saqsam.utils.arithmetic import float32_arithmetic
from saqsam.utils.progress import Progress

MOST_PROMPTS = 16
"""Number of objects per image that are used as prompts."""


@dataclass(frozen=True)
class Group:
    """Modules that are exchanged together.

    Attributes:
        name: Name of the part, layer or attention.
        modules: Names of layers with their input quantizers, and of quantizers of attentions.
        is_decoder: Whether all modules are in the decoder, so that the image embedding is unchanged.
    """

    name: str
    modules: tuple[str, ...]
    is_decoder: bool


def find_groups(plan: QuantizationPlan, level: Level) -> list[Group]:
    """Return the groups of a recipe in the order of computation: its parts, or its single layers and attentions."""
    members: dict[str, list[str]] = {}
    slots = {slot.name: slot.part for slot in plan.slots}
    for site, _ in plan.weights:
        members.setdefault(site.part if level == "parts" else site.name, []).append(site.name)
    for site in plan.structure.attentions:
        own = [f"{site.name}.{slot}" for slot in SLOTS if f"{site.name}.{slot}" in slots]
        if own:
            members.setdefault(site.part if level == "parts" else site.name, []).extend(own)
    return [
        Group(name, tuple(modules), not any(plan.structure.is_encoder(module) for module in modules))
        for name, modules in members.items()
    ]


@contextmanager
def exchanged(model: SamModel, donor: SamModel, names: Sequence[str]) -> Iterator[None]:
    """Replace modules of a model by those of another while the block runs."""
    own: dict[str, nn.Module] = {name: model.get_submodule(name) for name in names}
    try:
        for name in names:
            replace_module(model, name, donor.get_submodule(name))
        yield
    finally:
        for name, module in own.items():
            replace_module(model, name, module)


@float32_arithmetic()
def measure_sensitivity(
    reference: SamModel,
    quantized: SamModel,
    processor: SamProcessor,
    recipe: Recipe,
    dataset: Dataset,
    *,
    images: int = 4,
    level: Level = "parts",
    progress: Progress | None = None,
) -> Sensitivity:
    """Exchange each group between two models, and measure the masks of box prompts.

    Args:
        reference: Float model from `make_reference`.
        quantized: Model of the checkpoint.
        processor: Processor of both.
        recipe: Recipe of the checkpoint.
        dataset: Dataset with objects.
        images: Number of images with objects to use, from the first.
        level: Granularity of the groups.
        progress: Progress callback.

    Raises:
        ValueError: No image has an object.
    """
    plan = plan_quantization(reference.config, recipe)
    groups = find_groups(plan, level)
    samples = list(_first_with_objects(dataset, images))
    if not samples:
        raise ValueError(f"data {dataset.name!r}: expected images with objects, found none")
    sums = torch.zeros(len(groups) + 1, 4, dtype=torch.float64)
    float_sum, objects = 0.0, 0
    if progress is not None:
        progress("sensitivity", 0, len(samples) * len(groups))
    for number, index in enumerate(samples):
        probe = _Probe(dataset, index, processor, reference, quantized)
        objects += probe.objects
        float_sum += float(mask_iou(probe.exact, probe.truth).sum())
        sums[-1, 2:] += probe.scores(quantized, None)
        for row, group in enumerate(groups):
            for column, model, donor in ((0, reference, quantized), (2, quantized, reference)):
                with exchanged(model, donor, group.modules):
                    sums[row, column : column + 2] += probe.scores(model, group)
            if progress is not None:
                progress("sensitivity", number * len(groups) + row + 1, len(samples) * len(groups))
    means = (sums / objects).tolist()
    measured = [GroupSensitivity(group.name, *row) for group, row in zip(groups, means, strict=False)]
    return Sensitivity(
        dataset.name, len(samples), objects, tuple(measured), means[-1][2], means[-1][3], float_sum / objects
    )


class _Probe:
    """One image, its boxes, its true masks and those of the float model; and both models' embeddings of it."""

    def __init__(
        self, dataset: Dataset, index: int, processor: SamProcessor, reference: SamModel, quantized: SamModel
    ) -> None:
        sample = dataset[index]
        instances = [instance for instance in sample.instances if not instance.is_crowd][:MOST_PROMPTS]
        self._counted = sample.counted()
        self.image, self.boxes, self.objects = sample.image, box_prompts(instances), len(instances)
        self.truth = torch.stack([torch.from_numpy(instance.mask()) for instance in instances])
        self._own = {id(model): Predictor(model, processor) for model in (reference, quantized)}
        for predictor in self._own.values():
            predictor.set_image(self.image)
        self._processor = processor
        self.exact = self._masks(self._own[id(reference)])

    def _masks(self, predictor: Predictor) -> torch.Tensor:
        masks, _, _ = predictor.predict_batch(boxes=self.boxes, multimask_output=False)
        return clear_ignored(masks[:, 0].cpu(), self._counted)

    def scores(self, model: SamModel, group: Group | None) -> torch.Tensor:
        """Return the sums [2] over objects of the IoU with the float model's masks and with the truth.

        Args:
            model: One of the two, with a group of the other in its place.
            group: That group; None if there is none.
        """
        predictor = Predictor(model, self._processor)
        if group is None or group.is_decoder:
            predictor.share_image(self._own[id(model)])
        else:
            predictor.set_image(self.image)
        masks = self._masks(predictor)
        return torch.stack([agreement_iou(masks, self.exact).sum(), mask_iou(masks, self.truth).sum()])


def _first_with_objects(dataset: Dataset, count: int) -> Iterator[int]:
    for index in range(len(dataset)):
        if count < 1:
            return
        if any(not instance.is_crowd for instance in dataset[index].instances):
            count -= 1
            yield index
