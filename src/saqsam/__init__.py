"""Post-training quantization of Segment Anything Models to real low-bit integers."""

from saqsam._version import __version__
from saqsam.checkpoint import load_checkpoint, recipe_of, save_checkpoint
from saqsam.data.datasets import open_dataset
from saqsam.encoded_image import EncodedImage
from saqsam.evaluate import evaluate
from saqsam.mask_generator import GeneratedMask, GeneratorOptions, MaskGenerator
from saqsam.models import load
from saqsam.predictor import Predictor
from saqsam.presets import METHODS, recipe_for
from saqsam.quantize import QuantizationLog, quantize
from saqsam.recipe import Recipe
from saqsam.settings import with_settings
from saqsam.utils.errors import CheckpointError

__all__ = [
    "METHODS",
    "CheckpointError",
    "EncodedImage",
    "GeneratedMask",
    "GeneratorOptions",
    "MaskGenerator",
    "Predictor",
    "QuantizationLog",
    "Recipe",
    "__version__",
    "evaluate",
    "load",
    "load_checkpoint",
    "open_dataset",
    "quantize",
    "recipe_for",
    "recipe_of",
    "save_checkpoint",
    "with_settings",
]
