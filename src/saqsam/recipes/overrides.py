"""Changing single fields of a recipe from text: `reconstruction.loss=output`, `clipping=none`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from saqsam.models.parts import FLOAT_PARTS, PAPER_PARTS
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Clipping, Override, Reconstruction
from saqsam.utils.suggestions import suggestion

NONE = "none"
# What `clipping=default` and the like put in; a part that is None has no fields to set.
_DEFAULTS = {"clipping": Clipping, "reconstruction": Reconstruction}
_FIXED = ("method", "version")


def with_overrides(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with some fields changed; its method is then called `-custom`.

    Args:
        recipe: A recipe.
        settings: Texts `KEY=VALUE`. KEY is a dotted field such as `weights.symmetric`, `overrides.neck.weights` or
            `extra.iou_head`; VALUE is a number, `true`, `false`, `none` or a name. `clipping` and `reconstruction`
            also take `none` and `default`.

    Raises:
        ValueError: If a text has no `=`, a key is unknown (the nearest right one is named), or a value does not fit.
    """
    if not settings:
        return recipe
    values = recipe.to_dict()
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"an override must look like KEY=VALUE, got {text!r}")
        _set(values, key.strip(), _parse(value.strip()))
    custom = recipe.method if recipe.method.endswith("-custom") else f"{recipe.method}-custom"
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
    if path[0] == "overrides":  # parts have dots themselves
        values["overrides"].setdefault(".".join(path[1:-1]), {})[path[-1]] = value
    elif len(path) == 2:
        values[path[0]][path[1]] = value
    else:
        values[key] = value


def _keys(values: Mapping[str, Any]) -> set[str]:
    """Every dotted key that can be set in the recipe as it is."""
    found = set()
    for name, value in values.items():
        if name in _FIXED or name in ("overrides", "extra"):
            continue
        if isinstance(value, Mapping):
            found |= {f"{name}.{field}" for field in value}
        elif name not in _DEFAULTS:
            found.add(name)
    found |= set(_DEFAULTS)
    if values["activations"] is None:
        found.add("weights.group_size")
    found |= {f"extra.{part}" for part in FLOAT_PARTS}
    groups = {*PAPER_PARTS, *(part.split(".")[0] for part in PAPER_PARTS)}
    return found | {f"overrides.{g}.{f.name}" for g in groups for f in dataclasses.fields(Override)}


def _parse(text: str) -> Any:
    """A number, true, false or none; anything else is a name."""
    if text == NONE:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
