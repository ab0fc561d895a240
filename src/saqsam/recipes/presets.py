"""Recipes by name: a method, its bits as text such as `w4a4`, and an effort."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from saqsam.quant.affine import check_bits
from saqsam.recipes.catalog import (
    AUTO_EFFORT,
    DEFAULT_BITS,
    DEFAULT_EFFORT,
    DEFAULT_METHOD,
    DEFAULT_WEIGHT_BITS,
    EFFORTS,
    METHOD_SUMMARIES,
    WEIGHT_ONLY,
)
from saqsam.recipes.methods import METHODS, weight_only
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Override
from saqsam.utils.suggestions import suggestion

MIXED_SUFFIX = "-mixed"
"""Suffix of bits such as `w4a4-mixed`: the encoder and the neck at these bits, the decoder at 8."""
_MIXED_OVERRIDES = {"decoder": Override(weights=8, activations=8)}

_WEIGHT_BITS = re.compile(r"w(\d+)(?:g(\d+))?")
"""Bits of weight-only quantization, such as `w4` or `w4g128`."""

QUICK_BITS = 6
"""Fewest bits, of weights and of activations, at which the effort `auto` takes the `quick` one."""


def with_effort(recipe: Recipe, effort: str) -> Recipe:
    """Return a recipe with the learning steps of an effort; a recipe without reconstruction is returned unchanged.

    Raises:
        ValueError: The effort is unknown.
    """
    _check_effort(effort)
    if recipe.reconstruction is None:
        return recipe
    return replace(recipe, reconstruction=replace(recipe.reconstruction, **EFFORTS[effort]))  # type: ignore[arg-type]


def resolve_effort(method: str = DEFAULT_METHOD, bits: str | None = None) -> tuple[str | None, str]:
    """Return the effort that `auto` stands for, and the reason for it.

    It depends on the arguments alone, so that a run that is resumed gets the same recipe.

    Args:
        method: Method, as for `recipe_for`.
        bits: Bits, as for `recipe_for`.

    Returns:
        One of `EFFORTS`, or None for methods that learn nothing; and the reason, such as
        `w8a8: ranges alone lose little at 6 bits and above`.

    Raises:
        ValueError: The method is unknown, or the bits cannot be parsed.
    """
    learns_nothing = f"{method} learns nothing"
    if method == WEIGHT_ONLY:
        parse_weight_bits(DEFAULT_WEIGHT_BITS if bits is None else bits)
        return None, learns_nothing
    weight_bits, activation_bits, is_mixed = _parse_bits(DEFAULT_BITS if bits is None else bits)
    if _method(method)(weight_bits, activation_bits).reconstruction is None:
        return None, learns_nothing
    name = f"w{weight_bits}a{activation_bits}"
    if is_mixed and min(weight_bits, activation_bits) >= 4:
        return "quick", f"{name}{MIXED_SUFFIX}: the decoder keeps 8 bits, and the encoder loses little at 4"
    if min(weight_bits, activation_bits) >= QUICK_BITS:
        return "quick", f"{name}: ranges alone lose little at {QUICK_BITS} bits and above"
    return "standard", f"{name}: learning recovers most of the accuracy drop below {QUICK_BITS} bits"


def parse_bits(bits: str) -> tuple[int, int]:
    """Return the weight and activation bits of a text such as `w4a4`.

    Raises:
        ValueError: The text has another form, or bits lie outside 2 to 8.
    """
    weight_bits, activation_bits, is_mixed = _parse_bits(bits)
    if is_mixed:
        raise ValueError(f"bits must look like w4a4 (weights 4, activations 4), got {bits!r}")
    return weight_bits, activation_bits


def _parse_bits(bits: str) -> tuple[int, int, bool]:
    """Return weight bits, activation bits, and whether the text ends in `-mixed`; errors are those of `parse_bits`."""
    match = re.fullmatch(rf"w(\d+)a(\d+)({MIXED_SUFFIX})?", bits.strip().lower())
    if match is None and _WEIGHT_BITS.fullmatch(bits.strip().lower()):
        raise ValueError(
            f"expected bits wXaY, such as w4a8, got {bits!r}; for weight-only quantization, add --method {WEIGHT_ONLY}"
        )
    if match is None:
        raise ValueError(f"bits must look like w4a4 (weights 4, activations 4), got {bits!r}")
    weight_bits, activation_bits = (
        check_bits(int(match[1]), "weight bits"),
        check_bits(int(match[2]), "activation bits"),
    )
    return weight_bits, activation_bits, match[3] is not None


def parse_weight_bits(bits: str) -> tuple[int, int | None]:
    """Return the weight bits and the group size of a text such as `w4` or `w4g128`.

    Raises:
        ValueError: The text has another form, or bits lie outside 2 to 8.
    """
    match = _WEIGHT_BITS.fullmatch(bits.strip().lower())
    if match is None:
        raise ValueError(f"weight-only bits must look like w4, or w4g128 for groups of 128, got {bits!r}")
    return check_bits(int(match[1]), "weight bits"), None if match[2] is None else int(match[2])


def recipe_for(method: str = DEFAULT_METHOD, bits: str | None = None, effort: str = DEFAULT_EFFORT) -> Recipe:
    """Return the recipe of a method.

    Args:
        method: One of `METHODS`, or `weight-only`.
        bits: Text such as `w4a4`, or `w4a4-mixed` for a decoder at 8 bits; for `weight-only` such as `w4`, or `w4g128`
            for groups of 128 inputs. None gives `w4a4` or `w4`.
        effort: One of `EFFORTS`, or `auto` for the one that `resolve_effort` chooses by method and bits. It has no
            effect on methods without reconstruction.

    Raises:
        ValueError: The method or the effort is unknown, or the bits cannot be parsed.
    """
    if effort != AUTO_EFFORT:
        _check_effort(effort)
    if method == WEIGHT_ONLY:
        return weight_only(*parse_weight_bits(DEFAULT_WEIGHT_BITS if bits is None else bits))
    weight_bits, activation_bits, is_mixed = _parse_bits(DEFAULT_BITS if bits is None else bits)
    recipe = _method(method)(weight_bits, activation_bits)
    if is_mixed:
        recipe = replace(
            _method(method)(weight_bits, 8), activations=recipe.activations, overrides=_MIXED_OVERRIDES
        )
    resolved = resolve_effort(method, bits)[0] if effort == AUTO_EFFORT else effort
    return recipe if resolved is None else with_effort(recipe, resolved)


def _method(name: str) -> Callable[[int, int], Recipe]:
    """Return the function of a method that quantizes activations."""
    if name not in METHODS:
        raise ValueError(f"no method {name!r}{suggestion(name, list(METHOD_SUMMARIES))}")
    return METHODS[name]


def _check_effort(effort: str) -> None:
    if effort not in EFFORTS:
        raise ValueError(f"no effort {effort!r}{suggestion(effort, [AUTO_EFFORT, *EFFORTS])}")
