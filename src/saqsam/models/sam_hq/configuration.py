"""Validate an untrusted `config.json` and turn it into a `SamHQConfig`: a `SamConfig` and the width of the tap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import (
    SamConfig,
    SamHQConfig,
    SamHQMaskDecoderConfig,
    SamHQPromptEncoderConfig,
    SamHQVisionConfig,
)

from saqsam.models.fields import take_fields, take_object
from saqsam.models.limits import WIDTH, check_equal, check_homogeneous
from saqsam.models.sam.configuration import count_parameters as count_sam_parameters
from saqsam.models.sam.configuration import parse_sam_config, sam_fields
from saqsam.models.sam_hq.structure import tap_block
from saqsam.utils.errors import CheckpointError

_TRAINING = ("attention_dropout", "initializer_range", "mlp_ratio")
"""Fields of the vision encoder that affect no mask."""


def parse_sam_hq_config(raw: Mapping[str, Any], source: str) -> SamHQConfig:
    """Return the `SamHQConfig` that a `config.json` describes.

    Absent fields and fields that are null get transformers' defaults. Unknown fields are ignored.

    Args:
        raw: The parsed JSON.
        source: The file's name in error messages.

    Raises:
        CheckpointError: As for `parse_sam_config`; or the tap's width is not the encoder's, or no block has global
            attention.
    """
    base = parse_sam_config(raw, source)
    decoder = take_object(raw, "mask_decoder_config", f"{source}: ")
    own = take_fields(decoder, {"vit_dim": WIDTH}, f"{source}: mask_decoder_config.")
    config = _with_sam_fields(base, own)
    where = f"{source}: "
    width = ("vision_config.hidden_size", config.vision_config.hidden_size)
    check_equal(where, "mask_decoder_config.vit_dim", config.mask_decoder_config.vit_dim, *width)
    if tap_block(config) is None:
        raise CheckpointError(
            f"{where}vision_config.global_attn_indexes: expected at least one block with global attention, whose "
            "output the masks of SAM-HQ read"
        )
    return config


def _with_sam_fields(base: SamConfig, own: Mapping[str, Any]) -> SamHQConfig:
    fields = sam_fields(base)
    vision, prompt, decoder = (
        fields[f"{name}_config"] for name in ("vision", "prompt_encoder", "mask_decoder")
    )
    vision.update((name, getattr(base.vision_config, name)) for name in _TRAINING)
    del prompt["image_embedding_size"]  # follows from the others
    return SamHQConfig(
        vision_config=SamHQVisionConfig(**vision),
        prompt_encoder_config=SamHQPromptEncoderConfig(**prompt),
        mask_decoder_config=SamHQMaskDecoderConfig(**decoder, **own),
    )


def sam_hq_fields(config: SamHQConfig) -> dict[str, Any]:
    """Return every field of a configuration that affects a mask, as plain JSON types; see `sam_fields`."""
    fields = sam_fields(config)
    decoder = {**fields["mask_decoder_config"], "vit_dim": config.mask_decoder_config.vit_dim}
    return {**fields, "model_type": SamHQConfig.model_type, "mask_decoder_config": decoder}


def check_sam_hq_config(config: SamHQConfig, source: str) -> None:
    """Check a `SamHQConfig` that transformers parsed against the rules of `parse_sam_hq_config`.

    Raises:
        CheckpointError: As for `parse_sam_hq_config`, or the configuration differs between layers.
    """
    parts = (config, config.vision_config, config.prompt_encoder_config, config.mask_decoder_config)
    check_homogeneous(parts, source)
    if not config.tie_word_embeddings:
        raise CheckpointError(f"{source}: tie_word_embeddings: expected true, got false")
    parse_sam_hq_config(sam_hq_fields(config), source)


def count_parameters(config: SamHQConfig) -> int:
    """Return the approximate number of parameters of a model, without building it; biases are not counted."""
    decoder = config.mask_decoder_config
    width = decoder.hidden_size
    compress = 4 * decoder.vit_dim * width + width**2 // 2
    return count_sam_parameters(config) + int(compress + 4 * width**2)
