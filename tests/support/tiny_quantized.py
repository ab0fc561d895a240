"""The tiny SAM quantized, with its calibration data: made once for all tests, to be changed by none."""

import dataclasses
import functools

import torch
from torch import Tensor
from transformers import SamModel

from saqsam.convert.plan import QuantizationPlan, plan_quantization
from saqsam.data.scenes.dataset import ScenesDataset
from saqsam.models.parts import PAPER_PARTS, POINTWISE
from saqsam.ptq.pipeline import quantize
from saqsam.recipes.presets import recipe_for
from saqsam.recipes.recipe import Calibration, Recipe
from support.tiny_sam import tiny_config, tiny_pixels, tiny_processor, tiny_sam

PARTS_OF_SAM = tuple(part for part in PAPER_PARTS if part != POINTWISE)
"""Parts of the papers' tensor set that SAM v1 has: no pointwise convolutions."""


def tiny_data(count: int = 2, seed: int = 7) -> ScenesDataset:
    """Scenes of 48x64 px: the processor pads them at the bottom."""
    return ScenesDataset(count=count, seed=seed, size=(48, 64))


def tiny_recipe(method: str = "min-max", bits: str = "w4a4", **changes: object) -> Recipe:
    """A named method, calibrated on two images and, if it learns, with a few steps."""
    recipe = recipe_for(method, bits)
    if recipe.reconstruction is not None:
        few = dataclasses.replace(recipe.reconstruction, steps=2, final_steps=1, prompts=2)
        recipe = dataclasses.replace(recipe, reconstruction=few)
    return dataclasses.replace(recipe, **{"calibration": Calibration(images=2, prompts=4), **changes})  # type: ignore[arg-type]


def quantize_tiny(recipe: Recipe, data: ScenesDataset | None = None, seed: int = 0) -> SamModel:
    """A new quantized tiny SAM."""
    data = tiny_data() if data is None else data
    return quantize(tiny_sam(seed), tiny_processor(), recipe, data).model


@functools.cache
def quantized_tiny(method: str = "min-max", bits: str = "w4a4") -> SamModel:
    """One quantized tiny SAM for all tests, by method and bits."""
    return quantize_tiny(tiny_recipe(method, bits))


def mixed_recipe() -> Recipe:
    """Everything that has weights is packed, at several widths."""
    extra = {"patch_embedding": 8, "position_embedding": 7, "upscaling": 6, "hypernetworks": 5, "iou_head": 8}
    return tiny_recipe(bits="w3a8", extra=extra)


@functools.cache
def mixed_tiny() -> SamModel:
    """One tiny SAM quantized by `mixed_recipe`."""
    return quantize_tiny(mixed_recipe())


@torch.inference_mode()
def outputs(model: SamModel, seed: int = 0) -> dict[str, Tensor]:
    """Masks and predicted IoUs of a fixed picture for two boxes and a point."""
    pixels = tiny_pixels(seed=seed)
    boxes = torch.tensor([[[4.0, 4.0, 40.0, 50.0], [10.0, 0.0, 60.0, 30.0]]])
    box = model(pixel_values=pixels, input_boxes=boxes, multimask_output=False)
    point = model(pixel_values=pixels, input_points=torch.tensor([[[[30.0, 20.0]]]]))
    return {
        "box_masks": box.pred_masks,
        "box_ious": box.iou_scores,
        "point_masks": point.pred_masks,
        "point_ious": point.iou_scores,
    }


def assert_same_outputs(a: SamModel, b: SamModel) -> None:
    """Assert that two models have bit-equal outputs."""
    found, expected = outputs(a), outputs(b)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def tiny_plan(recipe: Recipe) -> QuantizationPlan:
    """Plan a recipe on the tiny SAM."""
    return plan_quantization(tiny_config(), recipe)
