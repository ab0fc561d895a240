"""`SaqsamConfig`: the `quantization_config` of a checkpoint's `config.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import SamModel
from transformers.quantizers import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from saqsam._version import __version__
from saqsam.recipes.recipe import Recipe
from saqsam.utils.errors import CheckpointError, shorten, shorten_message

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, FORMAT_VERSION)
"""Version 1 hashes the recipe and the tensors; version 2 also the model's and the processor's configuration."""
QUANT_METHOD = "saqsam"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@register_quantization_config(QUANT_METHOD)
class SaqsamConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """How a checkpoint was quantized, and the hash of its content.

    Attributes:
        recipe: The recipe as plain JSON, exactly as stored: an older version may lack later fields.
        format_version: Version of the file format.
        content_sha256: Hash of all that decides a mask, see `content_hash`; None until the model is saved.
        processor_sha256: Hash of the processor, see `processor_hash`; None in format version 1.
        saqsam_version: Version of the package that wrote the checkpoint.

    Raises:
        CheckpointError: A field is unknown, missing, or has an invalid value.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any] | None = None,
        format_version: int | None = None,
        content_sha256: str | None = None,
        processor_sha256: str | None = None,
        saqsam_version: str = __version__,
        quant_method: str = QUANT_METHOD,
        **unknown: Any,
    ) -> None:
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
        """Build a config from JSON; transformers calls it before it builds a model.

        Raises:
            CheckpointError: As for the class.
        """
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


def quantization_config_of(model: SamModel) -> SaqsamConfig | None:
    """Return the quantization config of a model, or None for a float model."""
    found = getattr(model.config, "quantization_config", None)
    return found if isinstance(found, SaqsamConfig) else None


def recipe_of(model: SamModel) -> Recipe:
    """Return the recipe a model was quantized with.

    Raises:
        ValueError: The model was not quantized by saqsam.
    """
    config = quantization_config_of(model)
    if config is None:
        raise ValueError("this model is float: it has no recipe")
    return Recipe.from_dict(config.recipe)
