"""The methods by name: each a short function from bits to a `Recipe`, so that two can be compared by eye."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

from saqsam.quant.affine import check_bits
from saqsam.recipe import QuantSpec, Recipe


def min_max(weight_bits: int, activation_bits: int) -> Recipe:
    """Ranges from the smallest to the largest value seen."""
    return Recipe(
        method="min-max",
        weights=QuantSpec(weight_bits, range="min-max"),
        activations=QuantSpec(activation_bits, range="min-max"),
    )


def percentile(weight_bits: int, activation_bits: int) -> Recipe:
    """Activation ranges that hold 99.99 % of the values on each side; weights by min-max."""
    return Recipe(
        method="percentile",
        weights=QuantSpec(weight_bits, range="min-max"),
        activations=QuantSpec(activation_bits, range="percentile"),
    )


def mse(weight_bits: int, activation_bits: int) -> Recipe:
    """Ranges of least |x - Q(x)|^2.4: the statistics that QDrop (arXiv 2203.05740) and PTQ4SAM start from."""
    return Recipe(
        method="mse",
        weights=QuantSpec(weight_bits, range="mse"),
        activations=QuantSpec(activation_bits, range="mse"),
    )


METHODS: dict[str, Callable[[int, int], Recipe]] = {"min-max": min_max, "percentile": percentile, "mse": mse}


def parse_bits(bits: str) -> tuple[int, int]:
    """Weight and activation bits of `w4a4` and the like.

    Raises:
        ValueError: For any other text, or bits outside 2 to 8.
    """
    match = re.fullmatch(r"w(\d+)a(\d+)", bits.strip().lower())
    if match is None:
        raise ValueError(f"bits must look like w4a4 (weights 4, activations 4), got {bits!r}")
    return check_bits(int(match[1]), "weight bits"), check_bits(int(match[2]), "activation bits")


def recipe_for(method: str = "mse", bits: str = "w4a4") -> Recipe:
    """The recipe of a method at given bits.

    Raises:
        ValueError: If there is no such method, or the bits cannot be read.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(METHODS)}"
        raise ValueError(f"no method {method!r}; {hint}")
    return METHODS[method](*parse_bits(bits))
