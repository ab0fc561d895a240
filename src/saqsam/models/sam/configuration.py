"""Validate an untrusted `config.json` and turn it into a `SamConfig`.

Only known fields are passed on to transformers, each with a checked type and range, so that no other key of a file can
change a mask. `models.limits` has the limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

from saqsam.models.fields import (
    Field,
    boolean,
    choice,
    integer,
    multiple,
    number,
    take_fields,
    take_object,
    used_indexes,
)
from saqsam.models.limits import (
    ACTIVATIONS,
    EPS,
    GENERIC_FIELDS,
    IMAGE_SIZE,
    LAYER_INDEXES,
    MAX_GRID,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_MASKS,
    MAX_SPARE_WINDOW,
    MAX_WIDTH,
    RGB,
    WIDTH,
    check_equal,
    check_heads,
    check_homogeneous,
    check_parameters,
)
from saqsam.utils.errors import CheckpointError, shorten

_VISION_FIELDS: Mapping[str, Field] = {
    "hidden_size": WIDTH,
    "output_channels": WIDTH,
    "num_hidden_layers": integer(1, MAX_LAYERS),
    "num_attention_heads": integer(1, MAX_HEADS),
    "num_channels": RGB,
    "image_size": IMAGE_SIZE,
    "patch_size": IMAGE_SIZE,
    "hidden_act": choice(ACTIVATIONS),
    "layer_norm_eps": EPS,
    "attention_dropout": number(0, 1),
    "initializer_range": number(0, 100),
    "qkv_bias": boolean(),
    "mlp_ratio": number(1e-3, 1e3),
    "mlp_dim": WIDTH,
    "use_abs_pos": boolean(),
    "use_rel_pos": boolean(),
    "window_size": integer(0, MAX_GRID),
    "global_attn_indexes": LAYER_INDEXES,
    "num_pos_feats": WIDTH,
}
PROMPT_FIELDS: Mapping[str, Field] = {
    "hidden_size": WIDTH,
    "image_size": IMAGE_SIZE,
    "patch_size": IMAGE_SIZE,
    "mask_input_channels": multiple(4, MAX_WIDTH),
    # Boxes and points use four; a model may hold further ones.
    "num_point_embeddings": integer(4, 64),
    "hidden_act": choice(ACTIVATIONS),
    "layer_norm_eps": EPS,
}
DECODER_FIELDS: Mapping[str, Field] = {
    "hidden_size": integer(8, MAX_WIDTH),
    "hidden_act": choice(ACTIVATIONS),
    "mlp_dim": WIDTH,
    "num_hidden_layers": integer(1, MAX_LAYERS),
    "num_attention_heads": integer(1, MAX_HEADS),
    "attention_downsample_rate": integer(1, 64),
    "num_multimask_outputs": integer(1, MAX_MASKS),
    "iou_head_depth": integer(2, 16),
    "iou_head_hidden_dim": WIDTH,
    "layer_norm_eps": EPS,
}
TYING = {"tie_word_embeddings": Field("true: SAM encodes all positions with one matrix", lambda v: v is True)}


def parse_sam_config(raw: Mapping[str, Any], source: str) -> SamConfig:
    """Return the `SamConfig` that a `config.json` describes.

    Absent fields and fields that are null get transformers' defaults. Unknown fields are ignored.

    Args:
        raw: The parsed JSON.
        source: The file's name in error messages.

    Raises:
        CheckpointError: A field has the wrong type or lies outside its limits, or two fields contradict each other.
            The message is one line that names the field, what was expected and what was found.
    """
    take_fields(raw, {**GENERIC_FIELDS, **TYING}, f"{source}: ")
    parts = {}
    for name, fields, part in (
        ("vision_config", _VISION_FIELDS, SamVisionConfig),
        ("prompt_encoder_config", PROMPT_FIELDS, SamPromptEncoderConfig),
        ("mask_decoder_config", DECODER_FIELDS, SamMaskDecoderConfig),
    ):
        section = take_object(raw, name, f"{source}: ")
        where = f"{source}: {name}."
        take_fields(section, GENERIC_FIELDS, where)
        parts[name] = part(**take_fields(section, fields, where))
    config = SamConfig(**parts)
    _check_grid(config, raw, f"{source}: ")
    _check_widths(config, f"{source}: ")
    return config


def sam_fields(config: SamConfig) -> dict[str, Any]:
    """Return every field of a configuration that affects a mask, as plain JSON types.

    The list of fields is fixed, so that the result does not depend on the version of transformers. Two configurations
    that build the same model return the same fields: `mlp_dim` is resolved and the indexes of global blocks are sorted.
    """
    vision, prompt, decoder = config.vision_config, config.prompt_encoder_config, config.mask_decoder_config
    training = {"attention_dropout", "initializer_range", "mlp_ratio"}  # the last is within mlp_dim
    vision_fields = {name: getattr(vision, name) for name in _VISION_FIELDS if name not in training}
    vision_fields["global_attn_indexes"] = used_indexes(vision.global_attn_indexes, vision.num_hidden_layers)
    prompt_fields = {name: getattr(prompt, name) for name in PROMPT_FIELDS}
    prompt_fields["image_embedding_size"] = prompt.image_embedding_size
    fields = {
        "model_type": SamConfig.model_type,
        "vision_config": vision_fields,
        "prompt_encoder_config": prompt_fields,
        "mask_decoder_config": {name: getattr(decoder, name) for name in DECODER_FIELDS},
    }
    for part in (vision_fields, prompt_fields, fields["mask_decoder_config"]):
        part["layer_norm_eps"] = float(part["layer_norm_eps"])  # JSON may say 0 for 0.0
    return fields


def check_sam_config(config: SamConfig, source: str) -> None:
    """Check a `SamConfig` that transformers parsed against the rules of `parse_sam_config`.

    Raises:
        CheckpointError: As for `parse_sam_config`, or the configuration differs between layers.
    """
    parts = (config, config.vision_config, config.prompt_encoder_config, config.mask_decoder_config)
    check_homogeneous(parts, source)
    if not config.tie_word_embeddings:
        raise CheckpointError(f"{source}: tie_word_embeddings: expected true, got false")
    parse_sam_config(sam_fields(config), source)


def count_parameters(config: SamConfig) -> int:
    """Return the approximate number of parameters of a model, without building it; biases are not counted."""
    vision = config.vision_config
    width, neck, grid = vision.hidden_size, vision.output_channels, vision.image_size // vision.patch_size
    side = max(grid, vision.window_size)
    block = 4 * width**2 + 2 * width * vision.mlp_dim + 4 * side * width
    encoder = (
        vision.num_hidden_layers * block + (grid**2 + vision.num_channels * vision.patch_size**2) * width
    )
    return int(encoder + neck * width + 9 * neck**2) + count_decoder_parameters(config)


def count_decoder_parameters(config: Any) -> int:
    """Return the approximate number of parameters of prompt encoder and mask decoder; biases are not counted."""
    prompt, decoder = config.prompt_encoder_config, config.mask_decoder_config
    mid, tokens, iou_width = (
        decoder.hidden_size,
        decoder.num_multimask_outputs + 1,
        decoder.iou_head_hidden_dim,
    )
    two_way = decoder.num_hidden_layers * (8 * mid**2 + 2 * mid * decoder.mlp_dim) + 4 * mid**2
    heads = tokens * 2 * mid**2 + mid * iou_width + decoder.iou_head_depth * iou_width**2
    masks = prompt.mask_input_channels * (prompt.mask_input_channels + prompt.hidden_size)
    return int(two_way + heads + masks)


def _check_grid(config: SamConfig, raw: Mapping[str, Any], where: str) -> None:
    vision, prompt = config.vision_config, config.prompt_encoder_config
    for name in ("image_size", "patch_size"):
        check_equal(
            where,
            f"vision_config.{name}",
            getattr(vision, name),
            f"prompt_encoder_config.{name}",
            getattr(prompt, name),
        )
    if vision.patch_size > vision.image_size:
        raise CheckpointError(
            f"{where}vision_config.patch_size: expected at most the image_size of {vision.image_size}, "
            f"got {vision.patch_size}"
        )
    grid = vision.image_size // vision.patch_size
    if grid > MAX_GRID:
        raise CheckpointError(
            f"{where}vision_config: expected at most {MAX_GRID} patches per side, got an image_size of "
            f"{vision.image_size} and a patch_size of {vision.patch_size}"
        )
    check_embedding_size(raw, vision.image_size, vision.patch_size, where)
    largest = max(grid, MAX_SPARE_WINDOW)
    if vision.window_size > largest:
        raise CheckpointError(
            f"{where}vision_config.window_size: expected at most {largest} for a grid of {grid} patches per side, "
            f"got {vision.window_size}"
        )


def check_embedding_size(raw: Mapping[str, Any], image_size: int, patch_size: int, where: str) -> None:
    """Raise CheckpointError if a file states another size of the embedding than the image's in patches."""
    grid = image_size // patch_size
    stated = (raw.get("prompt_encoder_config") or {}).get("image_embedding_size")
    if stated is not None and (type(stated) is not int or stated != grid):
        raise CheckpointError(
            f"{where}prompt_encoder_config.image_embedding_size: expected {grid}, the image_size of {image_size} "
            f"divided by the patch_size of {patch_size}, got {shorten(stated)}"
        )


def _check_widths(config: SamConfig, where: str) -> None:
    vision, prompt, decoder = config.vision_config, config.prompt_encoder_config, config.mask_decoder_config
    prompt_width = ("prompt_encoder_config.hidden_size", prompt.hidden_size)
    check_equal(where, "vision_config.output_channels", vision.output_channels, *prompt_width)
    check_equal(where, "mask_decoder_config.hidden_size", decoder.hidden_size, *prompt_width)
    if 2 * vision.num_pos_feats != prompt.hidden_size:
        raise CheckpointError(
            f"{where}vision_config.num_pos_feats: expected half of the prompt encoder's hidden_size of "
            f"{prompt.hidden_size}, got {vision.num_pos_feats}"
        )
    check_heads(where, "vision_config", vision.num_attention_heads, vision.hidden_size)
    # transformers halves the width of each layer's cross attentions, whatever the rate, which the last one follows.
    for rate in (1, 2, decoder.attention_downsample_rate):
        check_heads(where, "mask_decoder_config", decoder.num_attention_heads, decoder.hidden_size // rate)
    if not 1 <= vision.mlp_dim <= MAX_WIDTH:
        raise CheckpointError(
            f"{where}vision_config.mlp_ratio: expected a hidden layer of 1 to {MAX_WIDTH} channels, "
            f"got {vision.mlp_dim}"
        )
    check_parameters(where, count_parameters(config))
