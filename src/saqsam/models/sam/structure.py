"""Module names of SAM v1 in transformers: layers and attentions by part, and the encoder's stages."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import SamConfig, SamMaskDecoderConfig

from saqsam.models.parts import UPSCALING_HIDDEN, UPSCALING_OUTPUT
from saqsam.models.structure import (
    AttentionSite,
    ModelStructure,
    NormalizedLayer,
    ReluMlp,
    Site,
    ranges_ending_at,
)
from saqsam.models.two_way import SAM_NAMES, residual_readers, two_way_attentions, two_way_layers

TRANSFORMER = "mask_decoder.transformer"
NECK = "vision_encoder.neck"


def sam_structure(config: SamConfig) -> ModelStructure:
    """Return the structure of the models of a configuration."""
    vision, decoder = config.vision_config, config.mask_decoder_config
    blocks = tuple(f"vision_encoder.layers.{index}" for index in range(vision.num_hidden_layers))
    decoder_layers = tuple(f"{TRANSFORMER}.layers.{index}" for index in range(decoder.num_hidden_layers))
    encoder_attentions = [_encoder_attention(f"{block}.attn") for block in blocks]
    decoder_attentions = two_way_attentions(TRANSFORMER, decoder_layers, SAM_NAMES)
    layers = (*_encoder_layers(blocks), *two_way_layers(decoder_attentions, SAM_NAMES))
    return ModelStructure(
        layers=layers,
        float_layers=(
            Site("vision_encoder.patch_embed.projection", "patch_embedding"),
            *decoder_float_layers(decoder),
        ),
        attentions=(*encoder_attentions, *decoder_attentions),
        residual_readers=residual_readers(layers, SAM_NAMES),
        blocks=blocks,
        stages=ranges_ending_at(vision.global_attn_indexes, len(blocks)),
        skip_targets=(len(blocks),) * len(blocks),
        neck=NECK,
        decoder=TRANSFORMER,
        decoder_layers=decoder_layers,
        final_attention=decoder_attentions[-1].name,
        position_embedding="vision_encoder.pos_embed",
        normalized_layers=tuple(_normalized_layers(config, blocks)),
        relu_mlps=tuple(ReluMlp(f"{layer}.mlp.lin1", f"{layer}.mlp.lin2") for layer in decoder_layers),
        tied={
            "prompt_encoder.shared_embedding.positional_embedding": "shared_image_embedding.positional_embedding"
        },
    )


def _encoder_attention(name: str) -> AttentionSite:
    qkv = f"{name}.qkv"
    return AttentionSite(name, "encoder.attention", query=qkv, key=qkv, value=qkv, output=f"{name}.proj")


def _encoder_layers(blocks: tuple[str, ...]) -> Iterator[Site]:
    for block in blocks:
        yield Site(f"{block}.attn.qkv", "encoder.qkv")
        yield Site(f"{block}.attn.proj", "encoder.proj")
        yield Site(f"{block}.mlp.lin1", "encoder.lin1")
        yield Site(f"{block}.mlp.lin2", "encoder.lin2")
    yield Site(f"{NECK}.conv1", "neck")
    yield Site(f"{NECK}.conv2", "neck")


def decoder_float_layers(decoder: SamMaskDecoderConfig) -> Iterator[Site]:
    """Yield the layers of a mask decoder that the papers keep in floating point."""
    yield Site("mask_decoder.upscale_conv1", UPSCALING_HIDDEN)
    yield Site("mask_decoder.upscale_conv2", UPSCALING_OUTPUT)
    for i in range(decoder.num_multimask_outputs + 1):
        for layer in ("proj_in", "layers.0", "proj_out"):
            yield Site(f"mask_decoder.output_hypernetworks_mlps.{i}.{layer}", "hypernetworks")
    hidden = [f"layers.{i}" for i in range(decoder.iou_head_depth - 2)]
    for layer in ("proj_in", *hidden, "proj_out"):
        yield Site(f"mask_decoder.iou_prediction_head.{layer}", "iou_head")


def _normalized_layers(config: SamConfig, blocks: tuple[str, ...]) -> Iterator[NormalizedLayer]:
    vision = config.vision_config
    grid = vision.image_size // vision.patch_size
    for index, block in enumerate(blocks):
        # Windows that do not divide the grid are padded with zeros after the normalization, which rules out offsets.
        window = 0 if index in vision.global_attn_indexes else vision.window_size
        is_padded = bool(window) and grid % window != 0
        yield NormalizedLayer(f"{block}.layer_norm1", (f"{block}.attn.qkv",), shifts=not is_padded)
        yield NormalizedLayer(f"{block}.layer_norm2", (f"{block}.mlp.lin1",))
    yield NormalizedLayer(f"{NECK}.layer_norm1", (f"{NECK}.conv2",), shifts=False)
