"""`quantize`: the pipeline from a float SAM to a SAM of packed integers."""

from __future__ import annotations

import copy

from transformers import SamModel, SamProcessor

from saqsam.calibrate import calibrate
from saqsam.checkpoint import attach_quantizer, quantization_config_of
from saqsam.data.datasets import Dataset
from saqsam.models.structure import SamStructure
from saqsam.prepare import Progress, fill_slots, pack, prepare, round_float_parameters
from saqsam.recipe import Recipe


def quantize(
    model: SamModel,
    processor: SamProcessor,
    recipe: Recipe,
    calibration: Dataset,
    *,
    progress: Progress | None = None,
) -> SamModel:
    """Quantize a SAM after training.

    Args:
        model: Float model; it stays as it is.
        processor: Its processor.
        recipe: How; see `saqsam.recipe_for` for the named methods.
        calibration: Images to set ranges on, with objects (their boxes are the prompts) or without.
        progress: Called with (what, steps done, steps in all).

    Returns:
        A `SamModel` on the same device whose weights are packed codes; `saqsam.save_checkpoint` writes it. It
        computes the same masks, bit for bit, as the model that a checkpoint of it gives.

    Raises:
        ValueError: If the model is quantized already or holds NaN, infinity, or float parameters outside
            float16, or if the calibration data gives no prompt.
    """
    if quantization_config_of(model) is not None:
        raise ValueError("this model is quantized already; quantize the float model")
    structure = SamStructure(model.config)
    structure.check(model)
    quantized = copy.deepcopy(model).eval().float()
    round_float_parameters(quantized, structure, recipe)
    prepare(quantized, structure, recipe)
    observers = calibrate(quantized, processor, structure, recipe, calibration, progress)
    fill_slots(quantized, structure, recipe, observers, progress)
    pack(quantized, structure, recipe, progress)
    attach_quantizer(quantized, recipe)
    return quantized.eval()  # the new modules too
