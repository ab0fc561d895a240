"""Validate an untrusted `config.json` of MobileSAM and turn it into a `MobileSamConfig`.

Only known fields are passed on, each with a checked type and range. The number of stages is that of the published
model; `models.limits` has the limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import SamMaskDecoderConfig, SamPromptEncoderConfig

from saqsam.models.fields import Field, choice, integer, number, take_fields, take_object
from saqsam.models.limits import (
    ACTIVATIONS,
    EPS,
    GENERIC_FIELDS,
    IMAGE_SIZE,
    MAX_GRID,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_SPARE_WINDOW,
    MAX_WIDTH,
    RGB,
    WIDTH,
    check_heads,
    check_homogeneous,
    check_parameters,
    list_of,
)
from saqsam.models.mobile_sam.configuration import (
    PATCH_EMBEDDING_STRIDE,
    MobileSamConfig,
    MobileSamVisionConfig,
    check_sizes,
)
from saqsam.models.sam.configuration import (
    DECODER_FIELDS,
    PROMPT_FIELDS,
    TYING,
    check_embedding_size,
    count_decoder_parameters,
)
from saqsam.utils.errors import CheckpointError

STAGES = 4

_VISION_FIELDS: Mapping[str, Field] = {
    "hidden_sizes": list_of(WIDTH, STAGES),
    "depths": list_of(integer(1, MAX_LAYERS), STAGES),
    "num_attention_heads": list_of(integer(1, MAX_HEADS), STAGES),
    "window_sizes": list_of(integer(1, MAX_GRID), STAGES),
    "merge_strides": list_of(integer(1, 4), STAGES - 1),
    "expand_ratio": number(1e-3, 1e3),
    "mlp_ratio": number(1e-3, 1e3),
    "local_conv_size": integer(1, 31),
    "output_channels": WIDTH,
    "num_channels": RGB,
    "image_size": IMAGE_SIZE,
    "num_pos_feats": WIDTH,
    "hidden_act": choice(ACTIVATIONS),
    "layer_norm_eps": EPS,
    "initializer_range": number(0, 100),
}
_UNUSED_IN_STAGE_0 = ("num_attention_heads", "window_sizes")


def parse_mobile_sam_config(raw: Mapping[str, Any], source: str) -> MobileSamConfig:
    """Return the `MobileSamConfig` that a `config.json` describes.

    Absent fields and fields that are null get the defaults, those of the published model. Unknown fields are ignored.

    Args:
        raw: The parsed JSON.
        source: The file's name in error messages.

    Raises:
        CheckpointError: A field has the wrong type or lies outside its limits, or two fields contradict each other.
    """
    where = f"{source}: "
    take_fields(raw, {**GENERIC_FIELDS, **TYING}, where)
    parts = {}
    for name, fields, part in (
        ("vision_config", _VISION_FIELDS, MobileSamVisionConfig),
        ("prompt_encoder_config", PROMPT_FIELDS, SamPromptEncoderConfig),
        ("mask_decoder_config", DECODER_FIELDS, SamMaskDecoderConfig),
    ):
        section = take_object(raw, name, where)
        take_fields(section, GENERIC_FIELDS, f"{where}{name}.")
        parts[name] = part(**take_fields(section, fields, f"{where}{name}."))
    config = MobileSamConfig(**parts)
    try:
        check_sizes(config)
    except ValueError as error:
        raise CheckpointError(f"{where}{error}") from error
    _check_limits(config, raw, where)
    return config


def mobile_sam_fields(config: MobileSamConfig) -> dict[str, Any]:
    """Return every field of a configuration that affects a mask, as plain JSON types.

    Entries of stage 0 that nothing reads are 1, so that two configurations that build the same model have equal fields.
    """
    vision, prompt, decoder = config.vision_config, config.prompt_encoder_config, config.mask_decoder_config
    vision_fields = {
        name: _plain(getattr(vision, name)) for name in _VISION_FIELDS if name != "initializer_range"
    }
    for name in _UNUSED_IN_STAGE_0:
        vision_fields[name] = [1, *vision_fields[name][1:]]
    prompt_fields = {name: getattr(prompt, name) for name in PROMPT_FIELDS}
    prompt_fields["image_embedding_size"] = prompt.image_embedding_size
    decoder_fields = {name: getattr(decoder, name) for name in DECODER_FIELDS}
    for part in (vision_fields, prompt_fields, decoder_fields):
        part["layer_norm_eps"] = float(part["layer_norm_eps"])  # JSON may say 0 for 0.0
    return {
        "model_type": MobileSamConfig.model_type,
        "vision_config": vision_fields,
        "prompt_encoder_config": prompt_fields,
        "mask_decoder_config": decoder_fields,
    }


def check_mobile_sam_config(config: MobileSamConfig, source: str) -> None:
    """Check a `MobileSamConfig` that transformers parsed against the rules of `parse_mobile_sam_config`.

    Raises:
        CheckpointError: As for `parse_mobile_sam_config`, or the configuration differs between layers.
    """
    parts = (config, config.vision_config, config.prompt_encoder_config, config.mask_decoder_config)
    check_homogeneous(parts, source)
    if not config.tie_word_embeddings:
        raise CheckpointError(f"{source}: tie_word_embeddings: expected true, got false")
    parse_mobile_sam_config(mobile_sam_fields(config), source)


def count_parameters(config: MobileSamConfig) -> int:
    """Return the approximate number of parameters of a model, without building it; biases are not counted."""
    vision = config.vision_config
    stem = vision.hidden_sizes[0] // 2
    encoder: float = 9 * stem * (vision.num_channels + vision.hidden_sizes[0])
    for stage, (width, depth) in enumerate(zip(vision.hidden_sizes, vision.depths, strict=True)):
        if stage:
            before, kernel = vision.hidden_sizes[stage - 1], vision.local_conv_size**2
            biases = vision.num_attention_heads[stage] * vision.window_sizes[stage] ** 2
            encoder += width * (before + 9 + width)  # the patch merging before the stage
            encoder += depth * ((4 + 2 * vision.mlp_ratio) * width**2 + kernel * width + biases)
        else:
            hidden = round(width * vision.expand_ratio)
            encoder += depth * hidden * (2 * width + 9)
    neck = vision.output_channels * (vision.hidden_size + 9 * vision.output_channels)
    return int(encoder + neck) + count_decoder_parameters(config)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _check_limits(config: MobileSamConfig, raw: Mapping[str, Any], where: str) -> None:
    vision, decoder = config.vision_config, config.mask_decoder_config
    cells = vision.grids[0]
    if cells > PATCH_EMBEDDING_STRIDE * MAX_GRID:
        raise CheckpointError(
            f"{where}vision_config.image_size: expected at most {PATCH_EMBEDDING_STRIDE**2 * MAX_GRID}, "
            f"got {vision.image_size}"
        )
    check_embedding_size(raw, vision.image_size, vision.patch_size, where)
    if sum(vision.depths) > MAX_LAYERS:
        raise CheckpointError(
            f"{where}vision_config.depths: expected at most {MAX_LAYERS} blocks, got {sum(vision.depths)}"
        )
    for grid, window in zip(vision.grids[1:], vision.window_sizes[1:], strict=True):
        largest = max(grid, MAX_SPARE_WINDOW)
        if window > largest:
            raise CheckpointError(
                f"{where}vision_config.window_sizes: expected at most {largest} for a grid of {grid} positions per "
                f"side, got {window}"
            )
    hidden = [round(vision.hidden_sizes[0] * vision.expand_ratio)]
    hidden += [round(width * vision.mlp_ratio) for width in vision.hidden_sizes[1:]]
    for name, channels in zip(("expand_ratio", *["mlp_ratio"] * (STAGES - 1)), hidden, strict=True):
        if not 1 <= channels <= MAX_WIDTH:
            raise CheckpointError(
                f"{where}vision_config.{name}: expected a hidden layer of 1 to {MAX_WIDTH} channels, got {channels}"
            )
    # transformers halves the width of each layer's cross attentions, whatever the rate, which the last one follows.
    for rate in (1, 2, decoder.attention_downsample_rate):
        check_heads(where, "mask_decoder_config", decoder.num_attention_heads, decoder.hidden_size // rate)
    check_parameters(where, count_parameters(config))
