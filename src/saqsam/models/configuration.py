"""Validate untrusted configurations of any family and list the fields that affect a mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saqsam.models.other_families import name_of_model_type, refusal
from saqsam.models.registry import FAMILIES, family_of
from saqsam.utils.errors import CheckpointError, shorten


def parse_config(raw: Mapping[str, Any], source: str) -> Any:
    """Return the configuration that a `config.json` describes.

    Absent fields and fields that are null get transformers' defaults. Unknown fields are ignored.

    Args:
        raw: The parsed JSON.
        source: The file's name in error messages.

    Raises:
        CheckpointError: No family has this `model_type`, a field has the wrong type or lies outside its limits, or two
            fields contradict each other. The message is one line that names the field, what was expected and what was
            found.
    """
    model_type = raw.get("model_type")
    for family in FAMILIES:
        if isinstance(model_type, str) and model_type in family.format.model_types:
            return family.format.parse_config(raw, source)
    other = name_of_model_type(model_type)
    if other is not None:
        raise CheckpointError(f"{source}: {refusal(other)}")
    supported = ", ".join(f"{name!r}" for family in FAMILIES for name in family.format.model_types)
    expected = supported if len(FAMILIES) == 1 else f"one of {supported}"
    raise CheckpointError(f"{source}: expected model_type {expected}, got {shorten(model_type)}")


def config_fields(config: Any) -> dict[str, Any]:
    """Return every field of a configuration that affects a mask, as plain JSON types, fixed for each family."""
    return family_of(config).format.config_fields(config)


def check_config(config: Any, source: str) -> None:
    """Check a configuration that transformers parsed against the rules of `parse_config`.

    Raises:
        CheckpointError: As for `parse_config`, or the configuration differs between layers.
    """
    family_of(config).format.check_config(config, source)


def max_weight_bytes(config: Any) -> int:
    """Return the largest accepted size of a model's weights on disk: eight times their size in float32.

    The margin leaves room for other contents of a training checkpoint, such as optimizer states.
    """
    return 8 * 4 * family_of(config).format.count_parameters(config) + 2**20
