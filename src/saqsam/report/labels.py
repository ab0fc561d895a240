"""Display names of parts, layers and quantizers, and recipes in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from saqsam.models.parts import FLOAT_PARTS, PART_LABELS, PARTS
from saqsam.models.registry import module_label
from saqsam.recipes.recipe import Recipe
from saqsam.report.log import Source

_RANGES = {"min-max": "the smallest to the largest value", "percentile": "percentiles", "mse": "least error"}


def part_name(part: str) -> str:
    """Return the display name of a part, or of a layer by its module name."""
    return PART_LABELS.get(part) or module_label(part)


def describe(recipe: Recipe, source: Source | None) -> tuple[str, ...]:
    """Describe a recipe, one sentence per step, in the order of the steps."""
    return tuple(_sentences(recipe, source))


def _sentences(recipe: Recipe, source: Source | None) -> Iterator[str]:
    weights, activations = recipe.weights, recipe.activations
    kind = "symmetric" if weights.is_symmetric(weights.bits) else "asymmetric"
    each = (
        "output channel"
        if weights.group_size is None
        else f"{weights.group_size} inputs of an output channel"
    )
    yield f"Weights: {weights.bits} bits, {kind}, a scale for each {each}, ranges by {_RANGES[weights.range]}."
    if activations is None:
        yield "Activations stay float."
        if recipe.overrides or recipe.extra:
            widths = {**recipe.extra, **{name: o.weights for name, o in recipe.overrides.items()}}
            yield f"Other widths: {', '.join(f'{name} {bits}' for name, bits in sorted(widths.items()))}."
        return
    if activations.dynamic:
        grid = f"{activations.bits} bits on a grid that each row spans anew"
        yield f"Layer inputs: {grid}; operands of attention stay float."
    else:
        ranges = f"static ranges by {_RANGES[activations.range]}"
        yield f"Activations: {activations.bits} bits, one scale a tensor, {ranges}."
    probabilities = recipe.probabilities
    bits = probabilities.bits or activations.bits
    codes = "powers of two in fine steps" if probabilities.kind == "log" else "uniform codes"
    row = ", each row with a scale of its own" if probabilities.scale == "row" else ""
    yield f"Attention probabilities: {bits} bits, {codes}{row}."
    if recipe.overrides or recipe.extra:
        other = [f"{name} {value}" for name, value in sorted(recipe.extra.items())]
        other += [
            f"{name} w{o.weights or weights.bits}a{o.activations or activations.bits}"
            for name, o in sorted(recipe.overrides.items())
        ]
        yield f"Other widths: {', '.join(other)}."
    unquantized = [part_name(p) for p in PARTS if recipe.bits_of(p) == (None, None) and p in FLOAT_PARTS]
    if unquantized:
        yield f"Left in float16: {', '.join(unquantized)}; normalizations and biases."
    calibration = recipe.calibration
    data = "" if source is None else f" of {short_path(source.calibration)}"
    yield (
        f"Calibrated on {calibration.images} images{data}, up to {calibration.prompts} box prompts each, "
        f"seed {calibration.seed}."
    )
    if recipe.equalized or recipe.input_scales:
        yield "Channels that share a grid were given ranges alike beforehand; the float model computes the same."
    if recipe.bimodal:
        yield "The two peaks of the keys that tokens look at the image with were folded into one (PTQ4SAM)."
    if recipe.clipping is not None:
        measure = (
            "where each attention looks"
            if recipe.clipping.measure == "focus"
            else "what each attention gives"
        )
        yield f"Ranges of the decoder's queries and keys were chosen to keep {measure} (SAQ-SAM)."
    learned = recipe.reconstruction
    if learned is not None:
        what = [
            "rounding",
            *["activation scales"] * learned.scales,
            *["biases and normalizations"] * learned.affine,
        ]
        loss = {
            "output": "what the unit gives",
            "prompt": "what the decoder makes of it with real prompts",
            "mask": "the masks",
        }[learned.loss]
        yield (
            f"Then {' and '.join(what)} were learned, one {learned.unit} after another, {learned.steps:,} steps each, "
            f"to keep {loss}."
        )
    else:
        yield "Nothing was learned: weights are rounded to nearest."


def short_path(path: str) -> str:
    """Return the last component of a path: reports must not disclose folders."""
    return path.rstrip("/").rpartition("/")[2]
