"""The tiny MobileSAM quantized: made once for all tests, to be changed by none."""

import functools
from typing import Any

from saqsam.models.mobile_sam.model import MobileSamModel
from saqsam.models.processing import build_processor
from saqsam.ptq.pipeline import quantize
from saqsam.ptq.result import QuantizationResult
from saqsam.recipes.recipe import Recipe
from support.tiny_mobile_sam import tiny_config, tiny_mobile_sam
from support.tiny_quantized import tiny_data, tiny_recipe


def mobile_processor() -> Any:
    """The processor that goes with `tiny_config`."""
    return build_processor(tiny_config())


def quantize_mobile(recipe: Recipe, **options: Any) -> QuantizationResult:
    """Quantize a new tiny MobileSAM."""
    return quantize(tiny_mobile_sam(), mobile_processor(), recipe, tiny_data(), **options)


@functools.cache
def quantized_mobile(method: str = "mse", bits: str = "w4a4") -> MobileSamModel:
    """One quantized tiny MobileSAM for all tests, by method and bits."""
    return quantize_mobile(tiny_recipe(method, bits)).model
