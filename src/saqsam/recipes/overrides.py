"""Override single fields of a recipe by text: `reconstruction.loss=output`, `clipping=none`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from saqsam.models.parts import FLOAT_PARTS, PAPER_PARTS, names_of
from saqsam.recipes.compensation import Compensation
from saqsam.recipes.later_fields import restore_defaults
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Clipping, Override, Reconstruction
from saqsam.utils.suggestions import suggestion

NONE = "none"
CUSTOM_SUFFIX = "-custom"
"""Suffix of the method's name in a recipe with overrides; it may precede or follow the suffix of the kernels."""
# Values of `clipping=default` and the like; None has no fields to override.
_DEFAULTS: dict[str, type[Any]] = {
    "clipping": Clipping,
    "compensation": Compensation,
    "reconstruction": Reconstruction,
}
_FIXED = ("method", "version")


def with_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return a recipe with some fields changed, whose method has the suffix `-custom`.

    Args:
        recipe: The recipe, which is returned unchanged if there are no overrides.
        overrides: Texts of the form `KEY=VALUE`. KEY is a dotted field such as `weights.symmetric`,
            `overrides.neck.weights` or `extra.iou_head`; VALUE is a number, `true`, `false`, `none` or a name.
            `clipping`, `compensation` and `reconstruction` also take `none` and `default`.

    Raises:
        ValueError: A text has no `=`, a key is unknown, or a value does not fit its field.
    """
    if not overrides:
        return recipe
    values = recipe.to_dict()
    restore_defaults(values)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"an override must look like KEY=VALUE, got {text!r}")
        _set(values, key.strip(), _parse(value.strip()))
    custom = recipe.method.removesuffix(CUSTOM_SUFFIX) + CUSTOM_SUFFIX
    return Recipe.from_dict({**values, "method": custom})


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    known = sorted(_keys(values))
    if key in _DEFAULTS:
        if value not in (None, "default"):
            raise ValueError(
                f"{key} must be none or default, got {value!r}; its fields are set by {key}.FIELD=VALUE"
            )
        values[key] = None if value is None else dataclasses.asdict(_DEFAULTS[key]())
        return
    if key not in known:
        part = key.split(".")[0]
        if part in _DEFAULTS and values[part] is None:
            raise ValueError(f"{key}: this method has no {part}; add it by {part}=default first")
        raise ValueError(f"no recipe field {key!r}{suggestion(key, known)}")
    path = key.split(".")
    if path[0] == "overrides":  # names of parts contain dots
        values["overrides"].setdefault(".".join(path[1:-1]), {})[path[-1]] = value
    elif path[0] == "extra":
        part = key.partition(".")[2]
        if value is None:
            values["extra"].pop(part, None)
        else:
            values["extra"][part] = value
    elif len(path) == 2:
        values[path[0]][path[1]] = value
    else:
        values[key] = value


def _keys(values: Mapping[str, Any]) -> set[str]:
    """Return every dotted key that can be overridden in a recipe with these values."""
    keys = set(_DEFAULTS)
    for name, value in values.items():
        if name in _FIXED or name in ("overrides", "extra"):
            continue
        if isinstance(value, Mapping):
            keys |= {f"{name}.{field}" for field in value}
        elif name not in _DEFAULTS:
            keys.add(name)
    if values["activations"] is None:
        keys.add("weights.group_size")
    keys |= {f"extra.{name}" for name in names_of(FLOAT_PARTS)}
    groups = names_of(PAPER_PARTS)
    return keys | {f"overrides.{g}.{f.name}" for g in groups for f in dataclasses.fields(Override)}


def _parse(text: str) -> Any:
    """Parse a number, `true`, `false` or `none`; any other text is returned as a name."""
    if text == NONE:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
