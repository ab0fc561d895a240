"""What each part or layer costs: quantized alone with all else float, and left float with all else quantized.

The two tell different things. Alone, errors of a layer meet exact neighbours; left float, it shows what would be gained
by giving it more bits. With reconstruction the second can even be negative: later layers have learned to make up for a
layer's errors. What is exchanged are the checkpoint's own layers and those of the float reference; what belongs to
neither (normalisations, relative positions, embeddings) stays with the model around.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import SamModel, SamProcessor

from saqsam.convert.plan import activation_slots, weight_sites
from saqsam.data.types import Dataset
from saqsam.evaluation.metrics.iou import clear_ignored, mask_iou
from saqsam.evaluation.simulated_prompts import box_prompts
from saqsam.inference.predictor import Predictor
from saqsam.models.family import replace_module
from saqsam.models.registry import structure_of
from saqsam.models.sam.attention import SLOTS
from saqsam.models.structure import ModelStructure
from saqsam.recipes.recipe import Recipe
from saqsam.report.choices import Level
from saqsam.report.content import GroupSensitivity, Sensitivity
from saqsam.utils.arithmetic import float32_arithmetic
from saqsam.utils.progress import Progress

MOST_PROMPTS = 16
"""Objects of an image that are looked at."""


@dataclass(frozen=True)
class Group:
    """Modules that change places together.

    Attributes:
        name: Of the part, or of the layer or attention.
        modules: Their names: layers with their input quantizers, and quantizers of attentions.
    """

    name: str
    modules: tuple[str, ...]

    @property
    def is_decoder(self) -> bool:
        """Whether the image encoder stays as it is."""
        return all(name.startswith("mask_decoder.") for name in self.modules)


def find_groups(structure: ModelStructure, recipe: Recipe, level: Level) -> list[Group]:
    """The groups of a recipe in the order of computation: its parts, or its single layers and attentions."""
    found: dict[str, list[str]] = {}
    slots = {slot.name: slot.part for slot in activation_slots(structure, recipe)}
    for site, _ in weight_sites(structure, recipe):
        found.setdefault(site.part if level == "parts" else site.name, []).append(site.name)
    for site in structure.attentions:
        own = [f"{site.name}.{slot}" for slot in SLOTS if f"{site.name}.{slot}" in slots]
        if own:
            found.setdefault(site.part if level == "parts" else site.name, []).extend(own)
    return [Group(name, tuple(modules)) for name, modules in found.items()]


@contextmanager
def exchanged(model: SamModel, donor: SamModel, names: Sequence[str]) -> Iterator[None]:
    """Modules of another model in the place of a model's own while the block runs."""
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
    """Exchange each group between the two models and see what the masks become, with box prompts.

    Args:
        reference: The float model of `make_reference`.
        quantized: The checkpoint.
        processor: Of both.
        recipe: Of the checkpoint.
        dataset: With objects.
        images: Look at the first so many that have objects.
        level: What is exchanged at once.
        progress: Progress callback.

    Raises:
        ValueError: No image has an object.
    """
    structure = structure_of(reference.config)
    groups = find_groups(structure, recipe, level)
    samples = list(_first_with_objects(dataset, images))
    if not samples:
        raise ValueError(f"data {dataset.name!r}: expected images with objects, found none")
    sums = torch.zeros(len(groups) + 1, 4, dtype=torch.float64)
    float_sum, objects = 0.0, 0
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
    found = [GroupSensitivity(group.name, *row) for group, row in zip(groups, means, strict=False)]
    return Sensitivity(
        dataset.name, len(samples), objects, tuple(found), means[-1][2], means[-1][3], float_sum / objects
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
        """[2]: sums over objects of the IoU with the float model's masks and with the truth.

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
        both_empty = ~masks.flatten(1).any(1) & ~self.exact.flatten(1).any(1)
        with_float = torch.where(both_empty, 1.0, mask_iou(masks, self.exact))
        return torch.stack([with_float.sum(), mask_iou(masks, self.truth).sum()])


def _first_with_objects(dataset: Dataset, count: int) -> Iterator[int]:
    for index in range(len(dataset)):
        if count < 1:
            return
        if any(not instance.is_crowd for instance in dataset[index].instances):
            count -= 1
            yield index
