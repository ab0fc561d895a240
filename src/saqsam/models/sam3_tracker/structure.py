"""Module names of SAM 3's tracker in transformers: layers and attentions by part, and the encoder's stages."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import Sam3TrackerConfig

from saqsam.models.parts import UPSCALING_HIDDEN
from saqsam.models.sam2.structure import TRANSFORMER, head_layers
from saqsam.models.structure import (
    AttentionSite,
    ModelStructure,
    NormalizedLayer,
    ReluMlp,
    Site,
    ranges_ending_at,
)
from saqsam.models.two_way import SAM2_NAMES, residual_readers, two_way_attentions, two_way_layers

BACKBONE = "vision_encoder.backbone"
NECK = "vision_encoder.neck"
LEVELS = (4.0, 2.0, 1.0)
"""Resolutions of the neck's levels that the mask decoder reads, relative to the embedding's grid."""
_PATCHES = f"{BACKBONE}.embeddings.patch_embeddings.projection"


def sam3_tracker_structure(config: Sam3TrackerConfig) -> ModelStructure:
    """Return the structure of the models of a configuration."""
    backbone, decoder = config.vision_config.backbone_config, config.mask_decoder_config
    blocks = tuple(f"{BACKBONE}.layers.{index}" for index in range(backbone.num_hidden_layers))
    decoder_layers = tuple(f"{TRANSFORMER}.layers.{index}" for index in range(decoder.num_hidden_layers))
    decoder_attentions = two_way_attentions(TRANSFORMER, decoder_layers, SAM2_NAMES)
    layers = (
        *_encoder_layers(blocks),
        *two_way_layers(decoder_attentions, SAM2_NAMES),
    )
    return ModelStructure(
        layers=layers,
        float_layers=tuple(_float_layers(decoder.num_multimask_outputs + 1, decoder.iou_head_depth)),
        attentions=(*(_encoder_attention(f"{block}.attention") for block in blocks), *decoder_attentions),
        residual_readers=residual_readers(layers, SAM2_NAMES),
        blocks=blocks,
        stages=ranges_ending_at(backbone.global_attn_indexes, len(blocks)),
        skip_targets=(len(blocks),) * len(blocks),
        neck=NECK,
        decoder=TRANSFORMER,
        decoder_layers=decoder_layers,
        final_attention=decoder_attentions[-1].name,
        position_embedding=None,
        normalized_layers=tuple(_normalized_layers(config, blocks)),
        relu_mlps=tuple(ReluMlp(f"{layer}.mlp.proj_in", f"{layer}.mlp.proj_out") for layer in decoder_layers),
        tied={},
        unquantized=(Site(f"{BACKBONE}.embeddings.position_embeddings", "position_embedding"),),
    )


def _encoder_attention(name: str) -> AttentionSite:
    query, key, value, output = (f"{name}.{layer}" for layer in ("q_proj", "k_proj", "v_proj", "o_proj"))
    return AttentionSite(name, "encoder.attention", query, key, value, output, is_rotary=True)


def _encoder_layers(blocks: tuple[str, ...]) -> Iterator[Site]:
    for block in blocks:
        for layer in ("q_proj", "k_proj", "v_proj"):
            yield Site(f"{block}.attention.{layer}", "encoder.qkv")
        yield Site(f"{block}.attention.o_proj", "encoder.proj")
        yield Site(f"{block}.mlp.fc1", "encoder.lin1")
        yield Site(f"{block}.mlp.fc2", "encoder.lin2")
    for level in range(len(LEVELS)):
        yield Site(f"{NECK}.fpn_layers.{level}.proj1", "neck")
        yield Site(f"{NECK}.fpn_layers.{level}.proj2", "neck")


def _float_layers(mask_tokens: int, iou_depth: int) -> Iterator[Site]:
    yield Site(_PATCHES, "patch_embedding")
    # Transposed convolutions, with a GELU between the two of the finest level.
    for level, layer in ((0, 0), (0, 2), (1, 0)):
        yield Site(f"{NECK}.fpn_layers.{level}.scale_layers.{layer}", UPSCALING_HIDDEN)
    yield from head_layers(mask_tokens, iou_depth)


def _normalized_layers(config: Sam3TrackerConfig, blocks: tuple[str, ...]) -> Iterator[NormalizedLayer]:
    backbone = config.vision_config.backbone_config
    grid = backbone.image_size // backbone.patch_size
    for index, block in enumerate(blocks):
        # Windows that do not divide the grid are padded with zeros after the normalization, which rules out offsets.
        is_padded = index not in backbone.global_attn_indexes and grid % backbone.window_size != 0
        readers = tuple(f"{block}.attention.{layer}" for layer in ("q_proj", "k_proj", "v_proj"))
        yield NormalizedLayer(f"{block}.layer_norm1", readers, shifts=not is_padded)
        yield NormalizedLayer(f"{block}.layer_norm2", (f"{block}.mlp.fc1",))
