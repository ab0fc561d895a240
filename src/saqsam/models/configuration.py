"""Validate an untrusted `config.json` and turn it into a `SamConfig`.

Only known fields are passed on to transformers, each with a checked type and range, so that no other key of a file can
change a mask. All limits lie far above SAM-H (32 layers of width 1280, 64 x 64 patches).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

from saqsam.models.fields import Field, boolean, choice, integer, number, take_fields, take_object
from saqsam.models.other_families import name_of_model_type, refusal
from saqsam.utils.errors import CheckpointError, shorten

MAX_LAYERS = 256
MAX_WIDTH = 16384
MAX_HEADS = 256
MAX_IMAGE_SIZE = 8192
"""Largest image size, in pixels per side."""
MAX_GRID = 256
"""Largest number of patches per side of the image."""
MAX_SPARE_WINDOW = 64
"""Side of the largest attention window that may exceed the grid; a larger one would be mostly padding."""
MAX_MASKS = 63
"""Largest number of masks that the decoder predicts in addition to the single one."""
MAX_PARAMETERS = 10**10

CHANNELS = 3
"""Images are RGB."""

ACTIVATIONS = (
    *(
        "gelu",
        "gelu_python",
        "gelu_accurate",
        "gelu_fast",
        "gelu_new",
        "gelu_python_tanh",
        "gelu_pytorch_tanh",
    ),
    *("quick_gelu", "relu", "silu", "swish"),
)
"""Names of transformers' activations that can be quantized and exported: stateless, of one input."""

_DTYPES = ("float16", "bfloat16", "float32", "float64")
_GLOBAL_INDEXES = Field(
    f"a list of layer indexes from 0 to {MAX_LAYERS - 1}",
    lambda value: (
        isinstance(value, list)
        and len(value) <= MAX_LAYERS
        and all(type(index) is int and 0 <= index < MAX_LAYERS for index in value)
    ),
)
_EPS = number(1e-12, 0.1)
_WIDTH = integer(1, MAX_WIDTH)
_IMAGE_SIZE = integer(1, MAX_IMAGE_SIZE)

_VISION_FIELDS: Mapping[str, Field] = {
    "hidden_size": _WIDTH,
    "output_channels": _WIDTH,
    "num_hidden_layers": integer(1, MAX_LAYERS),
    "num_attention_heads": integer(1, MAX_HEADS),
    "num_channels": Field(f"{CHANNELS}, for RGB images", lambda v: type(v) is int and v == CHANNELS),
    "image_size": _IMAGE_SIZE,
    "patch_size": _IMAGE_SIZE,
    "hidden_act": choice(ACTIVATIONS),
    "layer_norm_eps": _EPS,
    "attention_dropout": number(0, 1),
    "initializer_range": number(0, 100),
    "qkv_bias": boolean(),
    "mlp_ratio": number(1e-3, 1e3),
    "mlp_dim": _WIDTH,
    "use_abs_pos": boolean(),
    "use_rel_pos": boolean(),
    "window_size": integer(0, MAX_GRID),
    "global_attn_indexes": _GLOBAL_INDEXES,
    "num_pos_feats": _WIDTH,
}
_PROMPT_FIELDS: Mapping[str, Field] = {
    "hidden_size": _WIDTH,
    "image_size": _IMAGE_SIZE,
    "patch_size": _IMAGE_SIZE,
    "mask_input_channels": Field(
        f"a multiple of 4 up to {MAX_WIDTH}", lambda v: type(v) is int and 0 < v <= MAX_WIDTH and v % 4 == 0
    ),
    # Boxes and points use four; a model may hold further ones.
    "num_point_embeddings": integer(4, 64),
    "hidden_act": choice(ACTIVATIONS),
    "layer_norm_eps": _EPS,
}
_DECODER_FIELDS: Mapping[str, Field] = {
    "hidden_size": integer(8, MAX_WIDTH),
    "hidden_act": choice(ACTIVATIONS),
    "mlp_dim": _WIDTH,
    "num_hidden_layers": integer(1, MAX_LAYERS),
    "num_attention_heads": integer(1, MAX_HEADS),
    "attention_downsample_rate": integer(1, 64),
    "num_multimask_outputs": integer(1, MAX_MASKS),
    "iou_head_depth": integer(2, 16),
    "iou_head_hidden_dim": _WIDTH,
    "layer_norm_eps": _EPS,
}
# Checked but not passed on: they describe how a file was written, or would build another model.
_GENERIC_FIELDS: Mapping[str, Field] = {
    "dtype": choice(_DTYPES),
    "torch_dtype": choice(_DTYPES),
    "per_layer_config": Field("none", lambda v: False),
}

_TYING = {
    "tie_word_embeddings": Field("true: SAM encodes all positions with one matrix", lambda v: v is True)
}


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
    other = name_of_model_type(raw.get("model_type"))
    if other is not None:
        raise CheckpointError(f"{source}: {refusal(other)}")
    if raw.get("model_type") != SamConfig.model_type:
        raise CheckpointError(f"{source}: expected model_type 'sam', got {shorten(raw.get('model_type'))}")
    take_fields(raw, {**_GENERIC_FIELDS, **_TYING}, f"{source}: ")
    parts = {}
    for name, fields, part in (
        ("vision_config", _VISION_FIELDS, SamVisionConfig),
        ("prompt_encoder_config", _PROMPT_FIELDS, SamPromptEncoderConfig),
        ("mask_decoder_config", _DECODER_FIELDS, SamMaskDecoderConfig),
    ):
        section = take_object(raw, name, f"{source}: ")
        where = f"{source}: {name}."
        take_fields(section, _GENERIC_FIELDS, where)
        parts[name] = part(**take_fields(section, fields, where))
    config = SamConfig(**parts)
    _check_grid(config, raw, f"{source}: ")
    _check_widths(config, f"{source}: ")
    return config


def config_fields(config: SamConfig) -> dict[str, Any]:
    """Return every field of a configuration that affects a mask, as plain JSON types.

    The list of fields is fixed, so that the result does not depend on the version of transformers. Two configurations
    that build the same model return the same fields: `mlp_dim` is resolved and the indexes of global blocks are sorted.
    """
    vision, prompt, decoder = config.vision_config, config.prompt_encoder_config, config.mask_decoder_config
    training = {"attention_dropout", "initializer_range", "mlp_ratio"}  # the last is within mlp_dim
    vision_fields = {name: getattr(vision, name) for name in _VISION_FIELDS if name not in training}
    layers = vision.num_hidden_layers
    vision_fields["global_attn_indexes"] = sorted({i for i in vision.global_attn_indexes if i < layers})
    prompt_fields = {name: getattr(prompt, name) for name in _PROMPT_FIELDS}
    prompt_fields["image_embedding_size"] = prompt.image_embedding_size
    fields = {
        "model_type": SamConfig.model_type,
        "vision_config": vision_fields,
        "prompt_encoder_config": prompt_fields,
        "mask_decoder_config": {name: getattr(decoder, name) for name in _DECODER_FIELDS},
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
    if any(getattr(part, "is_heterogeneous", False) for part in parts):
        raise CheckpointError(f"{source}: per_layer_config: expected none")
    if not config.tie_word_embeddings:
        raise CheckpointError(f"{source}: tie_word_embeddings: expected true, got false")
    parse_sam_config(config_fields(config), source)


def count_parameters(config: SamConfig) -> int:
    """Return the approximate number of parameters of a model, without building it; biases are not counted."""
    vision, prompt, decoder = config.vision_config, config.prompt_encoder_config, config.mask_decoder_config
    width, neck, grid = vision.hidden_size, vision.output_channels, vision.image_size // vision.patch_size
    side = max(grid, vision.window_size)
    block = 4 * width**2 + 2 * width * vision.mlp_dim + 4 * side * width
    encoder = (
        vision.num_hidden_layers * block + (grid**2 + vision.num_channels * vision.patch_size**2) * width
    )
    mid, tokens, iou_width = (
        decoder.hidden_size,
        decoder.num_multimask_outputs + 1,
        decoder.iou_head_hidden_dim,
    )
    two_way = decoder.num_hidden_layers * (8 * mid**2 + 2 * mid * decoder.mlp_dim) + 4 * mid**2
    heads = tokens * 2 * mid**2 + mid * iou_width + decoder.iou_head_depth * iou_width**2
    masks = prompt.mask_input_channels * (prompt.mask_input_channels + prompt.hidden_size)
    return int(encoder + neck * width + 9 * neck**2 + two_way + heads + masks)


def max_weight_bytes(config: SamConfig) -> int:
    """Return the largest accepted size of a model's weights on disk: eight times their size in float32.

    The margin leaves room for other contents of a training checkpoint, such as optimizer states.
    """
    return 8 * 4 * count_parameters(config) + 2**20


def _check_grid(config: SamConfig, raw: Mapping[str, Any], where: str) -> None:
    vision, prompt = config.vision_config, config.prompt_encoder_config
    for name in ("image_size", "patch_size"):
        _check_equal(
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
    stated = (raw.get("prompt_encoder_config") or {}).get("image_embedding_size")
    if stated is not None and (type(stated) is not int or stated != grid):
        raise CheckpointError(
            f"{where}prompt_encoder_config.image_embedding_size: expected {grid}, the image_size of "
            f"{vision.image_size} divided by the patch_size of {vision.patch_size}, got {shorten(stated)}"
        )
    largest = max(grid, MAX_SPARE_WINDOW)
    if vision.window_size > largest:
        raise CheckpointError(
            f"{where}vision_config.window_size: expected at most {largest} for a grid of {grid} patches per side, "
            f"got {vision.window_size}"
        )


def _check_widths(config: SamConfig, where: str) -> None:
    vision, prompt, decoder = config.vision_config, config.prompt_encoder_config, config.mask_decoder_config
    prompt_width = ("prompt_encoder_config.hidden_size", prompt.hidden_size)
    _check_equal(where, "vision_config.output_channels", vision.output_channels, *prompt_width)
    _check_equal(where, "mask_decoder_config.hidden_size", decoder.hidden_size, *prompt_width)
    if 2 * vision.num_pos_feats != prompt.hidden_size:
        raise CheckpointError(
            f"{where}vision_config.num_pos_feats: expected half of the prompt encoder's hidden_size of "
            f"{prompt.hidden_size}, got {vision.num_pos_feats}"
        )
    _check_heads(where, "vision_config", vision.num_attention_heads, vision.hidden_size)
    # transformers halves the width of each layer's cross attentions, whatever the rate, which the last one follows.
    for rate in (1, 2, decoder.attention_downsample_rate):
        _check_heads(where, "mask_decoder_config", decoder.num_attention_heads, decoder.hidden_size // rate)
    if not 1 <= vision.mlp_dim <= MAX_WIDTH:
        raise CheckpointError(
            f"{where}vision_config.mlp_ratio: expected a hidden layer of 1 to {MAX_WIDTH} channels, "
            f"got {vision.mlp_dim}"
        )
    parameters = count_parameters(config)
    if parameters > MAX_PARAMETERS:
        raise CheckpointError(
            f"{where}expected a model of at most {MAX_PARAMETERS:,} parameters, got about {parameters:,}"
        )


def _check_equal(where: str, name: str, value: int, other_name: str, other: int) -> None:
    if value != other:
        raise CheckpointError(f"{where}{name} is {value} but {other_name} is {other}: make both equal")


def _check_heads(where: str, part: str, heads: int, width: int) -> None:
    if width < heads or width % heads:
        raise CheckpointError(
            f"{where}{part}.num_attention_heads: expected a divisor of the attention's width of {width}, got {heads}"
        )
