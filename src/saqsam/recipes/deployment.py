"""Recipe fields that integer kernels require, with the reason why each departs from its method."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from saqsam.models.parts import FLOAT_PARTS
from saqsam.recipes.catalog import DEFAULT_TARGET, DEPLOY_TARGETS, QLINEAR, XNNPACK, Kernels
from saqsam.recipes.presets import METHODS
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Clipping, ProbabilitySpec
from saqsam.utils.suggestions import suggestion

CUSTOM_SUFFIX = "-custom"
"""Suffix of the method's name in a recipe with overrides, which may come before or after that of the kernels."""
# Not the upscaling: the mean error of its last weights shifts all mask logits, which cost sam-mini 0.02 mean IoU.
_EXTRA = {part: 8 for part in FLOAT_PARTS if part != "upscaling"}


@dataclass(frozen=True)
class Requirement:
    """One recipe field that integer kernels fix.

    Attributes:
        field: Name of the field, as `--set` takes it.
        why: Reason that the kernels need it.
        values: Value for each set of kernels; a field is left alone for kernels that are not in it.
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
    # A row's numerators: uniform codes of the softmax itself are all 0 where a row looks at many keys.
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
    Requirement("decoder_products", "XNNPACK multiplies two activations in float alone", {XNNPACK: "float"}),
    Requirement("bimodal", "float products leave nothing to merge", {XNNPACK: False}),
    Requirement("clipping", "float products leave nothing to clip", {XNNPACK: None}),
    Requirement(
        "extra",
        "embeddings and heads that the papers leave float are a third of a 4-bit file",
        {QLINEAR: _EXTRA, XNNPACK: _EXTRA},
    ),
)
"""The fields that `deployable` sets and that `substitutions` explains, in the order in which they are shown."""


def deployable(recipe: Recipe, target: str = DEFAULT_TARGET) -> Recipe:
    """Return the variant of a recipe that a target's integer kernels can run.

    Sets the fields of `REQUIREMENTS`; everything else is left as the method has it.

    Args:
        recipe: Any recipe.
        target: Name of an export format, one of `DEPLOY_TARGETS`.

    Raises:
        ValueError: There is no such target, or its kernels do not run activations of the recipe's bits.
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
    fields: dict[str, Any] = {"method": f"{recipe.method}-{kernels.suffix}"}
    nested: dict[str, dict[str, Any]] = {}
    for requirement in REQUIREMENTS:
        if kernels not in requirement.values:
            continue
        outer, dot, inner = requirement.field.partition(".")
        (nested.setdefault(outer, {}) if dot else fields)[inner or outer] = copy(requirement.values[kernels])
    # All at once: recipes check that their fields go together.
    specs = {name: replace(getattr(recipe, name), **values) for name, values in nested.items()}
    return replace(recipe, **fields, **specs)


@dataclass(frozen=True)
class Substitution:
    """One field of a recipe that departs from the method.

    Attributes:
        field: Name of the field, as `--set` takes it.
        method: Value of the method.
        used: Value of the recipe.
        why: Reason that integer kernels need it.
    """

    field: str
    method: str
    used: str
    why: str


def substitutions(recipe: Recipe) -> list[Substitution]:
    """List the fields of `REQUIREMENTS` in which a recipe departs from its method, whoever changed them.

    Args:
        recipe: Recipe of a checkpoint, or one that is about to be used.

    Returns:
        The substitutions in a fixed order; none for an unchanged method, or one that this version does not know.
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
    """Return the value of a field as the command line shows it."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case Clipping():
            return "default"
        case ProbabilitySpec(kind=kind, bits=bits, scale=scale):
            return f"{kind}, {'bits of the activations' if bits is None else f'{bits} bits'}, scale={scale}"
        case Mapping():
            return ", ".join(f"{part} {bits} bits" for part, bits in sorted(value.items())) or "float"
    return str(value)
