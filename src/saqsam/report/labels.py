"""Display names of parts, layers and quantizers, and recipes in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from saqsam.models.parts import FLOAT_PARTS, PARTS
from saqsam.recipes.recipe import Recipe
from saqsam.report.log import Source

_RANGES = {"min-max": "the smallest to the largest value", "percentile": "percentiles", "mse": "least error"}
PART_NAMES = {
    "encoder.qkv": "encoder: queries, keys, values",
    "encoder.proj": "encoder: attention output",
    "encoder.lin1": "encoder: MLP, first layer",
    "encoder.lin2": "encoder: MLP, second layer",
    "encoder.attention": "encoder: attention products",
    "neck": "neck",
    "decoder.self_attention": "decoder: tokens among themselves",
    "decoder.token_to_image": "decoder: tokens to image",
    "decoder.image_to_token": "decoder: image to tokens",
    "decoder.final_attention": "decoder: final attention",
    "decoder.mlp": "decoder: MLP",
    "patch_embedding": "patch embedding",
    "position_embedding": "position embedding",
    "upscaling": "mask upscaling",
    "hypernetworks": "mask hypernetworks",
    "iou_head": "IoU head",
    "relative_positions": "relative positions",
    "mask_product": "mask product",
}
SLOT_NAMES = {
    "q_proj.input_quantizer": "input of the queries",
    "k_proj.input_quantizer": "input of the keys",
    "query_quantizer": "queries",
    "key_quantizer": "keys",
    "value_quantizer": "values",
    "probability_quantizer": "probabilities",
}


def part_name(part: str) -> str:
    """Return the display name of a part or a layer."""
    return PART_NAMES.get(part) or module_name(part)


def module_name(name: str) -> str:
    """Return the display name of a module, such as `encoder block 3, attn.qkv`; unknown names are unchanged."""
    words = name.split(".")
    if name.startswith("vision_encoder.layers."):
        return f"encoder block {int(words[2]) + 1}, {'.'.join(words[3:])}"
    if name.startswith("mask_decoder.transformer.layers."):
        return f"decoder layer {int(words[3]) + 1}, {_attention('.'.join(words[4:]))}"
    return _attention(name.removeprefix("mask_decoder.transformer.").removeprefix("vision_encoder."))


def _attention(name: str) -> str:
    for module, words in (
        ("cross_attn_token_to_image", "tokens to image"),
        ("cross_attn_image_to_token", "image to tokens"),
        ("final_attn_token_to_image", "final attention"),
        ("self_attn", "self-attention"),
    ):
        if name.startswith(module):
            return (words + ", " + name.removeprefix(module).lstrip(".")).removesuffix(", ")
    return name


def slot_name(slot: str) -> str:
    """Return the display name of a quantizer, such as `decoder layer 1, tokens to image: keys`."""
    for ending, words in SLOT_NAMES.items():
        if slot.endswith(ending):
            return f"{module_name(slot.removesuffix(ending).rstrip('.'))}: {words}"
    return f"{module_name(slot.removesuffix('.input_quantizer'))}: input"


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
        yield f"Left in float16: {', '.join(unquantized)}; normalisations and biases."
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
            *["biases and normalisations"] * learned.affine,
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
