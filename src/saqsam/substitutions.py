"""What a recipe has in the place of its method's own choices so that integer kernels can run it, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from saqsam.presets import METHODS
from saqsam.recipe import Recipe
from saqsam.specs import ProbabilitySpec

_SUFFIXES = ("-custom", "-deploy", "-executorch")


@dataclass(frozen=True)
class Substitution:
    """One field of a recipe that departs from the method.

    Attributes:
        field: Its name, as `--set` takes it.
        method: What the method has.
        used: What the recipe has.
        why: What integer kernels need it for.
    """

    field: str
    method: str
    used: str
    why: str


def _probabilities(spec: ProbabilitySpec) -> str:
    bits = "bits of the activations" if spec.bits is None else f"{spec.bits} bits"
    return f"{spec.kind}, {bits}, scale={spec.scale}"


def _extra(recipe: Recipe) -> str:
    return ", ".join(f"{part} {bits} bits" for part, bits in sorted(recipe.extra.items())) or "float"


_FIELDS: dict[str, tuple[Callable[[Recipe], str], str]] = {
    "weights.symmetric": (
        lambda recipe: str(recipe.weights.symmetric).lower(),
        "kernels take signed weights without zero points",
    ),
    "weights.symmetric_bytes": (
        lambda recipe: str(recipe.weights.symmetric_bytes).lower(),
        "kernels take signed bytes without zero points; codes of fewer bits have these taken off beforehand",
    ),
    "activations.dynamic": (
        lambda recipe: str(recipe.activations.dynamic).lower(),
        "kernels with float outputs round each row of their inputs on a grid of its own",
    ),
    "probabilities": (
        lambda recipe: _probabilities(recipe.probabilities),
        "powers of two have no operator, and uniform codes of the softmax lose rows that look at many keys",
    ),
    "integer_biases": (
        lambda recipe: str(recipe.integer_biases).lower(),
        "kernels add biases as 32-bit integers",
    ),
    "encoder_products": (
        lambda recipe: recipe.encoder_products,
        "8-bit kernels gain less on them than rounding costs",
    ),
    "decoder_products": (
        lambda recipe: recipe.decoder_products,
        "XNNPACK multiplies two activations in float alone",
    ),
    "bimodal": (lambda recipe: str(recipe.bimodal).lower(), "float products leave nothing to merge"),
    "clipping": (
        lambda recipe: "none" if recipe.clipping is None else "default",
        "float products leave nothing to clip",
    ),
    "extra": (_extra, "embeddings and heads that the papers leave float are a third of a 4-bit file"),
}
"""The fields that `deployable` sets: how a recipe's value reads, and why it is set."""


def substitutions(recipe: Recipe) -> list[Substitution]:
    """The fields that `deployable` is about and in which a recipe departs from its method, whoever changed them.

    Args:
        recipe: Of a checkpoint, or about to become one.

    Returns:
        In a fixed order; none for a method as it is, or one that this version does not know.
    """
    name = recipe.method
    while name.endswith(_SUFFIXES):
        name = name.rpartition("-")[0]
    if name not in METHODS:
        return []
    method = METHODS[name](recipe.weights.bits, recipe.activations.bits)
    return [
        Substitution(field, read(method), read(recipe), why)
        for field, (read, why) in _FIELDS.items()
        if read(method) != read(recipe)
    ]
