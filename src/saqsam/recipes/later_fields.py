"""Fields that recipes of earlier versions lack: JSON omits their defaults, so that those recipes keep their hash."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from saqsam.recipes.equalization import Equalization

LATER_FIELDS: Mapping[str, Any] = {
    "probabilities.coarsest": 1,
    "equalization": dataclasses.asdict(Equalization()),
    "gelu": "uniform",
    "compensation": None,
    "dynamic_queries": False,
    "separate_positions": False,
    "reconstruction.decoder_steps": 1.0,
}
"""Defaults of the fields, by dotted name."""


def omit_defaults(values: dict[str, Any]) -> None:
    """Remove the fields that hold their defaults from a recipe in plain JSON types, in place."""
    for name, default in LATER_FIELDS.items():
        outer, key = _locate(values, name)
        if outer is not None and outer[key] == default:
            del outer[key]


def restore_defaults(values: dict[str, Any]) -> None:
    """Add the fields that `omit_defaults` has removed, in place."""
    for name, default in LATER_FIELDS.items():
        outer, key = _locate(values, name)
        if outer is not None:
            outer.setdefault(key, dict(default) if isinstance(default, Mapping) else default)


def _locate(values: dict[str, Any], name: str) -> tuple[dict[str, Any] | None, str]:
    """Return the mapping that holds a field of a dotted name, or None if it is unset, and the field's key there."""
    outer, dot, inner = name.partition(".")
    return (values[outer], inner) if dot else (values, outer)
