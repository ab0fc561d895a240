"""Recipe fields that integer kernels require, and why each departs from its method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from saqsam.models.sam.structure import FLOAT_PARTS
from saqsam.recipes.presets import METHODS
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import ProbabilitySpec
from saqsam.utils.suggestions import nearest

DEPLOY_TARGETS = ("onnx", "openvino", "executorch")


def deployable(recipe: Recipe, target: str = "onnx") -> Recipe:
    """The variant that integer kernels take: signed weights without zero points, and what a target asks beside that.

    `onnx`, `openvino`: symmetric weights where they have 8 bits (narrower codes minus their zero points are signed
    bytes anyway), integer biases and uniform 8-bit probabilities. These are the numerators of each row: uniform codes
    of the softmax itself are all 0 where a row looks at many keys. The encoder's attention products stay float: 8-bit
    kernels gain less on them than rounding costs.

    `executorch`: XNNPACK's kernels take symmetric weights of all widths; with float outputs they round each row of
    their inputs to 8 bits on a grid of its own, and add float biases. Products of two activations it has in float
    alone, so nothing is left to clip or to merge.

    Embeddings and the heads of masks and IoUs, which the papers leave float, take 8 bits. Not the upscaling: the mean
    error of its last weights shifts all mask logits, which cost sam-mini 0.02 mean IoU.

    Args:
        recipe: Any.
        target: One of `DEPLOY_TARGETS`.

    Raises:
        ValueError: If there is no such target, or it cannot run the recipe's bits.
    """
    if target not in DEPLOY_TARGETS:
        raise ValueError(f"no target {target!r}{nearest(target, DEPLOY_TARGETS)}")
    if recipe.activations is None:
        raise ValueError(
            f"{target} runs quantized activations, but {recipe.name} leaves them float: choose another method"
        )
    extra = {part: 8 for part in FLOAT_PARTS if part != "upscaling"}
    if target == "executorch":
        if recipe.activations.bits != 8:
            raise ValueError(
                f"executorch runs activations of 8 bits, got {recipe.activations.bits}: use --bits w4a8 or w8a8"
            )
        return replace(
            recipe,
            method=f"{recipe.method}-executorch",
            weights=replace(recipe.weights, symmetric=True),
            activations=replace(recipe.activations, symmetric=False, dynamic=True),
            probabilities=ProbabilitySpec(),
            bimodal=False,
            clipping=None,
            encoder_products="float",
            decoder_products="float",
            extra=extra,
        )
    return replace(
        recipe,
        method=f"{recipe.method}-deploy",
        weights=replace(recipe.weights, symmetric_bytes=True),
        probabilities=ProbabilitySpec("uniform", 8, scale="row"),
        encoder_products="float",
        integer_biases=True,
        extra=extra,
    )


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
        lambda recipe: str(recipe.activation_spec.dynamic).lower(),
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
    if name not in METHODS or recipe.activations is None:
        return []
    method = METHODS[name](recipe.weights.bits, recipe.activations.bits)
    return [
        Substitution(field, read(method), read(recipe), why)
        for field, (read, why) in _FIELDS.items()
        if read(method) != read(recipe)
    ]
