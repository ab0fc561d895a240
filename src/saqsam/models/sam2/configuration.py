"""Validate an untrusted `config.json` of SAM 2 and turn it into a `Sam2Config`.

Only known fields are passed on to transformers, each with a checked type and range. Configurations of the video model
(`sam2_video`) are read for their image part. The architecture is fixed to what all published models share: four
resolution stages with pooled queries, a feature pyramid of 1x1 convolutions whose two finest levels are not fused, and
a decoder of two layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Sam2Config, Sam2HieraDetConfig, Sam2MaskDecoderConfig, Sam2VisionConfig
from transformers.models.sam2.configuration_sam2 import Sam2PromptEncoderConfig

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
    MAX_WIDTH,
    RGB,
    WIDTH,
    check_equal,
    check_heads,
    check_homogeneous,
    check_parameters,
    list_of,
)
from saqsam.utils.errors import CheckpointError, shorten

STAGES = 4
STRIDE = 4
"""Side of a patch; the embedding has a quarter of the patches per side."""
PATCH = 16
"""Pixels of the image per side of the embedding's cells."""
LEAST_SIDE = 32
"""The image size is a multiple of this, the cells of the coarsest stage."""


def fixed(value: Any) -> Field:
    """Return a field with one legal value."""
    return Field(f"{value}, as in every published model", lambda v: v == value)


def square(field: Field) -> Field:
    """Return a field of a side, or of two equal ones; the value is one side."""
    return Field(
        f"{field.expected}, or a list of two equal ones",
        lambda v: (
            field.accepts(v) or (isinstance(v, list) and len(v) == 2 and v[0] == v[1] and field.accepts(v[0]))
        ),
        lambda v: v[0] if isinstance(v, list) else v,
    )


_BACKBONE_FIELDS: Mapping[str, Field] = {
    "hidden_size": WIDTH,
    "num_channels": RGB,
    "image_size": square(IMAGE_SIZE),
    "patch_kernel_size": list_of(integer(1, 31), 2),
    "patch_stride": fixed([STRIDE, STRIDE]),
    "patch_padding": list_of(integer(0, 15), 2),
    "query_stride": fixed([2, 2]),
    "window_positional_embedding_background_size": list_of(integer(1, MAX_GRID), 2),
    "num_query_pool_stages": fixed(STAGES - 1),
    "blocks_per_stage": list_of(integer(1, MAX_LAYERS), STAGES),
    "embed_dim_per_stage": list_of(WIDTH, STAGES),
    "num_attention_heads_per_stage": list_of(integer(1, MAX_HEADS), STAGES),
    "window_size_per_stage": list_of(integer(1, MAX_GRID), STAGES),
    "global_attention_blocks": LAYER_INDEXES,
    "mlp_ratio": number(1e-3, 1e3),
    "hidden_act": choice(ACTIVATIONS),
    "layer_norm_eps": EPS,
    "initializer_range": number(0, 100),
}
_VISION_FIELDS: Mapping[str, Field] = {
    "backbone_channel_list": list_of(WIDTH, STAGES),
    "backbone_feature_sizes": list_of(list_of(IMAGE_SIZE, 2), STAGES - 1),
    "fpn_hidden_size": WIDTH,
    "fpn_kernel_size": fixed(1),
    "fpn_stride": fixed(1),
    "fpn_padding": fixed(0),
    "fpn_top_down_levels": fixed([2, 3]),
    "num_feature_levels": fixed(STAGES - 1),
    "initializer_range": number(0, 100),
}
PROMPT_FIELDS: Mapping[str, Field] = {
    "hidden_size": WIDTH,
    "image_size": square(IMAGE_SIZE),
    "patch_size": square(fixed(PATCH)),
    "mask_input_channels": multiple(4, MAX_WIDTH),
    "num_point_embeddings": fixed(4),
    "hidden_act": choice(ACTIVATIONS),
    "layer_norm_eps": EPS,
    "scale": integer(1, 1000),
}
DECODER_FIELDS: Mapping[str, Field] = {
    "hidden_size": multiple(8, MAX_WIDTH),
    "mlp_dim": WIDTH,
    "num_hidden_layers": fixed(2),
    "num_attention_heads": integer(1, MAX_HEADS),
    "attention_downsample_rate": integer(1, 64),
    "num_multimask_outputs": integer(1, MAX_MASKS),
    "iou_head_depth": integer(2, 16),
    "iou_head_hidden_dim": WIDTH,
    "dynamic_multimask_via_stability": boolean(),
    "dynamic_multimask_stability_delta": number(0, 1000),
    "dynamic_multimask_stability_thresh": number(0, 1),
}
_TRAINING = ("initializer_range",)


def parse_sam2_config(raw: Mapping[str, Any], source: str) -> Sam2Config:
    """Return the `Sam2Config` that a `config.json` describes.

    Absent fields and fields that are null get transformers' defaults, those of SAM 2.1 tiny. Unknown fields are
    ignored.

    Args:
        raw: The parsed JSON.
        source: The file's name in error messages.

    Raises:
        CheckpointError: A field has the wrong type or lies outside its limits, or two fields contradict each other.
    """
    where = f"{source}: "
    take_fields(raw, GENERIC_FIELDS, where)
    vision = take_object(raw, "vision_config", where)
    backbone = take_object(vision, "backbone_config", f"{where}vision_config.")
    for section, name in ((vision, "vision_config."), (backbone, "vision_config.backbone_config.")):
        take_fields(section, GENERIC_FIELDS, where + name)
    parsed = {
        "backbone": take_fields(backbone, _BACKBONE_FIELDS, f"{where}vision_config.backbone_config."),
        "vision": take_fields(vision, _VISION_FIELDS, f"{where}vision_config."),
    }
    for name, fields in (("prompt_encoder_config", PROMPT_FIELDS), ("mask_decoder_config", DECODER_FIELDS)):
        section = take_object(raw, name, where)
        take_fields(section, GENERIC_FIELDS, f"{where}{name}.")
        parsed[name] = take_fields(section, fields, f"{where}{name}.")
    prompt = Sam2PromptEncoderConfig(**parsed["prompt_encoder_config"])
    # `Sam2Model` never reads the backbone's image size; files of other sizes often keep the default there.
    parsed["backbone"]["image_size"] = [prompt.image_size, prompt.image_size]
    config = Sam2Config(
        vision_config=Sam2VisionConfig(
            backbone_config=Sam2HieraDetConfig(**parsed["backbone"]), **parsed["vision"]
        ),
        prompt_encoder_config=prompt,
        mask_decoder_config=Sam2MaskDecoderConfig(**parsed["mask_decoder_config"]),
    )
    _check_sizes(config, where)
    _check_widths(config, where)
    return config


def sam2_fields(config: Sam2Config) -> dict[str, Any]:
    """Return every field of a configuration that affects a mask, as plain JSON types."""
    vision = config.vision_config
    backbone = plain(vision.backbone_config, _BACKBONE_FIELDS)
    depth = sum(backbone["blocks_per_stage"])
    backbone["global_attention_blocks"] = used_indexes(backbone["global_attention_blocks"], depth)
    return {
        "model_type": Sam2Config.model_type,
        "vision_config": {**plain(vision, _VISION_FIELDS), "backbone_config": backbone},
        "prompt_encoder_config": plain(config.prompt_encoder_config, PROMPT_FIELDS),
        "mask_decoder_config": plain(config.mask_decoder_config, DECODER_FIELDS),
    }


def check_sam2_config(config: Sam2Config, source: str) -> None:
    """Check a `Sam2Config` that transformers parsed against the rules of `parse_sam2_config`.

    Raises:
        CheckpointError: As for `parse_sam2_config`, or the configuration differs between layers.
    """
    vision = config.vision_config
    parts = (config, vision, vision.backbone_config, config.prompt_encoder_config, config.mask_decoder_config)
    check_homogeneous(parts, source)
    parse_sam2_config(sam2_fields(config), source)


def count_parameters(config: Sam2Config) -> int:
    """Return the approximate number of parameters of a model, without building it; biases are not counted."""
    vision, decoder = config.vision_config, config.mask_decoder_config
    backbone = vision.backbone_config
    encoder, before = 0, backbone.hidden_size
    for blocks, width in zip(backbone.blocks_per_stage, backbone.embed_dim_per_stage, strict=True):
        encoder += blocks * int((4 + 2 * backbone.mlp_ratio) * width**2) + 4 * before * width
        before = width
    neck = sum(backbone.embed_dim_per_stage) * vision.fpn_hidden_size
    return int(encoder + neck + decoder_parameters(decoder))


def decoder_parameters(decoder: Any) -> int:
    """Return the approximate number of parameters of a mask decoder, given its section of the configuration."""
    mid, tokens = decoder.hidden_size, decoder.num_multimask_outputs + 2
    two_way = 2 * (8 * mid**2 + 2 * mid * decoder.mlp_dim) + 4 * mid**2
    heads = tokens * 3 * mid**2 + decoder.iou_head_depth * decoder.iou_head_hidden_dim**2
    return int(two_way + heads)


def plain(part: Any, fields: Mapping[str, Field]) -> dict[str, Any]:
    """Return the values of a section's fields in canonical form."""
    values = {}
    for name, field in fields.items():
        if name not in _TRAINING:
            value = getattr(part, name)
            value = lists(value)
            values[name] = field.convert(value) if field.accepts(value) else value
    return values


def lists(value: Any) -> Any:
    """Return a value with lists in place of tuples."""
    return [lists(entry) for entry in value] if isinstance(value, list | tuple) else value


def _check_sizes(config: Sam2Config, where: str) -> None:
    vision, size = config.vision_config, config.prompt_encoder_config.image_size
    backbone = vision.backbone_config
    if size % LEAST_SIDE:
        raise CheckpointError(
            f"{where}prompt_encoder_config.image_size: expected a multiple of {LEAST_SIDE}, got {size}"
        )
    if size // STRIDE > STRIDE * MAX_GRID:
        raise CheckpointError(
            f"{where}prompt_encoder_config.image_size: expected at most {STRIDE * STRIDE * MAX_GRID}, got {size}"
        )
    sides = [size // (STRIDE << level) for level in range(STAGES - 1)]
    if lists(vision.backbone_feature_sizes) != [[side, side] for side in sides]:
        raise CheckpointError(
            f"{where}vision_config.backbone_feature_sizes: expected {[[side, side] for side in sides]} for an "
            f"image_size of {size}, got {shorten(vision.backbone_feature_sizes)}"
        )
    windows = backbone.window_size_per_stage
    if sides[0] % windows[0]:
        raise CheckpointError(
            f"{where}prompt_encoder_config.image_size: expected a multiple of {STRIDE * windows[0]}, the pixels of the "
            f"first stage's windows, got {size}"
        )
    if any(window % 2 for window in windows[:-1]):
        raise CheckpointError(
            f"{where}vision_config.backbone_config.window_size_per_stage: expected even windows before queries are "
            f"pooled, got {windows}"
        )
    starts = [sum(backbone.blocks_per_stage[:stage]) for stage in range(1, STAGES)]
    pooled = sorted(set(backbone.global_attention_blocks) & set(starts))
    if pooled:
        raise CheckpointError(
            f"{where}vision_config.backbone_config.global_attention_blocks: expected windows in the first block of a "
            f"stage, whose queries are pooled, got {pooled}"
        )
    if sum(backbone.blocks_per_stage) > MAX_LAYERS:
        raise CheckpointError(
            f"{where}vision_config.backbone_config.blocks_per_stage: expected at most {MAX_LAYERS} blocks, "
            f"got {sum(backbone.blocks_per_stage)}"
        )


def _check_widths(config: Sam2Config, where: str) -> None:
    vision, prompt, decoder = config.vision_config, config.prompt_encoder_config, config.mask_decoder_config
    backbone = vision.backbone_config
    widths = lists(backbone.embed_dim_per_stage)
    name = "vision_config.backbone_config."
    check_equal(
        where, f"{name}hidden_size", backbone.hidden_size, "the first of embed_dim_per_stage", widths[0]
    )
    if lists(vision.backbone_channel_list) != widths[::-1]:
        raise CheckpointError(
            f"{where}vision_config.backbone_channel_list: expected {widths[::-1]}, embed_dim_per_stage from the "
            f"coarsest stage on, got {shorten(vision.backbone_channel_list)}"
        )
    for heads, width in zip(backbone.num_attention_heads_per_stage, widths, strict=True):
        check_heads(where, name.rstrip("."), heads, width)
    mid = ("mask_decoder_config.hidden_size", decoder.hidden_size)
    check_equal(where, "vision_config.fpn_hidden_size", vision.fpn_hidden_size, *mid)
    check_equal(where, "prompt_encoder_config.hidden_size", prompt.hidden_size, *mid)
    for rate in (1, decoder.attention_downsample_rate):
        check_heads(where, "mask_decoder_config", decoder.num_attention_heads, decoder.hidden_size // rate)
    check_parameters(where, count_parameters(config))
