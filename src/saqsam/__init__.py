"""Post-training quantization of Segment Anything Models to real low-bit integers.

Public names are imported when they are first used, so that `import saqsam` does not import torch. Importing this
package also makes packed checkpoints known to transformers: `SamModel.from_pretrained` loads them, and the
models that are defined here: `AutoModel.from_pretrained` loads a MobileSAM.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from saqsam._version import __version__
from saqsam.utils.import_hook import after_import
from saqsam.utils.lazy_names import LazyClass, lazy_names

if TYPE_CHECKING:
    from saqsam.allocation.allocate import Allocation, BitAllocator, allocate_bits
    from saqsam.allocation.budget import Budget
    from saqsam.checkpoint import SaqsamConfig, recipe_of, save_checkpoint
    from saqsam.data import open_dataset
    from saqsam.evaluation import evaluate
    from saqsam.export import export_model
    from saqsam.inference.encoded_image import EncodedImage
    from saqsam.inference.generated_mask import GeneratedMask
    from saqsam.inference.generator_options import GeneratorOptions
    from saqsam.inference.mask_generator import MaskGenerator
    from saqsam.inference.predictor import Predictor
    from saqsam.models import load
    from saqsam.ptq.log import QuantizationLog
    from saqsam.ptq.pipeline import quantize
    from saqsam.ptq.result import QuantizationResult
    from saqsam.recipes.deployment import deployable
    from saqsam.recipes.methods import METHODS
    from saqsam.recipes.overrides import with_overrides
    from saqsam.recipes.presets import recipe_for
    from saqsam.recipes.recipe import Recipe
    from saqsam.utils.errors import CheckpointError

__all__ = [
    "METHODS",
    "Allocation",
    "BitAllocator",
    "Budget",
    "CheckpointError",
    "EncodedImage",
    "GeneratedMask",
    "GeneratorOptions",
    "MaskGenerator",
    "Predictor",
    "QuantizationLog",
    "QuantizationResult",
    "Recipe",
    "SaqsamConfig",
    "__version__",
    "allocate_bits",
    "deployable",
    "evaluate",
    "export_model",
    "load",
    "open_dataset",
    "quantize",
    "recipe_for",
    "recipe_of",
    "save_checkpoint",
    "with_overrides",
]


__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "METHODS": "recipes.methods",
        "Allocation": "allocation.allocate",
        "BitAllocator": "allocation.allocate",
        "Budget": "allocation.budget",
        "CheckpointError": "utils.errors",
        "EncodedImage": "inference.encoded_image",
        "GeneratedMask": "inference.generated_mask",
        "GeneratorOptions": "inference.generator_options",
        "MaskGenerator": "inference.mask_generator",
        "Predictor": "inference.predictor",
        "QuantizationLog": "ptq.log",
        "QuantizationResult": "ptq.result",
        "Recipe": "recipes.recipe",
        "SaqsamConfig": "checkpoint",
        "allocate_bits": "allocation.allocate",
        "deployable": "recipes.deployment",
        "evaluate": "evaluation",
        "export_model": "export",
        "load": "models",
        "open_dataset": "data",
        "quantize": "ptq.pipeline",
        "recipe_for": "recipes.presets",
        "recipe_of": "checkpoint",
        "save_checkpoint": "checkpoint",
        "with_overrides": "recipes.overrides",
    },
    removed={
        "load_checkpoint": "saqsam.load returns (model, processor)",
        "with_settings": "use saqsam.with_overrides",
    },
)


def _register_format() -> None:
    """Tell transformers which classes read packed checkpoints, without importing them.

    A module of this package may be what imports transformers. Importing others in the middle of it would be a cycle.
    """
    quantizers = importlib.import_module("transformers.quantizers.auto")
    quantizers.AUTO_QUANTIZATION_CONFIG_MAPPING["saqsam"] = LazyClass("saqsam.checkpoint:SaqsamConfig")
    quantizers.AUTO_QUANTIZER_MAPPING["saqsam"] = LazyClass("saqsam.checkpoint:SaqsamQuantizer")


def _register_models() -> None:
    """Tell transformers' Auto classes of the models that are defined here, without importing them.

    Importing the module of the model registers its class, too.
    """
    configurations = importlib.import_module("transformers.models.auto.configuration_auto")
    for model_type, name in (
        ("mobile_sam", "MobileSamConfig"),
        ("mobile_sam_vision_model", "MobileSamVisionConfig"),
    ):
        lazy = LazyClass(f"saqsam.models.mobile_sam.model:{name}")
        configurations.CONFIG_MAPPING.register(model_type, lazy, exist_ok=True)


after_import("transformers.quantizers.auto", _register_format)
after_import("transformers.models.auto.configuration_auto", _register_models)
