"""The methods by name: each a short function from bits to a `Recipe`, so that two can be compared by eye."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from saqsam.quant.affine import check_bits
from saqsam.recipes.catalog import DEFAULT_BITS, DEFAULT_EFFORT, DEFAULT_METHOD, EFFORTS, METHOD_SUMMARIES
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Clipping, ProbabilitySpec, QuantSpec, Reconstruction
from saqsam.utils.suggestions import suggestion

WEIGHT_ONLY = "weight-only"
"""Beside `METHODS`, which have bits of weights and activations: `recipe_for` takes it with bits such as `w4`."""


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


def brecq(weight_bits: int, activation_bits: int) -> Recipe:
    """Rounding learned by block reconstruction (BRECQ, arXiv 2102.05426); activation ranges by `mse`."""
    learned = Reconstruction(unit="block", loss="output", target="float", scales=False, drop=1.0)
    return replace(mse(weight_bits, activation_bits), method="brecq", reconstruction=learned)


def qdrop(weight_bits: int, activation_bits: int) -> Recipe:
    """Rounding and activation scales, learned with random dropping (QDrop, arXiv 2203.05740)."""
    learned = Reconstruction(unit="block", loss="output", target="float", scales=True, drop=0.5)
    return replace(mse(weight_bits, activation_bits), method="qdrop", reconstruction=learned)


def ptq4sam_s(weight_bits: int, activation_bits: int) -> Recipe:
    """PTQ4SAM without reconstruction: bimodal integration and adaptive granularity (arXiv 2405.03144).

    The paper tries 1, 2 and 4 steps an octave. With more than 4 bits most codes would then lie octaves below anything
    that counts, so the finest grid tried still covers four octaves.
    """
    start = mse(weight_bits, activation_bits)
    granularity = ProbabilitySpec("log", finest=min(32, max(4, 2 ** (activation_bits - 2))))
    return replace(start, method="ptq4sam-s", bimodal=True, probabilities=granularity)


def ptq4sam(weight_bits: int, activation_bits: int) -> Recipe:
    """PTQ4SAM: the same, then QDrop's reconstruction (arXiv 2405.03144)."""
    learned = Reconstruction(unit="block", loss="output", target="float", scales=True, drop=0.5)
    return replace(ptq4sam_s(weight_bits, activation_bits), method="ptq4sam", reconstruction=learned)


def saq_sam_s(weight_bits: int, activation_bits: int) -> Recipe:
    """PTQ4SAM's statistics and perceptual-consistency clipping, no reconstruction (arXiv 2503.06515)."""
    return replace(ptq4sam_s(weight_bits, activation_bits), method="saq-sam-s", clipping=Clipping())


def saq_sam(weight_bits: int, activation_bits: int) -> Recipe:
    """SAQ-SAM: clipping, then prompt-aware reconstruction with layer skipping (arXiv 2503.06515)."""
    learned = Reconstruction(unit="stage", loss="prompt", target="float", scales=True, drop=0.5)
    return replace(saq_sam_s(weight_bits, activation_bits), method="saq-sam", reconstruction=learned)


def saq_sam_plus(weight_bits: int, activation_bits: int) -> Recipe:
    """SAQ-SAM and what the paper does not have, all of it free at run time.

    Channels equalized, and inputs scaled by channel where the decoder reads a residual stream; rows of probabilities
    with a scale of their own; clipping by what an attention gives; biases and normalisations learned with each unit; at
    the end the whole decoder, by its masks.
    """
    start = saq_sam(weight_bits, activation_bits)
    assert start.reconstruction is not None
    return replace(
        start,
        method="saq-sam-plus",
        equalized=True,
        input_scales=True,
        probabilities=replace(start.probabilities, scale="row"),
        clipping=Clipping(images=4, include_range=True, measure="output"),
        reconstruction=replace(start.reconstruction, affine=True, joint_steps=8),
    )


def weight_only(weight_bits: int, group_size: int | None = None) -> Recipe:
    """Weights alone, rounded to nearest; activations stay float, so that no calibration is needed.

    Args:
        weight_bits: 2 to 8.
        group_size: Consecutive inputs of an output channel that share a scale, one of `GROUP_SIZES`; None for the
            whole channel.
    """
    return Recipe(
        method=WEIGHT_ONLY,
        weights=QuantSpec(weight_bits, range="mse", group_size=group_size),
        activations=None,
    )


METHODS: dict[str, Callable[[int, int], Recipe]] = {
    name: globals()[name.replace("-", "_")] for name in METHOD_SUMMARIES
}
"""The functions above, by the name of their method."""


def with_effort(recipe: Recipe, effort: str) -> Recipe:
    """The recipe with the learning steps of an effort; unchanged if it learns nothing.

    Raises:
        ValueError: If there is no such effort.
    """
    if effort not in EFFORTS:
        raise ValueError(f"no effort {effort!r}{suggestion(effort, list(EFFORTS))}")
    if recipe.reconstruction is None:
        return recipe
    return replace(recipe, reconstruction=replace(recipe.reconstruction, **EFFORTS[effort]))  # type: ignore[arg-type]


def parse_bits(bits: str) -> tuple[int, int]:
    """Weight and activation bits of `w4a4` and the like.

    Raises:
        ValueError: For any other text, or bits outside 2 to 8.
    """
    match = re.fullmatch(r"w(\d+)a(\d+)", bits.strip().lower())
    if match is None:
        raise ValueError(f"bits must look like w4a4 (weights 4, activations 4), got {bits!r}")
    return check_bits(int(match[1]), "weight bits"), check_bits(int(match[2]), "activation bits")


def parse_weight_bits(bits: str) -> tuple[int, int | None]:
    """Return weight bits and group size of `w4`, `w4g128` and the like.

    Raises:
        ValueError: For any other text, or bits outside 2 to 8.
    """
    match = re.fullmatch(r"w(\d+)(?:g(\d+))?", bits.strip().lower())
    if match is None:
        raise ValueError(
            f"bits of weights alone must look like w4, or w4g128 for groups of 128, got {bits!r}"
        )
    return check_bits(int(match[1]), "weight bits"), None if match[2] is None else int(match[2])


def recipe_for(
    method: str = DEFAULT_METHOD, bits: str = DEFAULT_BITS, effort: str = DEFAULT_EFFORT
) -> Recipe:
    """Return the recipe of a method at given bits.

    Args:
        method: One of `METHODS`, or `weight-only`.
        bits: Such as `w4a4`; for `weight-only` such as `w4`, or `w4g128` for groups of 128 inputs.
        effort: One of `EFFORTS`; for methods that learn.

    Raises:
        ValueError: If there is no such method or effort, or the bits cannot be read.
    """
    if method == WEIGHT_ONLY:
        return weight_only(*parse_weight_bits(bits))
    if method not in METHODS:
        raise ValueError(f"no method {method!r}{suggestion(method, list(METHODS))}")
    return with_effort(METHODS[method](*parse_bits(bits)), effort)
