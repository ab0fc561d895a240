"""Display names of parts, layers and quantizers, and recipes in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from saqsam.models.parts import FLOAT_PARTS, PART_LABELS, PARTS
from saqsam.models.registry import module_label
from saqsam.recipes.compensation import Compensation
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Reconstruction
from saqsam.report.log import Source

_RANGES = {"min-max": "from minimum to maximum", "percentile": "by percentile", "mse": "of minimum error"}

_TABLES = {
    "hybrid": "powers of 2 for small values and uniform codes for large ones (AHCPTQ)",
    "log": "logarithmic codes of adaptive base (AdaLog)",
}


def part_name(part: str) -> str:
    """Return the display name of a part, or of a layer by its module name."""
    return PART_LABELS.get(part) or module_label(part)


def describe(recipe: Recipe, source: Source | None) -> tuple[str, ...]:
    """Describe a recipe, one sentence per step, in the order of the steps."""
    steps = () if recipe.activations is None else _step_sentences(recipe, source)
    return (*_width_sentences(recipe), *steps)


def _width_sentences(recipe: Recipe) -> Iterator[str]:
    """Yield what has which bits and grids."""
    weights, activations = recipe.weights, recipe.activations
    kind = "symmetric" if weights.is_symmetric(weights.bits) else "asymmetric"
    each = "output channel" if weights.group_size is None else f"group of {weights.group_size} inputs"
    yield f"Weights: {weights.bits} bits, {kind}, one scale per {each}, ranges {_RANGES[weights.range]}."
    if activations is None:
        yield "Activations stay float."
        if recipe.overrides or recipe.extra:
            widths = {**recipe.extra, **{name: o.weights for name, o in recipe.overrides.items()}}
            yield f"Other bit widths: {', '.join(f'{name} {bits}' for name, bits in sorted(widths.items()))}."
        return
    if activations.dynamic:
        grid = f"{activations.bits} bits, with a dynamic range per row"
        yield f"Layer inputs: {grid}; operands of attention stay float."
    else:
        ranges = f"static ranges {_RANGES[activations.range]}"
        yield f"Activations: {activations.bits} bits, one scale per tensor, {ranges}."
    if recipe.dynamic_queries:
        yield "Queries and keys of image-to-token attention: one dynamic range per token and head."
    if recipe.separate_positions:
        yield "Image tokens in the decoder: rounded without their positions, which are float constants."
    probabilities = recipe.probabilities
    bits = probabilities.bits or activations.bits
    codes = "logarithmic codes" if probabilities.kind == "log" else "uniform codes"
    row = ", one scale per row" if probabilities.scale == "row" else ""
    yield f"Attention probabilities: {bits} bits, {codes}{row}."
    if recipe.gelu != "uniform":
        yield f"Activations after a GELU: {_TABLES[recipe.gelu]}."
    if recipe.overrides or recipe.extra:
        other = [f"{name} {value}" for name, value in sorted(recipe.extra.items())]
        other += [
            f"{name} w{o.weights or weights.bits}a{o.activations or activations.bits}"
            for name, o in sorted(recipe.overrides.items())
        ]
        yield f"Other bit widths: {', '.join(other)}."
    unquantized = [part_name(p) for p in PARTS if recipe.bits_of(p) == (None, None) and p in FLOAT_PARTS]
    if unquantized:
        yield f"Left in float16: {', '.join(unquantized)}; normalizations and biases."


def _step_sentences(recipe: Recipe, source: Source | None) -> Iterator[str]:
    """Yield the steps of a quantization that calibrates."""
    calibration = recipe.calibration
    data = "" if source is None else f" of {short_path(source.calibration)}"
    yield (
        f"Calibration: {calibration.images} images{data}, up to {calibration.prompts} box prompts each, "
        f"seed {calibration.seed}."
    )
    if recipe.balanced_heads:
        yield (
            "Balanced heads: queries and keys of each head of the decoder were given a basis in which both are equally "
            "large, which leaves the masks of the float model unchanged and removes outliers."
        )
    if recipe.equalized or recipe.input_scales:
        yield (
            f"Equalization: {_equalized(recipe)} were brought to similar ranges before calibration, which leaves "
            "the masks of the float model unchanged."
        )
    if recipe.bimodal:
        yield (
            "Bimodal integration: the two peaks of the keys in token-to-image attention were merged "
            "(PTQ4SAM)."
        )
    if recipe.clipping is not None:
        yield (
            "Clipping: ranges of the decoder's attentions were chosen to preserve the "
            f"{recipe.clipping.measure} of each attention (SAQ-SAM)."
        )
    if recipe.compensation is not None:
        yield _compensation_sentence(recipe.compensation)
    if recipe.reconstruction is not None:
        yield from _learning_sentences(recipe.reconstruction)
    elif recipe.compensation is None:
        yield "No learning: weights were rounded to nearest."
    else:
        yield "No learning."


def _compensation_sentence(spec: Compensation) -> str:
    """Say what weights make up for."""
    errors = [
        *["their own rounding (GPTQ)"] * spec.rounding,
        *["rounded inputs (ERQ)"] * spec.inputs,
        *["rounded keys (CAR-SAM)"] * spec.queries,
    ]
    where = "all layers" if spec.layers == "all" else "the decoder's layers"
    return (
        f"Compensation: weights and biases of {where} were changed to make up for "
        f"{_listed(errors or ['shifted means'])}."
    )


def _learning_sentences(spec: Reconstruction) -> Iterator[str]:
    """Say what was learned, and by what."""
    affine = ["biases", "normalizations"] * spec.affine
    units = [
        *[f"each {spec.unit} of the encoder"] * (spec.encoder_steps > 0),
        *["each layer of the decoder"] * (spec.decoder_steps > 0),
    ]
    if units:
        what = ["rounding", *["activation scales"] * spec.scales, *affine]
        loss = {
            "output": "its own output",
            "prompt": "the decoder's response to real prompts",
            "mask": "the masks",
        }[spec.loss]
        yield (
            f"Reconstruction ({spec.steps:,} base steps): {_listed(units)} learned its {_listed(what)}, to preserve "
            f"{loss}."
        )
    if spec.joint_steps:
        scales = ["weight scales", *["activation scales"] * spec.scales, *affine]
        yield (
            f"Joint learning: the whole decoder learned its {_listed(scales)} in "
            f"{spec.steps * spec.joint_steps:,} steps, to preserve the masks."
        )


def _listed(words: Sequence[str]) -> str:
    """Return words as a list in a sentence."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def _equalized(recipe: Recipe) -> str:
    """Return what was equalized, as the subject of a sentence."""
    if not recipe.equalized:
        return "channels that share a scale"
    equalization = recipe.equalization
    where = " after a normalization" if equalization.layers == "normalizations" else ""
    groups = "" if equalization.groups is None else f", in {equalization.groups} groups,"
    strength = "" if equalization.strength == 1 else f", with migration strength {equalization.strength:g},"
    return f"channels that share a scale{where}{groups}{strength}"


def short_path(path: str) -> str:
    """Return the last component of a path: reports must not disclose folders."""
    return path.rstrip("/").rpartition("/")[2]
