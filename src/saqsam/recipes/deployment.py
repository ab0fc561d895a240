"""Recipe fields that integer kernels require, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from saqsam.models.parts import FLOAT_PARTS, UPSCALING_OUTPUT
from saqsam.recipes.catalog import DEFAULT_TARGET, DEPLOY_TARGETS, QLINEAR, XNNPACK, Kernels
from saqsam.recipes.methods import METHODS
from saqsam.recipes.overrides import CUSTOM_SUFFIX
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Clipping, ProbabilitySpec
from saqsam.utils.suggestions import suggestion

# The upscaling layers at mask resolution stay float: the mean error of their weights shifts all mask logits, which cost
# sam-mini 0.02 mean IoU.
_EXTRA = {part: 8 for part in FLOAT_PARTS if part != UPSCALING_OUTPUT}


@dataclass(frozen=True)
class Requirement:
    """A recipe field whose value integer kernels determine.

    Attributes:
        field: Name of the field, in the form of `--set`.
        why: Reason for the requirement.
        values: Required value by set of kernels; kernels without an entry accept any value.
    """

    field: str
    why: str
    values: Mapping[Kernels, Any]

    def read(self, recipe: Recipe) -> Any:
        """Return the field's value in a recipe."""
        value: Any = recipe
        for name in self.field.split("."):
            value = getattr(value, name)
        return value


REQUIREMENTS = (
    Requirement("weights.symmetric", "kernels take signed weights without zero points", {XNNPACK: True}),
    Requirement(
        "weights.symmetric_bytes",
        "kernels take signed bytes without zero points; codes of fewer bits have these taken off beforehand",
        {QLINEAR: True},
    ),
    Requirement(
        "activations.symmetric",
        "kernels with float outputs round each row of their inputs with a zero point",
        {XNNPACK: False},
    ),
    Requirement(
        "activations.dynamic",
        "kernels with float outputs round each row of their inputs on a grid of its own",
        {XNNPACK: True},
    ),
    # Row scaling: uniform codes of the softmax itself are all 0 in rows that attend to many keys.
    Requirement(
        "probabilities",
        "powers of two have no operator, and uniform codes of the softmax lose rows that look at many keys",
        {QLINEAR: ProbabilitySpec("uniform", 8, scale="row"), XNNPACK: ProbabilitySpec()},
    ),
    Requirement("integer_biases", "kernels add biases as 32-bit integers", {QLINEAR: True}),
    Requirement(
        "encoder_products",
        "8-bit kernels gain less on them than rounding costs",
        {QLINEAR: "float", XNNPACK: "float"},
    ),
    Requirement(
        "dynamic_queries",
        "kernels multiply two activations with one static scale each",
        {QLINEAR: False, XNNPACK: False},
    ),
    Requirement(
        "separate_positions",
        "kernels add one bias per channel, the same for all positions",
        {QLINEAR: False, XNNPACK: False},
    ),
    Requirement("decoder_products", "XNNPACK multiplies two activations in float alone", {XNNPACK: "float"}),
    Requirement("bimodal", "float products leave nothing to merge", {XNNPACK: False}),
    Requirement("clipping", "float products leave nothing to clip", {XNNPACK: None}),
    Requirement(
        "extra",
        "embeddings and heads that the papers leave float are a third of a 4-bit file",
        {QLINEAR: _EXTRA, XNNPACK: _EXTRA},
    ),
)
"""Fields that `deployable` sets and `substitutions` explains, in display order."""


def deployable(recipe: Recipe, target: str = DEFAULT_TARGET) -> Recipe:
    """Return the variant of a recipe that a target's integer kernels can run.

    Sets the fields of `REQUIREMENTS`; all others keep the values of the method.

    Args:
        recipe: Any recipe.
        target: Name of an export format, one of `DEPLOY_TARGETS`.

    Raises:
        ValueError: The target is unknown, or its kernels do not support the recipe's activation bits or codes.
    """
    if target not in DEPLOY_TARGETS:
        raise ValueError(f"no target {target!r}{suggestion(target, list(DEPLOY_TARGETS))}")
    kernels = DEPLOY_TARGETS[target]
    if recipe.activations is None:
        raise ValueError(
            f"{target} runs quantized activations, but {recipe.name} leaves them float: choose another method"
        )
    bits = kernels.activation_bits
    if bits is not None and recipe.activations.bits != bits:
        raise ValueError(
            f"{target} runs activations of {bits} bits, got {recipe.activations.bits}; choose w4a{bits} or w8a{bits}"
        )
    check_uniform_inputs(recipe, target)
    fields: dict[str, Any] = {"method": f"{recipe.method}-{kernels.suffix}"}
    nested: dict[str, dict[str, Any]] = {}
    for requirement in REQUIREMENTS:
        if kernels not in requirement.values:
            continue
        outer, dot, inner = requirement.field.partition(".")
        (nested.setdefault(outer, {}) if dot else fields)[inner or outer] = copy(requirement.values[kernels])
    # All fields in one call: a recipe checks that its fields are consistent.
    specs = {name: replace(getattr(recipe, name), **values) for name, values in nested.items()}
    return replace(recipe, **fields, **specs)


def check_uniform_inputs(recipe: Recipe, target: str) -> None:
    """Raise ValueError if layers read tables of levels, which the integer kernels of export formats cannot multiply.

    Args:
        recipe: Any recipe.
        target: Name of an export format, for the message.
    """
    if recipe.gelu != "uniform":
        raise ValueError(
            f"{target} multiplies uniform codes alone, but inputs after a GELU have gelu={recipe.gelu}: choose a "
            "method with gelu=uniform"
        )


def is_deployed(recipe: Recipe) -> bool:
    """Return whether a recipe has the fields of a target's kernels, by the name of its method."""
    parts = recipe.method.split("-")
    return any(kernels.suffix in parts for kernels in DEPLOY_TARGETS.values())


@dataclass(frozen=True)
class Substitution:
    """A recipe field that differs from the method.

    Attributes:
        field: Name of the field, in the form of `--set`.
        method: Value in the method.
        used: Value in the recipe.
        why: Reason why integer kernels need it.
    """

    field: str
    method: str
    used: str
    why: str


def substitutions(recipe: Recipe) -> list[Substitution]:
    """Return the fields of `REQUIREMENTS` in which a recipe differs from its method.

    Args:
        recipe: Any recipe, such as that of a checkpoint.

    Returns:
        The substitutions in display order; empty for an unchanged method or an unknown one.
    """
    name = recipe.method
    suffixes = (CUSTOM_SUFFIX, *(f"-{kernels.suffix}" for kernels in DEPLOY_TARGETS.values()))
    while name.endswith(suffixes):
        name = name.rpartition("-")[0]
    if name not in METHODS or recipe.activations is None:
        return []
    method = METHODS[name](recipe.weights.bits, recipe.activations.bits)
    pairs = ((one, _text(one.read(method)), _text(one.read(recipe))) for one in REQUIREMENTS)
    return [Substitution(one.field, plain, used, one.why) for one, plain, used in pairs if plain != used]


def _text(value: Any) -> str:
    """Return the value of a field as display text."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case Clipping():
            return "default" if value == Clipping() else "changed"
        case ProbabilitySpec(kind=kind, bits=bits, scale=scale):
            return f"{kind}, {'bits of the activations' if bits is None else f'{bits} bits'}, scale={scale}"
        case Mapping():
            return ", ".join(f"{part} {bits} bits" for part, bits in sorted(value.items())) or "float"
    return str(value)
