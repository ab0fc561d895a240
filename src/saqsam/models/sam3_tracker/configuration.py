"""Validate an untrusted `config.json` of SAM 3's tracker and turn it into a `Sam3TrackerConfig`.

Only known fields are passed on to transformers, each with a checked type and range. Configurations of the video models
(`sam3_tracker_video` and `sam3_video`) are read for the image part of their tracker. Sections that SAM 2 has too are
checked by its rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Sam3TrackerConfig
from transformers.models.sam3.configuration_sam3 import Sam3VisionConfig, Sam3ViTConfig
from transformers.models.sam3_tracker.configuration_sam3_tracker import (
    Sam3TrackerMaskDecoderConfig,
    Sam3TrackerPromptEncoderConfig,
)

from saqsam.models.fields import Field, choice, integer, number, take_fields, take_object, used_indexes
from saqsam.models.limits import (
    ACTIVATIONS,
    EPS,
    GENERIC_FIELDS,
    IMAGE_SIZE,
    LAYER_INDEXES,
    MAX_GRID,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_SPARE_WINDOW,
    RGB,
    WIDTH,
    check_equal,
    check_heads,
    check_homogeneous,
    check_parameters,
    list_of,
)
from saqsam.models.sam2.configuration import (
    DECODER_FIELDS,
    PROMPT_FIELDS,
    decoder_parameters,
    lists,
    plain,
    square,
)
from saqsam.models.sam3_tracker.structure import LEVELS
from saqsam.utils.errors import CheckpointError, shorten

_BACKBONE_FIELDS: Mapping[str, Field] = {
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": integer(1, MAX_LAYERS),
    "num_attention_heads": integer(1, MAX_HEADS),
    "num_channels": RGB,
    "image_size": square(IMAGE_SIZE),
    "patch_size": square(integer(1, 256)),
    "hidden_act": choice(ACTIVATIONS),
    "layer_norm_eps": EPS,
    "window_size": integer(1, MAX_GRID),
    "global_attn_indexes": LAYER_INDEXES,
    "pretrain_image_size": square(IMAGE_SIZE),
}
_ROPE_FIELDS: Mapping[str, Field] = {
    "rope_theta": number(1, 1e9),
    "rope_type": choice(("axial",)),
}
_LEVEL_FIELDS: Mapping[str, Field] = {
    # The last level of published configurations is not read, see `neck`.
    "scale_factors": Field(
        f"{list(LEVELS)}, or the same and 0.5", lambda v: v in (list(LEVELS), [*LEVELS, 0.5])
    ),
}
_VISION_FIELDS: Mapping[str, Field] = {
    "fpn_hidden_size": WIDTH,
    "backbone_feature_sizes": list_of(list_of(IMAGE_SIZE, 2), len(LEVELS)),
}
_PROMPT_FIELDS: Mapping[str, Field] = {**PROMPT_FIELDS, "patch_size": _BACKBONE_FIELDS["patch_size"]}


def parse_sam3_tracker_config(raw: Mapping[str, Any], source: str) -> Sam3TrackerConfig:
    """Return the `Sam3TrackerConfig` that a `config.json` describes.

    Absent fields and fields that are null get transformers' defaults, those of SAM 3. Unknown fields are ignored.

    Args:
        raw: The parsed JSON.
        source: The file's name in error messages.

    Raises:
        CheckpointError: A field has the wrong type or lies outside its limits, or two fields contradict each other.
    """
    where = f"{source}: "
    vision_where, vision = f"{where}vision_config.", take_object(raw, "vision_config", where)
    if raw.get("model_type") == "sam3_video":  # its tracker reads the encoder of its detector
        detector = take_object(raw, "detector_config", where)
        vision_where = f"{where}detector_config.vision_config."
        vision = take_object(detector, "vision_config", f"{where}detector_config.")
        raw, where = take_object(raw, "tracker_config", where), f"{where}tracker_config."
    backbone = take_object(vision, "backbone_config", vision_where)
    backbone_where = f"{vision_where}backbone_config."
    for section, name in ((raw, where), (vision, vision_where), (backbone, backbone_where)):
        take_fields(section, GENERIC_FIELDS, name)
    # Earlier versions of transformers have the base of the rotations beside the other fields.
    rope = take_fields(backbone, {"rope_theta": _ROPE_FIELDS["rope_theta"]}, backbone_where)
    rope |= take_fields(
        take_object(backbone, "rope_parameters", backbone_where),
        _ROPE_FIELDS,
        f"{backbone_where}rope_parameters.",
    )
    parsed = {
        "backbone": take_fields(backbone, _BACKBONE_FIELDS, backbone_where),
        "vision": take_fields(vision, _VISION_FIELDS, vision_where),
    }
    take_fields(vision, _LEVEL_FIELDS, vision_where)
    for name, fields in (("prompt_encoder_config", _PROMPT_FIELDS), ("mask_decoder_config", DECODER_FIELDS)):
        section = take_object(raw, name, where)
        take_fields(section, GENERIC_FIELDS, f"{where}{name}.")
        parsed[name] = take_fields(section, fields, f"{where}{name}.")
    rope = {"rope_theta": 10000.0, "rope_type": "axial", **rope}
    config = Sam3TrackerConfig(
        vision_config=Sam3VisionConfig(
            backbone_config=Sam3ViTConfig(**parsed["backbone"], rope_parameters=rope),
            **parsed["vision"],
            scale_factors=list(LEVELS),
        ),
        prompt_encoder_config=Sam3TrackerPromptEncoderConfig(**parsed["prompt_encoder_config"]),
        mask_decoder_config=Sam3TrackerMaskDecoderConfig(**parsed["mask_decoder_config"]),
    )
    _check_sizes(config, where, vision_where)
    _check_widths(config, where, vision_where)
    return config


def sam3_tracker_fields(config: Sam3TrackerConfig) -> dict[str, Any]:
    """Return every field of a configuration that affects a mask, as plain JSON types."""
    vision = config.vision_config
    backbone = plain(vision.backbone_config, _BACKBONE_FIELDS)
    layers = backbone["num_hidden_layers"]
    backbone["global_attn_indexes"] = used_indexes(backbone["global_attn_indexes"], layers)
    rope = vision.backbone_config.rope_parameters
    backbone["rope_parameters"] = {name: rope.get(name) for name in _ROPE_FIELDS}
    return {
        "model_type": Sam3TrackerConfig.model_type,
        "vision_config": {**plain(vision, _VISION_FIELDS), "backbone_config": backbone},
        "prompt_encoder_config": plain(config.prompt_encoder_config, _PROMPT_FIELDS),
        "mask_decoder_config": plain(config.mask_decoder_config, DECODER_FIELDS),
    }


def check_sam3_tracker_config(config: Sam3TrackerConfig, source: str) -> None:
    """Check a `Sam3TrackerConfig` that transformers parsed against the rules of `parse_sam3_tracker_config`.

    Raises:
        CheckpointError: As for `parse_sam3_tracker_config`, or the configuration differs between layers.
    """
    if config.model_type != Sam3TrackerConfig.model_type:
        raise CheckpointError(
            f"{source}: expected the configuration of a Sam3TrackerModel, got model_type {config.model_type!r}: load "
            "the tracker with saqsam.load"
        )
    vision = config.vision_config
    parts = (config, vision, vision.backbone_config, config.prompt_encoder_config, config.mask_decoder_config)
    check_homogeneous(parts, source)
    take_fields(plain(vision, _LEVEL_FIELDS), _LEVEL_FIELDS, f"{source}: vision_config.")
    parse_sam3_tracker_config(sam3_tracker_fields(config), source)


def count_parameters(config: Sam3TrackerConfig) -> int:
    """Return the approximate number of parameters of a model, without building it; biases are not counted."""
    vision = config.vision_config
    backbone = vision.backbone_config
    width, mid = backbone.hidden_size, vision.fpn_hidden_size
    block = 4 * width**2 + 2 * width * backbone.intermediate_size
    pretrained = (backbone.pretrain_image_size // backbone.patch_size) ** 2
    embeddings = (backbone.num_channels * backbone.patch_size**2 + pretrained) * width
    neck = int(4.5 * width**2) + 2 * width * mid + 3 * 9 * mid**2
    encoder = backbone.num_hidden_layers * block + embeddings + neck
    return int(encoder + decoder_parameters(config.mask_decoder_config))


def _check_sizes(config: Sam3TrackerConfig, where: str, vision_where: str) -> None:
    vision, prompt = config.vision_config, config.prompt_encoder_config
    backbone, name = vision.backbone_config, f"{vision_where}backbone_config."
    for field in ("image_size", "patch_size"):
        other = ("prompt_encoder_config's", getattr(prompt, field))
        check_equal(name, field, getattr(backbone, field), *other)
    size, patch = backbone.image_size, backbone.patch_size
    if size % patch or size // patch > MAX_GRID:
        raise CheckpointError(
            f"{name}image_size: expected a multiple of the patch size of {patch}, at most {patch * MAX_GRID}, "
            f"got {size}"
        )
    grid = size // patch
    sides = [[int(factor * grid)] * 2 for factor in LEVELS]
    if lists(vision.backbone_feature_sizes) != sides:
        raise CheckpointError(
            f"{vision_where}backbone_feature_sizes: expected {sides} for an image_size of {size}, got "
            f"{shorten(vision.backbone_feature_sizes)}"
        )
    if backbone.window_size > max(grid, MAX_SPARE_WINDOW):
        raise CheckpointError(
            f"{name}window_size: expected at most {max(grid, MAX_SPARE_WINDOW)} for {grid} patches per side, got "
            f"{backbone.window_size}"
        )
    if not patch <= backbone.pretrain_image_size <= patch * MAX_GRID:
        raise CheckpointError(
            f"{name}pretrain_image_size: expected from {patch} to {patch * MAX_GRID} for this patch size, got "
            f"{backbone.pretrain_image_size}"
        )


def _check_widths(config: Sam3TrackerConfig, where: str, vision_where: str) -> None:
    vision, prompt, decoder = config.vision_config, config.prompt_encoder_config, config.mask_decoder_config
    backbone = vision.backbone_config
    check_heads(vision_where, "backbone_config", backbone.num_attention_heads, backbone.hidden_size)
    if backbone.hidden_size // backbone.num_attention_heads % 4:
        raise CheckpointError(
            f"{vision_where}backbone_config.num_attention_heads: expected heads of a multiple of 4 channels, which "
            f"rotary positions need, got {backbone.hidden_size // backbone.num_attention_heads}"
        )
    mid = ("mask_decoder_config.hidden_size", decoder.hidden_size)
    check_equal(vision_where, "fpn_hidden_size", vision.fpn_hidden_size, *mid)
    check_equal(where, "prompt_encoder_config.hidden_size", prompt.hidden_size, *mid)
    for rate in (1, decoder.attention_downsample_rate):
        check_heads(where, "mask_decoder_config", decoder.num_attention_heads, decoder.hidden_size // rate)
    check_parameters(where, count_parameters(config))
