"""`SaqsamConfig`: the `quantization_config` of a checkpoint's `config.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import SamModel
from transformers.utils.quantization_config import QuantizationConfigMixin

from saqsam._version import __version__
from saqsam.recipes.methods import weight_only as weight_only_recipe
from saqsam.recipes.presets import parse_weight_bits
from saqsam.recipes.recipe import Recipe
from saqsam.utils.errors import CheckpointError, shorten, shorten_message

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, FORMAT_VERSION)
"""Version 1 hashes the recipe and the tensors; version 2 also the model's and the processor's configuration."""
QUANT_METHOD = "saqsam"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class SaqsamConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The recipe and the content hash of a checkpoint, or the recipe for quantizing a float model while it is loaded.

    To quantize a float model, pass `weight_only` or a `Recipe` that needs no calibration, and pass the result to
    `SamModel.from_pretrained(float_model, quantization_config=...)`:

        config = SaqsamConfig(weight_only="w4", group_size=128)
        model = SamModel.from_pretrained("facebook/sam-vit-base", quantization_config=config)

    Args:
        recipe: The recipe: a `Recipe`, or plain JSON.
        weight_only: Bits of the weights, such as ``"w8"`` or ``"w4"``; activations stay float. Excludes `recipe`.
        group_size: With `weight_only`: number of consecutive inputs of an output channel that share a scale, such as
            128; None for the whole channel.
        format_version: Version of the file format; None for the current one.
        content_sha256: Content hash of the checkpoint; None for a model that is not saved yet.
        processor_sha256: Hash of the processor; None in format version 1.
        saqsam_version: Version of the package that wrote the checkpoint.
        quant_method: ``"saqsam"``.

    Attributes:
        recipe: The recipe as plain JSON, exactly as stored: a recipe of an older version may lack later fields.
        format_version: Version of the file format.
        content_sha256: Hash of everything that affects a mask, computed by `content_hash`; None until the model is
            saved.
        processor_sha256: Hash of the processor, computed by `processor_hash`; None in format version 1.
        saqsam_version: Version of the package that wrote the checkpoint.

    Raises:
        CheckpointError: A field is unknown, missing, or has an invalid value.
        ValueError: `weight_only` or `group_size` is invalid, or both `recipe` and `weight_only` are given.
    """

    def __init__(
        self,
        recipe: Recipe | Mapping[str, Any] | None = None,
        format_version: int | None = None,
        content_sha256: str | None = None,
        processor_sha256: str | None = None,
        saqsam_version: str = __version__,
        quant_method: str = QUANT_METHOD,
        *,
        weight_only: str | None = None,
        group_size: int | None = None,
        **unknown: Any,
    ) -> None:
        if weight_only is not None or group_size is not None:
            recipe = _weight_only_recipe(recipe, weight_only, group_size)
        if isinstance(recipe, Recipe):
            recipe = recipe.to_dict()
            format_version = FORMAT_VERSION if format_version is None else format_version
        if quant_method != QUANT_METHOD:
            raise CheckpointError(f"quant_method must be {QUANT_METHOD!r}, got {shorten(quant_method)}")
        if isinstance(format_version, bool) or format_version not in READABLE_VERSIONS:
            raise CheckpointError(
                f"this checkpoint has format version {shorten(format_version)}; saqsam {__version__} reads "
                f"versions 1 to {FORMAT_VERSION}: install the version that wrote it"
            )
        if unknown:
            raise CheckpointError(f"quantization_config has unknown keys: {shorten(sorted(unknown))}")
        if not isinstance(recipe, Mapping):
            raise CheckpointError(f"quantization_config has no recipe, got {shorten(recipe)}")
        for name, value in (("content_sha256", content_sha256), ("processor_sha256", processor_sha256)):
            if value is not None and not (isinstance(value, str) and _SHA256.fullmatch(value)):
                raise CheckpointError(f"{name} must be 64 hexadecimal digits, got {shorten(value)}")
        if not isinstance(saqsam_version, str):
            raise CheckpointError(f"saqsam_version must be a string, got {shorten(saqsam_version)}")
        try:
            Recipe.from_dict(recipe)
        except ValueError as error:
            raise CheckpointError(f"invalid recipe: {shorten_message(error)}") from error
        self.quant_method = QUANT_METHOD
        self.recipe = dict(recipe)
        self.format_version = int(format_version)
        self.content_sha256 = content_sha256
        self.processor_sha256 = processor_sha256
        self.saqsam_version = saqsam_version

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> SaqsamConfig:
        """Build a config from JSON. transformers calls this method before it builds a model.

        Raises:
            CheckpointError: As for the class.
        """
        arguments = sorted({"weight_only", "group_size"} & config_dict.keys())
        if arguments:  # files store the resulting recipe instead
            raise CheckpointError(f"quantization_config has unknown keys: {shorten(arguments)}")
        try:
            return super().from_dict(config_dict, return_unused_kwargs, **kwargs)  # type: ignore[no-any-return]
        except TypeError as error:  # a key that is no argument name, such as "self"
            raise CheckpointError(f"quantization_config: {shorten_message(error)}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types; version 1 has no `processor_sha256`."""
        fields: dict[str, Any] = super().to_dict()
        if self.format_version == 1:
            del fields["processor_sha256"]
        return fields


def _weight_only_recipe(recipe: object, weight_only: str | None, group_size: int | None) -> Recipe:
    if recipe is not None:
        raise ValueError("give SaqsamConfig either a recipe or weight_only, not both")
    if not isinstance(weight_only, str):
        raise ValueError(f"weight_only must be text such as 'w4', got {weight_only!r}")
    bits, group = parse_weight_bits(weight_only)
    if group is not None and group_size is not None:
        raise ValueError(f"give the group size once: weight_only is {weight_only!r}, group_size {group_size}")
    return weight_only_recipe(bits, group_size if group is None else group)


def quantization_config_of(model: SamModel) -> SaqsamConfig | None:
    """Return the quantization config of a model, or None for a float model."""
    config = getattr(model.config, "quantization_config", None)
    return config if isinstance(config, SaqsamConfig) else None


def recipe_of(model: SamModel) -> Recipe:
    """Return the recipe a model was quantized with.

    Raises:
        ValueError: The model was not quantized by saqsam.
    """
    config = quantization_config_of(model)
    if config is None:
        raise ValueError("this model is float: it has no recipe")
    return Recipe.from_dict(config.recipe)
