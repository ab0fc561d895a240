"""Module names of SAM 2 in transformers: layers and attentions by part, and the encoder's stages."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from transformers import Sam2Config

from saqsam.models.parts import UPSCALING_HIDDEN, UPSCALING_OUTPUT
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
TRANSFORMER = "mask_decoder.transformer"
SKIPPED_STAGE = 2
"""Resolution stage in which layer skipping leads to the end of the stage: the long one, with all global blocks."""


def sam2_structure(config: Sam2Config) -> ModelStructure:
    """Return the structure of the models of a configuration."""
    backbone, decoder = config.vision_config.backbone_config, config.mask_decoder_config
    starts = stage_starts(config)
    count = sum(backbone.blocks_per_stage)
    blocks = tuple(f"{BACKBONE}.blocks.{index}" for index in range(count))
    decoder_layers = tuple(f"{TRANSFORMER}.layers.{index}" for index in range(decoder.num_hidden_layers))
    decoder_attentions = two_way_attentions(TRANSFORMER, decoder_layers, SAM2_NAMES)
    levels = len(backbone.blocks_per_stage)
    layers = (
        *_encoder_layers(blocks, widening_blocks(config)),
        *(Site(f"{NECK}.convs.{level}", "neck") for level in range(levels)),
        *two_way_layers(decoder_attentions, SAM2_NAMES),
    )
    return ModelStructure(
        layers=layers,
        float_layers=tuple(_float_layers(decoder.num_multimask_outputs + 1, decoder.iou_head_depth)),
        attentions=(*(_encoder_attention(f"{block}.attn") for block in blocks), *decoder_attentions),
        residual_readers=residual_readers(layers, SAM2_NAMES),
        blocks=blocks,
        stages=_units(count, starts, backbone.global_attention_blocks),
        skip_targets=tuple(_skip_target(index, starts, count) for index in range(count)),
        neck=NECK,
        decoder=TRANSFORMER,
        decoder_layers=decoder_layers,
        final_attention=decoder_attentions[-1].name,
        position_embedding=None,
        normalized_layers=tuple(_normalized_layers(config, blocks)),
        relu_mlps=tuple(ReluMlp(f"{layer}.mlp.proj_in", f"{layer}.mlp.proj_out") for layer in decoder_layers),
        tied={},
    )


def stage_starts(config: Sam2Config) -> tuple[int, ...]:
    """Return the index of the first block of each resolution stage."""
    blocks = config.vision_config.backbone_config.blocks_per_stage
    return (0, *accumulate(blocks[:-1]))


def widening_blocks(config: Sam2Config) -> frozenset[int]:
    """Return the indexes of the blocks whose residual is projected to another width."""
    backbone = config.vision_config.backbone_config
    widths = backbone.embed_dim_per_stage
    starts = stage_starts(config)
    return frozenset(starts[stage] for stage in range(1, len(starts)) if widths[stage] != widths[stage - 1])


def _units(count: int, starts: tuple[int, ...], global_blocks: list[int]) -> tuple[range, ...]:
    """Return the units of reconstruction: they end at global blocks and resolution stages.

    Every published model has six: two for the first two resolution stages, three within the third, one for the fourth.
    """
    return ranges_ending_at([*(start - 1 for start in starts[1:]), *global_blocks], count)


def _skip_target(index: int, starts: tuple[int, ...], count: int) -> int:
    """Return the block after a block and its skipped successors, whose widths are the same."""
    ends = (*starts[1:], count)
    stage = next(number for number, end in enumerate(ends) if index < end)
    return ends[stage] if stage == SKIPPED_STAGE else index + 1


def _encoder_attention(name: str) -> AttentionSite:
    qkv = f"{name}.qkv"
    return AttentionSite(name, "encoder.attention", query=qkv, key=qkv, value=qkv, output=f"{name}.proj")


def _encoder_layers(blocks: tuple[str, ...], widening: frozenset[int]) -> Iterator[Site]:
    for index, block in enumerate(blocks):
        if index in widening:
            yield Site(f"{block}.proj", "encoder.proj")
        yield Site(f"{block}.attn.qkv", "encoder.qkv")
        yield Site(f"{block}.attn.proj", "encoder.proj")
        yield Site(f"{block}.mlp.proj_in", "encoder.lin1")
        yield Site(f"{block}.mlp.proj_out", "encoder.lin2")


def _float_layers(mask_tokens: int, iou_depth: int) -> Iterator[Site]:
    yield Site(f"{BACKBONE}.patch_embed.projection", "patch_embedding")
    yield from head_layers(mask_tokens, iou_depth)


def head_layers(mask_tokens: int, iou_depth: int) -> Iterator[Site]:
    """Yield the layers of the mask decoder that the papers keep in floating point."""
    yield Site("mask_decoder.upscale_conv1", UPSCALING_HIDDEN)
    yield Site("mask_decoder.upscale_conv2", UPSCALING_OUTPUT)
    for i in range(mask_tokens):
        for layer in ("proj_in", "layers.0", "proj_out"):
            yield Site(f"mask_decoder.output_hypernetworks_mlps.{i}.{layer}", "hypernetworks")
    hidden = [f"layers.{i}" for i in range(iou_depth - 2)]
    for layer in ("proj_in", *hidden, "proj_out"):
        yield Site(f"mask_decoder.iou_prediction_head.{layer}", "iou_head")
    for layer in ("proj_in", "layers.0", "proj_out"):
        yield Site(f"mask_decoder.pred_obj_score_head.{layer}", "iou_head")


def _normalized_layers(config: Sam2Config, blocks: tuple[str, ...]) -> Iterator[NormalizedLayer]:
    backbone = config.vision_config.backbone_config
    starts, widening = stage_starts(config), widening_blocks(config)
    grid = config.vision_config.backbone_feature_sizes[0][0]
    for index, block in enumerate(blocks):
        stage = max(number for number, start in enumerate(starts) if index >= start)
        # The first block of a stage still has the grid and the windows of the stage before it.
        own = stage - 1 if stage and index == starts[stage] else stage
        window = 0 if index in backbone.global_attention_blocks else backbone.window_size_per_stage[own]
        # Windows that do not divide the grid are padded with zeros after the normalization, which rules out offsets.
        is_padded = bool(window) and (grid >> own) % window != 0
        readers = (f"{block}.proj",) if index in widening else ()
        yield NormalizedLayer(f"{block}.layer_norm1", (f"{block}.attn.qkv", *readers), shifts=not is_padded)
        yield NormalizedLayer(f"{block}.layer_norm2", (f"{block}.mlp.proj_in",))
