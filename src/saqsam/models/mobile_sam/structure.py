"""Module names of MobileSAM: layers and attentions by part, and the encoder's stages."""

from __future__ import annotations

from collections.abc import Iterator

from saqsam.models.mobile_sam.configuration import MobileSamConfig
from saqsam.models.mobile_sam.model import block_names
from saqsam.models.parts import DEPTHWISE, PATCH_EMBEDDING, POINTWISE, RELATIVE_POSITIONS
from saqsam.models.sam.structure import NECK, TRANSFORMER, decoder_float_layers
from saqsam.models.structure import AttentionSite, ModelStructure, NormalizedLayer, ReluMlp, Site
from saqsam.models.two_way import SAM_NAMES, residual_readers, two_way_attentions, two_way_layers


def mobile_sam_structure(config: MobileSamConfig) -> ModelStructure:
    """Return the structure of the models of a configuration.

    A stage ends with its patch merging, which is a block of its own. The blocks after a unit of reconstruction always
    run: the grids and widths of the stages differ, so that none can be skipped.
    """
    decoder = config.mask_decoder_config
    stages = block_names(config.vision_config)
    blocks = tuple(name for stage in stages for name in stage)
    transformer_blocks = [name for stage in stages[1:] for name in stage if ".blocks." in name]
    decoder_layers = tuple(f"{TRANSFORMER}.layers.{index}" for index in range(decoder.num_hidden_layers))
    decoder_attentions = two_way_attentions(TRANSFORMER, decoder_layers, SAM_NAMES)
    layers = (
        *(site for block in blocks for site in _block_layers(block, block in transformer_blocks)),
        *(Site(f"{NECK}.{name}", "neck") for name in ("conv1", "conv2")),
        *two_way_layers(decoder_attentions, SAM_NAMES),
    )
    return ModelStructure(
        layers=layers,
        float_layers=(
            *(Site(f"vision_encoder.patch_embed.{name}", PATCH_EMBEDDING) for name in ("conv1", "conv2")),
            *decoder_float_layers(decoder),
        ),
        attentions=(
            *(_encoder_attention(f"{block}.attn") for block in transformer_blocks),
            *decoder_attentions,
        ),
        residual_readers=residual_readers(layers, SAM_NAMES),
        blocks=blocks,
        stages=tuple(_ranges([len(stage) for stage in stages])),
        skip_targets=tuple(range(1, len(blocks) + 1)),
        neck=NECK,
        decoder=TRANSFORMER,
        decoder_layers=decoder_layers,
        final_attention=decoder_attentions[-1].name,
        position_embedding=None,
        normalized_layers=tuple(_normalized_layers(transformer_blocks)),
        relu_mlps=tuple(ReluMlp(f"{layer}.mlp.lin1", f"{layer}.mlp.lin2") for layer in decoder_layers),
        tied={
            "prompt_encoder.shared_embedding.positional_embedding": "shared_image_embedding.positional_embedding"
        },
        unquantized=tuple(
            site for block in blocks for site in _unquantized(block, block in transformer_blocks)
        ),
    )


def _ranges(sizes: list[int]) -> Iterator[range]:
    """Yield consecutive ranges of the given sizes."""
    start = 0
    for size in sizes:
        yield range(start, start + size)
        start += size


def _encoder_attention(name: str) -> AttentionSite:
    qkv = f"{name}.qkv"
    return AttentionSite(name, "encoder.attention", query=qkv, key=qkv, value=qkv, output=f"{name}.proj")


def _block_layers(block: str, is_transformer: bool) -> Iterator[Site]:
    """Yield the layers of a TinyViT block, or those of an inverted bottleneck or patch merging."""
    if is_transformer:
        yield Site(f"{block}.attn.qkv", "encoder.qkv")
        yield Site(f"{block}.attn.proj", "encoder.proj")
        yield Site(f"{block}.mlp.lin1", "encoder.lin1")
        yield Site(f"{block}.mlp.lin2", "encoder.lin2")
    else:
        yield Site(f"{block}.pointwise_conv1", POINTWISE)
        yield Site(f"{block}.pointwise_conv2", POINTWISE)


def _unquantized(block: str, is_transformer: bool) -> Iterator[Site]:
    """Yield the depthwise convolution of a block and, of a TinyViT block, the biases of its attention."""
    if is_transformer:
        yield Site(f"{block}.attn.attention_biases", RELATIVE_POSITIONS)
        yield Site(f"{block}.local_conv", DEPTHWISE)
    else:
        yield Site(f"{block}.depthwise_conv", DEPTHWISE)


def _normalized_layers(transformer_blocks: list[str]) -> Iterator[NormalizedLayer]:
    for block in transformer_blocks:
        # Windows are padded before the normalization, so that padding passes through it like any other position.
        yield NormalizedLayer(f"{block}.layer_norm1", (f"{block}.attn.qkv",))
        yield NormalizedLayer(f"{block}.layer_norm2", (f"{block}.mlp.lin1",))
    yield NormalizedLayer(f"{NECK}.layer_norm1", (f"{NECK}.conv2",), shifts=False)
