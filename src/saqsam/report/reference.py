"""The float model in the form that a checkpoint's layers were made from, so that the two can exchange layers.

Methods change a float model before they round it, without changing what it computes: channels of one layer are scaled
and the next undoes it (`equalization.py`), channels of queries and keys change sign together (`bimodal.py`). A packed
layer therefore fits between float layers of the same form only. A checkpoint does not hold float weights; the form is
derived again, as it was at first, from the float model and the calibration images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import SamModel, SamProcessor

from saqsam.convert.plan import plan_quantization
from saqsam.convert.quantizer_kinds import Observer
from saqsam.data.detections import Detections
from saqsam.data.types import Dataset
from saqsam.models.structure import PROBABILITIES
from saqsam.ptq.bimodal import find_signs, integrate_bimodal, merged_observers
from saqsam.ptq.calibration import calibrate
from saqsam.ptq.pipeline import prepare_equalized, prepare_run
from saqsam.quant.layers import PackedTensor
from saqsam.recipes.recipe import Recipe
from saqsam.utils.progress import Progress

LEAST_COSINE = 0.6
"""Between a weight and its rounded codes: at 2 bits it is above 0.8, and near 0 between weights of other forms."""


@dataclass(frozen=True)
class Reference:
    """A float model with empty slots.

    Attributes:
        model: The model.
        observers: Observers from its calibration, by slot; none for attention probabilities.
    """

    model: SamModel
    observers: Mapping[str, Observer]


def make_reference(
    model: SamModel,
    processor: SamProcessor,
    recipe: Recipe,
    calibration: Dataset,
    *,
    detections: Detections | None = None,
    progress: Progress | None = None,
) -> Reference:
    """Prepare a float model as `quantize` does before it rounds anything; arguments are those of `quantize`."""
    plan = plan_quantization(model.config, recipe)
    made, images = prepare_run(
        model, processor, plan, calibration, recipe.calibration, detections=detections, progress=progress
    )
    prepare_equalized(made, plan, images, progress)
    # Not the probabilities, which are most of what there is to look at: their range follows from what they are.
    slots = [s for s in plan.slots if not s.name.endswith(PROBABILITIES)]
    observers = calibrate(made, plan, images, progress, slots=slots)
    signs = find_signs(plan.structure, observers)
    integrate_bimodal(made, plan.structure, signs)
    return Reference(made.eval(), merged_observers(observers, signs))


@torch.no_grad()
def check_reference(reference: SamModel, quantized: SamModel, recipe: Recipe) -> None:
    """Raise ValueError unless the weights of a checkpoint are rounded ones of a reference."""
    for site, _ in plan_quantization(reference.config, recipe).weights:
        weight = reference.get_submodule(site.name).weight
        packed = quantized.get_submodule(site.name).weight
        assert isinstance(weight, torch.Tensor)
        assert isinstance(packed, PackedTensor)
        if tuple(weight.shape) != tuple(packed.shape):
            raise ValueError(
                f"{site.name}: expected a weight of {tuple(packed.shape)}, got {tuple(weight.shape)}"
            )
        cosine = torch.cosine_similarity(weight.flatten(), packed().to(weight.device).flatten(), dim=0)
        if not cosine >= LEAST_COSINE:
            raise ValueError(
                f"{site.name}: the checkpoint's weights are not those of this float model and calibration data "
                f"(cosine {float(cosine):.2f})"
            )
